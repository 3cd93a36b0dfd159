//! GELU (Hendrycks & Gimpel 2016, arXiv 1606.08415), alone and as a gate (GeGLU).
//!
//! Exact: `g(x) = x * Φ(x)` with `Φ(x) = (1 + erf(x / √2)) / 2`; `g' = Φ + x * φ(x)`.
//! By tanh: `Φ(x) = (1 + t) / 2` with `t = tanh(u)`, `u = √(2/π) * (x + 0.044715 x³)`;
//! `g' = (1 + t) / 2 + x * (1 - t²) * u' / 2`.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Activation, Operation};
use crate::math::{erf, exp, tanh, vectorised};

/// Elements that one task handles.
const CHUNK: usize = 1 << 14;

const ROOT_2_OVER_PI: f32 = 0.797_884_6;
const CUBIC: f32 = 0.044_715;
/// `1 / √(2π)`
const DENSITY: f32 = 0.398_942_3;

/// Which of the two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gelu {
    /// With the error function.
    Exact,
    /// With the hyperbolic tangent.
    Tanh,
}

/// The function and its slope.
#[inline(always)]
fn value_and_slope(x: f32, form: Gelu) -> (f32, f32) {
    match form {
        Gelu::Exact => {
            let share = 0.5 * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2));
            (x * share, share + x * DENSITY * exp(-0.5 * x * x))
        }
        Gelu::Tanh => {
            let t = tanh(ROOT_2_OVER_PI * (x + CUBIC * x * x * x));
            let inner = ROOT_2_OVER_PI * (1.0 + 3.0 * CUBIC * x * x);
            let share = 0.5 * (1.0 + t);
            (x * share, share + 0.5 * x * (1.0 - t * t) * inner)
        }
    }
}

/// `g(x)`.
///
/// # Shapes
/// - `x`: `[tokens, d]`, returns `[tokens, d]`
pub fn gelu(x: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let Some(x_host) = host::host_f32(x) else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::activate(&gpu, x, Activation::Gelu(form)))
            .unwrap_or_else(|| reference(x, form));
    };
    let mut y = host::buffer(x.shape().num_elements());
    y.par_chunks_mut(CHUNK).zip(host::read(&x_host).par_chunks(CHUNK)).for_each(|(y, x)| {
        vectorised(
            #[inline(always)]
            || {
                for (y, &x) in y.iter_mut().zip(x) {
                    *y = value_and_slope(x, form).0;
                }
            },
        );
    });
    host::wrap(y, x.dims())
}

/// Gradient of [`gelu`]: `dy * g'(x)`.
///
/// # Shapes
/// - all `[tokens, d]`
pub fn gelu_gradient(dy: &Tensor<2>, x: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let (Some(dy_host), Some(x_host)) = (host::host_f32(dy), host::host_f32(x)) else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::activate_gradient(&gpu, dy, x, Activation::Gelu(form)))
            .unwrap_or_else(|| reference_gradient(dy, x, form));
    };
    let mut dx = host::buffer(x.shape().num_elements());
    let inputs = host::read(&dy_host).par_chunks(CHUNK).zip(host::read(&x_host).par_chunks(CHUNK));
    dx.par_chunks_mut(CHUNK).zip(inputs).for_each(|(dx, (dy, x))| {
        vectorised(
            #[inline(always)]
            || {
                for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
                    *dx = dy * value_and_slope(x, form).1;
                }
            },
        );
    });
    host::wrap(dx, x.dims())
}

/// `g(gate) * up`.
///
/// # Shapes
/// - `gate`, `up`: `[tokens, d]`, returns `[tokens, d]`
pub fn geglu(gate: &Tensor<2>, up: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let (Some(gate_host), Some(up_host)) = (host::host_f32(gate), host::host_f32(up)) else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::gate(&gpu, gate, up, Activation::Gelu(form)))
            .unwrap_or_else(|| reference_gated(gate, up, form));
    };
    let mut y = host::buffer(gate.shape().num_elements());
    let inputs =
        host::read(&gate_host).par_chunks(CHUNK).zip(host::read(&up_host).par_chunks(CHUNK));
    y.par_chunks_mut(CHUNK).zip(inputs).for_each(|(y, (gate, up))| {
        vectorised(
            #[inline(always)]
            || {
                for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                    *y = value_and_slope(g, form).0 * u;
                }
            },
        );
    });
    host::wrap(y, gate.dims())
}

