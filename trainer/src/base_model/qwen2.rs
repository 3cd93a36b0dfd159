//! Qwen2 and Qwen2.5: Llama with biases on queries, keys and values.

use serde_json::Value;

use super::ModelFamily;
use super::config::{Bias, DecoderConfig, Defaults, Head};
use super::config_reader::ConfigReader;
use super::names::LLAMA_NAMES;
use super::windows::limit_optional;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "qwen2", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &LLAMA_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 32_768,
    rope_theta: 10_000.0,
    head: Head::Own,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.biases.query_key_value = Bias::Present;
    let first_sliding = reader.whole("max_window_layers")?.unwrap_or(28);
    limit_optional(&reader, &mut decoder, Some(4096), |layer| layer >= first_sliding)?;
    Ok(decoder)
}
