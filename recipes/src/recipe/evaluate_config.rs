//! `[evaluate]`: what a run is scored on, and what follows from it.

use std::num::{NonZeroU64, NonZeroUsize};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Tasks that a run is scored on, on its way and at its end.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateConfig {
    /// Steps between two scores; after the last step alone where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<NonZeroU64>,
    /// Whether the run is scored before its first step too: what the verdicts compare with.
    #[serde(default = "yes")]
    pub before_training: bool,
    /// The figure that chooses the weights of the finished adapter, `task` or `task.figure`; the last
    /// step's weights where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best: Option<String>,
    /// Ends the run after so many scores in a row without a better `best`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub patience: Option<NonZeroU64>,
    /// The tasks.
    pub task: Vec<EvaluateTask>,
}

/// One task of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EvaluateTask {
    /// `perplexity` of a text file, `loss` of rows, a shipped task, or a task file ending in `.toml`.
    pub name: String,
    /// Its rows, in place of those that its file names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<String>,
    /// Rows that few-shot examples come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot_data: Option<String>,
    /// Few-shot examples before each question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot: Option<usize>,
    /// Windows or rows at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<NonZeroUsize>,
    /// Puts prompts through the chat template that the base brings.
    #[serde(default)]
    pub chat: bool,
    /// Tokens of a window of `perplexity`; longest row of `loss`.
    #[serde(default = "window")]
    pub sequence_length: NonZeroUsize,
}

fn yes() -> bool {
    true
}

fn window() -> NonZeroUsize {
    NonZeroUsize::new(256).expect("not zero")
}
