//! Linear layers: `y = x · wᵀ`, weights as files hold them, `[d_out, d_in]`.
//!
//! Weights may be bf16 or quantised while activations are f32 (CPU): they are expanded a panel of
//! rows at a time. Panels have the same borders however a weight is stored, so its storage
//! changes no sum.

use burn::tensor::{DType, Device, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Kind, Operation};
use crate::matmul::{Operand, Output, Sizes, Strides, Threads, multiply};
use crate::panel::{self, Rows};
use crate::product;
use crate::weight::WeightRef;

/// Whether a weight is turned over before a product: packing rows of this length column by column
/// is what slows a product down, and turning costs as much as a few rows of activations.
/// Measured at 2048 columns: 1.9 times as fast for 64 rows, 1.1 for 512; at 576 columns 0.9.
fn is_turned(rows: usize, columns: usize) -> bool {
    rows >= 48 && columns >= 1024
}

/// `x · wᵀ`.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`, `weight`: `[d_out, d_in]`, returns `[tokens, d_out]`
pub fn linear<'a>(x: &Tensor<2>, weight: impl Into<WeightRef<'a>>) -> Tensor<2> {
    let weight = weight.into();
    let ([tokens, d_in], [d_out, _]) = (x.dims(), weight.dims());
    match (host::host_f32(x), Rows::of(weight)) {
        (Some(x), Some(rows)) => {
            let mut y = host::empty([tokens, d_out]);
            let sizes = Sizes { m: tokens, k: d_in, n: d_out };
            forward((host::write(&mut y), Output::Overwrite), host::read(&x), &rows, sizes, 1.0);
            host::give(y)
        }
        _ => {
            let dense = weight.dense(x.dtype(), &x.device());
            faster(Kind::Forward, (x, &dense), None, 1.0).unwrap_or_else(|| plain(x, dense))
        }
    }
}

/// `y + factor * x · wᵀ`: a residual stream, or the low-rank path on top of the base's output.
///
/// # Shapes
/// - `y`: `[tokens, d_out]`, `x`: `[tokens, d_in]`, `weight`: `[d_out, d_in]`
pub fn linear_add<'a>(
    y: Tensor<2>,
    x: &Tensor<2>,
    weight: impl Into<WeightRef<'a>>,
    factor: f64,
) -> Tensor<2> {
    let weight = weight.into();
    let ([tokens, d_in], [d_out, _]) = (x.dims(), weight.dims());
    if let (Some(x), Some(rows)) = (host::host_f32(x), Rows::of(weight)) {
        let mut y = host::take_f32(y).expect("outputs are f32 where inputs are f32 on the CPU");
        let sizes = Sizes { m: tokens, k: d_in, n: d_out };
        forward((host::write(&mut y), Output::Add), host::read(&x), &rows, sizes, factor as f32);
        return host::give(y);
    }
    let dense = weight.dense(x.dtype(), &x.device());
    if let Some(sum) = faster(Kind::Forward, (x, &dense), Some(&y), factor) {
        return sum;
    }
    y + plain(x, dense) * factor
}

/// `output = factor * x · wᵀ`, or `output +=` the same.
fn forward(
    (output, mode): (&mut [f32], Output),
    x: &[f32],
    rows: &Rows,
    Sizes { m, k, n }: Sizes,
    factor: f32,
) {
    if m == 0 || k == 0 {
        return;
    }
    let x = Operand::rows(x, k);
    let step = panel::panel_rows(k);
    for first in (0..n).step_by(step) {
        let count = step.min(n - first);
        let sizes = Sizes { m, k, n: count };
        let mut product = |weight: Operand| {
            multiply(&mut output[first..], n, mode, (x, weight), sizes, factor, Threads::All);
        };
        match rows {
            _ if is_turned(m, k) => {
                product(Operand::rows(&panel::transposed(rows, (first, count), k), count));
            }
            Rows::F32(tensor) => {
                let panel = &host::read(tensor)[first * k..(first + count) * k];
                product(Operand::rows(panel, k).transposed());
            }
            _ => {
                let panel = panel::straight(rows, (first, count), k);
                product(Operand::rows(&panel, k).transposed());
            }
        }
    }
}

