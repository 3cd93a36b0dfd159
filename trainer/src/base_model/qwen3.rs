//! Qwen3: Llama with norms of each query and key.

use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, Head, QueryKeyNorm};
use super::config_reader::ConfigReader;
use super::names::LLAMA_NAMES;
use super::windows::limit_optional;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "qwen3", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &LLAMA_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: Some(128),
    max_positions: 32_768,
    rope_theta: 10_000.0,
    head: Head::Own,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.query_key_norm = QueryKeyNorm::Head;
    decoder.biases = Biases::of_attention(&reader)?;
    let first_sliding = reader.whole("max_window_layers")?.unwrap_or(28);
    limit_optional(&reader, &mut decoder, Some(4096), |layer| layer >= first_sliding)?;
    Ok(decoder)
}
