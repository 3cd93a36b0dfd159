//! An opened GGUF model: its tensors under HF names, and how each is read.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use kernels::QuantisedMatrix;
use serde_json::Value;

use super::{
    architecture::{Architecture, is_rope_table},
    architecture_of,
    config::{self, Sizes},
    experts::{EXPANSION_IN_ONE, LatentForm},
    header::{self, Header},
    mapped_rows::MappedRows,
    metadata::Metadata,
    placement::Reading,
    rows,
    tensors::{Piece, Tensors, name_tensors},
    tokenizer,
};
use crate::weights::{
    StoredDtype, TensorEntry, TensorPart, WeightSource, WeightsError,
    decode::{RowOrder, StoredRows},
    mapped_file::MappedFile,
};

/// An opened GGUF model.
pub(in crate::weights) struct GgufModel {
    file: Arc<MappedFile>,
    header: Header,
    config: Value,
    tensors: Tensors,
    /// The tensor that was put together last, as long as not all of its rows were asked for.
    assembled: Mutex<Option<(String, Arc<Vec<f32>>)>>,
}

impl GgufModel {
    pub(in crate::weights) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = header::read(&file)?;
        let architecture = architecture_of(&header)?;
        let sizes = config::sizes(&header, architecture)?;
        let tensors = name_tensors(path, &header, architecture, sizes)?;
        let tables = rope_tables(&file, &header);
        let config = config::config(&header, architecture, &tables)?;
        Ok(Self { file, header, config, tensors, assembled: Mutex::new(None) })
    }

    pub(in crate::weights) fn path(&self) -> &Path {
        self.file.path()
    }

    pub(in crate::weights) fn config(&self) -> &Value {
        &self.config
    }

    pub(super) fn metadata(&self) -> &Metadata {
        &self.header.metadata
    }

    pub(super) fn architecture(&self) -> Result<&'static Architecture, WeightsError> {
        architecture_of(&self.header)
    }

    pub(super) fn sizes(&self) -> Result<Sizes, WeightsError> {
        config::sizes(&self.header, self.architecture()?)
    }

    /// The divisors of the rotary frequencies that the file stores, by the names of their tensors.
    pub(super) fn rope_tables(&self) -> BTreeMap<String, Vec<f32>> {
        rope_tables(&self.file, &self.header)
    }

    pub(super) fn latent_form(&self) -> LatentForm {
        let in_one = format!("blk.0.{}.weight", EXPANSION_IN_ONE.0);
        if self.header.tensors.contains_key(&in_one) {
            LatentForm::InOne
        } else {
            LatentForm::Apart
        }
    }

    /// The bytes of a tensor, or of the piece of it that is read this way, as they lie in the file.
    pub(in crate::weights) fn stored_blocks(
        &self,
        name: &str,
        reading: Reading,
    ) -> Option<(StoredDtype, &[u8])> {
        let piece = self.pieces(name).ok()?.iter().find(|piece| piece.reading == reading)?;
        Some((piece.dtype, self.file.bytes().get(piece.range.clone())?))
    }

    /// A tokenizer file made from the metadata; `None` where there is no such file.
    pub(in crate::weights) fn side_file(
        &self,
        name: &str,
    ) -> Result<Option<Vec<u8>>, WeightsError> {
        let context_length = self.config.get("max_position_embeddings").and_then(Value::as_u64);
        tokenizer::file(&self.header.metadata, name, context_length.unwrap_or_default())
    }

    /// The head of a model card, made from what the metadata says of the licence.
    pub(in crate::weights) fn card(&self) -> Option<Vec<u8>> {
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
    pub(in crate::weights) fn side_file_names(&self) -> &'static [&'static str] {
        if tokenizer::exists(&self.header.metadata) { tokenizer::FILES } else { &[] }
    }

    fn entry(&self, name: &str) -> Result<&TensorEntry, WeightsError> {
        let entry = self.tensors.entries.get(name);
        entry.ok_or_else(|| WeightsError::no_such_tensor(self.path(), name))
    }

    fn pieces(&self, name: &str) -> Result<&[Piece], WeightsError> {
        let pieces = self.tensors.places.get(name);
        pieces.map(Vec::as_slice).ok_or_else(|| WeightsError::no_such_tensor(self.path(), name))
    }

    /// A tensor whose rows are rows of the file, and their order there.
    fn by_row(&self, name: &str) -> Option<(&Piece, StoredRows<'_>)> {
        let ([piece], entry) = (self.pieces(name).ok()?, self.entry(name).ok()?) else {
            return None;
        };
        let order = match piece.reading {
            Reading::Rows(order) => order,
            Reading::MinusOne => RowOrder::AsStored,
            _ => return None,
        };
        let bytes = self.file.bytes().get(piece.range.clone()).unwrap_or_default();
        let rows = StoredRows { bytes, dtype: piece.dtype, columns: entry.columns(), order };
        Some((piece, rows))
    }

    fn read(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let entry = self.entry(name)?;
        entry.check_rows(name, &wanted)?;
        let Some((piece, rows)) = self.by_row(name) else {
            let columns = entry.columns();
            let whole = self.assemble(name)?;
            if wanted.end == entry.rows() {
                *self.assembled.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            return Ok(whole[wanted.start * columns..wanted.end * columns].to_vec());
        };
        let mut values = rows.decode(wanted);
        if piece.reading == Reading::MinusOne {
            for value in &mut values {
                *value -= 1.0;
            }
        }
        Ok(values)
    }

    /// A tensor that is put together out of pieces.
    fn assemble(&self, name: &str) -> Result<Arc<Vec<f32>>, WeightsError> {
        let mut last = self.assembled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, values)) = last.as_ref().filter(|(of, _)| of == name) {
            return Ok(Arc::clone(values));
        }
        let entry = self.entry(name)?;
        let mut whole = vec![0.0; entry.elements()];
        for piece in self.pieces(name)? {
            let bytes = self.file.bytes().get(piece.range.clone()).unwrap_or_default();
            let columns = piece.shape.iter().product();
            let order = RowOrder::AsStored;
            let stored = StoredRows { bytes, dtype: piece.dtype, columns, order }.decode(0..1);
            piece.reading.assemble(&stored, &mut whole, entry.columns());
        }
        let whole = Arc::new(whole);
        *last = Some((name.to_owned(), Arc::clone(&whole)));
        Ok(whole)
    }
}

