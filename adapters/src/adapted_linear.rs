//! A frozen linear layer with an optional adapter: the only linear layer models call.

use burn::tensor::Tensor;
use kernels::Weight;

use crate::lora::{Lora, LoraGradients, Pass};

/// A frozen weight, its bias, and an adapter over them.
#[derive(Debug, Clone)]
pub struct AdaptedLinear {
    /// Path of the module in the checkpoint: `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// `[d_out, d_in]`, as files hold it.
    pub weight: Weight,
    /// `[d_out]`
    pub bias: Option<Tensor<1>>,
    /// The trained update.
    pub adapter: Option<Lora>,
}

/// What [`AdaptedLinear::forward`] gives.
#[derive(Debug, Clone)]
pub struct LinearOutput {
    /// `[tokens, d_out]`
    pub y: Tensor<2>,
    /// `x · Aᵀ` where there is an adapter: all that its gradient needs besides `x`.
    pub down: Option<Tensor<2>>,
}

/// Whether the layers below need a gradient.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputGradient {
    /// They do.
    Needed,
    /// Nothing below is trained: its products are left out.
    Skipped,
}

/// Whether a forward pass sees the adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterState {
    /// Base and adapter.
    Enabled,
    /// The base alone.
    Disabled,
}

impl AdaptedLinear {
    /// `x · wᵀ + bias`, and the adapter's update on top.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`, `y`: `[tokens, d_out]`
    pub fn forward(&self, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        self.finish(kernels::linear(x, &self.weight), x, pass)
    }

    /// [`AdaptedLinear::forward`] added to a residual stream.
    ///
    /// # Shapes
    /// - `residual`: `[tokens, d_out]`
    pub fn forward_onto(&self, residual: &Tensor<2>, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        self.finish(kernels::linear_add(residual.clone(), x, &self.weight, 1.0), x, pass)
    }

    fn finish(&self, mut y: Tensor<2>, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        if let Some(bias) = &self.bias {
            y = kernels::add_bias(y, bias);
        }
        let Some(adapter) = &self.adapter else {
            return LinearOutput { y, down: None };
        };
        let down = adapter.down(x, pass);
        LinearOutput { y: adapter.add_up(y, &down), down: Some(down) }
    }

    /// Gradients of the adapter, and of the input added to `sum`.
    ///
    /// The frozen weight and bias get none: no weight-shaped product is formed.
    ///
    /// # Shapes
    /// - `dy`: `[tokens, d_out]`, `x`, `sum`: `[tokens, d_in]`
    pub fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        down: Option<&Tensor<2>>,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Option<LoraGradients>) {
        let dx = match wanted {
            InputGradient::Needed => Some(kernels::linear_input_gradient(sum, dy, &self.weight)),
            InputGradient::Skipped => None,
        };
        match (&self.adapter, down) {
            (Some(adapter), Some(down)) => {
                let (dx, gradients) = adapter.gradient(dx, dy, x, down, pass);
                (dx, Some(gradients))
            }
            _ => (dx, None),
        }
    }
}
