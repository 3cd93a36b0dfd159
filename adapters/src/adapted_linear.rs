//! A frozen linear layer with an optional adapter: the only linear layer models call.

use burn::tensor::{Device, Tensor};
use kernels::Weight;

use crate::dora::Magnitude;
use crate::lora::{Lora, LoraGradients, Pass};
use crate::peft::{AdapterWeights, PeftConfig};

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
    /// Where there is an adapter: all that its gradient needs besides `x`.
    pub saved: Option<SavedUpdate>,
}

/// What the gradient of an adapter needs besides the layer's input.
#[derive(Debug, Clone)]
pub struct SavedUpdate {
    /// `x · Aᵀ`: `[tokens, rank]`
    down: Tensor<2>,
    /// Base and update before the magnitude of DoRA scales them: `[tokens, d_out]`
    unscaled: Option<Tensor<2>>,
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
    /// Puts the adapter's update for this layer on it; none where the adapter has none.
    pub fn attach(&mut self, peft: &PeftConfig, weights: &AdapterWeights, device: &Device) {
        self.adapter = weights.modules.get(&self.name).map(|factors| {
            let mut lora = Lora::new(factors, peft.scale(&self.name), device);
            if peft.use_dora {
                let magnitude = weights.magnitudes.get(&self.name).map(Vec::as_slice);
                lora.set_magnitude(&self.weight, magnitude, device);
            }
            lora
        });
    }

    /// Brings what is derived from the adapter's factors up to date after these changed.
    pub fn refresh(&mut self) {
        if let Some(Lora { a, b, scale, magnitude: Some(magnitude), .. }) = &mut self.adapter {
            magnitude.refresh(&self.weight, (a, b, *scale));
        }
    }

    /// `x · wᵀ + bias`, and the adapter's update on top.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`, `y`: `[tokens, d_out]`
    pub fn forward(&self, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        match self.dora() {
            Some((adapter, magnitude)) => self.forward_dora(None, x, adapter, magnitude, pass),
            None => self.finish(kernels::linear(x, &self.weight), x, pass),
        }
    }

    /// [`AdaptedLinear::forward`] added to a residual stream.
    ///
    /// # Shapes
    /// - `residual`: `[tokens, d_out]`
    pub fn forward_onto(&self, residual: &Tensor<2>, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        match self.dora() {
            Some((adapter, magnitude)) => {
                self.forward_dora(Some(residual), x, adapter, magnitude, pass)
            }
            None => {
                let y = kernels::linear_add(residual.clone(), x, &self.weight, 1.0);
                self.finish(y, x, pass)
            }
        }
    }

    fn dora(&self) -> Option<(&Lora, &Magnitude)> {
        let adapter = self.adapter.as_ref()?;
        Some((adapter, adapter.magnitude.as_ref()?))
    }

    fn finish(&self, y: Tensor<2>, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        let y = self.with_bias(y);
        let Some(adapter) = &self.adapter else {
            return LinearOutput { y, saved: None };
        };
        let down = adapter.down(x, pass);
        let y = adapter.add_up(y, &down);
        LinearOutput { y, saved: Some(SavedUpdate { down, unscaled: None }) }
    }

    fn with_bias(&self, y: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => kernels::add_bias(y, bias),
            None => y,
        }
    }

    /// `g · (W + sBA)·x + bias`. With dropout PEFT's sum: the base of `x` as it is, and on top of
    /// it what the adapter adds to the base for the masked `x`, `g · (W + sBA)·x' - W·x'`.
    fn forward_dora(
        &self,
        residual: Option<&Tensor<2>>,
        x: &Tensor<2>,
        adapter: &Lora,
        magnitude: &Magnitude,
        pass: Pass,
    ) -> LinearOutput {
        let down = adapter.down(x, pass);
        let (unscaled, mut y) = match adapter.mask(pass) {
            None => {
                let base = kernels::linear(x, &self.weight);
                let unscaled = adapter.add_up(base, &down);
                let y = magnitude.apply(&unscaled);
                (unscaled, y)
            }
            Some(key) => {
                let masked = kernels::dropout(x, adapter.dropout, key);
                let base = kernels::linear(&masked, &self.weight);
                let unscaled = adapter.add_up(base.clone(), &down);
                let change = magnitude.apply(&unscaled) - base;
                (unscaled, kernels::linear_add(change, x, &self.weight, 1.0))
            }
        };
        if let Some(residual) = residual {
            y = y + residual.clone();
        }
        let saved = Some(SavedUpdate { down, unscaled: Some(unscaled) });
        LinearOutput { y: self.with_bias(y), saved }
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
        saved: Option<&SavedUpdate>,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Option<LoraGradients>) {
        let of_input = |sum, dy: &Tensor<2>| match wanted {
            InputGradient::Needed => Some(kernels::linear_input_gradient(sum, dy, &self.weight)),
            InputGradient::Skipped => None,
        };
        let (Some(adapter), Some(saved)) = (&self.adapter, saved) else {
            return (of_input(sum, dy), None);
        };
        let down = &saved.down;
        let (Some(magnitude), Some(unscaled)) = (&adapter.magnitude, &saved.unscaled) else {
            let (dx, gradients) = adapter.gradient(of_input(sum, dy), dy, x, down, pass);
            return (dx, Some(gradients));
        };
        let dz = magnitude.apply(dy);
        let of_magnitude = magnitude.gradient(dy, unscaled);
        let dx = match adapter.mask(pass) {
            None => of_input(sum, &dz),
            Some(key) => {
                let of_masked = of_input(None, &(dz.clone() - dy.clone()));
                let masked = of_masked.map(|dx| kernels::dropout(&dx, adapter.dropout, key));
                of_input(sum, dy).zip(masked).map(|(dx, masked)| dx + masked)
            }
        };
        let (dx, gradients) = adapter.gradient(dx, &dz, x, down, pass);
        (dx, Some(LoraGradients { magnitude: Some(of_magnitude), ..gradients }))
    }
}
