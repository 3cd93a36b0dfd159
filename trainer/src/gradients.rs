//! Sums gradients over micro-batches and measures them.

use adapters::LoraGradients;

use crate::base_model::{Gradients, MicroBatchResult, WholeGradients};

/// Gradients of a step.
#[derive(Debug, Default)]
pub(crate) struct StepGradients {
    /// Of low-rank updates.
    pub(crate) adapters: Gradients,
    /// Of tensors of the base.
    pub(crate) whole: WholeGradients,
}

impl From<MicroBatchResult> for StepGradients {
    fn from(result: MicroBatchResult) -> Self {
        Self { adapters: result.gradients, whole: result.whole_gradients }
    }
}

/// Adds the gradients of one micro-batch to those of the step.
pub(crate) fn accumulate(total: &mut StepGradients, part: StepGradients) {
    for (name, of_module) in part.adapters {
        let sum = match total.adapters.remove(&name) {
            Some(sum) => sum.plus(of_module),
            None => of_module,
        };
        total.adapters.insert(name, sum);
    }
    for (name, of_tensor) in part.whole {
        let sum = match total.whole.remove(&name) {
            Some(sum) => sum + of_tensor,
            None => of_tensor,
        };
        total.whole.insert(name, sum);
    }
}

/// Euclidean norm over everything that is trained.
pub(crate) fn global_norm(gradients: &StepGradients) -> f64 {
    let square_sum = |gradients: &LoraGradients| {
        let of_magnitude = gradients.magnitude.as_ref().map_or(0.0, kernels::sum_of_squares);
        kernels::sum_of_squares(&gradients.a) + kernels::sum_of_squares(&gradients.b) + of_magnitude
    };
    let of_adapters: f64 = gradients.adapters.values().map(square_sum).sum();
    let of_whole: f64 = gradients.whole.values().map(kernels::sum_of_squares).sum();
    (of_adapters + of_whole).sqrt()
}

/// Factor that brings the norm down to `limit`, 1 where it is below; a limit of 0 is off.
pub(crate) fn clip_factor(norm: f64, limit: f64) -> f64 {
    // 1e-6 as in PyTorch's `clip_grad_norm_`, whose runs ours are compared with.
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
