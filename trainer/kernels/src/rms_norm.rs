//! RMS normalisation (Zhang & Sennrich 2019, arXiv 1910.07467).
//!
//! `y = x / sqrt(mean(x²) + epsilon) * weight`, with `r = 1 / sqrt(mean(x²) + epsilon)` per row.
//! Gradient: `dx = r * (g - x * r² * mean(g * x))` with `g = dy * weight`.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};
use crate::math::{sum_by, vectorised};

/// Rows that one task handles.
const ROWS_PER_TASK: usize = 32;

/// `y = x * r * weight`.
///
/// # Shapes
/// - `x`: `[tokens, hidden]`, `weight`: `[hidden]`, returns `[tokens, hidden]`
pub fn rms_norm(x: &Tensor<2>, weight: &Tensor<1>, epsilon: f64) -> Tensor<2> {
    let [tokens, hidden] = x.dims();
    let (Some(x_host), Some(weight_host)) = (host::host_f32(x), host::host_f32(weight)) else {
        return launch::gpu(Operation::RmsNorm)
            .and_then(|gpu| launch::rms_norm(&gpu, x, weight, epsilon))
            .unwrap_or_else(|| reference(x, weight, epsilon));
    };
    let (x, weight) = (host::read(&x_host), host::read(&weight_host));
    let mut y = host::buffer(tokens * hidden);
    y.par_chunks_mut(hidden * ROWS_PER_TASK).zip(x.par_chunks(hidden * ROWS_PER_TASK)).for_each(
        |(y, x)| {
            vectorised(
                #[inline(always)]
                || {
                    for (y, x) in y.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden)) {
                        let r = inverse_rms(x, epsilon);
                        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
                            *y = x * r * w;
                        }
                    }
                },
            );
        },
    );
    host::wrap(y, [tokens, hidden])
}

/// Gradient of [`rms_norm`]'s input, added to `sum`: the residual stream's gradient.
///
/// # Shapes
/// - `dy`, `x`, `sum`: `[tokens, hidden]`, `weight`: `[hidden]`, returns `[tokens, hidden]`
pub fn rms_norm_gradient(
    sum: Option<Tensor<2>>,
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let [_, hidden] = x.dims();
    let (Some(x_host), Some(dy_host), Some(weight_host)) =
        (host::host_f32(x), host::host_f32(dy), host::host_f32(weight))
    else {
        let faster = launch::gpu(Operation::RmsNorm).and_then(|gpu| {
            launch::rms_norm_gradient(&gpu, sum.as_ref(), (dy, x), weight, epsilon)
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
        Err(sum) => return sum + rms_norm_gradient(None, dy, x, weight, epsilon),
    };
    let (x, dy, weight) = (host::read(&x_host), host::read(&dy_host), host::read(&weight_host));
    let size = hidden * ROWS_PER_TASK;
    host::write(&mut dx)
        .par_chunks_mut(size)
        .zip(x.par_chunks(size).zip(dy.par_chunks(size)))
        .for_each(|(dx, (x, dy))| {
            vectorised(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden));
                    for ((dx, x), dy) in rows.zip(dy.chunks_exact(hidden)) {
                        row_gradient(dx, dy, x, weight, epsilon);
                    }
                },
            );
        });
    host::give(dx)
}

/// Gradient of [`rms_norm`]'s weight, f32: the sum of `dy * x * r` over the rows.
///
/// Plain operations everywhere: norms are trained rarely, and cost little beside products.
///
/// # Shapes
/// - `dy`, `x`: `[tokens, hidden]`, returns `[1, hidden]`
pub fn rms_norm_weight_gradient(dy: &Tensor<2>, x: &Tensor<2>, epsilon: f64) -> Tensor<2> {
    let wide = x.clone().cast(DType::F32);
    let r = wide.clone().square().mean_dim(1).add_scalar(epsilon).sqrt().recip();
    (dy.clone().cast(DType::F32) * wide * r).sum_dim(0)
}

#[inline(always)]
fn inverse_rms(x: &[f32], epsilon: f64) -> f32 {
    let squares = sum_by(
        x.len(),
        #[inline(always)]
        |i| x[i] * x[i],
    );
    1.0 / (squares / x.len() as f32 + epsilon as f32).sqrt()
}

#[inline(always)]
fn row_gradient(dx: &mut [f32], dy: &[f32], x: &[f32], weight: &[f32], epsilon: f64) {
    let n = x.len();
    let (dy, weight, dx) = (&dy[..n], &weight[..n], &mut dx[..n]);
    let r = inverse_rms(x, epsilon);
    let dot = sum_by(
        n,
        #[inline(always)]
        |i| dy[i] * weight[i] * x[i],
    );
    let mean = dot / n as f32 * r * r;
    for i in 0..n {
        dx[i] += r * (dy[i] * weight[i] - x[i] * mean);
    }
}

/// [`rms_norm`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference(x: &Tensor<2>, weight: &Tensor<1>, epsilon: f64) -> Tensor<2> {
    let wide = x.clone().cast(DType::F32);
    let r = wide.clone().square().mean_dim(1).add_scalar(epsilon).sqrt().recip();
    (wide * r * weight.clone().cast(DType::F32).unsqueeze::<2>()).cast(x.dtype())
}

/// [`rms_norm_gradient`] without `sum`, in plain tensor operations.
pub fn reference_gradient(
    dy: &Tensor<2>,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Tensor<2> {
    let wide = x.clone().cast(DType::F32);
    let r = wide.clone().square().mean_dim(1).add_scalar(epsilon).sqrt().recip();
    let g = dy.clone().cast(DType::F32) * weight.clone().cast(DType::F32).unsqueeze::<2>();
    let mean = (g.clone() * wide.clone()).mean_dim(1) * r.clone().square();
    ((g - wide * mean) * r).cast(x.dtype())
}
