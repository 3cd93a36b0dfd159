//! What can go wrong while a task is read or run.

use datasets::{DatasetError, Place, RowTemplateError};

/// A task that cannot be run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// A key of a task definition.
    #[error("`{key}` {problem}")]
    Definition {
        /// The key.
        key: String,
        /// What is wrong with it, or what is possible.
        problem: String,
    },
    /// A template of a task definition.
    #[error("`{key}`: {source}")]
    Template {
        /// The key.
        key: String,
        /// What the engine said.
        source: RowTemplateError,
    },
    /// One row of the data.
    #[error("{place}: {problem}")]
    Row {
        /// File and line.
        place: Place,
        /// What is wrong; never the row's content.
        problem: String,
    },
    /// Data that cannot be read, or text that cannot be tokenized.
    #[error(transparent)]
    Data(#[from] DatasetError),
    /// A model that cannot take the task.
    #[error("{0}")]
    Model(String),
}

impl EvaluateError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Data(error) => error.hint(),
            Self::Template { .. } => {
                Some("a template is the name of a column, or Jinja over the row's columns".into())
            }
            _ => None,
        }
    }

    /// An error of a key.
    pub fn definition(key: &str, problem: impl Into<String>) -> Self {
        Self::Definition { key: key.to_owned(), problem: problem.into() }
    }
}
