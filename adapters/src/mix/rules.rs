//! The arithmetic of mixing: one number of each model in, one out.

/// Tensors whose cosine lies above this are mixed on the straight line: the arc has no direction.
const PARALLEL: f64 = 0.9995;

/// The factors of the two tensors at `position` on the arc between them, from their scalar product
/// and norms.
pub(super) fn slerp(product: f64, norms: [f64; 2], position: f64) -> [f64; 2] {
    let cosine = product / (norms[0] * norms[1]).max(f64::MIN_POSITIVE);
    if cosine.abs() > PARALLEL || norms.contains(&0.0) {
        return [1.0 - position, position];
    }
    let angle = cosine.acos();
    let sine = angle.sin();
    [(angle * (1.0 - position)).sin() / sine, (angle * position).sin() / sine]
}

/// Which elements TIES keeps: those above a size, and of that size the first ones.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Threshold {
    size: f32,
    /// Place of the last element of exactly that size that stays.
    last: usize,
}

impl Threshold {
    pub(super) fn keeps(self, place: usize, value: f32) -> bool {
        value.abs() > self.size || (value.abs() == self.size && place <= self.last)
    }

    pub(super) fn new(size: f32, last: usize) -> Self {
        Self { size, last }
    }
}

/// The size of the smallest element that stays where `density` of them do, at least one, and how
/// many of exactly that size; nothing of nothing. `sizes` are put in another order.
pub(super) fn smallest_kept(sizes: &mut [f32], density: f64) -> Option<(f32, usize)> {
    if sizes.is_empty() {
        return None;
    }
    let count = ((density * sizes.len() as f64) as usize).max(1);
    let (_, &mut size, _) = sizes.select_nth_unstable_by(count - 1, |x, y| y.total_cmp(x));
    let above = sizes.iter().filter(|value| **value > size).count();
    Some((size, count - above))
}

/// How changes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Consensus {
    /// The weighted sum of all.
    None,
    /// The weighted mean of those that have the sign of the weighted sum.
    MeanOfAgreeing,
    /// The weighted sum of those that have the sign of the weighted sum.
    SumOfAgreeing,
}

/// One change out of the change of each model.
pub(super) fn agree(changes: &[f32], weights: &[f32], consensus: Consensus) -> f32 {
    let weighted = || changes.iter().zip(weights).map(|(change, weight)| change * weight);
    let total: f32 = weighted().sum();
    if consensus == Consensus::None {
        return total;
    }
    let majority = if total >= 0.0 { 1.0 } else { -1.0 };
    let sign = |value: f32| if value == 0.0 { 0.0 } else { value.signum() };
    let agreeing = || weighted().zip(weights).filter(|(value, _)| sign(*value) == majority);
    let sum: f32 = agreeing().map(|(value, _)| value).sum();
    if consensus == Consensus::SumOfAgreeing {
        return sum;
    }
    let divisor: f32 = agreeing().map(|(_, weight)| *weight).sum();
    if divisor == 0.0 { sum } else { sum / divisor }
}
