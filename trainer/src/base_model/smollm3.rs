//! SmolLM3: Llama where some layers, usually every fourth, turn no queries and keys (NoPE).

use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, Head};
use super::config_reader::{ConfigReader, bad};
use super::names::LLAMA_NAMES;
use super::windows::limit_optional;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "smollm3", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &LLAMA_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 32_768,
    rope_theta: 2_000_000.0,
    head: Head::Tied,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.biases = Biases::of_attention(&reader)?;
    decoder.biases.feed_forward = reader.bias("mlp_bias")?;
    let turned = turned_layers(&reader, decoder.layers())?;
    for (block, &turned) in decoder.blocks.iter_mut().zip(&turned) {
        block.rope = turned.then_some(0);
    }
    limit_optional(&reader, &mut decoder, None, |layer| !turned[layer])?;
    Ok(decoder)
}

/// Which layers have a rotary embedding: `no_rope_layers` says 1 for those that have it.
pub(super) fn turned_layers(reader: &ConfigReader, layers: usize) -> Result<Vec<bool>, LoadError> {
    const KEY: &str = "no_rope_layers";
    // An empty list stands for none, as in Llama 4's files.
    let given = reader.get(KEY).filter(|value| value.as_array().is_none_or(|v| !v.is_empty()));
    let Some(value) = given else {
        let interval = reader.count("no_rope_layer_interval")?.unwrap_or(4);
        return Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let flag = |item: &Value| match item.as_u64() {
        Some(0) => Some(false),
        Some(1) => Some(true),
        _ => None,
    };
    let flags =
        value.as_array().and_then(|items| items.iter().map(flag).collect::<Option<Vec<_>>>());
    match flags {
        Some(flags) if flags.len() >= layers => Ok(flags),
        _ => Err(bad(KEY, value, &format!("a list of {layers} numbers, 0 or 1"))),
    }
}
