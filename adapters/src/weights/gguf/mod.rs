//! Reads a base model out of one GGUF file, under the names and in the layout of the HF format.

pub(crate) mod adapter;
mod architecture;
mod architectures;
pub(super) mod blocks;
mod config;
mod describe;
pub(crate) mod export;
mod family_config;
mod file_type;
pub(crate) mod head_writer;
mod header;
mod mapped_rows;
mod metadata;
pub(crate) mod quantize;
mod reader;
mod rope_factors;
#[cfg(test)]
pub(super) mod test_writer;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use kernels::QuantisedMatrix;
use serde_json::Value;

use self::{
    architecture::{Architecture, Reading, is_rope_table},
    header::{Header, TensorInfo},
    mapped_rows::MappedRows,
    metadata::Metadata,
};
pub use self::{
    describe::{GgufDescription, describe_gguf},
    export::GgufFacts,
    file_type::GgufFileType,
};

use super::{
    StoredDtype, TensorEntry, WeightSource, WeightsError,
    decode::{RowOrder, StoredRows},
    mapped_file::MappedFile,
};

/// An opened GGUF model.
pub(super) struct GgufModel {
    file: Arc<MappedFile>,
    header: Header,
    config: Value,
    entries: BTreeMap<String, TensorEntry>,
    /// Where each HF tensor lies, and how it is read.
    places: BTreeMap<String, (Range<usize>, Reading)>,
}

impl GgufModel {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = header::read(&file)?;
        let architecture = architecture_of(&header)?;
        let sizes = config::sizes(&header, architecture)?;
        let (entries, places) = name_tensors(path, &header, architecture, sizes)?;
        let tables = header
            .tensors
            .iter()
            .filter(|(name, _)| is_rope_table(name))
            .map(|(name, info)| (name.clone(), rows(&file, info).decode(0..1)))
            .collect();
        let config = config::config(&header, architecture, &tables)?;
        Ok(Self { file, header, config, entries, places })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    fn architecture(&self) -> Result<&'static Architecture, WeightsError> {
        architecture_of(&self.header)
    }

    fn sizes(&self) -> Result<config::Sizes, WeightsError> {
        config::sizes(&self.header, self.architecture()?)
    }

    /// The divisors of the rotary frequencies that the file stores, by the names of their tensors.
    fn rope_tables(&self) -> BTreeMap<String, Vec<f32>> {
        let tables = self.header.tensors.iter().filter(|(name, _)| is_rope_table(name));
        tables.map(|(name, info)| (name.clone(), rows(&self.file, info).decode(0..1))).collect()
    }

    /// The bytes of a tensor as they lie in the file, by its HF name.
    pub(super) fn stored_blocks(&self, name: &str) -> Option<(StoredDtype, &[u8])> {
        let (entry, rows, _) = self.stored(name).ok()?;
        Some((entry.dtype, rows.bytes))
    }

    /// A tokenizer file made from the metadata; `None` where there is no such file.
    pub(super) fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        let context_length = self.config.get("max_position_embeddings").and_then(Value::as_u64);
        tokenizer::file(&self.header.metadata, name, context_length.unwrap_or_default())
    }

    /// The head of a model card, made from what the metadata says of the licence.
    pub(super) fn card(&self) -> Option<Vec<u8>> {
        let metadata = &self.header.metadata;
        // Text that is no text says nothing about a licence, and is no reason not to train.
        let value = |key: &str| metadata.string(key).ok().flatten().map(str::trim);
        let keys = [
            ("license", "general.license"),
            ("license_name", "general.license.name"),
            ("license_link", "general.license.link"),
        ];
        let line = |(name, key): (&str, &str)| {
            let value = value(key).filter(|value| !value.is_empty())?;
            // A line break would let the file write other keys.
            (!value.contains(char::is_control)).then(|| format!("{name}: {value}\n"))
        };
        let lines: String = keys.into_iter().filter_map(line).collect();
        (!lines.is_empty()).then(|| format!("---\n{lines}---\n").into_bytes())
    }

    /// Names of the files that [`Self::side_file`] makes.
    pub(super) fn side_file_names(&self) -> &'static [&'static str] {
        if tokenizer::exists(&self.header.metadata) { tokenizer::FILES } else { &[] }
    }

    /// A tensor's rows as they lie in the file, and how they are read.
    fn stored(&self, name: &str) -> Result<(&TensorEntry, StoredRows<'_>, Reading), WeightsError> {
        let found = self.entries.get(name).zip(self.places.get(name));
        let (entry, (range, reading)) =
            found.ok_or_else(|| WeightsError::no_such_tensor(self.path(), name))?;
        let bytes = self.file.bytes().get(range.clone()).unwrap_or_default();
        let (order, columns) = match *reading {
            Reading::Rows(order) => (order, entry.columns()),
            Reading::MinusOne => (RowOrder::AsStored, entry.columns()),
            Reading::Transposed => (RowOrder::AsStored, entry.rows()),
        };
        Ok((entry, StoredRows { bytes, dtype: entry.dtype, columns, order }, *reading))
    }

    fn read(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let (entry, rows, reading) = self.stored(name)?;
        entry.check_rows(name, &wanted)?;
        Ok(match reading {
            Reading::Rows(_) => rows.decode(wanted),
            Reading::MinusOne => rows.decode(wanted).into_iter().map(|w| w - 1.0).collect(),
            Reading::Transposed => {
                let (width, values) = (entry.rows(), rows.decode(0..entry.columns()));
                let column = |column| values.iter().skip(column).step_by(width).copied();
                wanted.flat_map(column).collect()
            }
        })
    }
}

