//! Phi-3 and Phi-4: one layer for queries, keys and values, one for gate and up, `LongRoPE`.

use serde_json::Value;

use super::ModelFamily;
use super::config::{DecoderConfig, Defaults, Head};
use super::config_reader::{ConfigReader, bad};
use super::names::{FeedForwardNames, LLAMA_NAMES, ProjectionNames, TensorNames};
use super::rope::{RopeConfig, RopeSetting};
use super::rope_scaling::RopeScaling;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "phi3", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 4096,
    rope_theta: 10_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    projections: ProjectionNames::Fused("self_attn.qkv_proj"),
    feed_forward: FeedForwardNames::GatedFused("mlp.gate_up_proj"),
    ..LLAMA_NAMES
};

/// Length of the first training where the file has none.
const ORIGINAL_POSITIONS: usize = 4096;

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only_unset("attention_bias")?;
    let mut decoder = DecoderConfig::read_sizes(&reader, &DEFAULTS)?;
    decoder.ropes = vec![rope(&reader, &decoder)?];
    decoder.turn_all();
    if let Some(window) = reader.count("sliding_window")? {
        decoder.limit_sight(window, |_| true);
    }
    Ok(decoder)
}

/// The rotary embedding, of a share of each head, with the one scaling that the family has.
fn rope(reader: &ConfigReader, decoder: &DecoderConfig) -> Result<RopeConfig, LoadError> {
    let table = RopeConfig::table(reader);
    let inside = |key: &str| table.and_then(|table| table.get(key)).filter(|v| !v.is_null());
    let theta = reader.number("rope_theta")?.unwrap_or(DEFAULTS.rope_theta);
    let share = inside("partial_rotary_factor").or_else(|| reader.get("partial_rotary_factor"));
    let rotary_dim = rotary_dim(share, decoder.head_dim)?;
    let max_positions = decoder.max_positions;
    let setting = RopeSetting { rotary_dim, max_positions, theta };
    let mut rope = RopeConfig::read_table(reader, None, setting)?;
    let Some(table) = table else { return Ok(rope) };
    if let Some(theta) = inside("rope_theta") {
        rope.theta = super::config_reader::positive(theta, "rope_theta")?;
    }
    let kind = inside("rope_type").or_else(|| inside("type"));
    let original = reader.count("original_max_position_embeddings")?;
    rope.scaling = match kind.map_or(Some("default"), Value::as_str) {
        Some("default") => RopeScaling::Default,
        // The first two are what the family's first files called it.
        Some("su" | "yarn" | "longrope") => {
            let original = original.unwrap_or(ORIGINAL_POSITIONS);
            RopeScaling::read_long_rope(table, original, setting)?
        }
        _ => return Err(bad("rope_type", kind.unwrap_or(&Value::Null), "default or longrope")),
    };
    Ok(rope)
}

/// Elements of a head that turn, from their share.
pub(super) fn rotary_dim(share: Option<&Value>, head_dim: usize) -> Result<usize, LoadError> {
    let Some(share) = share else { return Ok(head_dim) };
    let dim = share.as_f64().map_or(0, |share| (head_dim as f64 * share) as usize);
    if dim > 0 && dim <= head_dim && dim.is_multiple_of(2) {
        return Ok(dim);
    }
    let expected = format!("a share that leaves an even part of heads of {head_dim}");
    Err(bad("partial_rotary_factor", share, &expected))
}
