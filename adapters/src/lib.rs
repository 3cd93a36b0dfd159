//! Adapter methods, their PEFT files, weight files of base models, and merging.

mod config;
pub mod weights;

pub use config::{AdapterConfig, LoraConfig, TargetModules};
