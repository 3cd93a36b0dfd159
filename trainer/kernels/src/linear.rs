//! Linear layers: `y = x · wᵀ`, weights as files hold them, `[d_out, d_in]`.
//!
//! Weights may be bf16 while activations are f32 (CPU): they are expanded a panel at a time.

use burn::tensor::{DType, Tensor};
use burn_flex::FlexTensor;

use crate::host;
use crate::matmul::{Operand, Output, Sizes, Strides, Threads, multiply};
use crate::product;

/// Weight rows expanded from bf16 at once: a panel stays in the cache.
const PANEL_ROWS: usize = 1024;

/// `x · wᵀ`.
///
/// # Shapes
/// - `x`: `[tokens, d_in]`, `weight`: `[d_out, d_in]`, returns `[tokens, d_out]`
pub fn linear(x: &Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    let ([tokens, _], [d_out, _]) = (x.dims(), weight.dims());
    match (host::host_f32(x), host::host(weight)) {
        (Some(x), Some(weight)) => {
            let mut y = host::empty([tokens, d_out]);
            product(host::write(&mut y), Output::Overwrite, &x, &weight, 1.0);
            host::give(y)
        }
        _ => plain(x, weight),
    }
}

/// `y + factor * x · wᵀ`: a residual stream, or the low-rank path on top of the base's output.
///
/// # Shapes
/// - `y`: `[tokens, d_out]`, `x`: `[tokens, d_in]`, `weight`: `[d_out, d_in]`
pub fn linear_add(y: Tensor<2>, x: &Tensor<2>, weight: &Tensor<2>, factor: f64) -> Tensor<2> {
    if let (Some(x), Some(weight)) = (host::host_f32(x), host::host(weight)) {
        let mut y = host::take_f32(y).expect("outputs are f32 where inputs are f32 on the CPU");
        product(host::write(&mut y), Output::Add, &x, &weight, factor as f32);
        return host::give(y);
    }
    y + plain(x, weight) * factor
}

/// `output = factor * x · wᵀ`, or `output +=` the same.
fn product(output: &mut [f32], mode: Output, x: &FlexTensor, weight: &FlexTensor, factor: f32) {
    let (tokens, d_in) = (x.layout().shape()[0], x.layout().shape()[1]);
    let d_out = weight.layout().shape()[0];
    let x = Operand::rows(host::read(x), d_in);
    if tokens == 0 {
        return;
    }
    for_panels(weight, (d_out, d_in), |first, rows, panel| {
        let sizes = Sizes { m: tokens, k: d_in, n: rows };
        let operands = (x, Operand::rows(panel, d_in).transposed());
        multiply(&mut output[first..], d_out, mode, operands, sizes, factor, Threads::All);
    });
}

/// Gradient of a linear layer's input: `dy · w`, added to `sum` where one is given.
///
/// # Shapes
/// - `dy`: `[tokens, d_out]`, `weight`: `[d_out, d_in]`, returns `[tokens, d_in]`
pub fn linear_input_gradient(
    sum: Option<Tensor<2>>,
    dy: &Tensor<2>,
    weight: &Tensor<2>,
) -> Tensor<2> {
    let ([tokens, d_out], [_, d_in]) = (dy.dims(), weight.dims());
    let (Some(dy_host), Some(weight_host)) = (host::host_f32(dy), host::host(weight)) else {
        let product = product::product(dy.clone(), weight.clone().cast(dy.dtype()), dy.dtype());
        return match sum {
            Some(sum) => sum + product,
            None => product,
        };
    };
    let (mut dx, mut mode) = match sum.map(host::take_f32) {
        Some(Ok(sum)) => (sum, Output::Add),
        Some(Err(sum)) => return sum + linear_input_gradient(None, dy, weight),
        None => (host::empty([tokens, d_in]), Output::Overwrite),
    };
    if tokens == 0 {
        return host::give(dx);
    }
    let dy = host::read(&dy_host);
    for_panels(&weight_host, (d_out, d_in), |first, rows, panel| {
        let lhs = Operand { values: &dy[first..], strides: Strides::rows(d_out) };
        let sizes = Sizes { m: tokens, k: rows, n: d_in };
        let operands = (lhs, Operand::rows(panel, d_in));
        multiply(host::write(&mut dx), d_in, mode, operands, sizes, 1.0, Threads::All);
        mode = Output::Add;
    });
    host::give(dx)
}

/// Gradient of a linear layer's weight: `factor * dyᵀ · x`, always f32.
///
/// # Shapes
/// - `dy`: `[tokens, d_out]`, `x`: `[tokens, d_in]`, returns `[d_out, d_in]`
pub fn linear_weight_gradient(dy: &Tensor<2>, x: &Tensor<2>, factor: f64) -> Tensor<2> {
    let ([tokens, d_out], [_, d_in]) = (dy.dims(), x.dims());
    match (host::host_f32(dy), host::host_f32(x)) {
        (Some(dy), Some(x)) => {
            let mut gradient = host::buffer(d_out * d_in);
            let operands = (
                Operand::rows(host::read(&dy), d_out).transposed(),
                Operand::rows(host::read(&x), d_in),
            );
            let sizes = Sizes { m: d_out, k: tokens, n: d_in };
            let mode = Output::Overwrite;
            multiply(&mut gradient, d_in, mode, operands, sizes, factor as f32, Threads::All);
            host::wrap(gradient, [d_out, d_in])
        }
        _ => {
            product::product(dy.clone().transpose(), x.clone(), x.dtype()).cast(DType::F32) * factor
        }
    }
}

/// `x · wᵀ` in plain tensor operations, in the format of `x`.
fn plain(x: &Tensor<2>, weight: &Tensor<2>) -> Tensor<2> {
    let weight = weight.clone().cast(x.dtype()).transpose();
    product::product(x.clone(), weight, x.dtype())
}

/// Adds a bias to every row.
///
/// # Shapes
/// - `y`: `[tokens, d_out]`, `bias`: `[d_out]`
pub fn add_bias(y: Tensor<2>, bias: &Tensor<1>) -> Tensor<2> {
    let bias = bias.clone().cast(y.dtype());
    y + bias.unsqueeze::<2>()
}

/// Calls `work(first_row, rows, panel)` for the weight in f32: whole, or in panels from bf16.
fn for_panels(
    weight: &FlexTensor,
    (d_out, d_in): (usize, usize),
    mut work: impl FnMut(usize, usize, &[f32]),
) {
    if weight.dtype() == DType::F32 {
        return work(0, d_out, host::read(weight));
    }
    assert_eq!(weight.dtype(), DType::BF16, "weights are f32 or bf16 on the CPU");
    let stored = host::read_bf16(weight);
    let mut panel = Vec::new();
    for first in (0..d_out).step_by(PANEL_ROWS) {
        let rows = PANEL_ROWS.min(d_out - first);
        panel.clear();
        panel.extend(stored[first * d_in..(first + rows) * d_in].iter().map(|v| v.to_f32()));
        work(first, rows, &panel);
    }
}
