//! A block's attention: projections, norms of queries and keys, rotary embedding, output.

use adapters::{AdaptedLinear, InputGradient, LoraGradients, SavedUpdate};
use burn::tensor::Tensor;
use kernels::{AttentionOutput, AttentionShape, Direction, RotaryHead};

use super::block::{CacheStep, LayerCache};
use super::config::{BlockConfig, DecoderConfig};
use super::context::BlockContext;
use super::names::ProjectionNames;
use super::norm::{Norm, QueryKeyNorms};
use super::rope::Angles;

/// Attention with its frozen weights and its adapters.
#[derive(Debug, Clone)]
pub struct Attention {
    /// Query, key and value, or one layer for the three.
    projections: Vec<AdaptedLinear>,
    layout: Layout,
    output: AdaptedLinear,
    norms: Option<QueryKeyNorms>,
    shape: AttentionShape,
    rotary: Option<(usize, RotaryHead)>,
    block: BlockConfig,
}

/// Where queries, keys and values lie in what the projections give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Separate,
    OneAfterAnother,
    ByHead,
}

/// Queries, keys and values, `[tokens, heads * head_dim]` each.
type Triple = [Tensor<2>; 3];

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct SavedAttention {
    /// Before their norm where they have one, else as attention took them.
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    attention: AttentionOutput,
    /// Of the projections' adapters.
    updates: Vec<Option<SavedUpdate>>,
    output_update: Option<SavedUpdate>,
}

