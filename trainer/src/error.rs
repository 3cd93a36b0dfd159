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

/// A checkpoint that cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The file system refused.
    #[error("cannot use `{path}`: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A folder that is not what was written.
    #[error("checkpoint `{path}` is damaged: {reason}")]
    Damaged {
        /// The folder.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The adapter inside.
    #[error(transparent)]
    Adapter(#[from] adapters::AdapterError),
}

/// A run that cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainerError {
    /// Loss or gradient became infinite or not a number.
    #[error(
        "the {what} of step {step} (epoch {epoch}) is not a finite number; it was computed from {}",
        listed(rows)
    )]
    NotFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// The step, counting from 1.
        step: u64,
        /// The epoch, counting from 0.
        epoch: u64,
        /// Files and lines of the rows it was computed from.
        rows: Vec<String>,
    },
    /// A checkpoint whose optimizer state belongs to other modules.
    #[error("checkpoint `{path}` was written by a run with other adapted layers")]
    ForeignCheckpoint {
        /// The folder.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("cannot write `{path}`: {source}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The run could not be scored.
    #[error("the run could not be scored")]
    Judge(#[source] crate::judge::JudgeError),
    /// A checkpoint.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The adapter's files.
    #[error(transparent)]
    Adapter(#[from] adapters::AdapterError),
}

/// The first of many places.
fn listed(rows: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = rows.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    match rows.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more rows"),
    }
}

impl TrainerError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFinite { .. } => Some(
                "lower `optimizer.adamw.learning_rate`, set `train.max_gradient_norm = 1.0`, and \
                 look at the rows with `tunesmith preview`"
                    .into(),
            ),
            Self::ForeignCheckpoint { .. } => {
                Some("start over with `--fresh`, or name another `output_dir`".into())
            }
            Self::Adapter(error) => error.hint(),
            _ => None,
        }
    }
}
