//! Writes a merged model as a stream: one block of rows is in memory at a time.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use super::MergeError;
use super::delta::{BLOCK_ELEMENTS, Rescale, apply, square_sum};
use super::plan::{MergePlan, PlannedTensor, PlannedUpdate, is_inside, shard_name};
use super::round::differing;
use super::summary::{MergeSummary, MergedTensor, MergedUpdate};
use super::texts::{config_text, index_text};
use crate::safetensors_file::header;
use crate::weights::StoredDtype;

/// Bytes that are copied before the source's pages are given back.
pub(super) const RELEASE_BYTES: usize = 32 << 20;
const INDEX_FILE: &str = "model.safetensors.index.json";

/// Writes weights, index, `config.json` and the base's side files into `dir`, which exists.
///
/// `progress` is told the bytes of weights written and of all. What is written when an error
/// comes stays in `dir`, which therefore must not be the final folder.
pub fn write_merged(
    plan: &MergePlan,
    dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<MergeSummary, MergeError> {
    let mut writer = Writer { plan, progress, done_bytes: 0, total_bytes: plan.total_bytes() };
    let mut tensors = Vec::with_capacity(plan.tensors.len());
    let mut files = Vec::new();
    for (place, shard) in plan.shards.iter().enumerate() {
        let name = shard_name(place, plan.shards.len());
        let of_shard = plan.tensors.get(shard.clone()).unwrap_or_default();
        tensors.extend(writer.shard(&dir.join(&name), of_shard)?);
        files.push(name);
    }
    refuse_unchanged(plan, &tensors)?;
    files.extend(write_texts(plan, dir)?);
    Ok(summary(plan, tensors, files))
}

fn write_texts(plan: &MergePlan, dir: &Path) -> Result<Vec<String>, MergeError> {
    let base = plan.request.base;
    let config = config_text(base.config(), plan.dtype, base.location())?;
    let mut files = vec![("config.json".to_owned(), config.into_bytes())];
    if plan.shards.len() > 1 {
        files.push((INDEX_FILE.to_owned(), index_text(plan).into_bytes()));
    }
    for name in base.side_files()? {
        if !is_inside(&name) {
            return Err(MergeError::SideFile { name });
        }
        if let Some(bytes) = base.side_file(&name)? {
            files.push((name, bytes));
        }
    }
    let mut names = Vec::with_capacity(files.len());
    for (name, bytes) in files {
        let path = dir.join(&name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(MergeError::io("create", folder))?;
        }
        fs::write(&path, bytes).map_err(MergeError::io("write", &path))?;
        names.push(name);
    }
    Ok(names)
}

/// Below this share of a weight's norm a change is what magnitudes of DoRA lost in rounding.
const ROUNDING: f64 = 1e-6;

/// That DoRA or a whole tensor changes nothing shows only once it is measured.
pub(super) fn refuse_unchanged(
    plan: &MergePlan,
    tensors: &[MergedTensor],
) -> Result<(), MergeError> {
    let (config, weights) = plan.request.adapter;
    let mut updates = tensors.iter().filter_map(|tensor| tensor.update.as_ref());
    let is_same = |update: &MergedUpdate| update.relative_delta.unwrap_or(0.0) <= ROUNDING;
    let is_measured = config.use_dora || !weights.whole.is_empty();
    match weights.modules.keys().chain(weights.whole.keys()).next() {
        Some(example) if is_measured && updates.all(is_same) => {
            let modules = weights.modules.len() + weights.whole.len();
            Err(MergeError::Unchanged { modules, example: example.clone() })
        }
        _ => Ok(()),
    }
}

pub(super) fn summary(
    plan: &MergePlan,
    tensors: Vec<MergedTensor>,
    files: Vec<String>,
) -> MergeSummary {
    let updated = || tensors.iter().filter(|tensor| tensor.update.is_some());
    let zero: BTreeSet<String> =
        plan.zero_deltas.iter().map(|module| format!("{module}.weight")).collect();
    let has_delta = |tensor: &MergedTensor| {
        !zero.contains(&tensor.name) && tensor.update.as_ref().is_some_and(|u| u.delta_norm > 0.0)
    };
    let is_lost = |tensor: &&MergedTensor| !tensor.changed && has_delta(tensor);
    MergeSummary {
        dtype: plan.dtype.config_name(),
        adapter_tensors: plan.request.adapter.1.tensors(),
        adapter_tensors_consumed: plan.said_twice
            + plan.tensors.iter().map(PlannedTensor::adapter_tensors).sum::<usize>(),
        zero_deltas: plan.zero_deltas.clone(),
        lost_to_rounding: updated().filter(is_lost).map(|tensor| tensor.name.clone()).collect(),
        left_out: plan.left_out.clone(),
        total_bytes: plan.total_bytes(),
        files,
        tensors,
    }
}

struct Writer<'a, 'p> {
    plan: &'a MergePlan<'a>,
    progress: &'p mut dyn FnMut(u64, u64),
    done_bytes: u64,
    total_bytes: u64,
}

/// A weight file being written.
struct Shard {
    file: File,
    path: PathBuf,
}

impl Shard {
    fn put(&mut self, bytes: &[u8]) -> Result<(), MergeError> {
        self.file.write_all(bytes).map_err(MergeError::io("write", &self.path))
    }
}

impl Writer<'_, '_> {
    fn shard(
        &mut self,
        path: &Path,
        tensors: &[PlannedTensor],
    ) -> Result<Vec<MergedTensor>, MergeError> {
        let file = File::create(path).map_err(MergeError::io("create", path))?;
        let mut shard = Shard { file, path: path.to_owned() };
        let specs: Vec<_> = tensors.iter().filter_map(PlannedTensor::spec).collect();
        shard.put(&header(&specs))?;
        tensors.iter().map(|tensor| self.tensor(&mut shard, tensor)).collect()
    }

    fn tensor(
        &mut self,
        shard: &mut Shard,
        tensor: &PlannedTensor,
    ) -> Result<MergedTensor, MergeError> {
        let source = self.plan.request.base.weights();
        let is_kept = tensor.update.is_none() && tensor.dtype.stored() == tensor.entry.dtype;
        let raw = source.raw(tensor.name).filter(|_| is_kept);
        let update = match raw {
            Some(bytes) => self.copy(shard, tensor, bytes).map(|()| None),
            None => self.convert(shard, tensor),
        }?;
        source.release(tensor.name);
        Ok(MergedTensor {
            name: tensor.name.to_owned(),
            shape: tensor.entry.shape.clone(),
            dtype: tensor.dtype.name(),
            changed: update.as_ref().is_some_and(|update| update.changed_elements > 0),
            update,
            relative_rounding_error: None,
        })
    }

    /// The stored bytes as they are.
    fn copy(
        &mut self,
        shard: &mut Shard,
        tensor: &PlannedTensor,
        bytes: &[u8],
    ) -> Result<(), MergeError> {
        if bytes.len() as u64 != tensor.bytes() {
            let reason = format!("{} bytes for {} of data", bytes.len(), tensor.bytes());
            return Err(MergeError::Unreadable { tensor: tensor.name.to_owned(), reason });
        }
        for block in bytes.chunks(RELEASE_BYTES) {
            shard.put(block)?;
            self.plan.request.base.weights().release(tensor.name);
            self.advance(block.len());
        }
        Ok(())
    }

    /// Rows in f32, updated where the adapter has a module for them, and rounded once.
    fn convert(
        &mut self,
        shard: &mut Shard,
        tensor: &PlannedTensor,
    ) -> Result<Option<MergedUpdate>, MergeError> {
        let source = self.plan.request.base.weights();
        let columns = tensor.entry.columns().max(1);
        let rows_of_block = (BLOCK_ELEMENTS / columns).max(1);
        let mut block = Block::default();
        for start in (0..tensor.entry.rows()).step_by(rows_of_block) {
            let end = tensor.entry.rows().min(start + rows_of_block);
            block.values = rows_of_base(self.plan, tensor, start, end)?;
            block.merge(tensor, start, columns)?;
            shard.put(&block.bytes)?;
            self.advance(block.bytes.len());
            if block.releases_after(tensor.entry.dtype) {
                source.release(tensor.name);
            }
        }
        Ok(tensor.is_updated().then(|| block.report(tensor)))
    }

    fn advance(&mut self, bytes: usize) {
        self.done_bytes += bytes as u64;
        (self.progress)(self.done_bytes, self.total_bytes);
    }
}

/// Rows as the base had them before any of the adapter's tensors.
pub(super) fn rows_of_base(
    plan: &MergePlan,
    tensor: &PlannedTensor,
    start: usize,
    end: usize,
) -> Result<Vec<f32>, MergeError> {
    let base = plan.request.base;
    let values = if tensor.entry.shape.is_empty() {
        base.weights().read_f32(tensor.name)?
    } else {
        base.rows_before(tensor.name, start..end)?
    };
    let wanted = (end - start) * tensor.entry.columns();
    if values.len() == wanted {
        return Ok(values);
    }
    let reason = format!("{} values for {wanted}", values.len());
    Err(MergeError::Unreadable { tensor: tensor.name.to_owned(), reason })
}

/// Whether what an adapter changes is known only once it is done.
fn is_measured(tensor: &PlannedTensor) -> bool {
    let is_sum = |update: &PlannedUpdate| matches!(update.rescale, Rescale::None);
    tensor.whole.is_some() || !tensor.update.as_ref().is_some_and(is_sum)
}

/// The rows at hand, and what has been counted over the tensor's earlier ones.
#[derive(Default)]
pub(super) struct Block {
    pub(super) values: Vec<f32>,
    bytes: Vec<u8>,
    bytes_of_base: Vec<u8>,
    base_square_sum: f64,
    change_square_sum: f64,
    pub(super) changed_elements: u64,
    read_since_release: usize,
}

impl Block {
    /// Updates and rounds `values`, rows from `start` on, into `bytes`.
    fn merge(
        &mut self,
        tensor: &PlannedTensor,
        start: usize,
        columns: usize,
    ) -> Result<(), MergeError> {
        let not_finite = |values: &[f32], place: usize| MergeError::NotFinite {
            tensor: tensor.name.to_owned(),
            dtype: tensor.dtype.name(),
            value: values.get(place).copied().unwrap_or(f32::NAN),
            element: (start * columns + place) as u64,
        };
        if tensor.is_updated() {
            let rounded = tensor.dtype.encode(&self.values, &mut self.bytes_of_base);
            rounded.map_err(|place| not_finite(&self.values, place))?;
            self.update(tensor, start);
        }
        let rounded = tensor.dtype.encode(&self.values, &mut self.bytes);
        rounded.map_err(|place| not_finite(&self.values, place))?;
        if tensor.is_updated() {
            let width = tensor.dtype.bytes();
            self.changed_elements += differing(&self.bytes_of_base, &self.bytes, width);
        }
        Ok(())
    }

    /// Whether enough of the source was read since its pages were last given back.
    pub(super) fn releases_after(&mut self, stored: StoredDtype) -> bool {
        let blocks = self.values.len() / stored.block_elements().max(1);
        self.read_since_release += blocks * stored.block_bytes();
        if self.read_since_release < RELEASE_BYTES {
            return false;
        }
        self.read_since_release = 0;
        true
    }

    /// Updates `values`, rows of the base from `start` on, and adds them to what is known of norms.
    pub(super) fn update(&mut self, tensor: &PlannedTensor, start: usize) {
        self.base_square_sum += square_sum(&self.values);
        let before = is_measured(tensor).then(|| self.values.clone());
        if let Some(whole) = tensor.whole {
            let first = start * whole.columns();
            let rows = whole.values.iter().skip(first);
            self.values.iter_mut().zip(rows).for_each(|(value, new)| *value = *new);
        }
        if let Some(update) = &tensor.update {
            apply(&mut self.values, start, update);
        }
        if let Some(mut before) = before {
            before.iter_mut().zip(&self.values).for_each(|(before, after)| *before -= after);
            self.change_square_sum += square_sum(&before);
        }
    }

    pub(super) fn report(&self, tensor: &PlannedTensor) -> MergedUpdate {
        let base_norm = self.base_square_sum.sqrt();
        let delta_norm = match &tensor.update {
            Some(update) if !is_measured(tensor) => update.delta_norm,
            _ => self.change_square_sum.sqrt(),
        };
        MergedUpdate {
            rank: tensor.update.as_ref().map(|update| update.factors.rank),
            scale: tensor.update.as_ref().map(|update| update.scale),
            delta_norm,
            relative_delta: (base_norm > 0.0).then(|| delta_norm / base_norm),
            changed_elements: self.changed_elements,
        }
    }
}
