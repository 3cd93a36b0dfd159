//! Writes a merged model as one GGUF file: a block of rows at a time is read in f32, updated, put
//! in the file's order and encoded.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::Path;

use super::delta::BLOCK_ELEMENTS;
use super::error::MergeError;
use super::plan::{MergePlan, PlannedTensor};
use super::summary::{MergeSummary, MergedTensor, MergedUpdate};
use super::write::{Block, RELEASE_BYTES, refuse_unchanged, rows_of_base, summary};
use crate::weights::gguf::export::{Content, GgufLayout, GgufTensor};
use crate::weights::gguf::head_writer::padding;
use crate::weights::gguf::placement::{Reading, Together};
use crate::weights::gguf::quantize::{EncodingError, encode};
use crate::weights::{GgufFacts, GgufFileType};

/// How much each input of linear layers matters: means of squares over some texts.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Importance {
    /// By module, one number for each input.
    pub columns: BTreeMap<String, Vec<f32>>,
    /// Tokens that were looked at.
    pub tokens: u64,
}

/// A GGUF file that is known to fit, not yet written.
pub struct GgufPlan<'a> {
    plan: &'a MergePlan<'a>,
    file_type: GgufFileType,
    layout: GgufLayout,
    importance: Option<&'a Importance>,
    /// Places in the plan's tensors by name: a model of many experts has tens of thousands.
    by_name: HashMap<&'a str, usize>,
}

impl<'a> GgufPlan<'a> {
    /// Lays out the merged model as a GGUF file. Refuses what the format cannot express.
    pub fn new(
        plan: &'a MergePlan<'a>,
        file_type: GgufFileType,
        facts: &GgufFacts,
    ) -> Result<Self, MergeError> {
        let base = plan.request.base;
        let tensors = plan.tensors.iter().map(|tensor| (tensor.name, tensor.entry));
        let layout = GgufLayout::plan(base, tensors, file_type, facts)?;
        let names = plan.tensors.iter().enumerate();
        let by_name = names.map(|(place, tensor)| (tensor.name, place)).collect();
        Ok(Self { plan, file_type, layout, importance: None, by_name })
    }

    /// Errors in inputs that matter more weigh more.
    #[must_use]
    pub fn with_importance(mut self, importance: Option<&'a Importance>) -> Self {
        self.importance = importance;
        self
    }

    /// The weights of a stored row's columns.
    fn importance_of(&self, tensor: &str, columns: usize) -> Option<&'a [f32]> {
        let module = tensor.strip_suffix(".weight")?;
        let weights = self.importance?.columns.get(module)?;
        (weights.len() == columns).then_some(weights.as_slice())
    }

    /// Bytes of all tensors that will be written.
    pub fn total_bytes(&self) -> u64 {
        self.layout.data_bytes()
    }

    /// Writes the file. `progress` is told the bytes of tensors written and of all.
    ///
    /// What is written when an error comes stays, so `path` must not be in the final folder.
    pub fn write(
        &self,
        path: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<MergeSummary, MergeError> {
        let file = File::create(path).map_err(MergeError::io("create", path))?;
        let total_bytes = self.total_bytes();
        let mut writer = Writer { gguf: self, file, path, progress, done_bytes: 0, total_bytes };
        writer.put(&self.layout.head)?;
        let mut tensors = Vec::with_capacity(self.layout.tensors.len());
        for tensor in &self.layout.tensors {
            tensors.extend(writer.tensor(tensor)?);
        }
        refuse_unchanged(self.plan, &tensors)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut summary = summary(self.plan, tensors, vec![name]);
        summary.dtype = self.file_type.name();
        summary.total_bytes = total_bytes;
        summary.left_out.extend(self.layout.left_out.iter().cloned());
        Ok(summary)
    }
}

struct Writer<'a> {
    gguf: &'a GgufPlan<'a>,
    file: File,
    path: &'a Path,
    progress: &'a mut dyn FnMut(u64, u64),
    done_bytes: u64,
    total_bytes: u64,
}

