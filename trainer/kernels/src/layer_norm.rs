//! Layer normalisation (Ba et al. 2016, arXiv 1607.06450).
//!
//! `y = n * weight + bias` with `n = (x - mean(x)) * r` and `r = 1 / sqrt(var(x) + epsilon)` per
//! row. Gradient: `dx = r * (g - mean(g) - n * mean(g * n))` with `g = dy * weight`.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};
use crate::math::{sum_by, vectorised};

/// Rows that one task handles.
const ROWS_PER_TASK: usize = 32;

/// `y = n * weight + bias`; without a bias where none is given.
///
/// `weight` has the width of a row, or of several: then rows take its parts in turn, which is how
/// heads get weights of their own.
///
/// # Shapes
/// - `x`: `[rows, width]`, `weight`, `bias`: `[parts * width]`, returns `[rows, width]`
pub fn layer_norm(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
) -> Tensor<2> {
    let [rows, width] = x.dims();
    let bias_host = bias.map(host::host_f32);
    let (Some(x_host), Some(weight_host), None | Some(Some(_))) =
        (host::host_f32(x), host::host_f32(weight), &bias_host)
    else {
        return launch::gpu(Operation::LayerNorm)
            .and_then(|gpu| launch::layer_norm(&gpu, x, weight, bias, epsilon))
            .unwrap_or_else(|| reference(x, weight, bias, epsilon));
    };
    let (x, weight) = (host::read(&x_host), host::read(&weight_host));
    let bias = bias_host.flatten();
    let bias = bias.as_ref().map(host::read);
    let mut y = host::buffer(rows * width);
    let size = width * ROWS_PER_TASK;
    y.par_chunks_mut(size).zip(x.par_chunks(size)).enumerate().for_each(|(task, (y, x))| {
        vectorised(
            #[inline(always)]
            || {
                let both = y.chunks_exact_mut(width).zip(x.chunks_exact(width));
                for (row, (y, x)) in both.enumerate() {
                    let weight = part(weight, task * ROWS_PER_TASK + row, width);
                    let (mean, r) = moments(x, epsilon);
                    for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                        *y = (x - mean) * r * w;
                    }
                    if let Some(bias) = bias {
                        let bias = part(bias, task * ROWS_PER_TASK + row, width);
                        for (y, &b) in y.iter_mut().zip(bias) {
                            *y += b;
                        }
                    }
                }
            },
        );
    });
    host::wrap(y, [rows, width])
}

/// Gradient of [`layer_norm`]'s input, added to `sum`: the residual stream's gradient.
///
/// # Shapes
/// - `dy`, `x`, `sum`: `[rows, width]`, `weight`: `[parts * width]`, returns `[rows, width]`
pub fn layer_norm_gradient(
    sum: Option<Tensor<2>>,
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let [_, width] = x.dims();
    let (Some(x_host), Some(dy_host), Some(weight_host)) =
        (host::host_f32(x), host::host_f32(dy), host::host_f32(weight))
    else {
        let faster = launch::gpu(Operation::LayerNorm).and_then(|gpu| {
            launch::layer_norm_gradient(&gpu, sum.as_ref(), (dy, x), weight, epsilon)
        });
        if let Some(dx) = faster {
            return dx;
        }
        let gradient = reference_gradient(dy, x, weight, epsilon);
        return match sum {
            Some(sum) => sum + gradient,
            None => gradient,
        };
    };
    let mut dx = match host::sum_or_zeros(sum, x.dims()) {
        Ok(dx) => dx,
        Err(sum) => return sum + layer_norm_gradient(None, dy, x, weight, epsilon),
    };
    let (x, dy, weight) = (host::read(&x_host), host::read(&dy_host), host::read(&weight_host));
    let size = width * ROWS_PER_TASK;
    host::write(&mut dx)
        .par_chunks_mut(size)
        .zip(x.par_chunks(size).zip(dy.par_chunks(size)))
        .enumerate()
        .for_each(|(task, (dx, (x, dy)))| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(width).zip(x.chunks_exact(width));
                    for (row, ((dx, x), dy)) in rows.zip(dy.chunks_exact(width)).enumerate() {
                        let weight = part(weight, task * ROWS_PER_TASK + row, width);
                        row_gradient(dx, dy, x, weight, epsilon);
                    }
                },
            );
        });
    host::give(dx)
}

