//! Soft cap: `y = c * tanh(x / c)`, so that `|y| < c` (Bello et al. 2016, arXiv 1611.09940).
//!
//! Gradient: `dx = dy * (1 - (y / c)²)`.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::math::{tanh, vectorised};

/// Elements that one task handles.
const CHUNK: usize = 1 << 14;

/// `c * tanh(x / c)`, in place where memory is not shared.
///
/// # Shapes
/// - `x`: `[rows, width]`, returns the same
pub fn soft_cap(x: Tensor<2>, cap: f64) -> Tensor<2> {
    let mut x = match host::take_f32(x) {
        Ok(x) => x,
        Err(x) => return reference(&x, cap),
    };
    let (cap, inverse) = (cap as f32, 1.0 / cap as f32);
    host::write(&mut x).par_chunks_mut(CHUNK).for_each(|x| {
        vectorised(
            #[inline(always)]
            || {
                for x in x.iter_mut() {
                    *x = cap * tanh(*x * inverse);
                }
            },
        );
    });
    host::give(x)
}

/// Gradient of [`soft_cap`]'s input from its output, in place where memory is not shared.
///
/// # Shapes
/// - `dy`, `y`: `[rows, width]`, returns the same
pub fn soft_cap_gradient(dy: Tensor<2>, y: &Tensor<2>, cap: f64) -> Tensor<2> {
    let Some(y_host) = host::host_f32(y) else {
        return reference_gradient(&dy, y, cap);
    };
    let mut dx = match host::take_f32(dy) {
        Ok(dy) => dy,
        Err(dy) => return reference_gradient(&dy, y, cap),
    };
    let inverse = 1.0 / cap as f32;
    let y = host::read(&y_host).par_chunks(CHUNK);
    host::write(&mut dx).par_chunks_mut(CHUNK).zip(y).for_each(|(dx, y)| {
        vectorised(
            #[inline(always)]
            || {
                for (dx, &y) in dx.iter_mut().zip(y) {
                    let share = y * inverse;
                    *dx *= 1.0 - share * share;
                }
            },
        );
    });
    host::give(dx)
}

/// [`soft_cap`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference(x: &Tensor<2>, cap: f64) -> Tensor<2> {
    ((x.clone().cast(DType::F32) / cap).tanh() * cap).cast(x.dtype())
}

/// [`soft_cap_gradient`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference_gradient(dy: &Tensor<2>, y: &Tensor<2>, cap: f64) -> Tensor<2> {
    let share = y.clone().cast(DType::F32) / cap;
    (dy.clone().cast(DType::F32) * (share.square().neg() + 1.0)).cast(dy.dtype())
}
