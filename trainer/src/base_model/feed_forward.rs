//! A block's feed-forward half: gate and up, or one inner layer; activation; down.

use adapters::{AdaptedLinear, InputGradient, Lora, LoraGradients, Pass, SavedUpdate};
use burn::tensor::Tensor;

use super::config::{Activation, DecoderConfig};
use super::names::FeedForwardNames;

/// The feed-forward half with its frozen weights and its adapters.
#[derive(Debug, Clone)]
pub struct FeedForward {
    /// Gate and up, one layer for both, or the only inner layer.
    inputs: Vec<AdaptedLinear>,
    layout: Layout,
    down: AdaptedLinear,
    activation: Activation,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Gated,
    GatedFused,
    Plain,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct SavedFeedForward {
    /// Outputs of the input layers.
    inner: Vec<Tensor<2>>,
    /// Of the input layers' adapters.
    updates: Vec<Option<SavedUpdate>>,
    down_update: Option<SavedUpdate>,
}

/// The gradient behind the last layer.
pub(super) struct DownGradient {
    /// Of the last layer's input: `[tokens, intermediate]`.
    pub(super) d_active: Tensor<2>,
    /// The last layer's input.
    pub(super) active: Tensor<2>,
    of_down: Option<LoraGradients>,
}

impl FeedForward {
    /// `linears` in the order of [`super::names::feed_forward_linears`].
    pub(super) fn new(config: &DecoderConfig, linears: Vec<AdaptedLinear>) -> Self {
        let layout = match config.names.feed_forward {
            FeedForwardNames::Gated(_) => Layout::Gated,
            FeedForwardNames::GatedFused(_) => Layout::GatedFused,
            FeedForwardNames::Plain(_) => Layout::Plain,
        };
        Self::of_layout(layout, config.activation, linears)
    }

    /// One expert: gate, up and down, or gate and up in one, and down.
    pub(super) fn expert(config: &DecoderConfig, linears: Vec<AdaptedLinear>) -> Self {
        let layout = if linears.len() == 2 { Layout::GatedFused } else { Layout::Gated };
        Self::of_layout(layout, config.activation, linears)
    }

    fn of_layout(layout: Layout, activation: Activation, mut linears: Vec<AdaptedLinear>) -> Self {
        let down = linears.pop().expect("a feed-forward half has an output layer");
        Self { inputs: linears, layout, down, activation }
    }

    /// Its linear layers, in the order of the forward pass.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.inputs.iter().chain([&self.down])
    }

    /// [`FeedForward::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.inputs.iter_mut().chain([&mut self.down])
    }

    /// The output, added to `residual` where one is given.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[tokens, hidden]`, returns the same
    pub(super) fn forward(
        &self,
        residual: Option<&Tensor<2>>,
        x: &Tensor<2>,
        pass: Pass,
    ) -> (Tensor<2>, SavedFeedForward) {
        let outputs: Vec<_> = self.inputs.iter().map(|l| l.forward(x, pass)).collect();
        let (inner, updates): (Vec<_>, Vec<_>) =
            outputs.into_iter().map(|o| (o.y, o.saved)).unzip();
        let active = self.activate(&inner); // [tokens, intermediate]
        let output = match residual {
            Some(residual) => self.down.forward_onto(residual, &active, pass),
            None => self.down.forward(&active, pass),
        };
        (output.y, SavedFeedForward { inner, updates, down_update: output.saved })
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`FeedForward::linears`].
    pub(super) fn backward(
        &self,
        sum: (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedFeedForward,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        self.backward_inputs(sum, self.backward_down(dy, saved, pass), x, saved, pass)
    }

    /// The gradient behind the last layer.
    pub(super) fn backward_down(
        &self,
        dy: &Tensor<2>,
        saved: &SavedFeedForward,
        pass: Pass,
    ) -> DownGradient {
        let active = self.activate(&saved.inner);
        let needed = (None, InputGradient::Needed);
        let (d_active, of_down) =
            self.down.backward(needed, dy, &active, saved.down_update.as_ref(), pass);
        DownGradient { d_active: d_active.expect("asked for"), active, of_down }
    }

    /// The rest of [`FeedForward::backward`].
    pub(super) fn backward_inputs(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        DownGradient { d_active, active, of_down }: DownGradient,
        x: &Tensor<2>,
        saved: &SavedFeedForward,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        drop(active);
        let d_inner = self.activate_gradient(&d_active, &saved.inner);
        drop(d_active);
        let mut sum = sum;
        let mut gradients = Vec::with_capacity(self.inputs.len() + 1);
        for ((linear, dy), update) in self.inputs.iter().zip(&d_inner).zip(&saved.updates) {
            let (next, of_linear) = linear.backward((sum, wanted), dy, x, update.as_ref(), pass);
            sum = next;
            gradients.push(of_linear);
        }
        gradients.push(of_down);
        (sum, gradients)
    }

    /// Zeros for the adapters of layers that no token used.
    pub(super) fn no_gradients(&self) -> Vec<Option<LoraGradients>> {
        self.linears().map(|linear| linear.adapter.as_ref().map(Lora::no_gradients)).collect()
    }

    fn activate(&self, inner: &[Tensor<2>]) -> Tensor<2> {
        match (self.layout, self.activation) {
            (Layout::Plain, Activation::Gelu(form)) => kernels::gelu(&inner[0], form),
            (Layout::Plain, Activation::Silu) => unreachable!("every family with SiLU has a gate"),
            (_, activation) => {
                let (gate, up) = self.gate_and_up(inner);
                match activation {
                    Activation::Silu => kernels::swiglu(&gate, &up),
                    Activation::Gelu(form) => kernels::geglu(&gate, &up, form),
                }
            }
        }
    }

    /// Gradients of the input layers' outputs.
    fn activate_gradient(&self, dy: &Tensor<2>, inner: &[Tensor<2>]) -> Vec<Tensor<2>> {
        match (self.layout, self.activation) {
            (Layout::Plain, Activation::Gelu(form)) => {
                vec![kernels::gelu_gradient(dy, &inner[0], form)]
            }
            (Layout::Plain, Activation::Silu) => unreachable!("every family with SiLU has a gate"),
            (layout, activation) => {
                let (gate, up) = self.gate_and_up(inner);
                let (d_gate, d_up) = match activation {
                    Activation::Silu => kernels::swiglu_gradient(dy, &gate, &up),
                    Activation::Gelu(form) => kernels::geglu_gradient(dy, &gate, &up, form),
                };
                match layout {
                    Layout::GatedFused => vec![Tensor::cat(vec![d_gate, d_up], 1)],
                    _ => vec![d_gate, d_up],
                }
            }
        }
    }

    fn gate_and_up(&self, inner: &[Tensor<2>]) -> (Tensor<2>, Tensor<2>) {
        if self.layout == Layout::Gated {
            return (inner[0].clone(), inner[1].clone());
        }
        let width = inner[0].dims()[1] / 2;
        (inner[0].clone().narrow(1, 0, width), inner[0].clone().narrow(1, width, width))
    }
}
