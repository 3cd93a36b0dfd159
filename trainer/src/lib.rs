//! Base models, objectives, the training loop, checkpoints, evaluation and generation.

pub mod base_model;
pub mod checkpoint;
mod config;
mod error;
pub mod evaluate;
pub mod generate;
mod gradients;
pub mod importance;
mod judge;
pub mod memory;
mod metrics;
mod optimizer;
pub mod parity;
mod rope_scaling;
mod schedule;
mod trainer;

pub use config::{
    AdamwConfig, CheckpointConfig, DecayConfig, GradientCheckpointing, ObjectiveConfig,
    OptimizerConfig, Precision, ScheduleConfig, SftConfig, TrainConfig, WarmupConfig,
};
pub use error::{CheckpointError, LoadError, TrainerError};
pub use judge::{Judge, JudgeError};
pub use metrics::{StepMetrics, available_memory_bytes, peak_resident_bytes};
pub use optimizer::{Optimizer, StateTensor, StateValues};
pub use rope_scaling::{RopeScalingConfig, RopeScalingError, RopeType};
pub use schedule::learning_rate;
pub use trainer::{
    Event, Outcome, RunSummary, TrainSettings, Trainer, partial_adapter, publish_adapter,
    total_steps, validation_loss,
};
