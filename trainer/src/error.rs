//! What can go wrong while loading, training and scoring.

use std::path::PathBuf;

/// A base model that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// `model_type` names no family.
    #[error(
        "`config.json` has `model_type` = `{model_type}`, which is not supported; known: {known}"
    )]
    UnknownFamily {
        /// What the file says.
        model_type: String,
        /// The registry.
        known: String,
    },
    /// A key the decoder cannot do without.
    #[error("`config.json` has no key `{key}`")]
    MissingKey {
        /// The key.
        key: &'static str,
    },
    /// A key of the rotary embedding's scaling.
    #[error("`config.json` scales its rotary embedding without `{key}`")]
    MissingRopeKey {
        /// The key.
        key: String,
    },
    /// A key whose value the decoder would compute wrongly.
    #[error("`config.json` has `{key}` = {found}; supported: {expected}")]
    BadKey {
        /// The key.
        key: String,
        /// Its value.
        found: String,
        /// What would work.
        expected: String,
    },
    /// Tensors that are missing, misshapen or unknown.
    #[error("the weights in `{location}` do not fit their `config.json`:\n{problems}")]
    Tensors {
        /// Folder or file.
        location: PathBuf,
        /// One line a tensor.
        problems: String,
    },
    /// Weight files that cannot be read.
    #[error(transparent)]
    Weights(#[from] adapters::weights::WeightsError),
    /// An adapter that does not fit.
    #[error(transparent)]
    Adapter(#[from] adapters::AdapterError),
}

impl LoadError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Weights(error) => error.hint(),
            Self::Adapter(error) => error.hint(),
            Self::Tensors { .. } => {
                Some("download the model again, or check that `config.json` belongs to it".into())
            }
            _ => None,
        }
    }
}
