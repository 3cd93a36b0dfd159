//! PiSSA (Meng et al. 2024, arXiv 2404.02948): the adapter begins as the largest singular triples.
//!
//! With `W = U·S·Vᵀ` and r columns of each, `B = U·√(S/scale)`, `A = √(S/scale)·Vᵀ`, so that
//! `scale·B·A` is the best approximation of `W` at that rank; it is taken out of the base.

use super::svd::{self, Matrix};
use crate::peft::LoraFactors;

/// Factors from the exact decomposition of `weight`.
pub(super) fn exact(weight: &Matrix, rank: usize, scale: f64) -> Option<LoraFactors> {
    Some(svd::largest(weight, rank)?.factors(scale))
}

/// Factors from `iterations` of subspace iteration, as `pissa_niter_N` of PEFT.
///
/// The first subspace is drawn by counter from `key`.
pub(super) fn fast(
    weight: &Matrix,
    (rank, scale): (usize, f64),
    iterations: usize,
    key: [u8; 32],
) -> Option<LoraFactors> {
    Some(svd::approximate(weight, rank, iterations, key)?.factors(scale))
}
