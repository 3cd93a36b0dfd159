//! Qwen3-MoE: Qwen3 with experts in most blocks.

use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, FeedForwardHalf, Head, QueryKeyNorm};
use super::config_reader::{ConfigReader, bad};
use super::experts_config::{AuxiliaryLoss, ExpertsConfig, RouterWeights, Routing};
use super::names::{ExpertLayers, ExpertNames, GATED, LLAMA_NAMES, TensorNames};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "qwen3_moe", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 32_768,
    rope_theta: 10_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    experts: Some(ExpertNames {
        router: "mlp.gate",
        experts: "mlp.experts",
        layers: ExpertLayers::Separate(GATED),
        bias: None,
        shared: None,
    }),
    ..LLAMA_NAMES
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.query_key_norm = QueryKeyNorm::Head;
    decoder.biases = Biases::of_attention(&reader)?;
    decoder.experts = Some(ExpertsConfig {
        count: reader.count("num_experts")?.or(reader.count("num_local_experts")?).unwrap_or(128),
        per_token: reader.count("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: reader.count("moe_intermediate_size")?.unwrap_or(768),
        shared_size: 0,
        routing: Routing::softmax(match reader.flag("norm_topk_prob")? {
            Some(true) => RouterWeights::OfChosen,
            _ => RouterWeights::OfAll,
        }),
        auxiliary: AuxiliaryLoss::read(&reader)?,
    });
    let dense = dense_layers(&reader)?;
    let step = reader.count("decoder_sparse_step")?.unwrap_or(1);
    for (index, block) in decoder.blocks.iter_mut().enumerate() {
        if (index + 1).is_multiple_of(step) && !dense.contains(&(index as u64)) {
            block.half = FeedForwardHalf::Experts;
        }
    }
    if reader.flag("use_sliding_window")? == Some(true) {
        let window = reader.count("sliding_window")?.unwrap_or(4096);
        decoder.limit_sight(window, |_| true);
    }
    decoder.checked_experts()
}

/// Layers that have no experts whatever the step.
fn dense_layers(reader: &ConfigReader) -> Result<Vec<u64>, LoadError> {
    const KEY: &str = "mlp_only_layers";
    let Some(value) = reader.get(KEY) else { return Ok(Vec::new()) };
    let layers = value.as_array().and_then(|items| items.iter().map(Value::as_u64).collect());
    layers.ok_or_else(|| bad(KEY, value, "a list of layer numbers"))
}
