//! What can be wrong with the files of a base model, and what to do about each.

use std::path::{Path, PathBuf};

/// A base model that cannot be opened or read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("cannot {action} `{}`: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried, as a verb.
        action: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// Neither a file, a folder, nor a hub id.
    #[error("base model `{spec}` not found: no such file or folder, and not a hub id `org/name`")]
    NotFound {
        /// As the user typed it.
        spec: String,
    },
    /// A file that a model folder must have is not there.
    #[error("`{}` has no `{wanted}`; it holds {found}", folder.display())]
    MissingFile {
        /// The folder.
        folder: PathBuf,
        /// The file looked for.
        wanted: String,
        /// What is there instead.
        found: String,
    },
    /// Several files could be the model.
    #[error("`{}` holds several GGUF files: {found}", folder.display())]
    Ambiguous {
        /// The folder.
        folder: PathBuf,
        /// The candidates.
        found: String,
    },
    /// Weights are there, but only as pickle.
    #[error("`{}` holds its weights only as pickle (`{file}`), which is not read: opening a pickle can run code", folder.display())]
    Pickle {
        /// The folder.
        folder: PathBuf,
        /// One of the pickle files.
        file: String,
    },
    /// A checkpoint whose weights another library packed.
    #[error("`{}` is quantised with {method} ({evidence}); such weights cannot be read", path.display())]
    Quantised {
        /// The file that shows it.
        path: PathBuf,
        /// The method's name.
        method: String,
        /// The key or tensor it was seen by.
        evidence: String,
    },
    /// A file that contradicts its own format.
    #[error("`{}` is damaged: {place}: {problem}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in the file.
        place: String,
        /// What was found.
        problem: String,
    },
    /// Well-formed, but nothing this program reads.
    #[error("`{}`: {what} `{found}` is not supported (supported: {known})", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// The kind of thing.
        what: String,
        /// Its value.
        found: String,
        /// The values that work.
        known: String,
    },
    /// No tensor of that name.
    #[error("`{}` has no tensor `{tensor}`", path.display())]
    NoSuchTensor {
        /// The model.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// Rows beyond a tensor's end.
    #[error("rows {start}..{end} of `{tensor}` were asked for, it has {rows}")]
    NoSuchRows {
        /// The tensor.
        tensor: String,
        /// First row.
        start: usize,
        /// Row after the last.
        end: usize,
        /// Rows there are.
        rows: usize,
    },
    /// The hub is needed and must not be asked.
    #[error("base model `{id}` is no local file or folder, {found} in the hub cache `{}`, and {reason} forbids downloading", cache.display())]
    Offline {
        /// The hub id.
        id: String,
        /// `is not`, or what is missing.
        found: String,
        /// The cache folder.
        cache: PathBuf,
        /// The flag or variable that forbids it.
        reason: &'static str,
    },
    /// The hub wants a token with access.
    #[error("`{endpoint}` refuses `{id}` (HTTP {status}): {why}")]
    Denied {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
        /// 401 or 403.
        status: u16,
        /// No token, or one without access.
        why: &'static str,
    },
    /// The hub does not know the id.
    #[error(
        "`{id}` is no local file or folder, and `{endpoint}` has no model of that name (HTTP 404)"
    )]
    NotOnHub {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
    },
    /// A download that failed otherwise.
    #[error("downloading `{file}` of `{id}` from `{endpoint}` failed: {problem}")]
    Download {
        /// The hub id.
        id: String,
        /// The hub.
        endpoint: String,
        /// The file.
        file: String,
        /// What happened.
        problem: String,
    },
}

impl WeightsError {
    /// The next thing to type, shown under the error.
    pub fn hint(&self) -> Option<String> {
        let text = match self {
            Self::NotFound { .. } => {
                "name a folder with `config.json` and `*.safetensors`, a `.gguf` file, or a hub id such as `meta-llama/Llama-2-7b-hf`"
            }
            Self::MissingFile { wanted, .. } if wanted.contains("tokenizer") => {
                "copy `tokenizer.json` and `tokenizer_config.json` of the base model into the folder"
            }
            Self::MissingFile { .. } => {
                "name the folder that holds `config.json` beside `model.safetensors`"
            }
            Self::Ambiguous { .. } => "name one of the files",
            Self::Pickle { .. } => {
                "convert once with transformers: `AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)`"
            }
            Self::Quantised { .. } => {
                "use the unquantised model (or a GGUF of it), and `quantize_base` in the recipe to save memory"
            }
            Self::Damaged { .. } => {
                "download or copy the file again, and compare its size with the original's"
            }
            Self::Offline { id, .. } => {
                return Some(format!(
                    "run once without `--offline` and `HF_HUB_OFFLINE`, or fetch it beforehand: `hf download {id}`"
                ));
            }
            Self::Denied { id, .. } => {
                return Some(format!(
                    "accept the licence on the model's page, then set `HF_TOKEN` to a token that may read `{id}`"
                ));
            }
            Self::NotOnHub { .. } => "check the spelling; private models need `HF_TOKEN`",
            Self::Download { .. } => {
                "run it again: finished files are kept; `HF_ENDPOINT` chooses another hub"
            }
            Self::Unsupported { .. }
            | Self::Io { .. }
            | Self::NoSuchTensor { .. }
            | Self::NoSuchRows { .. } => return None,
        };
        Some(text.to_owned())
    }

    pub(super) fn io(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::Io { path: path.to_owned(), action, source }
    }

    pub(super) fn damaged(
        path: &Path,
        place: impl Into<String>,
        problem: impl Into<String>,
    ) -> Self {
        Self::Damaged { path: path.to_owned(), place: place.into(), problem: problem.into() }
    }

    pub(super) fn no_such_tensor(path: &Path, tensor: &str) -> Self {
        Self::NoSuchTensor { path: path.to_owned(), tensor: tensor.to_owned() }
    }
}
