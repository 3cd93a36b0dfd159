//! Scores of a run on its way: which of its states is the best, and whether it is over early.

use crate::base_model::Decoder;

/// Scores the weights of a run at some of its steps and remembers what it found.
///
/// What it found must follow from the steps alone: an interrupted run asks again from its newest
/// checkpoint on, and ends in the same bytes.
pub trait Judge {
    /// The run stands at `step`; what was found later is forgotten.
    fn resume(&mut self, step: u64) -> Result<(), JudgeError>;

    /// Whether the state after `step` of `total` steps is to be scored and is not yet.
    fn is_due(&self, step: u64, total: u64) -> bool;

    /// Scores the state after `step`; gives a line to show.
    fn score(&mut self, decoder: &Decoder, step: u64) -> Result<String, JudgeError>;

    /// Whether the last score is the best so far of those that may be chosen.
    fn is_new_best(&self) -> bool;

    /// Records the last score: it is not asked for again.
    fn keep(&mut self, step: u64) -> Result<(), JudgeError>;

    /// The step whose weights the finished adapter has, where it is not the last one.
    fn best_step(&self) -> Option<u64>;

    /// Whether the run ends before its last step.
    fn is_over(&self) -> bool;
}

/// Why a run could not be scored, as the judge says it.
pub type JudgeError = Box<dyn std::error::Error + Send + Sync>;
