//! Mixtral: Mistral with experts in every block, of which each token uses two.

use serde_json::Value;

use super::ModelFamily;
use super::config::{DecoderConfig, Defaults, FeedForwardHalf, Head};
use super::config_reader::ConfigReader;
use super::experts_config::{AuxiliaryLoss, ExpertsConfig, RouterWeights, Routing};
use super::names::{ExpertLayers, ExpertNames, LLAMA_NAMES, TensorNames};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "mixtral", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 131_072,
    rope_theta: 1_000_000.0,
    head: Head::Own,
};

const NAMES: TensorNames = TensorNames {
    experts: Some(ExpertNames {
        router: "block_sparse_moe.gate",
        experts: "block_sparse_moe.experts",
        layers: ExpertLayers::Separate(["w1", "w3", "w2"]),
        bias: None,
        shared: None,
    }),
    ..LLAMA_NAMES
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    decoder.experts = Some(ExpertsConfig {
        count: reader.count("num_local_experts")?.unwrap_or(8),
        per_token: reader.count("num_experts_per_tok")?.unwrap_or(2),
        intermediate_size: decoder.intermediate_size,
        shared_size: 0,
        routing: Routing::softmax(RouterWeights::OfChosen),
        auxiliary: AuxiliaryLoss::read(&reader)?,
    });
    for block in &mut decoder.blocks {
        block.half = FeedForwardHalf::Experts;
    }
    if let Some(window) = reader.count("sliding_window")? {
        decoder.limit_sight(window, |_| true);
    }
    decoder.checked_experts()
}

/// In families without an auxiliary loss the key would change nothing, and so promise too much.
pub(super) fn refuse_auxiliary_loss(reader: &ConfigReader) -> Result<(), LoadError> {
    reader.only_unset("output_router_logits")
}
