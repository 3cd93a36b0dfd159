//! What a recipe says about training: precision, objective, optimizer, schedule, loop.

use std::num::NonZeroU64;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Number format of the forward and backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// bf16 on CUDA from compute capability 8.0, else f32.
    #[default]
    Auto,
    /// 32 bit.
    F32,
    /// bfloat16 with f32 adapter masters.
    Bf16,
}

/// The `[objective.*]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ObjectiveConfig {
    /// `[objective.sft]`: next-token loss on marked tokens.
    Sft(SftConfig),
}

/// `[objective.sft]` has no keys.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SftConfig {}

/// The `[optimizer.*]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerConfig {
    /// `[optimizer.adamw]`
    Adamw(AdamwConfig),
    /// `[optimizer.adamw_8bit]`: the same with moments in 8 bits (Dettmers et al. 2021, arXiv
    /// 2110.02861), a quarter of the memory; factors of fewer than 4,096 numbers keep theirs in f32.
    #[serde(rename = "adamw_8bit")]
    Adamw8bit(AdamwConfig),
}

impl OptimizerConfig {
    /// The settings of the update.
    pub fn adamw(&self) -> &AdamwConfig {
        match self {
            Self::Adamw(config) | Self::Adamw8bit(config) => config,
        }
    }

    /// Bytes of both moments of so many numbers.
    pub fn moment_bytes(&self, numbers: u64) -> u64 {
        match self {
            Self::Adamw(_) => 8 * numbers,
            Self::Adamw8bit(_) => kernels::EightBitMoments::bytes_for(numbers as usize) as u64,
        }
    }
}

/// `[optimizer.adamw]`: Adam with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AdamwConfig {
    /// Peak of the schedule.
    pub learning_rate: f64,
    /// Decay of the weights per step, times the learning rate.
    pub weight_decay: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
}

impl Default for AdamwConfig {
    fn default() -> Self {
        Self { learning_rate: 2e-4, weight_decay: 0.0, betas: [0.9, 0.999], epsilon: 1e-8 }
    }
}

/// The `[schedule.*]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleConfig {
    /// `[schedule.constant]`
    Constant(WarmupConfig),
    /// `[schedule.linear]`: falls to `final_ratio` in a straight line.
    Linear(DecayConfig),
    /// `[schedule.cosine]`: falls to `final_ratio` along half a cosine.
    Cosine(DecayConfig),
}

/// Keys of a schedule that only warms up.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WarmupConfig {
    /// Steps from `learning_rate / warmup_steps` to `learning_rate`.
    pub warmup_steps: u64,
}

/// Keys of a schedule that warms up and decays.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DecayConfig {
    /// Steps from `learning_rate / warmup_steps` to `learning_rate`.
    pub warmup_steps: u64,
    /// Share of the learning rate left at the last step.
    pub final_ratio: f64,
}

/// The `[train]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Passes over the data; 1 where neither it nor `steps` is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epochs: Option<NonZeroU64>,
    /// Optimizer steps; excludes `epochs`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub steps: Option<NonZeroU64>,
    /// Gradients are scaled down to this global norm; 0 = off.
    pub max_gradient_norm: f64,
    /// Recomputes blocks in the backward pass instead of keeping what they saved.
    pub gradient_checkpointing: GradientCheckpointing,
    /// Factor of the loss that spreads tokens over experts, for Mixtral and Qwen3-MoE; 0.001 is
    /// usual, 0 turns it off. Where the key is absent the base's `config.json` says: on only with
    /// `output_router_logits`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_aux_loss_coef: Option<f64>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        Self {
            epochs: None,
            steps: None,
            max_gradient_norm: 1.0,
            gradient_checkpointing: GradientCheckpointing::Auto,
            router_aux_loss_coef: None,
        }
    }
}

/// A choice of memory against time; results do not change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GradientCheckpointing {
    /// As many blocks keep what they save as fit in memory; the others keep their input.
    #[default]
    Auto,
    /// Keeps block inputs only.
    On,
    /// Keeps all that the backward pass needs.
    Off,
}

/// The `[checkpoint]` table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CheckpointConfig {
    /// Steps between two checkpoints.
    pub every_steps: NonZeroU64,
    /// Newest checkpoints that are kept.
    pub keep_last: NonZeroU64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            every_steps: NonZeroU64::new(100).expect("100 is not zero"),
            keep_last: NonZeroU64::new(2).expect("2 is not zero"),
        }
    }
}
