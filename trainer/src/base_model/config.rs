//! The shape of a decoder: a small, closed set of variations that every family is made of.

use adapters::weights::WeightSource;
use kernels::{Gelu, RotaryPairs, Sight};
use serde_json::Value;

use super::config_reader::{ConfigReader, bad};
use super::experts_config::{AuxiliaryLoss, ExpertsConfig};
use super::latent_config::LatentConfig;
use super::names::{FeedForwardNames, TensorNames, is_extra};
use super::rope::{RopeConfig, RopeSetting};
use crate::error::LoadError;

/// Everything the shared decoder needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family that read it: the `model_type` of `config.json`.
    pub family: &'static str,
    /// Names of the tensors in the checkpoint.
    pub(crate) names: &'static TensorNames,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head's queries and keys.
    pub head_dim: usize,
    /// Low-rank queries, keys and values, in place of those that the heads' sizes give.
    pub latent: Option<LatentConfig>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub max_positions: usize,
    /// What the norms compute.
    pub norm: NormKind,
    /// Added to the mean square, or the variance, in every norm.
    pub norm_epsilon: f64,
    /// Norms of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// How a block's two halves follow each other.
    pub flow: Flow,
    /// What the feed-forward layer applies.
    pub activation: Activation,
    /// Rotary embeddings that blocks choose from.
    pub ropes: Vec<RopeConfig>,
    /// Which elements of a head turn together.
    pub rotary_pairs: RotaryPairs,
    /// Every block, from the embedding upwards.
    pub blocks: Vec<BlockConfig>,
    /// Experts of the blocks that have them.
    pub experts: Option<ExpertsConfig>,
    /// Constant factors.
    pub scales: Scales,
    /// Bound of the attention's scores.
    pub attention_soft_cap: Option<f64>,
    /// Bound of the logits.
    pub logits_soft_cap: Option<f64>,
    /// Whether the head is the embedding.
    pub head: Head,
    /// Biases of the linear layers.
    pub biases: Biases,
    /// Parts of the checkpoint that are no part of its language model.
    pub(crate) left_out: Option<&'static str>,
    /// Blocks of the checkpoint behind the last one, which predict tokens further ahead.
    pub(crate) extra_blocks: usize,
}

/// What differs from block to block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BlockConfig {
    /// How far back its attention sees.
    pub sight: Sight,
    /// Which of [`DecoderConfig::ropes`] turns its queries and keys; `None`: they carry no position.
    pub rope: Option<usize>,
    /// Positions of a chunk, beyond whose borders its attention sees nothing.
    pub chunk: Option<usize>,
    /// Factor of the attention's scores.
    pub attention_scale: f64,
    /// What else the scores of late positions are multiplied by.
    pub temperature: Option<Temperature>,
    /// What its feed-forward half is made of.
    pub half: FeedForwardHalf,
}

/// Scores that grow with the logarithm of a query's position, for texts longer than those of the
/// training (arXiv 2501.19399).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// Positions that share a factor.
    pub floor: f64,
    /// Weight of the logarithm.
    pub scale: f64,
}

impl Temperature {
    /// The factor of the scores at a position.
    pub fn factor(&self, position: usize) -> f32 {
        let steps = ((position as f32 + 1.0) / self.floor as f32).floor();
        steps.ln_1p() * self.scale as f32 + 1.0
    }
}

/// What a feed-forward half is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForwardHalf {
    /// One network for all tokens.
    Dense,
    /// Many, of which [`DecoderConfig::experts`] says how many each token uses.
    Experts,
}

/// What a norm computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`
    Rms,
    /// `x / rms(x) * (1 + w)`, with `w` in the checkpoint.
    RmsOnePlus,
    /// Mean and variance, `w`, and a bias.
    Layer,
    /// Mean and variance, and `w`.
    LayerWithoutBias,
}

/// Norms of queries and keys, before the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// None.
    Absent,
    /// Over each head, with the same weights for all.
    Head,
    /// Over each head, with weights of its own.
    HeadOwnWeights,
    /// Over each head without weights, in blocks with a rotary embedding.
    HeadUnweighted,
    /// Over all heads at once.
    Width,
}

/// How a block's two halves follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The feed-forward layer reads what attention wrote.
    Sequential,
    /// Both read the block's input, through a norm each, or through one where only one is named.
    Parallel,
}

/// What the feed-forward layer applies to its gate, or to its only inner layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`
    Silu,
    /// GELU, exact or by tanh.
    Gelu(Gelu),
}

/// Constant factors; 1 leaves things as they are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scales {
    /// Of the embedding's rows.
    pub embedding: f64,
    /// Of what attention and feed-forward add to the residual stream.
    pub residual: f64,
    /// Of the logits.
    pub logits: f64,
}

