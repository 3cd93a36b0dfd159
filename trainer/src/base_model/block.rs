//! One decoder block: attention and feed-forward, each on its own norm and residual.
//!
//! The backward pass is written by hand. It needs the tensors of [`Saved`], rebuilds norms and
//! SwiGLU (element-wise work) from them, and repeats no matrix product.

use adapters::{AdaptedLinear, InputGradient, LoraGradients, Pass};
use burn::tensor::Tensor;
use kernels::{AttentionOutput, AttentionShape, Direction, Segments};

use super::config::DecoderConfig;
use super::rope::Angles;

/// A block's frozen weights and its adapters.
#[derive(Debug, Clone)]
pub struct Block {
    attention_norm: Tensor<1>,
    feed_forward_norm: Tensor<1>,
    query: AdaptedLinear,
    key: AdaptedLinear,
    value: AdaptedLinear,
    output: AdaptedLinear,
    gate: AdaptedLinear,
    up: AdaptedLinear,
    down: AdaptedLinear,
    shape: AttentionShape,
    norm_epsilon: f64,
}

/// What the backward pass of a block needs, `[tokens, ...]` each.
#[derive(Debug, Clone)]
pub struct Saved {
    input: Tensor<2>,
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    attention: AttentionOutput,
    middle: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    /// `x · Aᵀ` of the seven linear layers, in the order of [`Block::linears`].
    downs: [Option<Tensor<2>>; 7],
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
pub type BlockGradients = [Option<LoraGradients>; 7];

/// Keys and values of the positions so far: `[positions, kv_heads * head_dim]` each.
#[derive(Debug, Clone, Default)]
pub struct LayerCache {
    entries: Option<(Tensor<2>, Tensor<2>)>,
}

impl LayerCache {
    fn extend(&mut self, key: Tensor<2>, value: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let entries = match self.entries.take() {
            Some((keys, values)) => {
                (Tensor::cat(vec![keys, key], 0), Tensor::cat(vec![values, value], 0))
            }
            None => (key, value),
        };
        self.entries.insert(entries).clone()
    }
}

impl Block {
    pub(super) fn new(
        config: &DecoderConfig,
        attention_norm: Tensor<1>,
        feed_forward_norm: Tensor<1>,
        [query, key, value, output, gate, up, down]: [AdaptedLinear; 7],
    ) -> Self {
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
            scale: 1.0 / (config.head_dim as f64).sqrt(),
        };
        let norm_epsilon = config.norm_epsilon;
        Self {
            attention_norm,
            feed_forward_norm,
            query,
            key,
            value,
            output,
            gate,
            up,
            down,
            shape,
            norm_epsilon,
        }
    }

    /// The block's linear layers, in the order of the forward pass.
    pub fn linears(&self) -> [&AdaptedLinear; 7] {
        [&self.query, &self.key, &self.value, &self.output, &self.gate, &self.up, &self.down]
    }

    /// [`Block::linears`], to put adapters on.
    pub fn linears_mut(&mut self) -> [&mut AdaptedLinear; 7] {
        [
            &mut self.query,
            &mut self.key,
            &mut self.value,
            &mut self.output,
            &mut self.gate,
            &mut self.up,
            &mut self.down,
        ]
    }

