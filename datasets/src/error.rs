//! What can go wrong with data: every message names a place and a kind, never a row's content.
//!
//! Data may be private, and error messages end up in logs and bug reports. So places, field names,
//! types and lengths are shown, and values are not.

use std::fmt::{self, Write};
use std::io;
use std::path::PathBuf;

/// Most errors that one message lists; the rest is counted.
pub const SHOWN_ERRORS: usize = 20;

/// Where a row stands on disk.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The file.
    pub path: PathBuf,
    /// Line of a text format, row of a table, element of a JSON array; counting from 1.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.path.display(), self.line)
    }
}

/// Why data could not be read, understood or tokenized.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DatasetError {
    /// Several errors at once, in order; `total` counts those that were left out too.
    #[error("{}", list(errors, *total))]
    Several {
        /// The first ones, at most [`SHOWN_ERRORS`].
        errors: Vec<DatasetError>,
        /// How many there were.
        total: usize,
    },
    /// A file could not be opened, read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: `read`, `write`, ...
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A path, glob or folder without any file that can be read.
    #[error("`{pattern}` names no file that can be read: {reason}")]
    NoFiles {
        /// As written in the recipe.
        pattern: String,
        /// What was found in its place.
        reason: String,
    },
    /// A file whose ending says nothing.
    #[error("`{path}` has an ending that no reader knows; known are {known}")]
    UnknownEnding {
        /// The file.
        path: PathBuf,
        /// Every known ending.
        known: String,
    },
    /// A file that is not what its ending says, or is damaged.
    #[error("`{path}` is not a readable {kind} file: {problem}")]
    BadFile {
        /// The file.
        path: PathBuf,
        /// `Parquet`, `Arrow`, ...
        kind: &'static str,
        /// What the decoder met.
        problem: String,
    },
    /// A file that changed while it was being read.
    #[error("`{path}` changed while it was being read")]
    FileChanged {
        /// The file.
        path: PathBuf,
    },
    /// One row that cannot be used.
    #[error("{place}: {problem}")]
    Row {
        /// Where it stands.
        place: Place,
        /// What is wrong with it.
        problem: RowProblem,
    },
    /// A dataset without a single row.
    #[error("`{pattern}` has no rows")]
    NoRows {
        /// As written in the recipe.
        pattern: String,
    },
    /// No row of a dataset was left to train on.
    #[error("no row of `{pattern}` is left to train on: {reason}")]
    NothingLeft {
        /// As written in the recipe.
        pattern: String,
        /// Where the rows went.
        reason: String,
    },
    /// The columns fit no format, or several.
    #[error("the format of `{path}` is not clear from its columns ({columns}): {reason}")]
    UnclearFormat {
        /// First file of the dataset.
        path: PathBuf,
        /// The columns of its first row.
        columns: String,
        /// Which formats fit, or what every format needs.
        reason: String,
    },
    /// A format whose sentinels the base does not have.
    #[error("format `fill_in_the_middle` of `{pattern}` cannot be used: {reason}")]
    NoSentinels {
        /// The path as the recipe names it.
        pattern: String,
        /// Which are missing.
        reason: crate::fill_in_the_middle::NoSentinels,
    },
    /// A format that recipes may name and this version does not train on.
    #[error(
        "dataset format `{format}` of `{path}` is not available yet; available are {available}"
    )]
    FormatNotAvailable {
        /// The format.
        format: &'static str,
        /// As written in the recipe.
        path: String,
        /// What works.
        available: String,
    },
    /// A key of `columns` that the format does not have.
    #[error(
        "`columns` of `{path}` maps `{column}`, which format `{format}` does not have; it has {known}"
    )]
    UnknownColumn {
        /// As written in the recipe.
        path: String,
        /// The key.
        column: String,
        /// The format.
        format: &'static str,
        /// Its columns.
        known: String,
    },
    /// Examples longer than a row while `on_overlong = "error"`.
    #[error(
        "{rows} of {all} rows of `{pattern}` are longer than `sequence_length` = {sequence_length} \
         tokens; the longest has {longest} (first: {})",
        places(first)
    )]
    Overlong {
        /// As written in the recipe.
        pattern: String,
        /// How many.
        rows: u64,
        /// Of how many.
        all: u64,
        /// Most tokens allowed.
        sequence_length: usize,
        /// Tokens of the longest.
        longest: usize,
        /// The first places.
        first: Vec<Place>,
    },
    /// Rows in which no token carries loss.
    #[error(
        "{rows} of {all} rows of `{pattern}` have no token that carries loss{cause} (first: {})",
        places(first)
    )]
    Untrained {
        /// As written in the recipe.
        pattern: String,
        /// How many.
        rows: u64,
        /// Of how many.
        all: u64,
        /// Why, where it is known: starts with a space.
        cause: &'static str,
        /// The first places.
        first: Vec<Place>,
    },
    /// A dataset of conversations over a base without a chat template.
    #[error("`{pattern}` holds conversations, and the base model has no chat template")]
    NoChatTemplate {
        /// As written in the recipe.
        pattern: String,
        /// Names that `chat_template` takes.
        builtins: String,
    },
    /// A tokenizer without an end-of-sequence token where one is needed.
    #[error(
        "format `{format}` ends each row with the end-of-sequence token, and the tokenizer names none"
    )]
    NoEndOfSequence {
        /// The format.
        format: &'static str,
    },
    /// The tokenizer's files, or a text it cannot take.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A chat template, or a conversation it cannot render.
    #[error(transparent)]
    Template(#[from] crate::chat_template::TemplateError),
    /// A key of the recipe whose value cannot work.
    #[error("`{key}` = {value} {problem}")]
    BadSetting {
        /// The key, with its table.
        key: String,
        /// As given.
        value: String,
        /// What is possible.
        problem: String,
    },
}