impl Default for Scales {
    fn default() -> Self {
        Self { embedding: 1.0, residual: 1.0, logits: 1.0 }
    }
}

/// Where the output matrix comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The embedding serves as head.
    Tied,
    /// A matrix of its own.
    Own,
}

/// Whether linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// They do.
    Present,
    /// They do not.
    Absent,
}

/// Biases by the kind of layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Biases {
    /// Of queries, keys and values.
    pub query_key_value: Bias,
    /// Of attention's output.
    pub attention_output: Bias,
    /// Of the feed-forward layers.
    pub feed_forward: Bias,
}

impl Biases {
    /// None anywhere.
    pub const ABSENT: Self = Self {
        query_key_value: Bias::Absent,
        attention_output: Bias::Absent,
        feed_forward: Bias::Absent,
    };

    /// Those that `attention_bias` gives to all of attention's layers.
    pub(super) fn of_attention(reader: &ConfigReader) -> Result<Self, LoadError> {
        let attention = reader.bias("attention_bias")?;
        Ok(Self { query_key_value: attention, attention_output: attention, ..Self::ABSENT })
    }
}

/// What a family's `config.json` means where it leaves keys out, as its class in `transformers`
/// has it.
pub(super) struct Defaults {
    pub(super) family: &'static str,
    pub(super) names: &'static TensorNames,
    pub(super) norm_epsilon: (&'static str, f64),
    pub(super) head_dim: Option<usize>,
    pub(super) max_positions: usize,
    pub(super) rope_theta: f64,
    pub(super) head: Head,
}

/// Sizes of a model.
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) layers: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    pub(super) vocab: usize,
    pub(super) max_positions: usize,
}

impl Sizes {
    /// Refuses heads that cannot be shared or turned.
    fn check(&self) -> Result<(), LoadError> {
        if !self.heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a divisor of `num_attention_heads` = {}", self.heads);
            return Err(bad("num_key_value_heads", &Value::from(self.kv_heads), &expected));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(bad("head_dim", &Value::from(self.head_dim), "an even number"));
        }
        Ok(())
    }
}

impl DecoderConfig {
    /// Whether the family trains with a loss that spreads tokens over experts.
    pub fn has_router_aux_loss(&self) -> bool {
        self.experts.is_some_and(|experts| experts.auxiliary != AuxiliaryLoss::Absent)
    }

    /// Number of blocks.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// A model of these sizes with the commonest choices: RMS norms before each half, full
    /// attention, SwiGLU, no biases, no rotary embedding yet.
    pub(super) fn of_sizes(
        (family, names): (&'static str, &'static TensorNames),
        sizes: &Sizes,
        (norm_epsilon, head): (f64, Head),
    ) -> Result<Self, LoadError> {
        sizes.check()?;
        let attention_scale = 1.0 / (sizes.head_dim as f64).sqrt();
        let half = FeedForwardHalf::Dense;
        let block = BlockConfig {
            sight: Sight::Whole,
            rope: None,
            chunk: None,
            attention_scale,
            temperature: None,
            half,
        };
        Ok(Self {
            family,
            names,
            hidden_size: sizes.hidden,
            intermediate_size: sizes.intermediate,
            heads: sizes.heads,
            kv_heads: sizes.kv_heads,
            head_dim: sizes.head_dim,
            latent: None,
            vocab_size: sizes.vocab,
            max_positions: sizes.max_positions,
            norm: NormKind::Rms,
            norm_epsilon,
            query_key_norm: QueryKeyNorm::Absent,
            flow: Flow::Sequential,
            activation: Activation::Silu,
            ropes: Vec::new(),
            rotary_pairs: RotaryPairs::HalfSplit,
            blocks: vec![block; sizes.layers],
            experts: None,
            scales: Scales::default(),
            attention_soft_cap: None,
            logits_soft_cap: None,
            head,
            biases: Biases::ABSENT,
            left_out: None,
            extra_blocks: 0,
        })
    }

    /// Norms of a block that stand behind its halves.
    pub(crate) fn output_norms(&self) -> usize {
        let norms = &self.names.norms;
        [norms.attention_output, norms.feed_forward_output].iter().flatten().count()
    }

    /// Features a token has in all layers that the activation stands behind, in the widest block.
    pub(crate) fn feed_forward_width(&self) -> usize {
        let of_experts = self.experts.map_or(0, |experts| {
            2 * (experts.per_token * experts.intermediate_size + experts.shared_size)
        });
        let has = |half| self.blocks.iter().any(|block| block.half == half);
        if !has(FeedForwardHalf::Dense) {
            return of_experts;
        }
        let of_dense = match self.names.feed_forward {
            FeedForwardNames::Plain(_) => self.intermediate_size,
            FeedForwardNames::Gated(_) | FeedForwardNames::GatedFused(_) => {
                2 * self.intermediate_size
            }
        };
        of_dense.max(of_experts)
    }

