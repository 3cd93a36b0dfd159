//! `DeepSeek` V2 and V3 (and R1): multi-head latent attention, experts of fine grain beside shared
//! ones, dense blocks at the beginning.

use kernels::RotaryPairs;
use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, FeedForwardHalf, Head};
use super::config_reader::{ConfigReader, bad};
use super::experts_config::{
    AuxiliaryLoss, ExpertGroups, ExpertsConfig, RouterBias, RouterScores, RouterWeights, Routing,
    Weighted,
};
use super::latent_config::LatentConfig;
use super::mixtral::refuse_auxiliary_loss;
use super::names::{
    ExpertLayers, ExpertNames, GATED, LLAMA_NAMES, LatentNames, ProjectionNames, QueryNames,
    TensorNames,
};
use super::rope::{RopeConfig, RopeSetting};
use crate::error::LoadError;

/// Softmax routing.
pub(super) const V2: ModelFamily = ModelFamily { name: "deepseek_v2", read: read_v2 };

/// Sigmoid routing with a bias.
pub(super) const V3: ModelFamily = ModelFamily { name: "deepseek_v3", read: read_v3 };

const V2_DEFAULTS: Defaults = Defaults {
    family: V2.name,
    names: &V2_NAMES,
    norm_epsilon: ("rms_norm_eps", 1e-6),
    head_dim: None,
    max_positions: 2048,
    rope_theta: 10_000.0,
    head: Head::Own,
};

const V3_DEFAULTS: Defaults =
    Defaults { family: V3.name, names: &V3_NAMES, max_positions: 4096, ..V2_DEFAULTS };

const V2_EXPERTS: ExpertNames = ExpertNames {
    router: "mlp.gate",
    experts: "mlp.experts",
    layers: ExpertLayers::Separate(GATED),
    bias: None,
    shared: Some("mlp.shared_experts"),
};

const V2_NAMES: TensorNames = TensorNames {
    projections: ProjectionNames::Latent(LatentNames {
        query: QueryNames {
            direct: "self_attn.q_proj",
            down: "self_attn.q_a_proj",
            norm: "self_attn.q_a_layernorm",
            up: "self_attn.q_b_proj",
        },
        down: "self_attn.kv_a_proj_with_mqa",
        norm: "self_attn.kv_a_layernorm",
        up: "self_attn.kv_b_proj",
    }),
    experts: Some(V2_EXPERTS),
    ..LLAMA_NAMES
};

const V3_NAMES: TensorNames = TensorNames {
    experts: Some(ExpertNames { bias: Some("mlp.gate.e_score_correction_bias"), ..V2_EXPERTS }),
    ..V2_NAMES
};

fn read_v2(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only_unset("mlp_bias")?;
    // `transformers` leaves it unread in this family, where the family's own code does not.
    reader.only_unset("norm_topk_prob")?;
    reader.only_text("scoring_func", &["softmax"])?;
    let groups = match reader.only_text("topk_method", &["greedy", "group_limited_greedy"])? {
        Some("group_limited_greedy") => Some(ExpertGroups {
            count: reader.required("n_group")?,
            chosen: reader.required("topk_group")?,
            judged_by: 1,
        }),
        _ => None,
    };
    let experts = ExpertsConfig {
        count: reader.count("n_routed_experts")?.unwrap_or(64),
        per_token: reader.required("num_experts_per_tok")?,
        intermediate_size: reader.count("moe_intermediate_size")?.unwrap_or(1407),
        shared_size: reader.count("n_shared_experts")?.unwrap_or(2),
        routing: Routing {
            scale: reader.number("routed_scaling_factor")?.unwrap_or(1.0),
            groups,
            ..Routing::softmax(RouterWeights::OfAll)
        },
        auxiliary: AuxiliaryLoss::Absent,
    };
    let dense = reader.whole("first_k_dense_replace")?.unwrap_or(0);
    read_shared(&reader, &V2_DEFAULTS, experts, dense)
}