impl Writer<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        self.file.write_all(bytes).map_err(MergeError::io("write", self.path))
    }

    fn put_data(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        self.put(bytes)?;
        self.done_bytes += bytes.len() as u64;
        (self.progress)(self.done_bytes, self.total_bytes);
        Ok(())
    }

    fn tensor(&mut self, tensor: &GgufTensor) -> Result<Vec<MergedTensor>, MergeError> {
        let merged = match &tensor.content {
            Content::Values(values) => {
                let mut bytes = Vec::new();
                encode(tensor.dtype, values, None, &mut bytes)
                    .map_err(|place| not_finite(tensor, values, 0, place))?;
                self.put_data(&bytes)?;
                vec![merged(&tensor.name, tensor, None, EncodingError::default())]
            }
            Content::Base { hf_names, reading } => {
                let pieces = hf_names.len().max(1) as u64;
                let bytes = tensor.bytes() / pieces;
                let piece = |name: &String| self.base_tensor(tensor, name, *reading, bytes);
                hf_names.iter().map(piece).collect::<Result<_, _>>()?
            }
        };
        self.put(&vec![0; padding(tensor.bytes())])?;
        Ok(merged)
    }

    fn base_tensor(
        &mut self,
        tensor: &GgufTensor,
        hf_name: &str,
        reading: Reading,
        bytes: u64,
    ) -> Result<MergedTensor, MergeError> {
        let base = self.gguf.plan.request.base;
        let planned = self.gguf.by_name.get(hf_name);
        let planned = planned.and_then(|&place| self.gguf.plan.tensors.get(place));
        let Some(planned) = planned else {
            let reason = "it has no place in the merge".to_owned();
            return Err(MergeError::Unreadable { tensor: hf_name.to_owned(), reason });
        };
        // Blocks that are in the wanted type already are not decoded and encoded again.
        let stored = base.gguf_blocks(hf_name, reading).filter(|(dtype, found)| {
            let is_whole = found.len() as u64 == bytes;
            !planned.is_updated() && *dtype == tensor.dtype && is_whole
        });
        let outcome = match stored {
            Some((_, bytes)) => {
                for block in bytes.chunks(RELEASE_BYTES) {
                    self.put_data(block)?;
                    base.weights().release(hf_name);
                }
                merged(hf_name, tensor, None, EncodingError::default())
            }
            None => self.convert(tensor, planned, reading)?,
        };
        base.weights().release(hf_name);
        Ok(outcome)
    }

    fn convert(
        &mut self,
        tensor: &GgufTensor,
        planned: &PlannedTensor,
        reading: Reading,
    ) -> Result<MergedTensor, MergeError> {
        let source = self.gguf.plan.request.base.weights();
        let columns = planned.entry.columns().max(1);
        let rows_of_block = rows_of_block(planned.entry.rows(), columns, reading);
        let importance = match reading {
            // Stored the other way round: a row's columns are no inputs.
            Reading::LatentKeys(_) => None,
            _ => {
                let stored_columns = tensor.shape.last().copied().unwrap_or_default();
                self.gguf.importance_of(planned.name, stored_columns)
            }
        };
        let mut block = Block::default();
        let mut bytes = Vec::new();
        let mut error = EncodingError::default();
        for start in (0..planned.entry.rows()).step_by(rows_of_block) {
            let end = planned.entry.rows().min(start + rows_of_block);
            block.values = rows_of_base(self.gguf.plan, planned, start, end)?;
            if planned.is_updated() {
                let before = block.values.clone();
                block.update(planned, start);
                let pairs = before.iter().zip(&block.values);
                block.changed_elements +=
                    pairs.filter(|(before, after)| before != after).count() as u64;
            }
            let values = reading.to_stored(std::mem::take(&mut block.values), columns);
            error.add(
                encode(tensor.dtype, &values, importance, &mut bytes)
                    .map_err(|place| not_finite(tensor, &values, start * columns, place))?,
            );
            block.values = values;
            self.put_data(&bytes)?;
            if block.releases_after(planned.entry.dtype) {
                source.release(planned.name);
            }
        }
        let update = planned.is_updated().then(|| block.report(planned));
        Ok(merged(planned.name, tensor, update, error))
    }
}

fn merged(
    name: &str,
    tensor: &GgufTensor,
    update: Option<MergedUpdate>,
    error: EncodingError,
) -> MergedTensor {
    MergedTensor {
        name: name.to_owned(),
        shape: tensor.shape.clone(),
        dtype: tensor.dtype.name(),
        changed: update.as_ref().is_some_and(|update| update.changed_elements > 0),
        update,
        relative_rounding_error: tensor.dtype.is_quantised().then(|| error.relative()),
    }
}

fn not_finite(tensor: &GgufTensor, values: &[f32], start: usize, place: usize) -> MergeError {
    MergeError::NotFinite {
        tensor: tensor.name.clone(),
        dtype: tensor.dtype.name(),
        value: values.get(place).copied().unwrap_or(f32::NAN),
        element: (start + place) as u64,
    }
}

/// Rows that are read together.
fn rows_of_block(rows: usize, columns: usize, reading: Reading) -> usize {
    let usual = (BLOCK_ELEMENTS / columns).max(1);
    match reading.rows_together() {
        Together::Rows(count) => (usual / count.max(1)).max(1) * count.max(1),
        Together::All => rows.max(1),
    }
}