/// Gradients of [`layer_norm`]'s weight and bias, f32: sums over the rows of `dy * n` and of `dy`.
///
/// # Shapes
/// - `dy`, `x`: `[rows, width]`, returns `[1, parts * width]` each
pub fn layer_norm_weight_gradient(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    parts: usize,
    epsilon: f64,
) -> (Tensor<2>, Tensor<2>) {
    let [rows, width] = x.dims();
    let (normed, _) = normalised(x, epsilon);
    let dy = dy.clone().cast(DType::F32);
    let sum = |x: Tensor<2>| x.reshape([rows / parts, parts * width]).sum_dim(0);
    (sum(dy.clone() * normed), sum(dy))
}

/// The weights of a row.
#[inline(always)]
fn part(weight: &[f32], row: usize, width: usize) -> &[f32] {
    let first = row % (weight.len() / width) * width;
    &weight[first..first + width]
}

/// Mean, and `1 / sqrt(variance + epsilon)`.
#[inline(always)]
fn moments(x: &[f32], epsilon: f64) -> (f32, f32) {
    let count = x.len() as f32;
    let sum = sum_by(
        x.len(),
        #[inline(always)]
        |i| x[i],
    );
    let mean = sum / count;
    let squares = sum_by(
        x.len(),
        #[inline(always)]
        |i| (x[i] - mean) * (x[i] - mean),
    );
    (mean, 1.0 / (squares / count + epsilon as f32).sqrt())
}

#[inline(always)]
fn row_gradient(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], epsilon: f64) {
    let n = x.len();
    let (dy, weight, dx) = (&dy[..n], &weight[..n], &mut dx[..n]);
    let (mean, r) = moments(x, epsilon);
    let slope_sum = sum_by(
        n,
        #[inline(always)]
        |i| dy[i] * weight[i],
    );
    let dot = sum_by(
        n,
        #[inline(always)]
        |i| dy[i] * weight[i] * (x[i] - mean),
    );
    let (slope_mean, dot) = (slope_sum / n as f32, dot / n as f32 * r * r);
    for i in 0..n {
        dx[i] += r * (dy[i] * weight[i] - slope_mean - (x[i] - mean) * dot);
    }
}

/// [`layer_norm`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference(
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
) -> Tensor<2> {
    let (normed, _) = normalised(x, epsilon);
    let mut y = in_turn(normed, weight, |y, weight| y * weight);
    if let Some(bias) = bias {
        y = in_turn(y, bias, |y, bias| y + bias);
    }
    y.cast(x.dtype())
}

/// [`layer_norm_gradient`] without `sum`, in plain tensor operations.
pub fn reference_gradient(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let (normed, r) = normalised(x, epsilon);
    let g = in_turn(dy.clone().cast(DType::F32), weight, |dy, weight| dy * weight);
    let dot = (g.clone() * normed.clone()).mean_dim(1);
    ((g.clone() - g.mean_dim(1) - normed * dot) * r).cast(x.dtype())
}

/// `n` and `r`, f32.
fn normalised(x: &Tensor<2>, epsilon: f64) -> (Tensor<2>, Tensor<2>) {
    let wide = x.clone().cast(DType::F32);
    let centred = wide.clone() - wide.mean_dim(1);
    let r = centred.clone().square().mean_dim(1).add_scalar(epsilon).sqrt().recip();
    (centred * r.clone(), r)
}

/// Combines rows with the parts of a weight in turn.
fn in_turn(
    x: Tensor<2>,
    weight: &Tensor<1>,
    combine: impl Fn(Tensor<3>, Tensor<3>) -> Tensor<3>,
) -> Tensor<2> {
    let [rows, width] = x.dims();
    let parts = weight.dims()[0] / width;
    let weight = weight.clone().cast(DType::F32).reshape([1, parts, width]);
    combine(x.reshape([rows / parts, parts, width]), weight).reshape([rows, width])
}
