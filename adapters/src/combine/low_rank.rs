//! Sums of low-rank updates: side by side, and cut back to a lower rank.
//!
//! Σ fᵢ·Bᵢ·Aᵢ is `[B₁ B₂ …]·[f₁A₁; f₂A₂; …]`. Its singular values follow from two thin QR
//! decompositions and one small SVD; the dense matrix is never formed.

use nalgebra::DMatrix;

use super::Part;
use crate::peft::LoraFactors;

/// The exact sum, in `rank` columns; those that are not needed are zero.
pub(super) fn side_by_side(parts: &[Part], rank: usize) -> LoraFactors {
    let LoraFactors { d_in, d_out, .. } = *parts[0].factors;
    let mut a = Vec::with_capacity(rank * d_in);
    for part in parts {
        a.extend(part.factors.a.iter().map(|value| (f64::from(*value) * part.factor()) as f32));
    }
    a.resize(rank * d_in, 0.0);
    let mut b = Vec::with_capacity(d_out * rank);
    for row in 0..d_out {
        for LoraFactors { b: values, rank, .. } in parts.iter().map(|part| part.factors) {
            b.extend_from_slice(&values[row * rank..(row + 1) * rank]);
        }
        b.resize((row + 1) * rank, 0.0);
    }
    LoraFactors { a, b, rank, d_in, d_out }
}

/// The best approximation of the sum at `rank`; A has orthonormal rows, B holds the sizes.
pub(super) fn truncated_sum(parts: &[Part], rank: usize) -> LoraFactors {
    let width = parts.iter().map(|part| part.factors.rank).sum();
    truncated(&side_by_side(parts, width), rank)
}

/// The best approximation of `B·A` at `rank`, with zeros where it has less.
pub fn truncated(factors: &LoraFactors, rank: usize) -> LoraFactors {
    let LoraFactors { a, b, rank: width, d_in, d_out } = factors;
    let wide = |value: &f32| f64::from(*value);
    let b = DMatrix::from_row_iterator(*d_out, *width, b.iter().map(wide)).qr();
    let a_transposed = DMatrix::from_iterator(*d_in, *width, a.iter().map(wide)).qr();
    let core = b.r() * a_transposed.r().transpose();
    let svd = core.svd(true, true);
    let (Some(u), Some(v_transposed)) = (svd.u, svd.v_t) else {
        // Both were asked for: they are there.
        return factors.clone();
    };
    let left = b.q() * u;
    let right = a_transposed.q() * v_transposed.transpose();
    // nalgebra sorts singular values, the largest first.
    let kept = rank.min(svd.singular_values.len());
    let mut out = LoraFactors {
        a: vec![0.0; rank * d_in],
        b: vec![0.0; d_out * rank],
        rank,
        d_in: *d_in,
        d_out: *d_out,
    };
    for column in 0..kept {
        let sign = orientation(left.column(column).iter());
        for (out, value) in out.a[column * d_in..].iter_mut().zip(right.column(column).iter()) {
            *out = (sign * value) as f32;
        }
        let size = sign * svd.singular_values[column];
        for (row, value) in left.column(column).iter().enumerate() {
            out.b[row * rank + column] = (size * value) as f32;
        }
    }
    out
}

/// A singular pair may change its sign as a whole: the largest element of the left one decides.
fn orientation<'a>(values: impl Iterator<Item = &'a f64>) -> f64 {
    let larger = |best: f64, &value: &f64| if value.abs() > best.abs() { value } else { best };
    if values.fold(0.0, larger) < 0.0 { -1.0 } else { 1.0 }
}
