//! Rotary position embedding (Su et al. 2021, arXiv 2104.09864).
//!
//! Pairs of elements turn by an angle each. A rotation's gradient is the rotation backwards, also
//! where cosines and sines carry a common factor.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};
use crate::math::vectorised;

/// Which way to turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The embedding.
    Forward,
    /// Its gradient.
    Backward,
}

/// Which elements of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RotaryPairs {
    /// Element `i` with element `i + n / 2` of the `n` that turn: most Hugging Face checkpoints.
    HalfSplit,
    /// Element `2 i` with element `2 i + 1`.
    Interleaved,
}

/// A head's layout. Its first elements turn, two for every angle; the others stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RotaryHead {
    /// Width of a head.
    pub head_dim: usize,
    /// Its pairs.
    pub pairs: RotaryPairs,
}

/// Turns every head of every token by the token's angles, in place where memory is not shared.
///
/// # Shapes
/// - `x`: `[tokens, heads * head_dim]`, `cos` and `sin`: `[tokens, turned elements / 2]`
pub fn rope(
    x: Tensor<2>,
    (cos, sin): (&Tensor<2>, &Tensor<2>),
    head: RotaryHead,
    direction: Direction,
) -> Tensor<2> {
    let ([_, width], [_, half]) = (x.dims(), cos.dims());
    let (Some(cos_host), Some(sin_host)) = (host::host_f32(cos), host::host_f32(sin)) else {
        let faster = launch::gpu(Operation::Rope)
            .and_then(|gpu| launch::rope(&gpu, &x, (cos, sin), head, direction));
        return faster.unwrap_or_else(|| reference(x, (cos, sin), head, direction));
    };
    let mut x = match host::take_f32(x) {
        Ok(x) => x,
        Err(x) => return reference(x, (cos, sin), head, direction),
    };
    let (cos, sin) = (host::read(&cos_host), host::read(&sin_host));
    host::write(&mut x)
        .par_chunks_mut(width)
        .with_min_len(16)
        .zip(cos.par_chunks(half).zip(sin.par_chunks(half)))
        .for_each(|(row, (cos, sin))| {
            vectorised(
                #[inline(always)]
                || match head.pairs {
                    RotaryPairs::HalfSplit => turn_halves(row, cos, sin, head.head_dim, direction),
                    RotaryPairs::Interleaved => {
                        turn_neighbours(row, cos, sin, head.head_dim, direction);
                    }
                },
            );
        });
    host::give(x)
}

impl Direction {
    #[inline(always)]
    fn sign(self) -> f32 {
        match self {
            Self::Forward => 1.0,
            Self::Backward => -1.0,
        }
    }
}

#[inline(always)]
fn turn_halves(row: &mut [f32], cos: &[f32], sin: &[f32], head_dim: usize, direction: Direction) {
    let (half, sign) = (cos.len(), direction.sign());
    for head in row.chunks_exact_mut(head_dim) {
        let (low, high) = head[..2 * half].split_at_mut(half);
        for i in 0..half {
            let (a, b, c, s) = (low[i], high[i], cos[i], sign * sin[i]);
            low[i] = a * c - b * s;
            high[i] = b * c + a * s;
        }
    }
}

#[inline(always)]
fn turn_neighbours(
    row: &mut [f32],
    cos: &[f32],
    sin: &[f32],
    head_dim: usize,
    direction: Direction,
) {
    let sign = direction.sign();
    for head in row.chunks_exact_mut(head_dim) {
        for (pair, (c, s)) in head.chunks_exact_mut(2).zip(cos.iter().zip(sin)) {
            let (a, b, s) = (pair[0], pair[1], sign * s);
            pair[0] = a * c - b * s;
            pair[1] = b * c + a * s;
        }
    }
}

/// [`rope`] in plain tensor operations.
pub fn reference(
    x: Tensor<2>,
    (cos, sin): (&Tensor<2>, &Tensor<2>),
    head: RotaryHead,
    direction: Direction,
) -> Tensor<2> {
    let ([tokens, width], [_, half], dtype) = (x.dims(), cos.dims(), x.dtype());
    let (heads, turned) = (width / head.head_dim, 2 * half);
    let x = x.cast(DType::F32).reshape([tokens, heads, head.head_dim]);
    let still = x.clone().slice([0..tokens, 0..heads, turned..head.head_dim]);
    let x = x.slice([0..tokens, 0..heads, 0..turned]);
    let (sizes, axis) = match head.pairs {
        RotaryPairs::HalfSplit => ([tokens, heads, 2, half], 2),
        RotaryPairs::Interleaved => ([tokens, heads, half, 2], 3),
    };
    let pairs: Tensor<4> = x.reshape(sizes);
    let low = pairs.clone().narrow(axis, 0, 1);
    let high = pairs.narrow(axis, 1, 1);
    let mut row = [tokens, 1, half, half];
    row[axis] = 1;
    let cos = cos.clone().reshape(row);
    let sin = sin.clone().reshape(row) * direction.sign();
    let turned_low = low.clone() * cos.clone() - high.clone() * sin.clone();
    let turned_high = high * cos + low * sin;
    let x = Tensor::cat(vec![turned_low, turned_high], axis).reshape([tokens, heads, turned]);
    let x = if turned < head.head_dim { Tensor::cat(vec![x, still], 2) } else { x };
    x.reshape([tokens, width]).cast(dtype)
}
