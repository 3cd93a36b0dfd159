//! LoRA (Hu et al. 2021, arXiv 2106.09685): `y += scale * (x · Aᵀ) · Bᵀ`.
//!
//! The update stays on the activations' side: `W + scale · B · A` is never formed in training,
//! so neither a dense copy of the weight nor its gradient exists.
//! With `u = x · Aᵀ`: `dB = scale · dyᵀ · u`, `du = scale · dy · B`, `dA = duᵀ · x`,
//! `dx += du · A`; dropout applies to `x` on this path alone.

use burn::tensor::{DType, Device, Tensor};
use kernels::DropoutKey;

use crate::LoraFactors;
use crate::dora::Magnitude;

/// The trained factors of one linear layer; f32 whatever the layer computes in.
#[derive(Debug, Clone)]
pub struct Lora {
    /// `A`: `[rank, d_in]`
    pub a: Tensor<2>,
    /// `B`: `[d_out, rank]`
    pub b: Tensor<2>,
    /// Factor of the update: `alpha / rank`, or `alpha / sqrt(rank)`.
    pub scale: f64,
    /// Share of the update's inputs zeroed in training.
    pub dropout: f64,
    /// Key of this layer's dropout masks.
    pub dropout_key: [u32; 2],
    /// Magnitude of the layer's rows, where the update is DoRA's.
    pub magnitude: Option<Magnitude>,
}

/// Gradients of one layer's adapter, f32, with the shapes of what they belong to.
#[derive(Debug, Clone)]
pub struct LoraGradients {
    /// Gradient of `A`: `[rank, d_in]`
    pub a: Tensor<2>,
    /// Gradient of `B`: `[d_out, rank]`
    pub b: Tensor<2>,
    /// Gradient of the magnitude: `[1, d_out]`
    pub magnitude: Option<Tensor<2>>,
}

impl LoraGradients {
    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        let magnitude = match (self.magnitude, other.magnitude) {
            (Some(x), Some(y)) => Some(x + y),
            (x, y) => x.or(y),
        };
        Self { a: self.a + other.a, b: self.b + other.b, magnitude }
    }
}

/// What a forward pass is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pass {
    /// Dropout is off.
    Inference,
    /// Dropout draws the masks of this micro-batch.
    Training {
        /// Optimizer step, from 0.
        step: u32,
        /// Micro-batch within the step, from 0.
        micro_batch: u32,
    },
}

impl Lora {
    /// Puts factors on a device.
    pub fn new(factors: &LoraFactors, scale: f64, device: &Device) -> Self {
        let LoraFactors { a, b, rank, d_in, d_out } = factors;
        Self {
            a: kernels::from_f32(a.clone(), [*rank, *d_in], DType::F32, device),
            b: kernels::from_f32(b.clone(), [*d_out, *rank], DType::F32, device),
            scale,
            dropout: 0.0,
            dropout_key: [0; 2],
            magnitude: None,
        }
    }

    /// Copies the factors to the host.
    pub fn factors(&self) -> LoraFactors {
        let ([rank, d_in], [d_out, _]) = (self.a.dims(), self.b.dims());
        LoraFactors { a: kernels::to_f32(&self.a), b: kernels::to_f32(&self.b), rank, d_in, d_out }
    }

    /// Zeros in the shapes of what is trained.
    pub fn no_gradients(&self) -> LoraGradients {
        LoraGradients {
            a: self.a.zeros_like(),
            b: self.b.zeros_like(),
            magnitude: self.magnitude.as_ref().map(|magnitude| magnitude.values.zeros_like()),
        }
    }

    /// `x · Aᵀ`, which [`Lora::add_up`] and the gradient need.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`, returns `[tokens, rank]`
    pub fn down(&self, x: &Tensor<2>, pass: Pass) -> Tensor<2> {
        match self.mask(pass) {
            Some(key) => kernels::linear(&kernels::dropout(x, self.dropout, key), &self.a),
            None => kernels::linear(x, &self.a),
        }
    }

    /// `y + scale * down · Bᵀ`.
    ///
    /// # Shapes
    /// - `y`: `[tokens, d_out]`, `down`: `[tokens, rank]`
    pub fn add_up(&self, y: Tensor<2>, down: &Tensor<2>) -> Tensor<2> {
        kernels::linear_add(y, down, &self.b, self.scale)
    }

    /// Gradients of the factors; adds the input's to `dx` where that is given.
    ///
    /// # Shapes
    /// - `dy`: `[tokens, d_out]`, `x`, `dx`: `[tokens, d_in]`, `down`: `[tokens, rank]`
    pub fn gradient(
        &self,
        dx: Option<Tensor<2>>,
        dy: &Tensor<2>,
        x: &Tensor<2>,
        down: &Tensor<2>,
        pass: Pass,
    ) -> (Option<Tensor<2>>, LoraGradients) {
        let b = kernels::linear_weight_gradient(dy, down, self.scale);
        let d_down = kernels::linear_input_gradient(None, dy, &self.b) * self.scale;
        let mask = self.mask(pass);
        let a = match mask {
            Some(key) => {
                let x = kernels::dropout(x, self.dropout, key);
                kernels::linear_weight_gradient(&d_down, &x, 1.0)
            }
            None => kernels::linear_weight_gradient(&d_down, x, 1.0),
        };
        let dx = dx.map(|dx| match mask {
            Some(key) => {
                let masked = kernels::linear_input_gradient(None, &d_down, &self.a);
                dx + kernels::dropout(&masked, self.dropout, key)
            }
            None => kernels::linear_input_gradient(Some(dx), &d_down, &self.a),
        });
        (dx, LoraGradients { a, b, magnitude: None })
    }

    /// The key of this pass's mask, where dropout is on.
    pub(crate) fn mask(&self, pass: Pass) -> Option<DropoutKey> {
        match pass {
            Pass::Training { step, micro_batch } if self.dropout > 0.0 => {
                Some(DropoutKey { module: self.dropout_key, step, micro_batch })
            }
            _ => None,
        }
    }
}