/// Gradient of a linear layer's input: `dy · w`, added to `sum` where one is given.
///
/// # Shapes
/// - `dy`: `[tokens, d_out]`, `weight`: `[d_out, d_in]`, returns `[tokens, d_in]`
pub fn linear_input_gradient<'a>(
    sum: Option<Tensor<2>>,
    dy: &Tensor<2>,
    weight: impl Into<WeightRef<'a>>,
) -> Tensor<2> {
    let weight = weight.into();
    let ([tokens, d_out], [_, d_in]) = (dy.dims(), weight.dims());
    let (Some(dy_host), Some(rows)) = (host::host_f32(dy), Rows::of(weight)) else {
        let weight = weight.dense(dy.dtype(), &dy.device());
        if let Some(dx) = faster(Kind::InputGradient, (dy, &weight), sum.as_ref(), 1.0) {
            return dx;
        }
        let product = product::product(dy.clone(), weight, dy.dtype());
        return match sum {
            Some(sum) => sum + product,
            None => product,
        };
    };
    let (mut dx, mode) = match sum.map(host::take_f32) {
        Some(Ok(sum)) => (sum, Output::Add),
        Some(Err(sum)) => return sum + linear_input_gradient(None, dy, weight),
        None => (host::empty([tokens, d_in]), Output::Overwrite),
    };
    let sizes = Sizes { m: tokens, k: d_out, n: d_in };
    backward((host::write(&mut dx), mode), host::read(&dy_host), &rows, sizes);
    host::give(dx)
}

/// `dx = dy · w`, or `dx +=` the same.
fn backward(
    (dx, mut mode): (&mut [f32], Output),
    dy: &[f32],
    rows: &Rows,
    Sizes { m, k, n }: Sizes,
) {
    if m == 0 || n == 0 {
        return;
    }
    let step = panel::panel_rows(n);
    for first in (0..k).step_by(step) {
        let count = step.min(k - first);
        let dy = Operand { values: &dy[first..], strides: Strides::rows(k) };
        let sizes = Sizes { m, k: count, n };
        let mut product = |weight: &[f32]| {
            let operands = (dy, Operand::rows(weight, n));
            multiply(dx, n, mode, operands, sizes, 1.0, Threads::All);
        };
        match rows {
            Rows::F32(tensor) => product(&host::read(tensor)[first * n..(first + count) * n]),
            _ => product(&panel::straight(rows, (first, count), n)),
        }
        mode = Output::Add;
    }
}

/// Gradient of a linear layer's weight: `factor * dyᵀ · x`, always f32.
///
/// # Shapes
/// - `dy`: `[tokens, d_out]`, `x`: `[tokens, d_in]`, returns `[d_out, d_in]`
pub fn linear_weight_gradient(dy: &Tensor<2>, x: &Tensor<2>, factor: f64) -> Tensor<2> {
    let ([tokens, d_out], [_, d_in]) = (dy.dims(), x.dims());
    match (host::host_f32(dy), host::host_f32(x)) {
        (Some(dy), Some(x)) => {
            let operands =
                (Operand::rows(host::read(&dy), d_out), Operand::rows(host::read(&x), d_in));
            host::wrap(outer(operands, (d_out, tokens, d_in), factor as f32), [d_out, d_in])
        }
        _ => faster(Kind::WeightGradient, (dy, x), None, factor).unwrap_or_else(|| {
            product::product(dy.clone().transpose(), x.clone(), x.dtype()).cast(DType::F32) * factor
        }),
    }
}

