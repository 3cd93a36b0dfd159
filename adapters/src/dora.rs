//! DoRA (Liu et al. 2024, arXiv 2402.09353): `y = g · (W + scale·B·A)·x`, `g = m / ‖W + scale·B·A‖`.
//!
//! The norm is that of a row, one number for each output; `m`, the magnitude, is trained. As in
//! PEFT the norm is a constant in the backward pass, so with `z = (W + scale·B·A)·x` and
//! `dz = g · dy`: `dm = Σ dy · z / ‖·‖`, and `A`, `B` and `x` get the gradients that LoRA gives
//! them for `dz`.
//!
//! The dense sum is never formed: `‖w + scale·b·A‖² = ‖w‖² + 2·scale·b·(A·w) + scale²·b·(A·Aᵀ)·bᵀ`,
//! where only `A·w` reads the weight, a product of as many rows as the rank.

use burn::tensor::{DType, Device, Tensor};
use kernels::Weight;

use crate::lora::Lora;

/// The magnitude of one layer's rows, and what it is measured against.
#[derive(Debug, Clone)]
pub struct Magnitude {
    /// `m`: `[1, d_out]`, f32
    pub values: Tensor<2>,
    /// `‖w‖²` of the frozen rows: `[1, d_out]`
    base_squares: Tensor<2>,
    /// `‖W + scale·B·A‖`: `[1, d_out]`
    norms: Tensor<2>,
}

impl Magnitude {
    /// The magnitude of an adapter; where it has none yet, the norms themselves, so that training
    /// starts from the base model.
    pub fn new(
        weight: &Weight,
        (a, b, scale): (&Tensor<2>, &Tensor<2>, f64),
        values: Option<&[f32]>,
        device: &Device,
    ) -> Self {
        let base_squares = kernels::row_square_sums(weight, device);
        let norms = norms(weight, &base_squares, (a, b, scale));
        let values = match values {
            Some(values) => {
                kernels::from_f32(values.to_vec(), [1, values.len()], DType::F32, device)
            }
            None => norms.clone(),
        };
        Self { values, base_squares, norms }
    }

    /// Measures the rows again after `A` or `B` changed.
    pub fn refresh(&mut self, weight: &Weight, factors: (&Tensor<2>, &Tensor<2>, f64)) {
        self.norms = norms(weight, &self.base_squares, factors);
    }

    /// `g · z`.
    ///
    /// # Shapes
    /// - `z`: `[tokens, d_out]`
    pub fn apply(&self, z: &Tensor<2>) -> Tensor<2> {
        let gain = self.values.clone() / self.norms.clone();
        z.clone() * gain.cast(z.dtype())
    }

    /// Gradient of `m`: `[1, d_out]`.
    ///
    /// # Shapes
    /// - `dy`, `z`: `[tokens, d_out]`
    pub fn gradient(&self, dy: &Tensor<2>, z: &Tensor<2>) -> Tensor<2> {
        let products = (dy.clone() * z.clone()).cast(DType::F32);
        products.sum_dim(0) / self.norms.clone()
    }
}

/// `‖W + scale·B·A‖` of every row: `[1, d_out]`.
fn norms(
    weight: &Weight,
    base_squares: &Tensor<2>,
    (a, b, scale): (&Tensor<2>, &Tensor<2>, f64),
) -> Tensor<2> {
    let across = kernels::linear(a, weight) * b.clone().transpose();
    let gram = kernels::linear(a, a);
    let within = kernels::linear(b, &gram) * b.clone();
    let squares = base_squares.clone()
        + across.sum_dim(0) * (2.0 * scale)
        + within.sum_dim(1).transpose() * (scale * scale);
    squares.clamp_min(0.0).sqrt()
}

impl Lora {
    /// Gives the update a magnitude: LoRA becomes DoRA.
    pub fn set_magnitude(&mut self, weight: &Weight, values: Option<&[f32]>, device: &Device) {
        let factors = (&self.a, &self.b, self.scale);
        self.magnitude = Some(Magnitude::new(weight, factors, values, device));
    }
}