fn read_v3(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only_text("scoring_func", &["sigmoid"])?;
    reader.only_text("topk_method", &["noaux_tc"])?;
    let experts = ExpertsConfig {
        count: reader.count("n_routed_experts")?.unwrap_or(256),
        per_token: reader.count("num_experts_per_tok")?.unwrap_or(8),
        intermediate_size: reader.count("moe_intermediate_size")?.unwrap_or(2048),
        shared_size: reader.count("n_shared_experts")?.unwrap_or(1),
        routing: Routing {
            scores: RouterScores::Sigmoid,
            weights: match reader.flag("norm_topk_prob")? {
                Some(false) => RouterWeights::OfAll,
                _ => RouterWeights::OfChosen,
            },
            scale: reader.number("routed_scaling_factor")?.unwrap_or(2.5),
            groups: Some(ExpertGroups {
                count: reader.count("n_group")?.unwrap_or(8),
                chosen: reader.count("topk_group")?.unwrap_or(4),
                judged_by: 2,
            }),
            bias: RouterBias::Present,
            weighted: Weighted::Output,
        },
        auxiliary: AuxiliaryLoss::Absent,
    };
    let dense = reader.whole("first_k_dense_replace")?.unwrap_or(3);
    let mut decoder = read_shared(&reader, &V3_DEFAULTS, experts, dense)?;
    if reader.flag("rope_interleave")? == Some(false) {
        decoder.rotary_pairs = RotaryPairs::HalfSplit;
    }
    let ahead = reader.whole("num_nextn_predict_layers")?.or(reader.whole("num_mtp_layers")?);
    decoder.extra_blocks = ahead.unwrap_or(1);
    Ok(decoder)
}

/// `experts.shared_size` comes as the number of shared experts, which are one network.
fn read_shared(
    reader: &ConfigReader,
    defaults: &Defaults,
    experts: ExpertsConfig,
    dense: usize,
) -> Result<DecoderConfig, LoadError> {
    refuse_auxiliary_loss(reader)?;
    if let Some(step) = reader.count("moe_layer_freq")?.filter(|&step| step != 1) {
        return Err(bad("moe_layer_freq", &Value::from(step), "1"));
    }
    let latent = latent(reader)?;
    let defaults = Defaults { head_dim: Some(latent.query_dim()), ..*defaults };
    let mut decoder = DecoderConfig::read_sizes_of_heads(reader, &defaults, latent.query_dim())?;
    if decoder.kv_heads != decoder.heads {
        let expected = format!("`num_attention_heads` = {}", decoder.heads);
        return Err(bad("num_key_value_heads", &Value::from(decoder.kv_heads), &expected));
    }
    decoder.latent = Some(latent);
    decoder.biases = Biases::of_attention(reader)?;
    decoder.rotary_pairs = RotaryPairs::Interleaved;
    let setting = RopeSetting {
        rotary_dim: latent.position_dim,
        max_positions: decoder.max_positions,
        theta: defaults.rope_theta,
    };
    let rope = RopeConfig::read(reader, setting)?;
    let magnitude = rope.scaling.score_magnitude();
    decoder.scale_attention(magnitude * magnitude / (latent.query_dim() as f64).sqrt());
    decoder.ropes = vec![rope];
    decoder.turn_all();
    let shared_size = experts.shared_size * experts.intermediate_size;
    decoder.experts = Some(ExpertsConfig { shared_size, ..experts });
    for block in decoder.blocks.iter_mut().skip(dense) {
        block.half = FeedForwardHalf::Experts;
    }
    decoder.checked_experts()
}

fn latent(reader: &ConfigReader) -> Result<LatentConfig, LoadError> {
    let position_dim = reader.count("qk_rope_head_dim")?.unwrap_or(64);
    if !position_dim.is_multiple_of(2) {
        return Err(bad("qk_rope_head_dim", &Value::from(position_dim), "an even number"));
    }
    Ok(LatentConfig {
        query_rank: reader.nullable_count("q_lora_rank", 1536)?,
        key_value_rank: reader.count("kv_lora_rank")?.unwrap_or(512),
        content_dim: reader.count("qk_nope_head_dim")?.unwrap_or(128),
        position_dim,
        value_dim: reader.count("v_head_dim")?.unwrap_or(128),
    })
}
