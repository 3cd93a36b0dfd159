//! Adapter methods, their PEFT files, weight files of base models, and merging.

mod adapted_linear;
pub mod combine;
mod config;
pub mod convert;
mod dora;
mod error;
mod expert_parameters;
pub mod extract;
mod init;
mod init_from;
pub mod lint;
mod lora;
pub mod merge;
pub mod mix;
mod modules_to_save;
mod pattern;
pub mod peft;
mod safetensors_file;
mod target;
mod trained;
pub mod weights;

pub use adapted_linear::{
    AdaptedLinear, AdapterState, InputGradient, InputObserver, LinearOutput, SavedUpdate,
};
pub use config::{AdapterConfig, Initialization, LoraConfig, TargetModules};
pub use dora::Magnitude;
pub use error::{AdapterError, TensorProblem};
pub use init::initial_factors;
pub use init_from::{conflicts, method_conflict, targets_of_adapter};
pub use lora::{Lora, LoraGradients, Pass};
pub use modules_to_save::{BaseTensors, BiasMode, WeightTying, WholeSelection};
pub use pattern::{BadPattern, ModulePatterns};
pub use peft::{
    AdapterWeights, LoraFactors, ModuleNames, PeftConfig, Scaling, WholeTensor, fit_experts,
    read_adapter, write_adapter,
};
pub use target::{DEFAULT_ALPHA, DEFAULT_RANK, LinearLayer, Target, select_targets};
pub use trained::{Decay, Storage, Trained, TrainedLinear};