    /// # Shapes
    /// - `x`: `[tokens, hidden]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        angles: &Angles,
        segments: &Segments,
        pass: Pass,
    ) -> BlockOutput {
        let normed = kernels::rms_norm(&x, &self.attention_norm, self.norm_epsilon);
        let query = self.query.forward(&normed, pass);
        let key = self.key.forward(&normed, pass);
        let value = self.value.forward(&normed, pass);
        let q = kernels::rope(query.y, &angles.cos, &angles.sin, Direction::Forward);
        let k = kernels::rope(key.y, &angles.cos, &angles.sin, Direction::Forward);
        let attention = kernels::attention(&q, &k, &value.y, self.shape, segments);
        let middle = self.output.forward_onto(&x, &attention.output, pass);
        let normed = kernels::rms_norm(&middle.y, &self.feed_forward_norm, self.norm_epsilon);
        let gate = self.gate.forward(&normed, pass);
        let up = self.up.forward(&normed, pass);
        let inner = kernels::swiglu(&gate.y, &up.y); // [tokens, intermediate]
        let last = self.down.forward_onto(&middle.y, &inner, pass);
        BlockOutput {
            hidden: last.y,
            saved: Saved {
                input: x,
                query: q,
                key: k,
                value: value.y,
                attention,
                middle: middle.y,
                gate: gate.y,
                up: up.y,
                downs: [
                    query.down,
                    key.down,
                    value.down,
                    middle.down,
                    gate.down,
                    up.down,
                    last.down,
                ],
            },
        }
    }

    /// Forward pass of new positions of one sequence over the positions in `cache`.
    ///
    /// # Shapes
    /// - `x`: `[new positions, hidden]`
    pub fn forward_cached(
        &self,
        x: &Tensor<2>,
        angles: &Angles,
        cache: &mut LayerCache,
    ) -> Tensor<2> {
        let pass = Pass::Inference;
        let normed = kernels::rms_norm(x, &self.attention_norm, self.norm_epsilon);
        let query = self.query.forward(&normed, pass).y;
        let key = self.key.forward(&normed, pass).y;
        let value = self.value.forward(&normed, pass).y;
        let q = kernels::rope(query, &angles.cos, &angles.sin, Direction::Forward);
        let k = kernels::rope(key, &angles.cos, &angles.sin, Direction::Forward);
        let (keys, values) = cache.extend(k, value);
        let segments = Segments::cached(x.dims()[0], keys.dims()[0]);
        let attention = kernels::attention(&q, &keys, &values, self.shape, &segments).output;
        let middle = self.output.forward_onto(x, &attention, pass).y;
        let normed = kernels::rms_norm(&middle, &self.feed_forward_norm, self.norm_epsilon);
        let gate = self.gate.forward(&normed, pass).y;
        let up = self.up.forward(&normed, pass).y;
        self.down.forward_onto(&middle, &kernels::swiglu(&gate, &up), pass).y
    }

    /// Gradients of the adapters, and of the block's input where it is wanted.
    ///
    /// # Shapes
    /// - `d_hidden`: `[tokens, hidden]`
    pub fn backward(
        &self,
        d_hidden: Tensor<2>,
        saved: &Saved,
        (angles, segments): (&Angles, &Segments),
        pass: Pass,
        wanted: InputGradient,
    ) -> (Option<Tensor<2>>, BlockGradients) {
        let (d_middle, feed_forward) = self.backward_feed_forward(d_hidden, saved, pass);
        let (d_attention, of_output) = self.output.backward(
            (None, InputGradient::Needed),
            &d_middle,
            &saved.attention.output,
            saved.downs[3].as_ref(),
            pass,
        );
        let d_attention = d_attention.expect("asked for");
        let (dq, dk, dv) = kernels::attention_gradient(
            &d_attention,
            (&saved.query, &saved.key, &saved.value),
            &saved.attention,
            self.shape,
            segments,
        );
        let dq = kernels::rope(dq, &angles.cos, &angles.sin, Direction::Backward);
        let dk = kernels::rope(dk, &angles.cos, &angles.sin, Direction::Backward);
        let x = kernels::rms_norm(&saved.input, &self.attention_norm, self.norm_epsilon);
        let downs = &saved.downs;
        let (sum, of_query) = self.query.backward((None, wanted), &dq, &x, downs[0].as_ref(), pass);
        let (sum, of_key) = self.key.backward((sum, wanted), &dk, &x, downs[1].as_ref(), pass);
        let (sum, of_value) = self.value.backward((sum, wanted), &dv, &x, downs[2].as_ref(), pass);
        let d_input = sum.map(|d_normed| {
            kernels::rms_norm_gradient(
                Some(d_middle),
                &d_normed,
                &saved.input,
                &self.attention_norm,
                self.norm_epsilon,
            )
        });
        let [of_gate, of_up, of_down] = feed_forward;
        (d_input, [of_query, of_key, of_value, of_output, of_gate, of_up, of_down])
    }

    /// Gradient of the stream between attention and feed-forward, and of the latter's adapters.
    fn backward_feed_forward(
        &self,
        d_hidden: Tensor<2>,
        saved: &Saved,
        pass: Pass,
    ) -> (Tensor<2>, [Option<LoraGradients>; 3]) {
        let needed = InputGradient::Needed;
        let downs = &saved.downs;
        let inner = kernels::swiglu(&saved.gate, &saved.up);
        let (d_inner, of_down) =
            self.down.backward((None, needed), &d_hidden, &inner, downs[6].as_ref(), pass);
        drop(inner);
        let d_inner = d_inner.expect("asked for");
        let (d_gate, d_up) = kernels::swiglu_gradient(&d_inner, &saved.gate, &saved.up);
        drop(d_inner);
        let x = kernels::rms_norm(&saved.middle, &self.feed_forward_norm, self.norm_epsilon);
        let (sum, of_gate) =
            self.gate.backward((None, needed), &d_gate, &x, downs[4].as_ref(), pass);
        let (sum, of_up) = self.up.backward((sum, needed), &d_up, &x, downs[5].as_ref(), pass);
        let d_middle = kernels::rms_norm_gradient(
            Some(d_hidden),
            &sum.expect("asked for"),
            &saved.middle,
            &self.feed_forward_norm,
            self.norm_epsilon,
        );
        (d_middle, [of_gate, of_up, of_down])
    }
}
