//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864), in the half-split layout of
//! Hugging Face checkpoints: element `i` turns with element `i + head_dim / 2`.
//!
//! A rotation's gradient is the rotation backwards.

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::host;
use crate::math::vectorised;

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The embedding.
    Forward,
    /// Its gradient.
    Backward,
}

/// Turns every head of every token by the token's angles, in place where memory is not shared.
///
/// # Shapes
/// - `x`: `[tokens, heads * head_dim]`, `cos` and `sin`: `[tokens, head_dim / 2]`
pub fn rope(x: Tensor<2>, cos: &Tensor<2>, sin: &Tensor<2>, direction: Direction) -> Tensor<2> {
    let ([_, width], [_, half]) = (x.dims(), cos.dims());
    let (Some(cos_host), Some(sin_host)) = (host::host_f32(cos), host::host_f32(sin)) else {
        return reference(x, cos, sin, direction);
    };
    let mut x = match host::take_f32(x) {
        Ok(x) => x,
        Err(x) => return reference(x, cos, sin, direction),
    };
    let (cos, sin) = (host::read(&cos_host), host::read(&sin_host));
    host::write(&mut x)
        .par_chunks_mut(width)
        .with_min_len(16)
        .zip(cos.par_chunks(half).zip(sin.par_chunks(half)))
        .for_each(|(row, (cos, sin))| {
            vectorised(
                #[inline(always)]
                || turn_row(row, cos, sin, direction),
            );
        });
    host::give(x)
}

#[inline(always)]
fn turn_row(row: &mut [f32], cos: &[f32], sin: &[f32], direction: Direction) {
    let half = cos.len();
    let sign = match direction {
        Direction::Forward => 1.0,
        Direction::Backward => -1.0,
    };
    for head in row.chunks_exact_mut(2 * half) {
        let (low, high) = head.split_at_mut(half);
        for i in 0..half {
            let (a, b, c, s) = (low[i], high[i], cos[i], sign * sin[i]);
            low[i] = a * c - b * s;
            high[i] = b * c + a * s;
        }
    }
}

/// [`rope`] in plain tensor operations.
pub fn reference(
    x: Tensor<2>,
    cos: &Tensor<2>,
    sin: &Tensor<2>,
    direction: Direction,
) -> Tensor<2> {
    let ([tokens, width], [_, half], dtype) = (x.dims(), cos.dims(), x.dtype());
    let heads = width / (2 * half);
    let x = x.cast(burn::tensor::DType::F32).reshape([tokens, heads, 2, half]);
    let low = x.clone().slice([0..tokens, 0..heads, 0..1, 0..half]);
    let high = x.slice([0..tokens, 0..heads, 1..2, 0..half]);
    let cos = cos.clone().reshape([tokens, 1, 1, half]);
    let sin = sin.clone().reshape([tokens, 1, 1, half]);
    let sin = match direction {
        Direction::Forward => sin,
        Direction::Backward => sin.neg(),
    };
    let turned_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let turned_high = high * cos + low * sin;
    Tensor::cat(vec![turned_low, turned_high], 2).reshape([tokens, width]).cast(dtype)
}
