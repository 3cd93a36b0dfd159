//! Reads a base model out of one GGUF file, under the names and in the layout of the HF format.

mod architecture;
pub(super) mod blocks;
mod config;
mod header;
mod metadata;
mod reader;
mod rope_factors;
#[cfg(test)]
pub(super) mod test_writer;
#[cfg(test)]
mod tests;
mod tokenizer;

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use serde_json::Value;

use self::{
    architecture::{Architecture, ROPE_FACTORS},
    header::{Header, TensorInfo},
};
use super::{
    TensorEntry, WeightSource, WeightsError,
    decode::{RowOrder, StoredRows},
    mapped_file::MappedFile,
};

/// An opened GGUF model.
pub(super) struct GgufModel {
    file: Arc<MappedFile>,
    header: Header,
    config: Value,
    entries: BTreeMap<String, TensorEntry>,
    /// Where each HF tensor lies.
    places: BTreeMap<String, (Range<usize>, RowOrder)>,
}

impl GgufModel {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = header::read(&file)?;
        let architecture = architecture_of(&header)?;
        let sizes = config::sizes(&header.metadata, architecture)?;
        let (entries, places) = name_tensors(path, &header, architecture, sizes)?;
        let factors = header.tensors.get(ROPE_FACTORS).map(|info| rows(&file, info).decode(0..1));
        let config = config::config(&header, architecture, factors.as_deref())?;
        Ok(Self { file, header, config, entries, places })
    }

    pub(super) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// A tokenizer file made from the metadata; `None` where there is no such file.
    pub(super) fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        let context_length = self.config.get("max_position_embeddings").and_then(Value::as_u64);
        tokenizer::file(&self.header.metadata, name, context_length.unwrap_or_default())
    }

    /// Names of the files that [`Self::side_file`] makes.
    pub(super) fn side_file_names(&self) -> &'static [&'static str] {
        if tokenizer::exists(&self.header.metadata) { tokenizer::FILES } else { &[] }
    }

    fn stored(&self, name: &str) -> Result<(&TensorEntry, StoredRows<'_>), WeightsError> {
        let found = self.entries.get(name).zip(self.places.get(name));
        let (entry, (range, order)) =
            found.ok_or_else(|| WeightsError::no_such_tensor(self.path(), name))?;
        let bytes = self.file.bytes().get(range.clone()).unwrap_or_default();
        let rows =
            StoredRows { bytes, dtype: entry.dtype, columns: entry.columns(), order: *order };
        Ok((entry, rows))
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

type Named = (BTreeMap<String, TensorEntry>, BTreeMap<String, (Range<usize>, RowOrder)>);

fn name_tensors(
    path: &Path,
    header: &Header,
    architecture: &'static Architecture,
    sizes: config::Sizes,
) -> Result<Named, WeightsError> {
    let head_dim = usize::try_from(sizes.head_dim).unwrap_or(usize::MAX);
    let mut entries = BTreeMap::new();
    let mut places = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, info) in header.tensors.iter().filter(|(name, _)| *name != ROPE_FACTORS) {
        let Some(hf_name) = architecture.hf_name(name) else {
            unknown.push(name.as_str());
            continue;
        };
        let place = || format!("tensor `{name}`");
        if info.shape.len() == 1 && info.dtype.is_quantised() {
            return Err(WeightsError::damaged(path, place(), "a vector in quantised blocks"));
        }
        let order = architecture.row_order(name, head_dim);
        let rows = info.shape.first().copied().unwrap_or(1);
        if order != RowOrder::AsStored && !rows.is_multiple_of(head_dim) {
            let problem = format!("{rows} rows are not whole heads of {head_dim}");
            return Err(WeightsError::damaged(path, place(), problem));
        }
        places.insert(hf_name.clone(), (info.range.clone(), order));
        entries.insert(hf_name, TensorEntry { shape: info.shape.clone(), dtype: info.dtype });
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

impl WeightSource for GgufModel {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let (entry, rows) = self.stored(name)?;
        Ok(rows.decode(0..entry.rows()))
    }

    fn read_rows_f32(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let (entry, rows) = self.stored(name)?;
        entry.check_rows(name, &wanted)?;
        Ok(rows.decode(wanted))
    }

    fn raw(&self, name: &str) -> Option<&[u8]> {
        let (entry, rows) = self.stored(name).ok()?;
        let plain = !entry.dtype.is_quantised() && rows.order == RowOrder::AsStored;
        plain.then_some(rows.bytes)
    }

    fn release(&self, name: &str) {
        if let Some((range, _)) = self.places.get(name) {
            self.file.release(range);
        }
    }
}
