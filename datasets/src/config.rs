//! What a recipe says about data: sources, validation and batches.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fill_in_the_middle::FillInTheMiddleConfig;

/// One `[[dataset]]` of a recipe.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DatasetConfig {
    /// File, glob or folder: jsonl, json, csv, parquet, arrow, txt, md, source code; also `.gz`.
    pub path: String,
    /// Shape of a row; found from the first row's columns where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// Share of the rows an epoch takes: 2.0 takes each row twice, 0.5 a different half each epoch.
    #[serde(default = "one")]
    pub weight: f64,
    /// Which turns of a conversation carry loss.
    #[serde(default)]
    pub loss_on: LossOn,
    /// Names this file uses for the columns of the format: `{ prompt = "question" }`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub columns: BTreeMap<String, String>,
    /// A Jinja file or the name of a built-in template, in place of the base model's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat_template: Option<String>,
    /// Keeps rows in which no token carries loss; otherwise they are an error.
    #[serde(default)]
    pub allow_untrained_rows: bool,
    /// How texts of format `fill_in_the_middle` are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fill_in_the_middle: Option<FillInTheMiddleConfig>,
}

impl DatasetConfig {
    /// A dataset with nothing set but its path.
    pub fn new(path: impl Into<String>) -> Self {
        Self {
            path: path.into(),
            format: None,
            weight: one(),
            loss_on: LossOn::default(),
            columns: BTreeMap::new(),
            chat_template: None,
            allow_untrained_rows: false,
            fill_in_the_middle: None,
        }
    }
}

fn one() -> f64 {
    1.0
}

/// Names of the row formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FormatName {
    /// `{"messages": [{"role", "content"}]}`
    Messages,
    /// `{"conversations": [{"from", "value"}]}`
    Sharegpt,
    /// `{"instruction", "input", "output"}`
    Alpaca,
    /// `{"prompt", "completion"}`
    Completion,
    /// `{"text"}`, or the text of a plain file
    Text,
    /// `{"input_ids", "labels"}`
    Tokens,
    /// `{"prompt", "chosen", "rejected"}`: not trained on yet, refused by name
    #[schemars(skip)]
    Preference,
    /// source code cut into prefix, middle and suffix, or rows `{"prefix", "middle", "suffix"}`
    FillInTheMiddle,
}

/// Which tokens of a conversation carry loss.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossOn {
    /// Every assistant turn, with the token that ends it.
    #[default]
    Assistant,
    /// The last assistant turn alone.
    LastMessage,
    /// Every token.
    All,
}

/// The `[validation]` table: rows that are scored and never trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ValidationConfig {
    /// A path like a dataset's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// A share of the training rows held back, in (0, 1), chosen by the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<f64>,
    /// Row format of `path`; the first dataset's where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<FormatName>,
    /// Steps between two validations; at the end of every epoch where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub every_steps: Option<NonZeroUsize>,
}

/// The `[batch]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "two switches of a recipe, independent")]
pub struct BatchConfig {
    /// Most tokens in one row.
    pub sequence_length: NonZeroUsize,
    /// Puts several examples in one row, each seeing only itself.
    pub packing: bool,
    /// What happens to an example longer than `sequence_length`.
    pub on_overlong: OnOverlong,
    /// Rows that go through the model at once.
    pub sequences_per_micro_batch: NonZeroUsize,
    /// Micro-batches whose gradients make one optimizer step.
    pub micro_batches_per_step: NonZeroUsize,
    /// Draws a new order each epoch; otherwise rows keep the order of the file.
    pub shuffle: bool,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            sequence_length: NonZeroUsize::new(2048).expect("2048 is not zero"),
            packing: true,
            on_overlong: OnOverlong::Error,
            sequences_per_micro_batch: NonZeroUsize::MIN,
            micro_batches_per_step: NonZeroUsize::MIN,
            shuffle: true,
        }
    }
}

/// What happens to an example longer than a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnOverlong {
    /// Stops with the place of the row.
    #[default]
    Error,
    /// Leaves the example out.
    Drop,
    /// Keeps its first `sequence_length` tokens.
    Truncate,
    /// Cuts it into several examples.
    Split,
}