/// A tensor as one row, in the file's order.
fn rows<'a>(file: &'a MappedFile, info: &TensorInfo) -> StoredRows<'a> {
    let bytes = file.bytes().get(info.range.clone()).unwrap_or_default();
    let columns = info.shape.iter().product();
    StoredRows { bytes, dtype: info.dtype, columns, order: RowOrder::AsStored }
}

fn architecture_of(header: &Header) -> Result<&'static Architecture, WeightsError> {
    let metadata = &header.metadata;
    let kind = metadata.string("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(metadata.unsupported("GGUF file of type", kind, "model"));
    }
    let parts = metadata.u64("split.count")?.unwrap_or(1);
    if parts > 1 {
        return Err(metadata.unsupported(
            "GGUF split into",
            format!("{parts} files"),
            "one file; join them with `llama-gguf-split --merge`",
        ));
    }
    let name = metadata
        .string("general.architecture")?
        .ok_or_else(|| metadata.damaged("general.architecture", "missing"))?;
    Architecture::find(name)
        .ok_or_else(|| metadata.unsupported("GGUF architecture", name, Architecture::all_names()))
}

type Named = (BTreeMap<String, TensorEntry>, BTreeMap<String, (Range<usize>, Reading)>);

fn name_tensors(
    path: &Path,
    header: &Header,
    architecture: &'static Architecture,
    sizes: config::Sizes,
) -> Result<Named, WeightsError> {
    let mut entries = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, info) in header.tensors.iter().filter(|(name, _)| !is_rope_table(name)) {
        let Some(hf_name) = architecture.hf_name(name) else {
            unknown.push(name.as_str());
            continue;
        };
        let place = || format!("tensor `{name}`");
        if info.shape.len() == 1 && info.dtype.is_quantised() {
            return Err(WeightsError::damaged(path, place(), "a vector in quantised blocks"));
        }
        let reading = architecture.reading(name, sizes);
        let rows = info.shape.first().copied().unwrap_or(1);
        if let Some(problem) = unfit(reading, rows, info.shape.len()) {
            return Err(WeightsError::damaged(path, place(), problem));
        }
        let mut shape = info.shape.clone();
        if reading == Reading::Transposed {
            shape.reverse();
        }
        places.insert(hf_name.clone(), (info.range.clone(), reading));
        entries.insert(hf_name, TensorEntry { shape, dtype: info.dtype });
    }
    if unknown.is_empty() {
        return Ok((entries, places));
    }
    let shown = unknown.iter().take(8).copied().collect::<Vec<_>>().join(", ");
    let more = unknown.len().saturating_sub(8);
    let found = if more > 0 { format!("{shown} and {more} more") } else { shown };
    Err(WeightsError::Unsupported {
        path: path.to_owned(),
        what: format!("tensor of architecture `{}`", architecture.name),
        found,
        known: "the tensors of its HF counterpart".to_owned(),
    })
}

/// Why a tensor cannot be brought into the HF layout, if it cannot.
fn unfit(reading: Reading, rows: usize, axes: usize) -> Option<String> {
    match reading {
        Reading::Rows(RowOrder::Interleaved { head_dim }) if !rows.is_multiple_of(head_dim) => {
            Some(format!("{rows} rows are not whole heads of {head_dim}"))
        }
        Reading::Rows(RowOrder::ByHead { heads, head_dim })
            if heads.checked_mul(3).and_then(|n| n.checked_mul(head_dim)) != Some(rows) =>
        {
            Some(format!("{rows} rows are not query, key and value of {heads} heads of {head_dim}"))
        }
        Reading::Transposed if axes != 2 => Some(format!("{axes} axes in place of 2")),
        _ => None,
    }
}

impl WeightSource for GgufModel {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let rows = self.entries.get(name).map_or(0, TensorEntry::rows);
        self.read(name, 0..rows)
    }

    fn read_rows_f32(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        self.read(name, wanted)
    }

    fn raw(&self, name: &str) -> Option<&[u8]> {
        let (entry, rows, reading) = self.stored(name).ok()?;
        let plain = !entry.dtype.is_quantised() && reading == Reading::Rows(RowOrder::AsStored);
        plain.then_some(rows.bytes)
    }

    fn quantised(&self, name: &str) -> Option<Arc<dyn QuantisedMatrix>> {
        let (entry, rows, reading) = self.stored(name).ok()?;
        let Reading::Rows(order) = reading else { return None };
        let (range, _) = self.places.get(name)?.clone();
        let dims = [entry.rows(), rows.columns];
        let file = Arc::clone(&self.file);
        let dtype = entry.dtype;
        dtype.is_quantised().then(|| Arc::new(MappedRows { file, range, dims, dtype, order }) as _)
    }

    fn release(&self, name: &str) {
        if let Some((range, _)) = self.places.get(name) {
            self.file.release(range);
        }
    }
}
