//! Where a result comes from: the lock file of a run, licence duties, model cards.
//!
//! All three state facts that were read from files or measured, and nothing else. Rows of the
//! data never appear: a card is published, and data may be private.

pub mod card;
mod front_matter;
pub mod licence;
pub mod lock;
mod run_lock;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use card::recipe_without_folders;
pub use card::{AdapterFacts, CardFacts, CardKind, DataFacts, hub_id_of, model_card};
pub use licence::{Licence, LicenceDuties};
pub use lock::{Change, Difference, Lock, LockedFile, Role, hash_file, lock_above};
pub use run_lock::{RunFiles, finish_run_lock, lock_run};

/// Why provenance could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ProvenanceError {
    /// A file could not be read or written.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A folder that is no run.
    #[error("`{path}` has no `{}`", lock::FILE_NAME)]
    NoLock {
        /// The folder.
        path: PathBuf,
    },
    /// A lock file that this program did not write.
    #[error("`{path}` is no lock file of a run: {reason}")]
    BadLock {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl ProvenanceError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { action, path, source }
    }

    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoLock { .. } => {
                Some("give the folder of a run: the `output_dir` of its recipe".to_owned())
            }
            Self::BadLock { .. } => Some("`tunesmith train --fresh` writes it anew".to_owned()),
            Self::Io { .. } => None,
        }
    }
}
