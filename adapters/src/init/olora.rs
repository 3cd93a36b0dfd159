//! OLoRA (Büyükakyüz 2024, arXiv 2406.01775): the adapter begins as a QR decomposition.
//!
//! With `W = Q·R`, `B` is the first columns of `Q` and `A` the first rows of `R`;
//! `scale·B·A` is taken out of the base.

use super::svd::Matrix;
use crate::peft::LoraFactors;

/// The first columns of `Q` depend on the first columns of `W` alone, and `R = Qᵀ·W`.
pub(super) fn factors(weight: &Matrix, rank: usize) -> LoraFactors {
    let (d_out, d_in) = (weight.nrows(), weight.ncols());
    let q = weight.columns(0, rank).into_owned().qr().q();
    let r = q.transpose() * weight;
    // Exactly zero in the decomposition; the product leaves rounding errors.
    let upper = |row: usize, column: usize| if column < row { 0.0 } else { r[(row, column)] };
    LoraFactors {
        a: (0..rank * d_in).map(|n| upper(n / d_in, n % d_in) as f32).collect(),
        b: (0..d_out * rank).map(|n| q[(n / rank, n % rank)] as f32).collect(),
        rank,
        d_in,
        d_out,
    }
}
