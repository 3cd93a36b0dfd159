//! What a recipe says about the adapter.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::modules_to_save::BiasMode;

/// The `[adapter.*]` table: one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdapterConfig {
    /// `[adapter.lora]`
    Lora(LoraConfig),
    /// `[adapter.dora]`: the keys of `[adapter.lora]`, and a trained magnitude for every output
    /// (Liu et al. 2024, arXiv 2402.09353).
    Dora(LoraConfig),
}

impl AdapterConfig {
    /// What the low-rank methods have in common.
    pub fn low_rank(&self) -> &LoraConfig {
        match self {
            Self::Lora(config) | Self::Dora(config) => config,
        }
    }

    /// The same, to fill in.
    pub fn low_rank_mut(&mut self) -> &mut LoraConfig {
        match self {
            Self::Lora(config) | Self::Dora(config) => config,
        }
    }

    /// Whether rows get magnitudes.
    pub fn is_dora(&self) -> bool {
        matches!(self, Self::Dora(_))
    }

    /// Name of the method.
    pub fn method(&self) -> &'static str {
        if self.is_dora() { "DoRA" } else { "LoRA" }
    }

    /// The table in a recipe.
    pub fn table(&self) -> &'static str {
        if self.is_dora() { "adapter.dora" } else { "adapter.lora" }
    }
}

/// `[adapter.lora]`: low-rank adaptation (Hu et al. 2021, arXiv 2106.09685).
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
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
    /// Experts that are adapted as PEFT adapts parameters: `"mlp.experts.gate_up_proj"` and
    /// `"mlp.experts.down_proj"`. Their rank is `rank` divided by the number of experts, or that of
    /// a pattern.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_parameters: Vec<String>,
    /// Module names left out of `target_modules`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub exclude_modules: Vec<String>,
    /// Modules that are trained as a whole, by the ends of their paths: `["lm_head", "embed_tokens"]`,
    /// norms, single linear layers. Each is in the adapter's file in full.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub modules_to_save: Vec<String>,
    /// Trains embedding and head as the one matrix they are, where `modules_to_save` names one of
    /// them and the model ties them. Without it they part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ensure_weight_tying: Option<bool>,
    /// Biases that are trained: `"none"`, `"all"`, or `"lora_only"`, those of adapted layers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<BiasMode>,
    /// Scales by `alpha / sqrt(rank)` (Kalajdzievski 2023, arXiv 2312.03732).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_rslora: Option<bool>,
    /// Rank of single modules, by name suffix or regular expression as PEFT matches it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub rank_pattern: BTreeMap<String, NonZeroUsize>,
    /// Alpha of single modules, by name suffix or regular expression as PEFT matches it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// How A and B begin; `kaiming_uniform` where it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init: Option<Initialization>,
    /// Iterations of a fast, approximate decomposition for `init = "pissa"`; exact where it is not
    /// given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pissa_iterations: Option<NonZeroUsize>,
    /// `LoRA+`: learning rate of B over that of A, 1 or more (Hayou et al. 2024, arXiv 2402.12354).
    /// Magnitudes of DoRA learn as fast as B.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lora_plus_ratio: Option<f64>,
    /// Folder of a PEFT adapter to start from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub init_from: Option<PathBuf>,
}

/// First values of A and B.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Initialization {
    /// A uniform in ±1/√`d_in`, B zero.
    #[default]
    KaimingUniform,
    /// A normal with standard deviation 1/rank, B zero.
    Gaussian,
    /// Both random with a product of zero; the rank must be even.
    Orthogonal,
    /// The largest singular triples of the weight (arXiv 2404.02948).
    Pissa,
    /// The first columns of the weight's QR decomposition (arXiv 2406.01775).
    Olora,
}

impl Initialization {
    /// Whether the adapter begins with a part of the weight, which is taken out of the base.
    pub fn is_part_of_the_base(self) -> bool {
        matches!(self, Self::Pissa | Self::Olora)
    }
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
