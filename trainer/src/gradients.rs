//! Sums gradients over micro-batches and measures them.

use adapters::LoraGradients;

use crate::base_model::Gradients;

/// Adds the gradients of one micro-batch to those of the step.
pub(crate) fn accumulate(total: &mut Gradients, part: Gradients) {
    for (name, of_module) in part {
        let sum = match total.remove(&name) {
            Some(sum) => sum.plus(of_module),
            None => of_module,
        };
        total.insert(name, sum);
    }
}

/// Euclidean norm over everything that is trained.
pub(crate) fn global_norm(gradients: &Gradients) -> f64 {
    let square_sum = |gradients: &LoraGradients| {
        let of_magnitude = gradients.magnitude.as_ref().map_or(0.0, kernels::sum_of_squares);
        kernels::sum_of_squares(&gradients.a) + kernels::sum_of_squares(&gradients.b) + of_magnitude
    };
    gradients.values().map(square_sum).sum::<f64>().sqrt()
}

/// Factor that brings the norm down to `limit`, 1 where it is below; a limit of 0 is off.
pub(crate) fn clip_factor(norm: f64, limit: f64) -> f64 {
    // 1e-6 as in PyTorch's `clip_grad_norm_`, whose runs ours are compared with.
    if limit > 0.0 { (limit / (norm + 1e-6)).min(1.0) } else { 1.0 }
}
