//! GPT-NeoX and Pythia: attention and feed-forward side by side behind a norm each, norms with mean
//! and bias, query, key and value of a head together, a rotary embedding over a part of each head.

use kernels::Gelu;
use serde_json::Value;

use super::ModelFamily;
use super::config::{Activation, Bias, DecoderConfig, Defaults, Flow, Head, NormKind};
use super::config_reader::ConfigReader;
use super::names::{FeedForwardNames, LLAMA_NAMES, ProjectionNames, TensorNames};
use super::phi3::rotary_dim;
use super::rope::{RopeConfig, RopeSetting};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "gpt_neox", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("layer_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 2048,
    rope_theta: 10_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    embedding: "gpt_neox.embed_in",
    blocks: "gpt_neox.layers",
    projections: ProjectionNames::FusedByHead("attention.query_key_value"),
    attention_output: "attention.dense",
    feed_forward: FeedForwardNames::Plain("mlp.dense_h_to_4h"),
    down: "mlp.dense_4h_to_h",
    final_norm: "gpt_neox.final_layer_norm",
    unused: &[".attention.bias", ".attention.masked_bias", "rotary_emb.inv_freq"],
    ..LLAMA_NAMES
};

/// Share of a head that turns where the file has none.
const ROTARY_SHARE: f64 = 0.25;

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only_null("num_key_value_heads")?;
    let mut decoder = DecoderConfig::read_sizes(&reader, &DEFAULTS)?;
    decoder.ropes = vec![rope(&reader, &decoder)?];
    decoder.turn_all();
    decoder.norm = NormKind::Layer;
    decoder.activation = reader.gelu("hidden_act", Gelu::Exact).map(Activation::Gelu)?;
    if reader.flag("use_parallel_residual")? != Some(false) {
        decoder.flow = Flow::Parallel;
    }
    decoder.biases.feed_forward = Bias::Present;
    if reader.flag("attention_bias")? != Some(false) {
        decoder.biases.query_key_value = Bias::Present;
        decoder.biases.attention_output = Bias::Present;
    }
    Ok(decoder)
}

fn rope(reader: &ConfigReader, decoder: &DecoderConfig) -> Result<RopeConfig, LoadError> {
    let table = RopeConfig::table(reader);
    let default = Value::from(ROTARY_SHARE);
    let share = table
        .and_then(|table| table.get("partial_rotary_factor"))
        .or_else(|| reader.get("rotary_pct"))
        .unwrap_or(&default);
    let rotary_dim = rotary_dim(Some(share), decoder.head_dim)?;
    let theta = reader.number("rotary_emb_base")?.unwrap_or(DEFAULTS.rope_theta);
    let max_positions = decoder.max_positions;
    RopeConfig::read_table(reader, table, RopeSetting { rotary_dim, max_positions, theta })
}
