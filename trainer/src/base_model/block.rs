//! One decoder block: attention and feed-forward on the residual stream.
//!
//! The backward pass is written by hand. It needs the tensors of [`Saved`], rebuilds norms,
//! rotary embeddings and activations (element-wise work) from them, and repeats no matrix product.

use adapters::{AdaptedLinear, InputGradient, LoraGradients};
use burn::tensor::Tensor;
use kernels::RowSpan;

use super::attention_half::{AttentionHalf, SavedAttentionHalf};
use super::balance::Load;
use super::config::{DecoderConfig, Flow};
use super::context::BlockContext;
use super::half::{Half, SavedHalf};
use super::norm::Norm;

/// A block's frozen weights and its adapters.
#[derive(Debug, Clone)]
pub struct Block {
    attention: AttentionHalf,
    feed_forward: Half,
    norms: BlockNorms,
    flow: Flow,
    residual_scale: f64,
}

/// The norms around a block's halves; which exist is where the family puts norms.
#[derive(Debug, Clone)]
pub(super) struct BlockNorms {
    pub(super) attention_input: Option<Norm>,
    pub(super) attention_output: Option<Norm>,
    pub(super) feed_forward_input: Option<Norm>,
    pub(super) feed_forward_output: Option<Norm>,
}

/// What the backward pass of a block needs, `[tokens, ...]` each.
#[derive(Debug, Clone)]
pub struct Saved {
    input: Tensor<2>,
    attention: SavedAttentionHalf,
    /// Attention's output before its norm, where it has one.
    attention_branch: Option<Tensor<2>>,
    middle: Tensor<2>,
    feed_forward: SavedHalf,
    feed_forward_branch: Option<Tensor<2>>,
}

impl Saved {
    /// How the tokens fell on experts, where the block has any.
    pub(super) fn load(&self) -> Option<Load> {
        self.feed_forward.load()
    }
}

/// A block's output and what its backward pass needs.
#[derive(Debug)]
pub struct BlockOutput {
    /// `[tokens, hidden]`
    pub hidden: Tensor<2>,
    /// For [`Block::backward`].
    pub saved: Saved,
}

/// Gradients of a block's adapters, in the order of [`Block::linears`].
pub type BlockGradients = Vec<Option<LoraGradients>>;

/// Keys and values of some sequences: `[places, kv_heads * head_dim]` each, once there are any.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    entries: Option<(Tensor<2>, Tensor<2>)>,
}

/// Where the new positions of a cached pass are kept.
#[derive(Debug)]
pub struct CacheStep {
    /// Places of the whole cache.
    pub(super) places: usize,
    /// Where new keys and values go.
    pub(super) spans: Vec<RowSpan>,
}

impl LayerCache {
    pub(super) fn extend(
        &mut self,
        key: &Tensor<2>,
        value: &Tensor<2>,
        step: &CacheStep,
    ) -> (Tensor<2>, Tensor<2>) {
        let empty = |like: &Tensor<2>| {
            Tensor::zeros([step.places, like.dims()[1]], (&like.device(), like.dtype()))
        };
        let (keys, values) = self.entries.take().unwrap_or_else(|| (empty(key), empty(value)));
        let keys = kernels::put_rows(keys, key, &step.spans);
        let values = kernels::put_rows(values, value, &step.spans);
        self.entries.insert((keys, values)).clone()
    }

    /// Moves everything to a cache of more places.
    pub(super) fn regrow(&mut self, places: usize, spans: &[RowSpan]) {
        let moved = |old: Tensor<2>| {
            let new = Tensor::zeros([places, old.dims()[1]], (&old.device(), old.dtype()));
            kernels::put_rows(new, &old, spans)
        };
        self.entries = self.entries.take().map(|(keys, values)| (moved(keys), moved(values)));
    }
}

impl Block {
    pub(super) fn new(
        config: &DecoderConfig,
        attention: AttentionHalf,
        feed_forward: Half,
        norms: BlockNorms,
    ) -> Self {
        let residual_scale = config.scales.residual;
        Self { attention, feed_forward, norms, flow: config.flow, residual_scale }
    }

