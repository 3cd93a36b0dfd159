//! Gemma 2: `1 + w` in norms, norms before and behind both halves, soft caps, windows in every
//! other layer, a scaled embedding, GELU.

use kernels::Gelu;
use serde_json::Value;

use super::ModelFamily;
use super::config::{Activation, Biases, DecoderConfig, Defaults, Head, NormKind};
use super::config_reader::ConfigReader;
use super::names::{BlockNormNames, LLAMA_NAMES, TensorNames};
use super::windows::sliding_layers;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "gemma2", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: Some(256),
    max_positions: 8192,
    rope_theta: 10_000.0,
    head: Head::Tied,
};

pub(super) const NAMES: TensorNames = TensorNames { norms: NORMS, ..LLAMA_NAMES };

pub(super) const NORMS: BlockNormNames = BlockNormNames {
    attention_input: Some("input_layernorm"),
    attention_output: Some("post_attention_layernorm"),
    feed_forward_input: Some("pre_feedforward_layernorm"),
    feed_forward_output: Some("post_feedforward_layernorm"),
};

/// What Gemma 2 and 3 share.
pub(super) fn arrange(reader: &ConfigReader, decoder: &mut DecoderConfig) -> Result<(), LoadError> {
    reader.only_unset("use_bidirectional_attention")?;
    decoder.norm = NormKind::RmsOnePlus;
    decoder.activation =
        reader.activation("hidden_activation")?.unwrap_or(Activation::Gelu(Gelu::Tanh));
    decoder.scales.embedding = (decoder.hidden_size as f64).sqrt();
    let scalar = reader.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    decoder.scale_attention(1.0 / scalar.sqrt());
    decoder.biases = Biases::of_attention(reader)?;
    Ok(())
}

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    arrange(&reader, &mut decoder)?;
    decoder.attention_soft_cap = reader.nullable_number("attn_logit_softcapping", 50.0)?;
    decoder.logits_soft_cap = reader.nullable_number("final_logit_softcapping", 30.0)?;
    let sliding = sliding_layers(&reader, decoder.layers(), |layer| layer.is_multiple_of(2))?;
    let window = reader.count("sliding_window")?.unwrap_or(4096);
    decoder.limit_sight(window, |layer| sliding[layer]);
    Ok(decoder)
}