/// Gradients of [`geglu`]: `(dgate, dup)`.
///
/// # Shapes
/// - all `[tokens, d]`
pub fn geglu_gradient(
    dy: &Tensor<2>,
    gate: &Tensor<2>,
    up: &Tensor<2>,
    form: Gelu,
) -> (Tensor<2>, Tensor<2>) {
    let (Some(dy_host), Some(gate_host), Some(up_host)) =
        (host::host_f32(dy), host::host_f32(gate), host::host_f32(up))
    else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::gate_gradient(&gpu, dy, gate, up, Activation::Gelu(form)))
            .unwrap_or_else(|| reference_gated_gradient(dy, gate, up, form));
    };
    let (mut dgate, mut dup) =
        (host::buffer(gate.shape().num_elements()), host::buffer(up.shape().num_elements()));
    let (dy, gate_values, up_values) =
        (host::read(&dy_host), host::read(&gate_host), host::read(&up_host));
    let inputs =
        dy.par_chunks(CHUNK).zip(gate_values.par_chunks(CHUNK).zip(up_values.par_chunks(CHUNK)));
    dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK)).zip(inputs).for_each(
        |((dgate, dup), (dy, (gate, up)))| {
            vectorised(
                #[inline(always)]
                || gradient_chunk((dgate, dup), dy, gate, up, form),
            );
        },
    );
    (host::wrap(dgate, gate.dims()), host::wrap(dup, gate.dims()))
}

#[inline(always)]
fn gradient_chunk(
    (dgate, dup): (&mut [f32], &mut [f32]),
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
    form: Gelu,
) {
    let n = dy.len();
    let (dgate, dup, gate, up) = (&mut dgate[..n], &mut dup[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let (value, slope) = value_and_slope(gate[i], form);
        dup[i] = dy[i] * value;
        dgate[i] = dy[i] * up[i] * slope;
    }
}

/// `Φ` and `g'` in plain tensor operations; `x` is f32.
fn share_and_slope(x: &Tensor<2>, form: Gelu) -> (Tensor<2>, Tensor<2>) {
    match form {
        Gelu::Exact => {
            let share = ((x.clone() * std::f32::consts::FRAC_1_SQRT_2).erf() + 1.0) * 0.5;
            let density = (x.clone().square() * -0.5).exp() * DENSITY;
            (share.clone(), share + x.clone() * density)
        }
        Gelu::Tanh => {
            let square = x.clone().square();
            let t = ((square.clone() * CUBIC + 1.0) * x.clone() * ROOT_2_OVER_PI).tanh();
            let inner = (square * (3.0 * CUBIC) + 1.0) * ROOT_2_OVER_PI;
            let share = (t.clone() + 1.0) * 0.5;
            let curve = (t.square().neg() + 1.0) * inner * x.clone() * 0.5;
            (share.clone(), share + curve)
        }
    }
}

/// [`gelu`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference(x: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let wide = x.clone().cast(DType::F32);
    let (share, _) = share_and_slope(&wide, form);
    (wide * share).cast(x.dtype())
}

/// [`gelu_gradient`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference_gradient(dy: &Tensor<2>, x: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let (_, slope) = share_and_slope(&x.clone().cast(DType::F32), form);
    (dy.clone().cast(DType::F32) * slope).cast(x.dtype())
}

/// [`geglu`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference_gated(gate: &Tensor<2>, up: &Tensor<2>, form: Gelu) -> Tensor<2> {
    let wide = gate.clone().cast(DType::F32);
    let (share, _) = share_and_slope(&wide, form);
    (wide * share * up.clone().cast(DType::F32)).cast(gate.dtype())
}

/// [`geglu_gradient`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference_gated_gradient(
    dy: &Tensor<2>,
    gate: &Tensor<2>,
    up: &Tensor<2>,
    form: Gelu,
) -> (Tensor<2>, Tensor<2>) {
    let wide = gate.clone().cast(DType::F32);
    let (share, slope) = share_and_slope(&wide, form);
    let dy = dy.clone().cast(DType::F32);
    let dgate = dy.clone() * up.clone().cast(DType::F32) * slope;
    (dgate.cast(gate.dtype()), (dy * wide * share).cast(up.dtype()))
}
