//! Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434): keys and values of all heads come
//! out of one narrow row a token, queries may, too.
//!
//! A head's query and key are a part without position and a part that turns; the turning part of
//! the key is one for all heads. Attention takes queries, keys and values of one width, so the
//! narrower of them are filled up with zeros, which add nothing to scores or outputs.

use adapters::{AdaptedLinear, InputGradient, LinearOutput, LoraGradients, Pass, SavedUpdate};
use burn::tensor::Tensor;
use kernels::{AttentionOutput, AttentionShape, Direction, RotaryHead};

use super::block::{CacheStep, LayerCache};
use super::config::{BlockConfig, DecoderConfig};
use super::context::BlockContext;
use super::latent_config::LatentConfig;
use super::norm::Norm;
use super::rope::Angles;

/// Latent attention with its frozen weights and its adapters.
#[derive(Debug, Clone)]
pub struct LatentAttention {
    query: QueryPath,
    /// Latent row and turning key of a token.
    down: AdaptedLinear,
    norm: Norm,
    /// Keys without position, and values, head by head.
    up: AdaptedLinear,
    output: AdaptedLinear,
    config: LatentConfig,
    shape: AttentionShape,
    rotary: Option<(usize, RotaryHead)>,
    block: BlockConfig,
}

/// How queries are made.
#[derive(Debug, Clone)]
enum QueryPath {
    /// By one layer.
    Direct(Box<AdaptedLinear>),
    /// Through a narrow row and its norm.
    Latent(Box<LatentQuery>),
}

/// Layers of queries with a narrow row.
#[derive(Debug, Clone)]
struct LatentQuery {
    down: AdaptedLinear,
    norm: Norm,
    up: AdaptedLinear,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct SavedLatentAttention {
    /// The narrow row before its norm, and what the adapter above it needs.
    query_latent: Option<(Tensor<2>, Option<SavedUpdate>)>,
    /// Of the adapter on the layer that reads the residual stream.
    query_down: Option<SavedUpdate>,
    /// Before its norm.
    latent: Tensor<2>,
    down_down: Option<SavedUpdate>,
    up_down: Option<SavedUpdate>,
    /// As attention took them, `[tokens, heads * padded]` each.
    query: Tensor<2>,
    key: Tensor<2>,
    value: Tensor<2>,
    attention: AttentionOutput,
    output_down: Option<SavedUpdate>,
}

impl LatentAttention {
    /// `linears` in the order of [`super::names::attention_linears`], norms in that of the forward
    /// pass.
    pub(super) fn new(
        config: &DecoderConfig,
        (block, latent): (BlockConfig, LatentConfig),
        linears: Vec<AdaptedLinear>,
        norms: Vec<Norm>,
    ) -> Self {
        let mut linears = linears.into_iter();
        let mut next = || linears.next().expect("latent attention has all its layers");
        let mut norms = norms.into_iter();
        let mut norm = || norms.next().expect("latent attention has a norm a latent row");
        let query = match latent.query_rank {
            Some(_) => {
                let query = LatentQuery { down: next(), norm: norm(), up: next() };
                QueryPath::Latent(Box::new(query))
            }
            None => QueryPath::Direct(Box::new(next())),
        };
        let shape = AttentionShape {
            heads: config.heads,
            kv_heads: config.heads,
            head_dim: latent.padded_dim(),
            scale: block.attention_scale,
            sight: block.sight,
            soft_cap: config.attention_soft_cap,
        };
        let head = RotaryHead { head_dim: latent.position_dim, pairs: config.rotary_pairs };
        Self {
            query,
            down: next(),
            norm: norm(),
            up: next(),
            output: next(),
            config: latent,
            shape,
            rotary: block.rope.map(|rope| (rope, head)),
            block,
        }
    }

