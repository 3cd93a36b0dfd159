//! Base models: one shared decoder, and a thin file per family that reads its `config.json`.

mod attention;
mod attention_half;
mod balance;
mod block;
mod cache;
mod cohere;
mod cohere2;
mod config;
mod config_reader;
mod context;
mod decoder;
mod deepseek;
mod embedding;
mod experts;
mod experts_config;
mod feed_forward;
mod gemma2;
mod gemma3;
mod gpt2;
mod gpt_neox;
mod granite;
mod half;
mod head;
mod latent_attention;
mod latent_config;
mod llama;
mod llama4;
mod load;
mod mistral;
mod mixtral;
mod names;
mod norm;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_moe;
mod recompute;
mod rope;
mod rope_scaling;
mod routing;
mod smollm3;
mod streamed;
mod trained;
mod tree;
mod windows;

use serde_json::Value;

pub use attention::{Attention, SavedAttention};
pub use attention_half::{AttentionHalf, SavedAttentionHalf};
pub use block::{Block, BlockGradients, BlockOutput, CacheStep, LayerCache, Saved};
pub use cache::KeyValueCache;
pub use config::{
    Activation, Bias, Biases, BlockConfig, DecoderConfig, FeedForwardHalf, Flow, Head, NormKind,
    QueryKeyNorm, Scales, Temperature,
};
pub use context::BlockContext;
pub use decoder::{Decoder, Gradients, MicroBatchResult, StepPlace};
pub use embedding::Embedding;
pub use experts::{Experts, Router, SavedExperts};
pub use experts_config::{
    ExpertGroups, ExpertsConfig, RouterBias, RouterScores, RouterWeights, Routing, Weighted,
};
pub use feed_forward::{FeedForward, SavedFeedForward};
pub use half::{Half, SavedHalf};
pub use head::{CHUNK_BYTES as HEAD_CHUNK_BYTES, OutputHead};
pub use latent_attention::{LatentAttention, SavedLatentAttention};
pub use latent_config::LatentConfig;
pub use load::{BaseFormat, BaseStorage, ModelLoader};
pub use names::linear_layers;
pub use norm::{Norm, QueryKeyNorms};
pub use recompute::Recompute;
pub use rope::{Angles, RopeConfig};
pub use rope_scaling::RopeScaling;
pub use streamed::{StreamedDecoder, observe_inputs};
pub use trained::{Visit, WholeGradients, base_tensors};
pub use tree::{Sharing, TokenTree, shared};

use crate::error::LoadError;

/// A family of models: how its `config.json` is read.
#[derive(Debug)]
pub(crate) struct ModelFamily {
    /// `model_type` in `config.json`.
    name: &'static str,
    read: fn(&Value) -> Result<DecoderConfig, LoadError>,
}

/// Every model family, looked up by `model_type` in the model's `config.json`.
///
/// To add one: write `base_model/<family>.rs`, then add its `FAMILY` here.
pub(crate) const FAMILIES: &[ModelFamily] = &[
    llama::FAMILY,
    llama4::FAMILY,
    llama4::WITH_VISION,
    mistral::FAMILY,
    mixtral::FAMILY,
    deepseek::V2,
    deepseek::V3,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    smollm3::FAMILY,
    phi3::FAMILY,
    gemma2::FAMILY,
    gemma3::FAMILY,
    gemma3::WITH_VISION,
    olmo2::FAMILY,
    granite::FAMILY,
    cohere::FAMILY,
    cohere2::FAMILY,
    gpt2::FAMILY,
    gpt_neox::FAMILY,
];

impl DecoderConfig {
    /// Reads a model's `config.json`; anything the decoder would compute wrongly is an error that
    /// names the key.
    pub fn read(config: &Value) -> Result<Self, LoadError> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.name == model_type).ok_or_else(|| {
            LoadError::UnknownFamily {
                model_type: model_type.to_owned(),
                known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
            }
        })?;
        (family.read)(config)
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        names::expected_tensors(self)
            .iter()
            .map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>())
            .sum()
    }
}
