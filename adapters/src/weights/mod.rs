//! Reads base models: HF folders of safetensors, GGUF files, and hub ids.
//!
//! Whatever the files are, a model looks the same from here: a `config.json`, side files such as
//! the tokenizer, and tensors under their HF names with rows in HF order. Weights stay on disk,
//! memory-mapped, and are decoded to `f32` tensor by tensor or a few rows at a time.
//!
//! Files come from strangers. Every size and offset in a header is checked against the file before
//! it is used, and whatever cannot be read exactly is refused by name.

mod changed;
pub(crate) mod decode;
mod dtype;
mod error;
mod folder;
mod fused_experts;
pub(crate) mod gguf;
mod hub;
mod mapped_file;
mod model_files;
mod names;
mod safetensors;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use kernels::QuantisedMatrix;

pub(crate) use self::gguf::adapter::{AdaptedModel, ScaledModules};
pub use self::{
    changed::UntiedHead,
    dtype::StoredDtype,
    error::WeightsError,
    gguf::{GgufDescription, GgufFacts, GgufFileType, describe_gguf},
    model_files::{ModelFiles, Network},
};

/// Shapes and values of every tensor of a small safetensors file.
pub(crate) fn read_safetensors(path: &Path) -> Result<NamedTensors, WeightsError> {
    let file = mapped_file::MappedFile::open(path)?;
    let header = safetensors::read_header(path, file.bytes())?;
    let read = |(name, placed): (String, safetensors::Placed)| {
        let TensorEntry { shape, dtype } = placed.entry;
        let mut values = vec![0.0; shape.iter().product()];
        gguf::blocks::decode(
            dtype,
            file.bytes().get(placed.range).unwrap_or_default(),
            &mut values,
        );
        (name, (shape, values))
    };
    Ok(header.into_iter().map(read).collect())
}

/// Shapes and row-major values by name.
pub(crate) type NamedTensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// What is known of a tensor before it is read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorEntry {
    /// Sizes, outermost first: `[d_out, d_in]` of a linear layer.
    pub shape: Vec<usize>,
    /// How the numbers are stored.
    pub dtype: StoredDtype,
}

impl TensorEntry {
    /// Size of the first axis; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }

    /// Elements of a row: 1 for a vector.
    pub fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }

    /// Elements in all.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn check_rows(&self, name: &str, wanted: &Range<usize>) -> Result<(), WeightsError> {
        if wanted.start <= wanted.end && wanted.end <= self.rows() {
            return Ok(());
        }
        Err(WeightsError::NoSuchRows {
            tensor: name.to_owned(),
            start: wanted.start,
            end: wanted.end,
            rows: self.rows(),
        })
    }
}

/// A tensor that lies in its file as one of several of the same shape, end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorPart {
    /// The tensor of the file.
    pub whole: String,
    /// Which of its parts this is.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

/// The tensors of a base model.
pub trait WeightSource: Send + Sync {
    /// All tensors by HF name: the module's, then `weight` or `bias`.
    fn entries(&self) -> &BTreeMap<String, TensorEntry>;

    /// The name a tensor has in its file, where it is kept when the model is written again.
    fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        name
    }

    /// The tensor of the file that this one is a part of, where it is one; the model is written
    /// with that tensor again.
    fn part_of(&self, _name: &str) -> Option<&TensorPart> {
        None
    }

    /// A whole tensor, row-major.
    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError>;

    /// Rows of a tensor along its first axis, row-major. The rows of a vector are its elements.
    fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError>;

    /// The little-endian bytes as stored, where the dtype is `F32`, `F16` or `BF16` and the rows
    /// lie in HF order.
    fn raw(&self, name: &str) -> Option<&[u8]>;

    /// The tensor as the file holds it, where that is in fewer than 16 bits a number: rows are
    /// expanded when they are asked for.
    fn quantised(&self, _name: &str) -> Option<Arc<dyn QuantisedMatrix>> {
        None
    }

    /// Whether the values are an adapter's: they are kept in f32, whatever the base's are kept in.
    fn replaces(&self, _name: &str) -> bool {
        false
    }

    /// Drops the tensor's pages from memory; reading it again loads them anew.
    fn release(&self, name: &str);
}
