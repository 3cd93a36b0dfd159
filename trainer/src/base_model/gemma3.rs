//! Gemma 3: Gemma 2 with norms of queries and keys in place of the score's cap, and a rotary
//! embedding of its own for layers with a window.
//!
//! A checkpoint that sees images, too, is read as its language model.

use serde_json::{Map, Value};

use super::ModelFamily;
use super::config::{DecoderConfig, Defaults, Head, QueryKeyNorm};
use super::config_reader::{ConfigReader, bad};
use super::gemma2::{NAMES, arrange};
use super::names::TensorNames;
use super::rope::{RopeConfig, RopeSetting};
use super::windows::sliding_layers;
use crate::error::LoadError;

/// The language model alone.
pub(super) const FAMILY: ModelFamily = ModelFamily { name: "gemma3_text", read };

/// The language model inside of one that sees images, too.
pub(super) const WITH_VISION: ModelFamily = ModelFamily { name: "gemma3", read: read_with_vision };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: Some(256),
    max_positions: 131_072,
    rope_theta: 1_000_000.0,
    head: Head::Tied,
};

const LOCAL_THETA: f64 = 10_000.0;

const NAMES_WITH_VISION: TensorNames = TensorNames {
    embedding: "model.language_model.embed_tokens",
    blocks: "model.language_model.layers",
    final_norm: "model.language_model.norm",
    unused: &["rotary_emb.inv_freq", "model.vision_tower.", "model.multi_modal_projector."],
    ..NAMES
};

/// Sizes that published files leave out: those of the 4B model.
const SIZES: [(&str, u64); 5] = [
    ("hidden_size", 2304),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("intermediate_size", 9216),
    ("vocab_size", 262_208),
];

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    read_as(config, &DEFAULTS)
}

fn read_with_vision(config: &Value) -> Result<DecoderConfig, LoadError> {
    const KEY: &str = "text_config";
    let text = config.get(KEY).ok_or(LoadError::MissingKey { key: KEY })?;
    let mut text: Map<String, Value> =
        text.as_object().cloned().ok_or_else(|| bad(KEY, text, "a table"))?;
    // `transformers` leaves it unread in models that see images.
    if let Some(cap) = text.get("final_logit_softcapping").filter(|cap| !cap.is_null()) {
        return Err(bad("text_config.final_logit_softcapping", cap, "null"));
    }
    for (key, size) in SIZES {
        text.entry(key).or_insert_with(|| size.into());
    }
    // The outer table says it for the whole model.
    if let Some(tied) = config.get("tie_word_embeddings") {
        text.insert("tie_word_embeddings".to_owned(), tied.clone());
    }
    let defaults = Defaults { family: WITH_VISION.name, names: &NAMES_WITH_VISION, ..DEFAULTS };
    let mut decoder = read_as(&Value::Object(text), &defaults)?;
    decoder.left_out = Some("vision tower and multi-modal projector");
    Ok(decoder)
}

fn read_as(config: &Value, defaults: &Defaults) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    // `transformers` has the key and leaves it unread.
    reader.only_null("attn_logit_softcapping")?;
    let mut decoder = DecoderConfig::read_sizes(&reader, defaults)?;
    arrange(&reader, &mut decoder)?;
    decoder.query_key_norm = QueryKeyNorm::Head;
    decoder.logits_soft_cap = reader.number("final_logit_softcapping")?;
    let pattern = reader.count("sliding_window_pattern")?.unwrap_or(6);
    let otherwise = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let sliding = sliding_layers(&reader, decoder.layers(), otherwise)?;
    let window = reader.count("sliding_window")?.unwrap_or(4096);
    decoder.limit_sight(window, |layer| sliding[layer]);
    decoder.ropes = ropes(&reader, &decoder)?;
    for (block, &slides) in decoder.blocks.iter_mut().zip(&sliding) {
        block.rope = Some(usize::from(slides));
    }
    Ok(decoder)
}

/// The rotary embedding of layers that see everything, and that of those with a window.
fn ropes(reader: &ConfigReader, decoder: &DecoderConfig) -> Result<Vec<RopeConfig>, LoadError> {
    let parameters = reader.get("rope_parameters");
    let part = |kind: &str| parameters.and_then(|table| table.get(kind)).filter(|v| !v.is_null());
    if let Some(flat) = parameters.filter(|table| table.get("rope_type").is_some()) {
        let expected = "a table each for `full_attention` and `sliding_attention`";
        return Err(bad("rope_parameters", flat, expected));
    }
    let theta = reader.number("rope_theta")?.unwrap_or(DEFAULTS.rope_theta);
    let global = decoder.rope_setting(theta);
    let theta = reader.number("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    let local = RopeSetting { theta, ..global };
    // Files of transformers 4 scale the global one only.
    let global_table = reader.get("rope_scaling").or_else(|| part("full_attention"));
    Ok(vec![
        RopeConfig::read_table(reader, global_table, global)?,
        RopeConfig::read_table(reader, part("sliding_attention"), local)?,
    ])
}
