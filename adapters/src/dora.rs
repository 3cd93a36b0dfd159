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
    /// starts from the base model. `across` is `A·Wᵀ`.
    pub(crate) fn new(
        base_squares: Tensor<2>,
        across: &Tensor<2>,
        factors: Factors,
        values: Option<&[f32]>,
        device: &Device,
    ) -> Self {
        let norms = norms(&base_squares, across, factors);
        let values = match values {
            Some(values) => {
                kernels::from_f32(values.to_vec(), [1, values.len()], DType::F32, device)
            }
            None => norms.clone(),
        };
        Self { values, base_squares, norms }
    }

    /// Measures the rows again after `A` or `B` changed.
    pub(crate) fn refresh(&mut self, across: &Tensor<2>, factors: Factors) {
        self.norms = norms(&self.base_squares, across, factors);
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

/// A, B and the factor of their product.
pub(crate) type Factors<'a> = (&'a Tensor<2>, &'a Tensor<2>, f64);

/// `‖W + scale·B·A‖` of every row: `[1, d_out]`.
fn norms(base_squares: &Tensor<2>, across: &Tensor<2>, factors: Factors) -> Tensor<2> {
    square_sums(base_squares, across, factors).clamp_min(0.0).sqrt()
}

/// `‖W + scale·B·A‖²` of every row from `‖W‖²` and `A·Wᵀ`: `[1, d_out]`.
pub(crate) fn square_sums(
    base_squares: &Tensor<2>,
    across: &Tensor<2>,
    (a, b, scale): Factors,
) -> Tensor<2> {
    let across = across.clone() * b.clone().transpose();
    let gram = kernels::linear(a, a);
    let within = kernels::linear(b, &gram) * b.clone();
    base_squares.clone()
        + across.sum_dim(0) * (2.0 * scale)
        + within.sum_dim(1).transpose() * (scale * scale)
}