/// `sum + dyᵀ · x`, f32: the gradient of a weight that is trained itself, over parts of a batch.
///
/// # Shapes
/// - `dy`: `[tokens, d_out]`, `x`: `[tokens, d_in]`, `sum`: `[d_out, d_in]`, returns the same
pub fn linear_weight_gradient_onto(
    sum: Option<Tensor<2>>,
    dy: &Tensor<2>,
    x: &Tensor<2>,
) -> Tensor<2> {
    let Some(sum) = sum else { return linear_weight_gradient(dy, x, 1.0) };
    let ([k, m], [_, n]) = (dy.dims(), x.dims());
    let (Some(dy_host), Some(x_host)) = (host::host_f32(dy), host::host_f32(x)) else {
        return sum + linear_weight_gradient(dy, x, 1.0);
    };
    let mut sum = match host::take_f32(sum) {
        Ok(sum) => sum,
        Err(sum) => return sum + linear_weight_gradient(dy, x, 1.0),
    };
    let (dy, x) = (Operand::rows(host::read(&dy_host), m), Operand::rows(host::read(&x_host), n));
    let operands = (dy.transposed(), x);
    let sizes = Sizes { m, k, n };
    multiply(host::write(&mut sum), n, Output::Add, operands, sizes, 1.0, Threads::All);
    host::give(sum)
}

/// `factor * dyᵀ · x`: `[m, n]` from `[k, m]` and `[k, n]`.
fn outer((dy, x): (Operand, Operand), (m, k, n): (usize, usize, usize), factor: f32) -> Vec<f32> {
    let mut output = host::buffer(m * n);
    let mode = Output::Overwrite;
    if n >= m {
        let operands = (dy.transposed(), x);
        multiply(&mut output, n, mode, operands, Sizes { m, k, n }, factor, Threads::All);
        return output;
    }
    // Long thin results come out twice as fast lying down.
    let mut lying = host::buffer(m * n);
    let operands = (x.transposed(), dy);
    multiply(&mut lying, m, mode, operands, Sizes { m: n, k, n: m }, factor, Threads::All);
    for (row, output) in output.chunks_exact_mut(n).enumerate() {
        for (column, value) in output.iter_mut().enumerate() {
            *value = lying[column * m + row];
        }
    }
    output
}

/// Sum of the squares of every row, f32.
///
/// # Shapes
/// - `weight`: `[d_out, d_in]`, returns `[1, d_out]`
pub fn row_square_sums<'a>(weight: impl Into<WeightRef<'a>>, device: &Device) -> Tensor<2> {
    let weight = weight.into();
    let [d_out, d_in] = weight.dims();
    let Some(rows) = Rows::of(weight) else {
        let dense = weight.dense(DType::F32, device);
        return (dense.clone() * dense).sum_dim(1).transpose();
    };
    let mut sums = Vec::with_capacity(d_out);
    let step = panel::panel_rows(d_in);
    for first in (0..d_out).step_by(step) {
        let panel = panel::straight(&rows, (first, step.min(d_out - first)), d_in);
        let square = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>();
        sums.par_extend(panel.par_chunks(d_in.max(1)).map(|row| square(row) as f32));
    }
    host::from_f32(sums, [1, d_out], DType::F32, device)
}

/// `x · wᵀ` in plain tensor operations.
fn plain(x: &Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    product::product(x.clone(), weight.transpose(), x.dtype())
}

/// `factor *` the product of two matrices on a GPU, plus `sum`.
fn faster(
    kind: Kind,
    operands: (&Tensor<2>, &Tensor<2>),
    sum: Option<&Tensor<2>>,
    factor: f64,
) -> Option<Tensor<2>> {
    launch::gpu(Operation::Product)
        .and_then(|gpu| launch::product(&gpu, kind, operands, sum, factor))
}

/// Adds a bias to every row.
///
/// # Shapes
/// - `y`: `[tokens, d_out]`, `bias`: `[d_out]`
pub fn add_bias(y: Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    let bias = bias.clone().cast(y.dtype());
    y + bias.unsqueeze::<2>()
}
