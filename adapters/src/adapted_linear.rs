//! A frozen linear layer with an optional adapter: the only linear layer models call.

use std::fmt::Debug;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};
use kernels::Weight;

use crate::dora::{Magnitude, square_sums};
use crate::lora::{Lora, LoraGradients, Pass};
use crate::peft::{AdapterWeights, LoraFactors, PeftConfig};
use crate::trained::TrainedLinear;

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
    /// The update that was taken out of the weight when training began: a constant.
    pub start: Option<Lora>,
    /// Is shown every input, where somebody wants to know.
    pub observer: Option<Arc<dyn InputObserver>>,
    /// What of the layer itself is trained.
    pub trained: TrainedLinear,
}

/// Sees what linear layers are given.
pub trait InputObserver: Debug + Send + Sync {
    /// `x`, `[tokens, d_in]`, is about to go through `module`.
    fn observe(&self, module: &str, x: &Tensor<2>);
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
    /// The layer without an adapter, nothing of it trained.
    pub fn frozen(name: String, weight: Weight, bias: Option<Tensor<1>>) -> Self {
        let trained = TrainedLinear::default();
        Self { name, weight, bias, adapter: None, start: None, observer: None, trained }
    }

    /// Puts the adapter's update for this layer on it; none where the adapter has none.
    pub fn attach(&mut self, peft: &PeftConfig, weights: &AdapterWeights, device: &Device) {
        let scale = peft.scale(&self.name);
        let lora = |factors: &LoraFactors| Lora::new(factors, scale, device);
        self.start = weights.starts.get(&self.name).map(lora);
        self.adapter = weights.modules.get(&self.name).map(lora);
        if peft.use_dora && self.adapter.is_some() {
            let values = weights.magnitudes.get(&self.name).map(Vec::as_slice);
            self.set_magnitude(values, device);
        }
    }

    /// Puts the values of a checkpoint into the adapter that is attached.
    pub fn restore(&mut self, weights: &AdapterWeights, device: &Device) {
        let (Some(lora), Some(saved)) = (&mut self.adapter, weights.modules.get(&self.name)) else {
            return;
        };
        let restored = match &mut self.start {
            Some(start) => {
                let (trained, first) = saved.halves();
                *start = Lora::new(&first, start.scale, device);
                Lora::new(&trained, lora.scale, device)
            }
            None => Lora::new(saved, lora.scale, device),
        };
        (lora.a, lora.b) = (restored.a, restored.b);
        if let (Some(magnitude), Some(values)) =
            (&mut lora.magnitude, weights.magnitudes.get(&self.name))
        {
            let shape = [1, values.len()];
            magnitude.values = kernels::from_f32(values.clone(), shape, DType::F32, device);
        }
        self.refresh();
    }

    /// Brings what is derived from the adapter's factors up to date after these changed.
    pub fn refresh(&mut self) {
        let Some(across) = self.dora().map(|(lora, _)| self.base(&lora.a)) else { return };
        if let Some(Lora { a, b, scale, magnitude: Some(magnitude), .. }) = &mut self.adapter {
            magnitude.refresh(&across, (a, b, *scale));
        }
    }

    fn set_magnitude(&mut self, values: Option<&[f32]>, device: &Device) {
        let Some(lora) = &self.adapter else { return };
        let mut base_squares = kernels::row_square_sums(&self.weight, device);
        if let Some(Lora { a, b, scale, .. }) = &self.start {
            let across = kernels::linear(a, &self.weight);
            base_squares = square_sums(&base_squares, &across, (a, b, -scale));
        }
        let factors = (&lora.a, &lora.b, lora.scale);
        let magnitude = Magnitude::new(base_squares, &self.base(&lora.a), factors, values, device);
        if let Some(lora) = &mut self.adapter {
            lora.magnitude = Some(magnitude);
        }
    }

    /// `x · wᵀ`, without what the adapter began with.
    fn base(&self, x: &Tensor<2>) -> Tensor<2> {
        self.without_start(kernels::linear(x, &self.weight), x)
    }

    /// [`AdaptedLinear::base`] added to `y`.
    fn base_onto(&self, y: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        self.without_start(kernels::linear_add(y, x, &self.weight, 1.0), x)
    }

    fn without_start(&self, y: Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        match &self.start {
            Some(Lora { a, b, scale, .. }) => {
                kernels::linear_add(y, &kernels::linear(x, a), b, -scale)
            }
            None => y,
        }
    }

    /// Gradient of the input of [`AdaptedLinear::base`], added to `sum`.
    fn base_gradient(&self, sum: Option<Tensor<2>>, dy: &Tensor<2>) -> Tensor<2> {
        let dx = kernels::linear_input_gradient(sum, dy, &self.weight);
        match &self.start {
            Some(Lora { a, b, scale, .. }) => {
                let down = kernels::linear_input_gradient(None, dy, b) * -scale;
                kernels::linear_input_gradient(Some(dx), &down, a)
            }
            None => dx,
        }
    }

    /// `x · wᵀ + bias`, and the adapter's update on top.
    ///
    /// # Shapes
    /// - `x`: `[tokens, d_in]`, `y`: `[tokens, d_out]`
    pub fn forward(&self, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        self.show(x);
        match self.dora() {
            Some((adapter, magnitude)) => self.forward_dora(None, x, adapter, magnitude, pass),
            None => self.finish(self.base(x), x, pass),
        }
    }

    /// [`AdaptedLinear::forward`] added to a residual stream.
    ///
    /// # Shapes
    /// - `residual`: `[tokens, d_out]`
    pub fn forward_onto(&self, residual: &Tensor<2>, x: &Tensor<2>, pass: Pass) -> LinearOutput {
        self.show(x);
        match self.dora() {
            Some((adapter, magnitude)) => {
                self.forward_dora(Some(residual), x, adapter, magnitude, pass)
            }
            None => self.finish(self.base_onto(residual.clone(), x), x, pass),
        }
    }

    fn show(&self, x: &Tensor<2>) {
        if let Some(observer) = &self.observer {
            observer.observe(&self.name, x);
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
                let base = self.base(x);
                let unscaled = adapter.add_up(base, &down);
                let y = magnitude.apply(&unscaled);
                (unscaled, y)
            }
            Some(key) => {
                let masked = kernels::dropout(x, adapter.dropout, key);
                let base = self.base(&masked);
                let unscaled = adapter.add_up(base.clone(), &down);
                let change = magnitude.apply(&unscaled) - base;
                (unscaled, self.base_onto(change, x))
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
    /// A frozen weight gets none: no weight-shaped product is formed. Those of a weight or bias that
    /// is trained are summed in [`AdaptedLinear::trained`].
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
        self.trained.add_gradients(dy, x);
        let of_input = |sum, dy: &Tensor<2>| match wanted {
            InputGradient::Needed => Some(self.base_gradient(sum, dy)),
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
