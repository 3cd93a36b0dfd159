//! Base models, objectives, the training loop, checkpoints, evaluation and generation.

pub mod base_model;
mod config;
mod error;

pub use config::{
    AdamwConfig, CheckpointConfig, DecayConfig, GradientCheckpointing, ObjectiveConfig,
    OptimizerConfig, Precision, ScheduleConfig, SftConfig, TrainConfig, WarmupConfig,
};
pub use error::LoadError;
