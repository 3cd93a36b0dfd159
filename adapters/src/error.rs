//! What can be wrong with an adapter, its files, or what a recipe asks of it.

use std::fmt::{self, Write as _};
use std::io;
use std::path::{Path, PathBuf};

use crate::pattern::BadPattern;

/// Lists in messages stop after this many entries and say how many more there are.
const SHOWN: usize = 20;

/// A fault in an adapter's files, or in what a recipe asks of an adapter.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AdapterError {
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
    /// A file of weights cannot be read or written.
    #[error(transparent)]
    Weights(#[from] crate::weights::WeightsError),
    /// No `adapter_config.json` in the folder.
    #[error("`{}` is no PEFT adapter folder: it has no `adapter_config.json`", .path.display())]
    NoConfig {
        /// The folder.
        path: PathBuf,
        /// Folders inside it that are adapters.
        inside: Vec<String>,
    },
    /// No `adapter_model.safetensors` in the folder.
    #[error("`{}` has no `adapter_model.safetensors`", .path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
    },
    /// Weights in a pickle file, which could run code when read.
    #[error("`{}` holds its weights as `adapter_model.bin` (pickle), which is not read", .path.display())]
    PickledWeights {
        /// The folder.
        path: PathBuf,
    },
    /// `adapter_config.json` is not a JSON object.
    #[error("`{}` is not a JSON object: {reason}", .path.display())]
    ConfigSyntax {
        /// The file.
        path: PathBuf,
        /// Where and why.
        reason: String,
    },
    /// Keys of `adapter_config.json` with values they cannot have.
    #[error("`{}`: {}", .path.display(), list(.problems))]
    ConfigValues {
        /// The file.
        path: PathBuf,
        /// One line for each key.
        problems: Vec<String>,
    },
    /// The adapter uses what this program does not implement.
    #[error("`{}` asks for what is not supported: {}", .path.display(), list(.features))]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// Each feature, by its key and value.
        features: Vec<String>,
    },
    /// The safetensors file is damaged or lies about its contents.
    #[error("`{}` is not a valid safetensors file: {reason}", .path.display())]
    WeightsHeader {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Tensors that cannot belong to the adapter the config describes.
    #[error("{} of `{}`: {}", counted(.problems.len(), "problem"), .path.display(), list(.problems))]
    Tensors {
        /// The file or folder.
        path: PathBuf,
        /// Every problem.
        problems: Vec<TensorProblem>,
    },
    /// An adapter in memory that cannot be written.
    #[error("the adapter cannot be written to `{}`: {}", .path.display(), list(.problems))]
    Unwritable {
        /// The folder.
        path: PathBuf,
        /// Every problem.
        problems: Vec<TensorProblem>,
    },
    /// A key of `rank_pattern` or `alpha_pattern` that is no regular expression.
    #[error("`{table}` key `{}` is not a pattern that can be matched: {}", .pattern.key, .pattern.reason)]
    Pattern {
        /// `rank_pattern` or `alpha_pattern`.
        table: &'static str,
        /// The key and the reason.
        pattern: BadPattern,
    },
    /// A key of `rank_pattern` or `alpha_pattern` that selects no adapted layer.
    #[error("`{table}` key `{key}` matches no adapted layer; adapted are: {}", .available.join(", "))]
    IdlePattern {
        /// `rank_pattern` or `alpha_pattern`.
        table: &'static str,
        /// The key.
        key: String,
        /// Distinct last components of the adapted layers' names.
        available: Vec<String>,
    },
    /// `target_modules` is a word other than `all-linear`.
    #[error("`target_modules = \"{word}\"` is not known; it is \"all-linear\" or a list of names \
             out of: {}", .available.join(", "))]
    UnknownWord {
        /// The word.
        word: String,
        /// Distinct last components of the linear layers' names.
        available: Vec<String>,
    },
    /// An entry of `target_modules` or `exclude_modules` that matches nothing.
    #[error("`{key}` entry `{entry}` matches no linear layer; the model has: {}", .available.join(", "))]
    NoSuchModule {
        /// `target_modules` or `exclude_modules`.
        key: &'static str,
        /// The entry.
        entry: String,
        /// Distinct last components of the linear layers' names.
        available: Vec<String>,
    },
    /// An entry of `modules_to_save` that matches nothing.
    #[error("`modules_to_save` entry `{entry}` matches no module that can be trained as a whole; the model has: {}", .available.join(", "))]
    NotSavable {
        /// The entry.
        entry: String,
        /// Distinct last components of the names of such modules.
        available: Vec<String>,
    },
    /// `ensure_weight_tying` without a tie to keep.
    #[error("`ensure_weight_tying` asks for what is not there: {}", if *.is_tied {
        "`modules_to_save` names neither embedding nor head"
    } else {
        "the model's head has weights of its own"
    })]
    NothingTied {
        /// Whether the model ties its head.
        is_tied: bool,
    },
    /// `bias` in a model without them.
    #[error("`bias` asks for biases, and there are none among the layers that it means")]
    NoBias,
    /// An entry of `target_parameters` that matches nothing.
    #[error("`target_parameters` entry `{entry}` names no experts; the model has: {}", if .available.is_empty() { "none".to_owned() } else { .available.join(", ") })]
    NoSuchParameter {
        /// The entry.
        entry: String,
        /// Ends of the paths of the experts' parameters.
        available: Vec<String>,
    },
    /// Dropout where experts are adapted as parameters.
    #[error(
        "`dropout` is {dropout}, but experts that are adapted as parameters ({}) have none: PEFT \
         could not load the adapter", .parameters.join(", ")
    )]
    ExpertDropout {
        /// What the recipe says.
        dropout: f64,
        /// Ends of the parameters' paths.
        parameters: Vec<String>,
    },
    /// DoRA where experts are adapted as parameters.
    #[error(
        "experts that are adapted as parameters ({}) have no magnitudes: PEFT could not load the \
         adapter", .parameters.join(", ")
    )]
    ExpertDora {
        /// Ends of the parameters' paths.
        parameters: Vec<String>,
    },
    /// `lm_head` is targeted in a model whose head is its embedding.
    #[error(
        "`target_modules` names `lm_head`, but this model has no head of its own: the head \
             shares the weights of the embedding (`tie_word_embeddings`), and an update of one \
             would have to be an update of both"
    )]
    TiedHead,
    /// Models that no update can be extracted from.
    #[error("no adapter can be extracted from `{}`: {}", .path.display(), list(.problems))]
    Extract {
        /// The fine-tuned model.
        path: PathBuf,
        /// Every tensor that does not fit, or why there is no change.
        problems: Vec<TensorProblem>,
    },
    /// Layers whose first values cannot be made.
    #[error("the adapter cannot begin as asked: {}", list(.problems))]
    Start {
        /// Every layer.
        problems: Vec<TensorProblem>,
    },
    /// Nothing is left to adapt.
    #[error("`target_modules` and `exclude_modules` together leave no layer to adapt")]
    NothingSelected,
    /// `alpha` is not a positive, finite number.
    #[error("`{key}` is {value}, but must be a positive number")]
    Alpha {
        /// `alpha`, or the key of `alpha_pattern`.
        key: String,
        /// What was given.
        value: f64,
    },
    /// An adapter that does not fit the model.
    #[error("the adapter does not fit the model: {}", list(.problems))]
    Misfit {
        /// Every module that does not fit.
        problems: Vec<TensorProblem>,
    },
    /// More than one fault.
    #[error("{}", list(.0))]
    Many(Vec<AdapterError>),
}