    /// The block's linear layers, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.attention.linears().chain(self.feed_forward.linears())
    }

    /// [`Block::linears`], to put adapters on.
    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.attention.linears_mut().chain(self.feed_forward.linears_mut())
    }

    /// The block's norms.
    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let BlockNorms {
            attention_input,
            attention_output,
            feed_forward_input,
            feed_forward_output,
        } = &mut self.norms;
        let around = [attention_input, attention_output, feed_forward_input, feed_forward_output];
        around.into_iter().flatten().chain(self.attention.norms_mut())
    }

    /// # Shapes
    /// - `x`: `[tokens, hidden]`
    pub fn forward(&self, x: Tensor<2>, context: &BlockContext) -> BlockOutput {
        self.run(x, context, None)
    }

    /// Forward pass of new positions of some sequences over the positions in `cache`; the
    /// context's segments say which places each sequence sees.
    ///
    /// # Shapes
    /// - `x`: `[new positions, hidden]`
    pub fn forward_cached(
        &self,
        x: Tensor<2>,
        context: &BlockContext,
        cache: &mut LayerCache,
        step: &CacheStep,
    ) -> Tensor<2> {
        self.run(x, context, Some((cache, step))).hidden
    }

    fn run(
        &self,
        x: Tensor<2>,
        context: &BlockContext,
        cache: Option<(&mut LayerCache, &CacheStep)>,
    ) -> BlockOutput {
        let norms = &self.norms;
        let normed = through(norms.attention_input.as_ref(), &x);
        let onto = self.adds_directly(norms.attention_output.as_ref()).then_some(&x);
        let (y, attention) = self.attention.forward(onto, &normed, context, cache);
        let (middle, attention_branch) = match onto {
            Some(_) => (y, None),
            None => self.join(&x, y, norms.attention_output.as_ref()),
        };
        let normed = match (self.flow, &norms.feed_forward_input) {
            (Flow::Sequential, norm) => through(norm.as_ref(), &middle),
            (Flow::Parallel, Some(norm)) => norm.forward(&x),
            (Flow::Parallel, None) => normed,
        };
        let onto = self.adds_directly(norms.feed_forward_output.as_ref()).then_some(&middle);
        let (y, feed_forward) = self.feed_forward.forward(onto, &normed, context.pass);
        let (hidden, feed_forward_branch) = match onto {
            Some(_) => (y, None),
            None => self.join(&middle, y, norms.feed_forward_output.as_ref()),
        };
        let input = x;
        let saved =
            Saved { input, attention, attention_branch, middle, feed_forward, feed_forward_branch };
        BlockOutput { hidden, saved }
    }

    /// Gradients of the adapters, and of the block's input where it is wanted.
    ///
    /// # Shapes
    /// - `d_hidden`: `[tokens, hidden]`
    pub fn backward(
        &self,
        d_hidden: Tensor<2>,
        saved: &Saved,
        context: &BlockContext,
        wanted: InputGradient,
    ) -> (Option<Tensor<2>>, BlockGradients) {
        let norms = &self.norms;
        let normed = through(norms.attention_input.as_ref(), &saved.input);
        let half = self.backward_feed_forward(d_hidden, &normed, saved, context, wanted);
        let output_norm = norms.attention_output.as_ref();
        let branch =
            self.branch_gradient(&half.d_branch, output_norm, saved.attention_branch.as_ref());
        let (sum, d_stream) = match norms.attention_input {
            Some(_) => (half.d_normed, Some(half.d_stream)),
            None => (Some(half.d_stream), None),
        };
        let sum = sum.filter(|_| wanted == InputGradient::Needed);
        let (sum, mut gradients) =
            self.attention.backward((sum, wanted), &branch, &normed, &saved.attention, context);
        // Gone before the stream's gradient is written to, which then happens in place.
        drop((branch, half.d_branch));
        gradients.extend(half.gradients);
        let d_input = sum.map(|sum| match &norms.attention_input {
            Some(norm) => norm.backward(d_stream, &sum, &saved.input),
            None => sum,
        });
        (d_input, gradients)
    }

    /// `normed` is what attention read.
    fn backward_feed_forward(
        &self,
        d_hidden: Tensor<2>,
        normed: &Tensor<2>,
        saved: &Saved,
        context: &BlockContext,
        wanted: InputGradient,
    ) -> HalfGradient {
        let norms = &self.norms;
        let output_norm = norms.feed_forward_output.as_ref();
        let branch =
            self.branch_gradient(&d_hidden, output_norm, saved.feed_forward_branch.as_ref());
        let stream = match self.flow {
            Flow::Sequential => &saved.middle,
            Flow::Parallel => &saved.input,
        };
        // What lies below a sequential half are this block's own adapters.
        let wanted = match self.flow {
            Flow::Sequential => InputGradient::Needed,
            Flow::Parallel => wanted,
        };
        let backward = |sum, x: &Tensor<2>| {
            let saved = &saved.feed_forward;
            self.feed_forward.backward((sum, wanted), &branch, x, saved, context)
        };
        match (self.flow, &norms.feed_forward_input) {
            (Flow::Parallel, None) => {
                let (d_normed, gradients) = backward(None, normed);
                let d_branch = d_hidden.clone();
                HalfGradient { d_stream: d_hidden, d_branch, d_normed, gradients }
            }
            (Flow::Parallel, Some(norm)) => {
                let (d_normed, gradients) = backward(None, &norm.forward(stream));
                let d_branch = d_hidden.clone();
                let d_stream = match d_normed {
                    Some(d_normed) => norm.backward(Some(d_hidden), &d_normed, stream),
                    None => d_hidden,
                };
                HalfGradient { d_stream, d_branch, d_normed: None, gradients }
            }
            (Flow::Sequential, None) => {
                let (sum, gradients) = backward(Some(d_hidden), stream);
                HalfGradient::sequential(sum.expect("asked for"), gradients)
            }
            (Flow::Sequential, Some(norm)) => {
                let (d_normed, gradients) = backward(None, &norm.forward(stream));
                drop(branch);
                let d_normed = d_normed.expect("asked for");
                HalfGradient::sequential(
                    norm.backward(Some(d_hidden), &d_normed, stream),
                    gradients,
                )
            }
        }
    }

    /// Whether a half's output goes into the residual stream as it is.
    fn adds_directly(&self, output_norm: Option<&Norm>) -> bool {
        output_norm.is_none() && self.residual_scale == 1.0
    }

    /// The stream with a half's output on it, and what the gradient of the output's norm needs.
    fn join(
        &self,
        stream: &Tensor<2>,
        branch: Tensor<2>,
        output_norm: Option<&Norm>,
    ) -> (Tensor<2>, Option<Tensor<2>>) {
        match output_norm {
            Some(norm) => {
                let added = norm.forward(&branch) * self.residual_scale;
                (stream.clone() + added, Some(branch))
            }
            None => (stream.clone() + branch * self.residual_scale, None),
        }
    }

    /// Gradient of a half's output from that of the stream it was added to.
    fn branch_gradient(
        &self,
        d_stream: &Tensor<2>,
        output_norm: Option<&Norm>,
        branch: Option<&Tensor<2>>,
    ) -> Tensor<2> {
        let scaled = if self.residual_scale == 1.0 {
            d_stream.clone()
        } else {
            d_stream.clone() * self.residual_scale
        };
        match (output_norm, branch) {
            (Some(norm), Some(branch)) => norm.backward(None, &scaled, branch),
            _ => scaled,
        }
    }
}

/// What the feed-forward half leaves for attention's backward pass.
struct HalfGradient {
    /// Gradient of the stream below, attention's part left out.
    d_stream: Tensor<2>,
    /// Gradient of the stream that attention added to.
    d_branch: Tensor<2>,
    /// Gradient of the normed input, where both halves read the same.
    d_normed: Option<Tensor<2>>,
    gradients: Vec<Option<LoraGradients>>,
}

impl HalfGradient {
    fn sequential(d_stream: Tensor<2>, gradients: Vec<Option<LoraGradients>>) -> Self {
        Self { d_branch: d_stream.clone(), d_stream, d_normed: None, gradients }
    }
}

/// `x` through a norm, where there is one.
fn through(norm: Option<&Norm>, x: &Tensor<2>) -> Tensor<2> {
    norm.map_or_else(|| x.clone(), |norm| norm.forward(x))
}
