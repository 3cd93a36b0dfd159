//! The `*_svd` methods: dense updates are combined element by element and cut back to a rank.

use super::factors::{Elementwise, Letter};
use super::{CombineError, CombineRequest, Part};
use crate::error::TensorProblem;
use crate::init::svd;
use crate::peft::LoraFactors;

/// The best approximation at `rank` of the combined dense updates of one module.
pub(super) fn combine(
    request: &CombineRequest,
    module: &str,
    parts: &[Part],
    rank: usize,
) -> Result<LoraFactors, CombineError> {
    let elementwise = Elementwise::new(request, module);
    approximated(&elementwise, parts, rank).ok_or_else(|| {
        let problem = TensorProblem::new(module, "has no singular values: its values overflow");
        CombineError::Misfit { method: request.method.name(), problems: vec![problem] }
    })
}

pub(super) fn approximated(
    elementwise: &Elementwise,
    parts: &[Part],
    rank: usize,
) -> Option<LoraFactors> {
    let LoraFactors { d_in, d_out, .. } = *parts[0].factors;
    let updates: Vec<Vec<f32>> = parts.iter().map(update).collect();
    let values: Vec<(&[f32], f32)> = updates
        .iter()
        .zip(parts)
        .map(|(update, part)| (update.as_slice(), part.weight as f32))
        .collect();
    let elements = elementwise.request.elements();
    let combined = elements.merge(&values, &|place| {
        elementwise.mask(Letter::Dense, parts[place].adapter, d_out * d_in, elements.density)
    });
    drop(updates);
    let full = rank.min(d_in).min(d_out);
    let factors = svd::largest(&svd::matrix(&combined, [d_out, d_in]), full)?.factors(1.0);
    Some(factors.padded_to(rank))
}

/// `scale·B·A`, row-major.
fn update(part: &Part) -> Vec<f32> {
    let LoraFactors { a, b, rank, d_in, .. } = part.factors;
    let row_of = |b: &[f32]| -> Vec<f32> {
        let mut row = vec![0.0_f64; *d_in];
        for (factor, a) in b.iter().zip(a.chunks_exact(*d_in)) {
            let factor = part.scale * f64::from(*factor);
            row.iter_mut().zip(a).for_each(|(out, value)| *out += factor * f64::from(*value));
        }
        row.into_iter().map(|value| value as f32).collect()
    };
    b.chunks_exact(*rank).flat_map(row_of).collect()
}