    /// Its linear layers, in the order of the forward pass.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        let query = match &self.query {
            QueryPath::Direct(linear) => [Some(linear.as_ref()), None],
            QueryPath::Latent(query) => [Some(&query.down), Some(&query.up)],
        };
        query.into_iter().flatten().chain([&self.down, &self.up, &self.output])
    }

    /// Norms of the latent rows.
    pub(super) fn norms_mut(&mut self) -> impl Iterator<Item = &mut Norm> {
        let query = match &mut self.query {
            QueryPath::Direct(_) => None,
            QueryPath::Latent(query) => Some(&mut query.norm),
        };
        query.into_iter().chain([&mut self.norm])
    }

    /// [`LatentAttention::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        let query = match &mut self.query {
            QueryPath::Direct(linear) => [Some(linear.as_mut()), None],
            QueryPath::Latent(query) => [Some(&mut query.down), Some(&mut query.up)],
        };
        query.into_iter().flatten().chain([&mut self.down, &mut self.up, &mut self.output])
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
    ) -> (Tensor<2>, SavedLatentAttention) {
        let (pass, angles) = (context.pass, &context.angles);
        let (query, query_down, query_latent) = self.query.forward(x, pass);
        let query = self.placed_query(query, angles);
        let LinearOutput { y: both, saved: down_down } = self.down.forward(x, pass);
        let (latent, position) = self.split_latent(both);
        let normed = self.norm.forward(&latent);
        let LinearOutput { y: both, saved: up_down } = self.up.forward(&normed, pass);
        let position = self.turn(position, angles, Direction::Forward);
        let (key, value) = self.keys_and_values(both, position);
        let (keys, values) = match cache {
            None => (key.clone(), value.clone()),
            Some((cache, step)) => cache.extend(&key, &value, step),
        };
        let attention =
            kernels::attention(&query, &keys, &values, self.shape, context.segments(&self.block));
        let values = self.cut(&attention.output);
        let output = match residual {
            Some(residual) => self.output.forward_onto(residual, &values, pass),
            None => self.output.forward(&values, pass),
        };
        let saved = SavedLatentAttention {
            query_latent,
            query_down,
            latent,
            down_down,
            up_down,
            query,
            key,
            value,
            attention,
            output_down: output.saved,
        };
        (output.y, saved)
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`LatentAttention::linears`].
    pub(super) fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedLatentAttention,
        context: &BlockContext,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        let (pass, angles) = (context.pass, &context.angles);
        let needed = || (None, InputGradient::Needed);
        let values = self.cut(&saved.attention.output);
        let (d_values, of_output) =
            self.output.backward(needed(), dy, &values, saved.output_down.as_ref(), pass);
        let d_attention = self.fill(d_values.expect("asked for"), self.config.value_dim);
        let (d_query, d_key, d_value) = kernels::attention_gradient(
            &d_attention,
            (&saved.query, &saved.key, &saved.value),
            &saved.attention,
            self.shape,
            context.segments(&self.block),
        );
        let d_query = self.placed_query_gradient(d_query, angles);
        let (sum, mut gradients) = self.query.backward((sum, wanted), &d_query, x, saved, pass);
        let (d_both, d_position) = self.keys_and_values_gradient(d_key, d_value);
        let d_position = self.turn(d_position, angles, Direction::Backward);
        let normed = self.norm.forward(&saved.latent);
        let (d_normed, of_up) =
            self.up.backward(needed(), &d_both, &normed, saved.up_down.as_ref(), pass);
        let d_latent = self.norm.backward(None, &d_normed.expect("asked for"), &saved.latent);
        let d_both = Tensor::cat(vec![d_latent, d_position], 1);
        let (sum, of_down) =
            self.down.backward((sum, wanted), &d_both, x, saved.down_down.as_ref(), pass);
        gradients.extend([of_down, of_up, of_output]);
        (sum, gradients)
    }

    /// Latent row and turning key: `[tokens, rank]` and `[tokens, position]`.
    fn split_latent(&self, both: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let LatentConfig { key_value_rank, position_dim, .. } = self.config;
        (both.clone().narrow(1, 0, key_value_rank), both.narrow(1, key_value_rank, position_dim))
    }

    fn turn(&self, x: Tensor<2>, angles: &[Angles], direction: Direction) -> Tensor<2> {
        match self.rotary {
            Some((rope, head)) => kernels::rope(x, angles[rope].pair(), head, direction),
            None => x,
        }
    }

    /// Queries with their last elements turned, as attention takes them.
    fn placed_query(&self, query: Tensor<2>, angles: &[Angles]) -> Tensor<2> {
        let LatentConfig { content_dim, position_dim, .. } = self.config;
        let [tokens, _] = query.dims();
        let by_head: Tensor<3> = query.reshape([tokens, self.shape.heads, self.config.query_dim()]);
        let position = by_head.clone().narrow(2, content_dim, position_dim);
        let position = position.reshape([tokens, self.shape.heads * position_dim]);
        let position = self.turn(position, angles, Direction::Forward);
        self.padded([
            by_head.narrow(2, 0, content_dim),
            position.reshape([tokens, self.shape.heads, position_dim]),
        ])
    }

    /// Gradient of [`LatentAttention::placed_query`].
    fn placed_query_gradient(&self, d_query: Tensor<2>, angles: &[Angles]) -> Tensor<2> {
        let LatentConfig { content_dim, position_dim, .. } = self.config;
        let heads = self.shape.heads;
        let [tokens, _] = d_query.dims();
        let by_head: Tensor<3> = d_query.reshape([tokens, heads, self.shape.head_dim]);
        let position = by_head.clone().narrow(2, content_dim, position_dim);
        let position = position.reshape([tokens, heads * position_dim]);
        let position = self.turn(position, angles, Direction::Backward);
        let parts = vec![
            by_head.narrow(2, 0, content_dim),
            position.reshape([tokens, heads, position_dim]),
        ];
        Tensor::<3>::cat(parts, 2).reshape([tokens, heads * self.config.query_dim()])
    }

    /// Keys and values as attention takes them, from both of all heads and the turned key.
    fn keys_and_values(&self, both: Tensor<2>, position: Tensor<2>) -> (Tensor<2>, Tensor<2>) {
        let LatentConfig { content_dim, position_dim, value_dim, .. } = self.config;
        let heads = self.shape.heads;
        let [tokens, _] = both.dims();
        let by_head: Tensor<3> = both.reshape([tokens, heads, content_dim + value_dim]);
        let position: Tensor<3> = position.reshape([tokens, 1, position_dim]);
        let key =
            self.padded([by_head.clone().narrow(2, 0, content_dim), position.repeat_dim(1, heads)]);
        let value = by_head.narrow(2, content_dim, value_dim);
        (key, self.fill(value.reshape([tokens, heads * value_dim]), value_dim))
    }

    /// Gradients of what [`LatentAttention::keys_and_values`] was given.
    fn keys_and_values_gradient(
        &self,
        d_key: Tensor<2>,
        d_value: Tensor<2>,
    ) -> (Tensor<2>, Tensor<2>) {
        let LatentConfig { content_dim, position_dim, value_dim, .. } = self.config;
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let [tokens, _] = d_key.dims();
        let d_key: Tensor<3> = d_key.reshape([tokens, heads, head_dim]);
        let d_value: Tensor<3> = d_value.reshape([tokens, heads, head_dim]);
        let d_position = d_key.clone().narrow(2, content_dim, position_dim).sum_dim(1);
        let parts = vec![d_key.narrow(2, 0, content_dim), d_value.narrow(2, 0, value_dim)];
        let d_both = Tensor::<3>::cat(parts, 2);
        (
            d_both.reshape([tokens, heads * (content_dim + value_dim)]),
            d_position.reshape([tokens, position_dim]),
        )
    }

    /// Both parts of every head's row, and zeros up to attention's width.
    fn padded(&self, parts: [Tensor<3>; 2]) -> Tensor<2> {
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let [tokens, ..] = parts[0].dims();
        let (device, dtype) = (parts[0].device(), parts[0].dtype());
        let missing = head_dim - self.config.query_dim();
        let mut rows = Vec::from(parts);
        if missing > 0 {
            rows.push(Tensor::zeros([tokens, heads, missing], (&device, dtype)));
        }
        Tensor::<3>::cat(rows, 2).reshape([tokens, heads * head_dim])
    }

    /// Rows of `width` a head, and zeros up to attention's width.
    fn fill(&self, x: Tensor<2>, width: usize) -> Tensor<2> {
        let AttentionShape { heads, head_dim, .. } = self.shape;
        if width == head_dim {
            return x;
        }
        let [tokens, _] = x.dims();
        let zeros = Tensor::zeros([tokens, heads, head_dim - width], (&x.device(), x.dtype()));
        let rows = vec![x.reshape([tokens, heads, width]), zeros];
        Tensor::<3>::cat(rows, 2).reshape([tokens, heads * head_dim])
    }

    /// The values in what attention gives: `[tokens, heads * value]`.
    fn cut(&self, x: &Tensor<2>) -> Tensor<2> {
        let (AttentionShape { heads, head_dim, .. }, width) = (self.shape, self.config.value_dim);
        if width == head_dim {
            return x.clone();
        }
        let [tokens, _] = x.dims();
        let rows: Tensor<3> = x.clone().reshape([tokens, heads, head_dim]);
        rows.narrow(2, 0, width).reshape([tokens, heads * width])
    }
}

