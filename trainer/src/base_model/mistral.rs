//! Mistral: Llama with a sliding window in every layer, where the configuration has one.

use serde_json::Value;

use super::ModelFamily;
use super::config::{DecoderConfig, Defaults, Head};
use super::config_reader::ConfigReader;
use super::names::LLAMA_NAMES;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "mistral", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &LLAMA_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 131_072,
    rope_theta: 10_000.0,
    head: Head::Own,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    // Only Mistral's younger classes read this key.
    reader.only_null("layer_types")?;
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    if let Some(window) = reader.nullable_count("sliding_window", 4096)? {
        decoder.limit_sight(window, |_| true);
    }
    Ok(decoder)
}