/// A tensor or module and what is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorProblem {
    /// Tensor or module.
    pub name: String,
    /// What is wrong.
    pub reason: String,
}

impl TensorProblem {
    pub(crate) fn new(name: impl Into<String>, reason: impl Into<String>) -> Self {
        Self { name: name.into(), reason: reason.into() }
    }
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "`{}` {}", self.name, self.reason)
    }
}

impl AdapterError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// One error for all of `errors`; nothing where there are none.
    pub(crate) fn collected(mut errors: Vec<Self>) -> Result<(), Self> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(Self::Many(errors)),
        }
    }

    /// The next thing to type or to do.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Weights(error) => return error.hint(),
            Self::NoConfig { inside, .. } if !inside.is_empty() => {
                return Some(format!("adapters inside it: {}", inside.join(", ")));
            }
            Self::PickledWeights { .. } => {
                "load it with PEFT and save it again with `model.save_pretrained(folder, \
                 safe_serialization=True)`"
            }
            Self::NoConfig { .. } | Self::NoWeights { .. } => {
                "an adapter folder has `adapter_config.json` and `adapter_model.safetensors`"
            }
            Self::Unsupported { features, .. }
                if features.iter().any(|feature| feature.starts_with("`init_lora_weights")) =>
            {
                "such an adapter belongs to a base whose weights PEFT changed; convert it in PEFT \
                 with `save_pretrained(folder, path_initial_model_for_weight_conversion=...)`"
            }
            Self::WeightsHeader { .. } => "the file may be cut short: copy or download it again",
            Self::Unwritable { problems, .. }
                if problems.iter().any(|problem| {
                    problem.name == "use_dora" || problem.reason.contains("whole tensor")
                }) =>
            {
                "merge the adapter into its base: `tunesmith merge ADAPTER --output DIR`"
            }
            Self::NotSavable { .. } => {
                "write the ends of paths of single layers, such as `modules_to_save = \
                 [\"lm_head\", \"embed_tokens\"]`"
            }
            Self::NothingTied { .. } => "delete `ensure_weight_tying`",
            Self::NoBias => "delete `bias`",
            Self::ExpertDora { .. } => "use `[adapter.lora]`, or name other `target_modules`",
            Self::ExpertDropout { .. } => "set `dropout = 0`",
            Self::NoSuchParameter { .. } => {
                "write the ends of paths, such as `target_parameters = [\"mlp.experts.gate_up_proj\", \
                 \"mlp.experts.down_proj\"]`"
            }
            Self::Extract { .. } => "name the model that was fine-tuned with `--base`",
            Self::Start { .. } => "lower `rank`, or leave out `init`",
            Self::TiedHead => "leave `lm_head` out of `target_modules`",
            Self::UnknownWord { .. } => {
                "write `target_modules = \"all-linear\"` or `target_modules = [\"q_proj\", ...]`"
            }
            Self::Misfit { .. } => "use the base model that the adapter was trained on",
            Self::Many(errors) => return errors.iter().find_map(Self::hint),
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// All of `items` on their own lines, or one in place.
pub(crate) fn list<T: fmt::Display>(items: &[T]) -> String {
    if let [only] = items {
        return only.to_string();
    }
    let mut text = String::new();
    for item in items.iter().take(SHOWN) {
        text.push_str("\n  - ");
        text.push_str(&item.to_string());
    }
    if items.len() > SHOWN {
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  - and {} more", items.len() - SHOWN);
    }
    text
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_lists_are_cut_and_counted() {
        let items: Vec<_> = (0..23).collect();
        let text = list(&items);
        assert!(text.ends_with("\n  - 19\n  - and 3 more"), "{text}");
        assert_eq!(list(&["alone"]), "alone");
    }

    #[test]
    fn many_errors_hint_with_the_first_hint() {
        let error =
            AdapterError::collected(vec![AdapterError::NothingSelected, AdapterError::TiedHead])
                .unwrap_err();
        assert_eq!(error.hint().unwrap(), "leave `lm_head` out of `target_modules`");
    }
}
