//! SwiGLU (Shazeer 2020, arXiv 2002.05202): `silu(gate) * up`, `silu(x) = x * sigmoid(x)`.
//!
//! Gradient: `dup = dy * silu(gate)`, `dgate = dy * up * s * (1 + gate * (1 - s))` with
//! `s = sigmoid(gate)`.

use burn::tensor::{DType, Tensor, activation};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Activation, Operation};
use crate::math::{sigmoid, vectorised};

/// Elements that one task handles.
const CHUNK: usize = 1 << 14;

/// `silu(gate) * up`.
///
/// # Shapes
/// - `gate`, `up`: `[tokens, d]`, returns `[tokens, d]`
pub fn swiglu(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let (Some(gate_host), Some(up_host)) = (host::host_f32(gate), host::host_f32(up)) else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::gate(&gpu, gate, up, Activation::Silu))
            .unwrap_or_else(|| reference(gate, up));
    };
    let (gate_values, up_values) = (host::read(&gate_host), host::read(&up_host));
    let mut y = host::buffer(gate_values.len());
    y.par_chunks_mut(CHUNK)
        .zip(gate_values.par_chunks(CHUNK).zip(up_values.par_chunks(CHUNK)))
        .for_each(|(y, (gate, up))| {
            vectorised(
                #[inline(always)]
                || {
                    for ((y, &g), &u) in y.iter_mut().zip(gate).zip(up) {
                        *y = g * sigmoid(g) * u;
                    }
                },
            );
        });
    host::wrap(y, gate.dims())
}

/// Gradients of [`swiglu`]: `(dgate, dup)`.
///
/// # Shapes
/// - all `[tokens, d]`
pub fn swiglu_gradient(dy: &Tensor<2>, gate: &Tensor<2>, up: &Tensor<2>) -> (Tensor<2>, Tensor<2>) {
    let (Some(dy_host), Some(gate_host), Some(up_host)) =
        (host::host_f32(dy), host::host_f32(gate), host::host_f32(up))
    else {
        return launch::gpu(Operation::Gate)
            .and_then(|gpu| launch::gate_gradient(&gpu, dy, gate, up, Activation::Silu))
            .unwrap_or_else(|| reference_gradient(dy, gate, up));
    };
    let (dy, gate_values, up_values) =
        (host::read(&dy_host), host::read(&gate_host), host::read(&up_host));
    let mut dgate = host::buffer(dy.len());
    let mut dup = host::buffer(dy.len());
    let inputs =
        dy.par_chunks(CHUNK).zip(gate_values.par_chunks(CHUNK).zip(up_values.par_chunks(CHUNK)));
    dgate.par_chunks_mut(CHUNK).zip(dup.par_chunks_mut(CHUNK)).zip(inputs).for_each(
        |((dgate, dup), (dy, (gate, up)))| {
            vectorised(
                #[inline(always)]
                || gradient_chunk(dgate, dup, dy, gate, up),
            );
        },
    );
    (host::wrap(dgate, gate.dims()), host::wrap(dup, gate.dims()))
}

#[inline(always)]
fn gradient_chunk(dgate: &mut [f32], dup: &mut [f32], dy: &[f32], gate: &[f32], up: &[f32]) {
    let n = dy.len();
    let (dgate, dup, gate, up) = (&mut dgate[..n], &mut dup[..n], &gate[..n], &up[..n]);
    for i in 0..n {
        let s = sigmoid(gate[i]);
        dup[i] = dy[i] * gate[i] * s;
        dgate[i] = dy[i] * up[i] * s * (1.0 + gate[i] * (1.0 - s));
    }
}

/// [`swiglu`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference(gate: &Tensor<2>, up: &Tensor<2>) -> Tensor<2> {
    let (wide, up) = (gate.clone().cast(DType::F32), up.clone().cast(DType::F32));
    (activation::silu(wide) * up).cast(gate.dtype())
}

/// [`swiglu_gradient`] in plain tensor operations, in f32 whatever the input's format.
pub fn reference_gradient(
    dy: &Tensor<2>,
    gate: &Tensor<2>,
    up: &Tensor<2>,
) -> (Tensor<2>, Tensor<2>) {
    let wide = |x: &Tensor<2>| x.clone().cast(DType::F32);
    let (dtype, dy, gate, up) = (gate.dtype(), wide(dy), wide(gate), wide(up));
    let s = activation::sigmoid(gate.clone());
    let dup = dy.clone() * gate.clone() * s.clone();
    let slope = (gate * (s.clone().neg() + 1.0) + 1.0) * s;
    ((dy * up * slope).cast(dtype), dup.cast(dtype))
}
