//! What a confined program may do: written by the supervisor, read by the helper.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Exit code of a helper that could not confine itself; its reason is on stderr.
pub(super) const FAULT: u8 = 125;

/// What that reason begins with.
pub(super) const FAULT_MARK: &str = "tunesmith sandbox: ";

/// A command and its bounds.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Policy {
    /// Program and arguments; empty for a check of the sandbox itself.
    pub(super) command: Vec<String>,
    /// All of its environment.
    pub(super) environment: BTreeMap<String, String>,
    /// The one folder that it may write to.
    pub(super) scratch: PathBuf,
    /// Folders and files that it may read and execute.
    pub(super) readable: Vec<PathBuf>,
    /// How much it may use.
    pub(super) limits: Limits,
    /// Whether it is a compiler or what the model wrote.
    pub(super) stage: Stage,
    /// Off for `--unsafe-execution`: limits alone.
    pub(super) is_confined: bool,
    /// A file outside the scratch folder, for the check of the sandbox.
    pub(super) outside: Option<PathBuf>,
}

/// Who runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Stage {
    /// A compiler of this machine on the model's text: it may set file modes and signal its parts.
    Compile,
    /// What the model wrote.
    Run,
}

/// How much may be used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Limits {
    /// Time on the clock.
    pub(super) seconds: f64,
    /// Memory of all processes together, and data of each.
    pub(super) memory_bytes: u64,
    /// Processes and threads.
    pub(super) processes: u64,
    /// Bytes of standard output and error, each.
    pub(super) output_bytes: u64,
    /// Bytes of the scratch folder.
    pub(super) disk_bytes: u64,
}