/// Queries, what the first layer's adapter needs, and what the second layer's gradient needs.
type Queries = (Tensor<2>, Option<SavedUpdate>, Option<(Tensor<2>, Option<SavedUpdate>)>);

impl QueryPath {
    fn forward(&self, x: &Tensor<2>, pass: Pass) -> Queries {
        match self {
            Self::Direct(linear) => {
                let LinearOutput { y, saved } = linear.forward(x, pass);
                (y, saved, None)
            }
            Self::Latent(query) => {
                let LatentQuery { down, norm, up } = query.as_ref();
                let narrow = down.forward(x, pass);
                let output = up.forward(&norm.forward(&narrow.y), pass);
                (output.y, narrow.saved, Some((narrow.y, output.saved)))
            }
        }
    }

    fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        d_query: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedLatentAttention,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        let query_down = saved.query_down.as_ref();
        match (self, &saved.query_latent) {
            (Self::Latent(query), Some((narrow, up_down))) => {
                let LatentQuery { down, norm, up } = query.as_ref();
                let (d_normed, of_up) = up.backward(
                    (None, InputGradient::Needed),
                    d_query,
                    &norm.forward(narrow),
                    up_down.as_ref(),
                    pass,
                );
                let d_narrow = norm.backward(None, &d_normed.expect("asked for"), narrow);
                let (sum, of_down) = down.backward((sum, wanted), &d_narrow, x, query_down, pass);
                (sum, vec![of_down, of_up])
            }
            (Self::Direct(linear), _) => {
                let (sum, gradients) = linear.backward((sum, wanted), d_query, x, query_down, pass);
                (sum, vec![gradients])
            }
            (Self::Latent(_), None) => unreachable!("a block's saved tensors are its own"),
        }
    }
}
