//! What can stop a merge.

use std::io;
use std::path::{Path, PathBuf};

use crate::error::{TensorProblem, list};
use crate::weights::WeightsError;

/// A merge that cannot be made, or was stopped.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// The base model cannot be read.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", .path.display())]
    Io {
        /// What was tried, as a verb phrase.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// Adapter modules without a base tensor of their name and shape, or with broken values.
    #[error("the adapter cannot be merged into `{}`: {}", .base.display(), list(.problems))]
    Misfit {
        /// The base model.
        base: PathBuf,
        /// Every module that cannot be merged.
        problems: Vec<TensorProblem>,
    },
    /// An adapter that would leave the base as it is.
    #[error(
        "the adapter changes nothing: B·A is zero in all of its {modules} modules, such as `{example}`"
    )]
    ZeroDelta {
        /// Modules of the adapter.
        modules: usize,
        /// One of them.
        example: String,
    },
    /// Magnitudes of DoRA that are the norms the base has, over updates of zero.
    #[error(
        "the adapter changes nothing: its {modules} modules, such as `{example}`, stay as they are"
    )]
    Unchanged {
        /// Modules of the adapter.
        modules: usize,
        /// One of them.
        example: String,
    },
    /// The adapter has no module.
    #[error("the adapter has no module to merge")]
    Empty,
    /// A value that the output type cannot hold.
    #[error("`{tensor}` would hold {value} at element {element}, which is no finite {dtype}")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Type of the output.
        dtype: &'static str,
        /// The value before rounding.
        value: f32,
        /// Place in row-major order.
        element: u64,
    },
    /// A stored type that safetensors output has no use for.
    #[error("`{tensor}` of the base has no readable rows: {reason}")]
    Unreadable {
        /// The tensor.
        tensor: String,
        /// What was found.
        reason: String,
    },
    /// The base's `config.json` is no object.
    #[error("`config.json` of `{}` is not a JSON object", .base.display())]
    Config {
        /// The base model.
        base: PathBuf,
    },
    /// A file beside the weights whose name leads out of the folder.
    #[error("the base lists a file `{name}`, which is no plain file name")]
    SideFile {
        /// The name.
        name: String,
    },
    /// The output folder holds something already.
    #[error("`{}` exists and is not an empty folder", .path.display())]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// The output path cannot name a folder.
    #[error("`{}` cannot be an output folder: it has no name of its own", .path.display())]
    OutputName {
        /// The path.
        path: PathBuf,
    },
}

impl MergeError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The next thing to type or to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Weights(error) => return error.hint(),
            Self::Io { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                "free disk space, or choose an output on another disk; nothing was left behind \
                 under the final name"
            }
            Self::Misfit { .. } => "name the base the adapter was trained on with `--base`",
            Self::ZeroDelta { .. } | Self::Unchanged { .. } | Self::Empty => {
                "such an adapter was saved before training, or not saved whole"
            }
            Self::NotFinite { dtype: "F16", .. } => "use `--dtype bf16` or `--dtype f32`",
            Self::OutputExists { .. } => "choose another `--output`, or remove the folder",
            _ => return None,
        };
        Some(hint.to_owned())
    }
}
