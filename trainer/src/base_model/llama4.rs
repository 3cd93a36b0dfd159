//! Llama 4: experts in all or some blocks, of which a token uses one beside a shared one; attention
//! in chunks where queries and keys turn, and a temperature where they do not.
//!
//! A checkpoint that sees images, too, is read as its language model.

use kernels::RotaryPairs;
use serde_json::{Map, Value};

use super::ModelFamily;
use super::config::{
    Biases, DecoderConfig, Defaults, FeedForwardHalf, Head, QueryKeyNorm, Temperature,
};
use super::config_reader::{ConfigReader, bad};
use super::experts_config::{
    AuxiliaryLoss, ExpertsConfig, RouterBias, RouterScores, RouterWeights, Routing, Weighted,
};
use super::mixtral::refuse_auxiliary_loss;
use super::names::{ExpertLayers, ExpertNames, FeedForwardNames, LLAMA_NAMES, TensorNames};
use super::smollm3::turned_layers;
use crate::error::LoadError;

/// The language model alone.
pub(super) const FAMILY: ModelFamily = ModelFamily { name: "llama4_text", read };

/// The language model inside of one that sees images, too.
pub(super) const WITH_VISION: ModelFamily = ModelFamily { name: "llama4", read: read_with_vision };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-5),
    head_dim: Some(128),
    max_positions: 131_072,
    rope_theta: 500_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    feed_forward: FeedForwardNames::Gated(["feed_forward.gate_proj", "feed_forward.up_proj"]),
    down: "feed_forward.down_proj",
    experts: Some(ExpertNames {
        router: "feed_forward.router",
        experts: "feed_forward.experts",
        layers: ExpertLayers::Together(["gate_up_proj", "down_proj"]),
        bias: None,
        shared: Some("feed_forward.shared_expert"),
    }),
    ..LLAMA_NAMES
};

const NAMES_WITH_VISION: TensorNames = TensorNames {
    embedding: "language_model.model.embed_tokens",
    blocks: "language_model.model.layers",
    final_norm: "language_model.model.norm",
    head: "language_model.lm_head",
    unused: &["rotary_emb.inv_freq", "vision_model.", "multi_modal_projector."],
    ..NAMES
};

/// What a token's expert is multiplied by is what it is given.
const ROUTING: Routing = Routing {
    scores: RouterScores::Sigmoid,
    weights: RouterWeights::OfAll,
    scale: 1.0,
    groups: None,
    bias: RouterBias::Absent,
    weighted: Weighted::Input,
};

const CHUNKED: &str = "chunked_attention";
const FULL: &str = "full_attention";

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    read_as(config, &DEFAULTS)
}

fn read_with_vision(config: &Value) -> Result<DecoderConfig, LoadError> {
    const KEY: &str = "text_config";
    let text = config.get(KEY).ok_or(LoadError::MissingKey { key: KEY })?;
    let mut text: Map<String, Value> =
        text.as_object().cloned().ok_or_else(|| bad(KEY, text, "a table"))?;
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
    refuse_auxiliary_loss(&reader)?;
    let mut decoder = DecoderConfig::read_common(&reader, defaults)?;
    decoder.rotary_pairs = RotaryPairs::Interleaved;
    decoder.biases = Biases::of_attention(&reader)?;
    if reader.flag("use_qk_norm")? != Some(false) {
        decoder.query_key_norm = QueryKeyNorm::HeadUnweighted;
        if decoder.ropes.iter().any(|rope| rope.scaling.attention_factor() != 1.0) {
            let expected = "default, linear, dynamic or llama3 beside `use_qk_norm`";
            let table = reader.get("rope_parameters").or_else(|| reader.get("rope_scaling"));
            return Err(bad("rope_type", table.unwrap_or(&Value::Null), expected));
        }
    }
    arrange_positions(&reader, &mut decoder)?;
    arrange_experts(&reader, &mut decoder)?;
    decoder.checked_experts()
}

/// Rotary embedding and chunks, or neither and a temperature.
fn arrange_positions(reader: &ConfigReader, decoder: &mut DecoderConfig) -> Result<(), LoadError> {
    let turned = turned_layers(reader, decoder.layers())?;
    let chunk = reader.nullable_count("attention_chunk_size", 8192)?;
    let temperature = Temperature {
        floor: reader.number("floor_scale")?.unwrap_or(8192.0),
        scale: reader.number("attn_scale")?.unwrap_or(0.1),
    };
    let tuned = reader.flag("attn_temperature_tuning")? != Some(false);
    let chunked = match reader.layer_types(decoder.layers())? {
        None => turned.clone(),
        Some(types) => types
            .into_iter()
            .map(|kind| match kind {
                CHUNKED => Ok(true),
                FULL => Ok(false),
                other => Err(bad("layer_types", &other.into(), &format!("{CHUNKED} or {FULL}"))),
            })
            .collect::<Result<_, _>>()?,
    };
    if chunk.is_none() && chunked.contains(&true) {
        // `transformers` fails on such a file, too.
        return Err(bad("attention_chunk_size", &Value::Null, "a whole number above 0"));
    }
    for (index, block) in decoder.blocks.iter_mut().enumerate() {
        block.rope = turned[index].then_some(0);
        block.chunk = chunk.filter(|_| chunked[index]);
        block.temperature = (tuned && !turned[index]).then_some(temperature);
    }
    Ok(())
}

fn arrange_experts(reader: &ConfigReader, decoder: &mut DecoderConfig) -> Result<(), LoadError> {
    let inside = decoder.intermediate_size;
    decoder.experts = Some(ExpertsConfig {
        count: reader.count("num_local_experts")?.unwrap_or(16),
        per_token: reader.count("num_experts_per_tok")?.unwrap_or(1),
        intermediate_size: inside,
        shared_size: inside,
        routing: ROUTING,
        auxiliary: AuxiliaryLoss::Absent,
    });
    decoder.intermediate_size = reader.count("intermediate_size_mlp")?.unwrap_or(16_384);
    let listed = expert_layers(reader)?;
    let step = reader.count("interleave_moe_layer_step")?.unwrap_or(1);
    for (index, block) in decoder.blocks.iter_mut().enumerate() {
        let has_experts = match &listed {
            Some(layers) => layers.contains(&(index as u64)),
            None => (index + 1).is_multiple_of(step),
        };
        if has_experts {
            block.half = FeedForwardHalf::Experts;
        }
    }
    Ok(())
}

/// Layers with experts, where the file lists them.
fn expert_layers(reader: &ConfigReader) -> Result<Option<Vec<u64>>, LoadError> {
    const KEY: &str = "moe_layers";
    let Some(value) = reader.get(KEY) else { return Ok(None) };
    let layers = value.as_array().and_then(|items| items.iter().map(Value::as_u64).collect());
    layers.map(Some).ok_or_else(|| bad(KEY, value, "a list of layer numbers"))
}