fn rope_tables(file: &MappedFile, header: &Header) -> BTreeMap<String, Vec<f32>> {
    let tables = header.tensors.iter().filter(|(name, _)| is_rope_table(name));
    tables.map(|(name, info)| (name.clone(), rows(file, info).decode(0..1))).collect()
}

impl WeightSource for GgufModel {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.tensors.entries
    }

    fn part_of(&self, name: &str) -> Option<&TensorPart> {
        self.tensors.parts.get(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let rows = self.entry(name)?.rows();
        self.read(name, 0..rows)
    }

    fn read_rows_f32(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        self.read(name, wanted)
    }

    fn raw(&self, name: &str) -> Option<&[u8]> {
        let (piece, rows) = self.by_row(name)?;
        let is_plain = piece.reading == Reading::Rows(RowOrder::AsStored);
        (is_plain && !piece.dtype.is_quantised()).then_some(rows.bytes)
    }

    fn quantised(&self, name: &str) -> Option<Arc<dyn QuantisedMatrix>> {
        let (piece, rows) = self.by_row(name)?;
        let Reading::Rows(order) = piece.reading else { return None };
        let dims = [self.entry(name).ok()?.rows(), rows.columns];
        let (file, range, dtype) = (Arc::clone(&self.file), piece.range.clone(), piece.dtype);
        dtype.is_quantised().then(|| Arc::new(MappedRows { file, range, dims, dtype, order }) as _)
    }

    fn release(&self, name: &str) {
        for piece in self.pieces(name).unwrap_or_default() {
            self.file.release(&piece.range);
        }
    }
}
