//! What the head of any GGUF file says, model or adapter.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
};

use super::{header, metadata::Value};
use crate::weights::{WeightsError, mapped_file::MappedFile};

/// Metadata and tensors of a GGUF file.
#[derive(Debug, Clone, Default)]
pub struct GgufDescription {
    /// Every key.
    pub keys: BTreeSet<String>,
    /// Values that are text.
    pub texts: BTreeMap<String, String>,
    /// Shapes of the tensors by name, outermost axis first.
    pub tensors: BTreeMap<String, Vec<usize>>,
}

/// Reads the head of the GGUF file at `path`.
pub fn describe_gguf(path: &Path) -> Result<GgufDescription, WeightsError> {
    let file = Arc::new(MappedFile::open(path)?);
    let header = header::read(&file)?;
    let mut description = GgufDescription::default();
    for (key, value) in header.metadata.entries() {
        description.keys.insert(key.to_owned());
        if let Value::String(text) = value {
            description.texts.insert(key.to_owned(), text.clone());
        }
    }
    let tensors = header.tensors.into_iter();
    description.tensors = tensors.map(|(name, info)| (name, info.shape)).collect();
    Ok(description)
}