impl Attention {
    /// `linears` in the order of [`super::names::attention_linears`].
    pub(super) fn new(
        config: &DecoderConfig,
        block: BlockConfig,
        mut linears: Vec<AdaptedLinear>,
        norms: Option<QueryKeyNorms>,
    ) -> Self {
        let output = linears.pop().expect("attention has an output layer");
        let layout = match config.names.projections {
            ProjectionNames::Separate(_) => Layout::Separate,
            ProjectionNames::Fused(_) => Layout::OneAfterAnother,
            ProjectionNames::FusedByHead(_) => Layout::ByHead,
            ProjectionNames::Latent(_) => unreachable!("latent attention is another layer"),
        };
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: block.attention_scale,
            sight: block.sight,
            soft_cap: config.attention_soft_cap,
        };
        let head = RotaryHead { head_dim: config.head_dim, pairs: config.rotary_pairs };
        let rotary = block.rope.map(|rope| (rope, head));
        Self { projections: linears, layout, output, norms, shape, rotary, block }
    }

    /// Its linear layers, in the order of the forward pass.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.projections.iter().chain([&self.output])
    }

    /// [`Attention::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.projections.iter_mut().chain([&mut self.output])
    }

    /// Norms of queries and keys.
    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        self.norms.iter_mut().flat_map(|norms| [&mut norms.query, &mut norms.key])
    }

    /// The output, added to `residual` where one is given. With a cache, `x` are the positions
    /// that it does not hold yet.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[tokens, hidden]`, returns the same
    pub(super) fn forward(
        &self,
        residual: Option<&Tensor<2>>,
        x: &Tensor<2>,
        context: &BlockContext,
        cache: Option<(&mut LayerCache, &CacheStep)>,
    ) -> (Tensor<2>, SavedAttention) {
        let pass = context.pass;
        let outputs: Vec<_> = self.projections.iter().map(|l| l.forward(x, pass)).collect();
        let (ys, updates): (Vec<_>, Vec<_>) = outputs.into_iter().map(|o| (o.y, o.saved)).unzip();
        let [query, key, value] = self.split(ys);
        let raw = self.norms.is_some().then(|| (query.clone(), key.clone()));
        let (q, k) = self.place(query, key, context);
        let (query, key) = raw.unwrap_or_else(|| (q.clone(), k.clone()));
        let (keys, values) = match cache {
            None => (k, value.clone()),
            Some((cache, step)) => cache.extend(&k, &value, step),
        };
        let segments = context.segments(&self.block);
        let attention = kernels::attention(&q, &keys, &values, self.shape, segments);
        let output = match residual {
            Some(residual) => self.output.forward_onto(residual, &attention.output, pass),
            None => self.output.forward(&attention.output, pass),
        };
        let output_update = output.saved;
        (output.y, SavedAttention { query, key, value, attention, updates, output_update })
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`Attention::linears`].
    pub(super) fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedAttention,
        context: &BlockContext,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        let (d_attention, of_output) = self.output.backward(
            (None, InputGradient::Needed),
            dy,
            &saved.attention.output,
            saved.output_update.as_ref(),
            context.pass,
        );
        let d_attention = d_attention.expect("asked for");
        let placed = self
            .norms
            .as_ref()
            .map(|_| self.place(saved.query.clone(), saved.key.clone(), context));
        let (q, k) = placed.as_ref().map_or((&saved.query, &saved.key), |(q, k)| (q, k));
        let (dq, dk, dv) = kernels::attention_gradient(
            &d_attention,
            (q, k, &saved.value),
            &saved.attention,
            self.shape,
            context.segments(&self.block),
        );
        let (dq, dk) = self.place_gradient(dq, dk, saved, context);
        let mut sum = sum;
        let mut gradients = Vec::with_capacity(self.projections.len() + 1);
        let dys = self.join([dq, dk, dv]);
        for ((linear, dy), update) in self.projections.iter().zip(&dys).zip(&saved.updates) {
            let (next, of_linear) =
                linear.backward((sum, wanted), dy, x, update.as_ref(), context.pass);
            sum = next;
            gradients.push(of_linear);
        }
        gradients.push(of_output);
        (sum, gradients)
    }

    /// Norms, rotary embedding and temperature.
    fn place(
        &self,
        mut q: Tensor<2>,
        mut k: Tensor<2>,
        context: &BlockContext,
    ) -> (Tensor<2>, Tensor<2>) {
        if let Some(norms) = &self.norms {
            q = norms.width.forward(&norms.query, &q);
            k = norms.width.forward(&norms.key, &k);
        }
        let (q, k) = self.turn(q, k, &context.angles, Direction::Forward);
        (context.heated(q, &self.block), k)
    }

    /// Gradient of [`Attention::place`].
    fn place_gradient(
        &self,
        dq: Tensor<2>,
        dk: Tensor<2>,
        saved: &SavedAttention,
        context: &BlockContext,
    ) -> (Tensor<2>, Tensor<2>) {
        let dq = context.heated(dq, &self.block);
        let (dq, dk) = self.turn(dq, dk, &context.angles, Direction::Backward);
        let Some(norms) = &self.norms else { return (dq, dk) };
        let backward = |norm: &Norm, dy, x| norms.width.backward(norm, dy, x);
        (backward(&norms.query, &dq, &saved.query), backward(&norms.key, &dk, &saved.key))
    }

    fn turn(
        &self,
        q: Tensor<2>,
        k: Tensor<2>,
        angles: &[Angles],
        direction: Direction,
    ) -> (Tensor<2>, Tensor<2>) {
        let Some((rope, head)) = self.rotary else { return (q, k) };
        let pair = angles[rope].pair();
        (kernels::rope(q, pair, head, direction), kernels::rope(k, pair, head, direction))
    }

    /// Queries, keys and values out of what the projections gave.
    fn split(&self, ys: Vec<Tensor<2>>) -> Triple {
        if self.layout == Layout::Separate {
            return ys.try_into().expect("three projections");
        }
        let fused = ys.into_iter().next().expect("one projection");
        let [tokens, width] = fused.dims();
        let AttentionShape { heads, kv_heads, head_dim, .. } = self.shape;
        if self.layout == Layout::ByHead {
            let by_head: Tensor<3> = fused.reshape([tokens, heads, 3 * head_dim]);
            return [0, 1, 2].map(|part| {
                by_head.clone().narrow(2, part * head_dim, head_dim).reshape([tokens, width / 3])
            });
        }
        let (queries, keys) = (heads * head_dim, kv_heads * head_dim);
        let columns = |first, width| fused.clone().narrow(1, first, width);
        [columns(0, queries), columns(queries, keys), columns(queries + keys, keys)]
    }

    /// Gradients of what the projections gave: the reverse of [`Attention::split`].
    fn join(&self, parts: Triple) -> Vec<Tensor<2>> {
        match self.layout {
            Layout::Separate => parts.into(),
            Layout::OneAfterAnother => vec![Tensor::cat(parts.into(), 1)],
            Layout::ByHead => {
                let [tokens, width] = parts[0].dims();
                let AttentionShape { heads, head_dim, .. } = self.shape;
                let heads = parts.map(|part| part.reshape([tokens, heads, head_dim]));
                vec![Tensor::<3>::cat(heads.into(), 2).reshape([tokens, 3 * width])]
            }
        }
    }
}
