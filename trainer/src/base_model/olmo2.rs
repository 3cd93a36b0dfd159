//! OLMo 2: norms behind attention and feed-forward, and over all queries and all keys.

use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, Head, QueryKeyNorm};
use super::config_reader::ConfigReader;
use super::names::{BlockNormNames, LLAMA_NAMES, TensorNames};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "olmo2", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 2048,
    rope_theta: 10_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    norms: BlockNormNames {
        attention_input: None,
        attention_output: Some("post_attention_layernorm"),
        feed_forward_input: None,
        feed_forward_output: Some("post_feedforward_layernorm"),
    },
    ..LLAMA_NAMES
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.query_key_norm = QueryKeyNorm::Width;
    decoder.biases = Biases::of_attention(&reader)?;
    Ok(decoder)
}