/// What is wrong with one row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RowProblem {
    /// Text that is not what the file's format wants.
    #[error("column {column}: {found}, expected {expected}")]
    Syntax {
        /// Counting bytes from 1.
        column: u64,
        /// What was met.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Bytes that are not UTF-8.
    #[error("byte {byte} of the file is not UTF-8{guess}")]
    NotUtf8 {
        /// Offset in the (uncompressed) file, counting from 0.
        byte: u64,
        /// What it may be instead: starts with a space, or is empty.
        guess: &'static str,
    },
    /// A row that is too large to hold.
    #[error("longer than {limit} bytes, the most a row may have")]
    TooLong {
        /// The limit.
        limit: u64,
    },
    /// A field that is not there, or is null.
    #[error("field `{field}` is missing, expected {expected}; the row has {present}")]
    Missing {
        /// Its name in the file.
        field: String,
        /// What would be right.
        expected: &'static str,
        /// Fields that are there.
        present: String,
    },
    /// A field of another type.
    #[error("field `{field}` is {found}, expected {expected}")]
    WrongType {
        /// Its name in the file, with the path inside it.
        field: String,
        /// The type that was found.
        found: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Two lists that must have the same length.
    #[error("`input_ids` has {ids} entries and `labels` has {labels}; they must be equally many")]
    UnequalLengths {
        /// Entries of `input_ids`.
        ids: usize,
        /// Entries of `labels`.
        labels: usize,
    },
    /// A token that the model has no row for.
    #[error("`{field}` {index} is outside the vocabulary of {vocab_size} tokens{allowed}")]
    OutsideVocabulary {
        /// `input_ids`, `labels` or `token`.
        field: &'static str,
        /// Place in the list, counting from 0.
        index: usize,
        /// Tokens that the model knows.
        vocab_size: usize,
        /// What else would be allowed: starts with a space, or is empty.
        allowed: &'static str,
    },
    /// Two begin-of-sequence tokens at the start of a row.
    #[error(
        "starts with two begin-of-sequence tokens: the text already has the one that the tokenizer adds"
    )]
    DoubleBos,
    /// A problem of rendering or tokenizing.
    #[error("{0}")]
    Encode(Box<DatasetError>),
}

impl DatasetError {
    /// An I/O error with its path.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { action, path: path.into(), source }
    }

    /// One error as itself, several as [`DatasetError::Several`].
    ///
    /// `total` counts those that were met and not kept as well.
    pub(crate) fn from_many(mut errors: Vec<Self>, total: usize) -> Option<Self> {
        if total <= 1 {
            return errors.pop();
        }
        errors.truncate(SHOWN_ERRORS);
        Some(Self::Several { errors, total })
    }

    /// What to type next, shown as `hint: ...` under the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Several { errors, .. } => errors.iter().find_map(Self::hint),
            Self::Row { problem, .. } => problem.hint(),
            Self::Tokenizer(error) => error.hint(),
            Self::Template(error) => error.hint(),
            Self::UnclearFormat { .. } => Some(
                "set `format`, and `columns = { ... }` where the file names its columns otherwise"
                    .to_owned(),
            ),
            Self::Overlong { longest, .. } => Some(format!(
                "set `batch.sequence_length` to {longest} or more, or `batch.on_overlong` to \
                 \"drop\", \"truncate\" or \"split\""
            )),
            Self::Untrained { .. } => Some(
                "remove these rows, check `loss_on` and `train = false` in them, or set \
                 `allow_untrained_rows = true`"
                    .to_owned(),
            ),
            Self::NoChatTemplate { builtins, .. } => Some(format!(
                "set `chat_template` of this dataset to a Jinja file or one of {builtins}"
            )),
            Self::NoSentinels { .. } => Some(
                "use `format = \"text\"`, take a base that was trained to fill in, or name three \
                 tokens that it has no other use for: `fill_in_the_middle = { sentinels = { prefix \
                 = \"...\", suffix = \"...\", middle = \"...\" } }`"
                    .to_owned(),
            ),
            Self::NoFiles { .. } => {
                Some("relative paths start at the current directory".to_owned())
            }
            _ => None,
        }
    }
}

impl RowProblem {
    /// What to type next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Encode(error) => error.hint(),
            Self::Missing { field, .. } => {
                Some(format!("map the column that holds it: `columns = {{ {field} = \"...\" }}`"))
            }
            Self::DoubleBos => {
                Some("remove the begin-of-sequence text from the row or the template".to_owned())
            }
            _ => None,
        }
    }
}

fn places(first: &[Place]) -> String {
    first.iter().map(Place::to_string).collect::<Vec<_>>().join(", ")
}

fn list(errors: &[DatasetError], total: usize) -> String {
    let mut text = format!("{total} errors in the data");
    for error in errors {
        text.push_str("\n  ");
        text.push_str(&error.to_string());
    }
    if total > errors.len() {
        let _ = write!(text, "\n  and {} more", total - errors.len());
    }
    text
}