    /// Weights that a token passes through: all but those of the experts it does not use.
    pub fn active_parameters(&self) -> u64 {
        let Some(experts) = self.experts else { return self.parameters() };
        let with = self.blocks.iter().filter(|block| block.half == FeedForwardHalf::Experts);
        let of_one = 3 * self.hidden_size as u64 * experts.intermediate_size as u64;
        let unused = (experts.count - experts.per_token) as u64 * of_one;
        self.parameters() - with.count() as u64 * unused
    }

    /// Parts of a checkpoint that are no part of its language model, for a line to the user.
    pub fn left_out(&self, weights: &dyn WeightSource) -> Option<&'static str> {
        let has_extra = || weights.entries().keys().any(|name| is_extra(self, name));
        let extra =
            (self.extra_blocks > 0 && has_extra()).then_some("layers for multi-token prediction");
        self.left_out.or(extra)
    }

    /// Most positions that can be computed, where positions are learned; `None`: any number.
    pub fn position_limit(&self) -> Option<usize> {
        self.names.positions.map(|_| self.max_positions)
    }

    /// Reads the keys that Llama and its many relatives share, the rotary embedding left out.
    pub(super) fn read_sizes(
        reader: &ConfigReader,
        defaults: &Defaults,
    ) -> Result<Self, LoadError> {
        let hidden = reader.required("hidden_size")?;
        let heads = reader.required("num_attention_heads")?;
        let head_dim = reader.count("head_dim")?.or(defaults.head_dim).unwrap_or(hidden / heads);
        Self::read_sizes_of_heads(reader, defaults, head_dim)
    }

    /// [`DecoderConfig::read_sizes`] with heads of a size that other keys give.
    pub(super) fn read_sizes_of_heads(
        reader: &ConfigReader,
        defaults: &Defaults,
        head_dim: usize,
    ) -> Result<Self, LoadError> {
        let hidden = reader.required("hidden_size")?;
        let heads = reader.required("num_attention_heads")?;
        let sizes = Sizes {
            hidden,
            intermediate: reader.required("intermediate_size")?,
            layers: reader.layers("num_hidden_layers")?,
            heads,
            kv_heads: reader.count("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            vocab: reader.required("vocab_size")?,
            max_positions: reader
                .count("max_position_embeddings")?
                .unwrap_or(defaults.max_positions),
        };
        let (key, epsilon) = defaults.norm_epsilon;
        let epsilon = reader.number(key)?.unwrap_or(epsilon);
        let identity = (defaults.family, defaults.names);
        let mut decoder = Self::of_sizes(identity, &sizes, (epsilon, reader.head(defaults.head)?))?;
        decoder.activation = reader.activation("hidden_act")?.unwrap_or(Activation::Silu);
        Ok(decoder)
    }

    /// [`DecoderConfig::read_sizes`] with one rotary embedding in every block.
    pub(super) fn read_common(
        reader: &ConfigReader,
        defaults: &Defaults,
    ) -> Result<Self, LoadError> {
        let mut decoder = Self::read_sizes(reader, defaults)?;
        let setting = decoder.rope_setting(defaults.rope_theta);
        decoder.ropes = vec![RopeConfig::read(reader, setting)?];
        decoder.turn_all();
        Ok(decoder)
    }

    /// What a rotary embedding over whole heads follows from.
    pub(super) fn rope_setting(&self, theta: f64) -> RopeSetting {
        RopeSetting { rotary_dim: self.head_dim, max_positions: self.max_positions, theta }
    }

    /// Refuses experts that cannot be.
    pub(super) fn checked_experts(self) -> Result<Self, LoadError> {
        self.experts.map_or(Ok(()), |experts| experts.check())?;
        Ok(self)
    }

    /// Lets the first rotary embedding turn queries and keys of every block.
    pub(super) fn turn_all(&mut self) {
        for block in &mut self.blocks {
            block.rope = Some(0);
        }
    }

    /// Restricts the blocks that `is_local` names to a window.
    pub(super) fn limit_sight(&mut self, positions: usize, is_local: impl Fn(usize) -> bool) {
        for (index, block) in self.blocks.iter_mut().enumerate() {
            if is_local(index) {
                block.sight = Sight::Window(positions);
            }
        }
    }

    /// Sets the factor of the attention's scores in every block.
    pub(super) fn scale_attention(&mut self, scale: f64) {
        for block in &mut self.blocks {
            block.attention_scale = scale;
        }
    }
}
