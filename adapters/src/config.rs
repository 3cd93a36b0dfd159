//! What a recipe says about the adapter.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[adapter.*]` table: one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterConfig {
    /// `[adapter.lora]`
    Lora(LoraConfig),
}

/// `[adapter.lora]`: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LoraConfig {
    /// Inner dimension of the update; 16 where it is not given (with `init_from`, the adapter's).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rank: Option<NonZeroUsize>,
    /// The update is scaled by `alpha / rank`; 32 where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Share of the update's inputs that are zeroed in training, in [0, 1).
    #[serde(default)]
    pub dropout: f64,
    /// Linear layers that get an update: `"all-linear"` or a list of module names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_modules: Option<TargetModules>,
    /// Module names left out of `target_modules`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_modules: Vec<String>,
    /// Scales by `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv 2312.03732).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// Rank of single modules, by name suffix or regular expression as PEFT matches it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, NonZeroUsize>,
    /// Alpha of single modules, by name suffix or regular expression as PEFT matches it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Folder of a PEFT adapter to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

/// Which linear layers are adapted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TargetModules {
    /// A single word: `"all-linear"`, every linear layer but the head.
    Word(String),
    /// Names, matched as PEFT does: the whole module path or its end after a dot.
    List(Vec<String>),
}
