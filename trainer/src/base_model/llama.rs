//! Llama and its likes: RMS norms, rotary embedding, grouped queries, SwiGLU.

use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, Head};
use super::config_reader::ConfigReader;
use super::names::LLAMA_NAMES;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "llama", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &LLAMA_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 2048,
    rope_theta: 10_000.0,
    head: Head::Own,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.biases = Biases::of_attention(&reader)?;
    decoder.biases.feed_forward = reader.bias("mlp_bias")?;
    Ok(decoder)
}
