//! Folds an adapter into its base: `W + scale·B·A`, with the row norms of DoRA: a folder in HF
//! layout that loads as it stands.
//!
//! [`plan_merge`] decides everything from headers: which tensor each module goes to, dtypes,
//! shards. [`write_merged`] then streams: a block of rows at a time is read in f32, updated and
//! rounded once, so that memory does not grow with the model. The caller writes what else
//! belongs in the folder and gives it its name with [`PartialFolder::finish`]. [`GgufPlan`] writes the
//! same merge as one GGUF file.

mod delta;
mod error;
mod folder;
mod gguf;
mod plan;
mod round;
mod summary;
mod texts;
mod view;
mod write;

pub use error::MergeError;
pub use folder::{Existing, PartialFolder, finish};
pub use gguf::{GgufPlan, Importance};
pub use plan::{MergePlan, plan_merge};
pub use summary::{MergeSummary, MergedTensor, MergedUpdate};
pub use view::MergedWeights;
pub use write::write_merged;

use crate::peft::{AdapterWeights, PeftConfig};
use crate::weights::ModelFiles;

/// Shards stay below this where nothing else is asked for, as in transformers.
pub const DEFAULT_MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// What to merge, and into what.
#[derive(Clone, Copy)]
pub struct MergeRequest<'a> {
    /// The model the adapter was trained on.
    pub base: &'a ModelFiles,
    /// The adapter, as [`read_adapter`](crate::read_adapter) gives it.
    pub adapter: (&'a PeftConfig, &'a AdapterWeights),
    /// Type of the merged weights.
    pub dtype: MergeDtype,
    /// Weights beyond this many bytes go to several files. One tensor is never split.
    pub max_shard_bytes: u64,
}

/// Type of the merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MergeDtype {
    /// Every tensor in its own type; f16 over a quantised base.
    Same,
    /// 32-bit float.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
}

impl MergeDtype {
    /// Every choice, with the name it has on the command line.
    pub const ALL: [(&'static str, Self); 4] =
        [("same", Self::Same), ("f32", Self::F32), ("f16", Self::F16), ("bf16", Self::Bf16)];

    /// The choice of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|&(_, dtype)| dtype)
    }
}

#[cfg(test)]
mod gguf_tests;
#[cfg(test)]
mod tests;
