//! What a run's memory is planned from: `plan` and `train` ask the same.

use adapters::weights::ModelFiles;
use trainer::base_model::{BaseFormat, DecoderConfig};
use trainer::memory::{Place, PlanRequest, base_bytes, scratch_bytes};

use crate::device::{Chosen, DeviceKind};
use crate::recipe::Recipe;

/// What is known of a run's adapter and data.
pub(crate) struct PlanInputs {
    pub(crate) trained_parameters: u64,
    /// Bytes that adapters keep for the backward pass per token.
    pub(crate) saved_bytes_per_token: u64,
    /// Tokens of the longest example.
    pub(crate) longest: usize,
}

/// The request for a recipe's plan on a device.
pub(crate) fn plan_request<'a>(
    recipe: &'a Recipe,
    (files, config): (&ModelFiles, &'a DecoderConfig),
    format: BaseFormat,
    chosen: &Chosen,
    inputs: &PlanInputs,
) -> PlanRequest<'a> {
    let (activation_width, place) = match chosen.kind {
        DeviceKind::Cpu => (4, Place::Host),
        DeviceKind::Cuda => {
            let scratch_bytes = scratch_bytes(config, format);
            (format.dtype.size() as u64, Place::Gpu { scratch_bytes })
        }
    };
    PlanRequest {
        config,
        base_bytes: base_bytes(config, format, files),
        trained_parameters: inputs.trained_parameters,
        adapter_bytes_per_token: inputs.saved_bytes_per_token,
        batch: &recipe.batch,
        longest_example: inputs.longest,
        activation_width,
        optimizer: &recipe.optimizer,
        checkpointing: recipe.train.gradient_checkpointing,
        place,
    }
}

/// Bytes in GiB with two digits.
pub(crate) fn gib(bytes: u64) -> String {
    format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30))
}
