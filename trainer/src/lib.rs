//! Base models, objectives, the training loop, checkpoints, evaluation and generation.

mod config;

pub use config::{
    AdamwConfig, CheckpointConfig, DecayConfig, GradientCheckpointing, ObjectiveConfig,
    OptimizerConfig, Precision, ScheduleConfig, SftConfig, TrainConfig, WarmupConfig,
};
