//! What is peculiar to each family in the metadata of a file, and what llama.cpp takes for granted
//! in all models of an architecture: a model that differs there is refused.

use serde_json::Value;

use super::model_keys::{EXPERTS, HEADS, Keys, LAYERS, Reader};
use crate::weights::WeightsError;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::family_config::{LLAMA4_CHUNK, LLAMA4_EXPERTS_WITHOUT_NORM};
use crate::weights::gguf::head_writer::Flag;

type Done = Result<(), WeightsError>;

/// Sizes that published configurations leave out, as transformers fills them in.
pub(super) fn default_size(model_type: &str, key: &str) -> Option<u64> {
    Some(match (model_type, key) {
        ("gemma3" | "gemma3_text", "num_attention_heads") => 8,
        ("gemma3" | "gemma3_text", "num_key_value_heads") => 4,
        ("gemma3" | "gemma3_text" | "gemma2", "head_dim") => 256,
        ("gemma3" | "gemma3_text", "max_position_embeddings") => 131_072,
        ("gemma3" | "gemma3_text", "vocab_size") => 262_208,
        ("gemma3" | "gemma3_text" | "gemma2", "sliding_window") => 4096,
        ("llama4" | "llama4_text", "head_dim") => 128,
        _ => return None,
    })
}

/// The same for other numbers.
pub(super) fn default_number(model_type: &str, key: &str) -> Option<f64> {
    Some(match (model_type, key) {
        ("gemma3" | "gemma3_text" | "gemma2", "rms_norm_eps") => 1e-6,
        ("gemma3" | "gemma3_text", "rope_theta") => 1_000_000.0,
        ("gemma3" | "gemma3_text" | "gemma2", "query_pre_attn_scalar") => 256.0,
        _ => return None,
    })
}

/// Inner size of the feed-forward half without experts.
pub(super) fn inner_size(reader: &Reader) -> Result<u32, WeightsError> {
    match reader.model_type {
        "llama4" | "llama4_text" => reader.required(&["intermediate_size_mlp"]),
        "gpt2" => match reader.count("n_inner")? {
            Some(inner) => Ok(inner),
            None => Ok(reader.required(&["n_embd"])?.saturating_mul(4)),
        },
        _ => reader.required(&["intermediate_size"]),
    }
}

/// Base of the rotary embedding, where there is one.
pub(super) fn rope_base(reader: &Reader) -> Result<Option<f64>, WeightsError> {
    if reader.model_type == "gpt2" {
        return Ok(None);
    }
    let inside = reader.rope_table().and_then(|table| table.get("rope_theta"));
    if let Some(base) = inside.and_then(Value::as_f64) {
        return Ok(Some(base));
    }
    let beside = match reader.model_type {
        "gpt_neox" => reader.number("rotary_emb_base")?,
        _ => reader.number("rope_theta")?,
    };
    Ok(Some(beside.unwrap_or(10_000.0)))
}

/// Elements of a head that turn.
pub(super) fn rotated(reader: &Reader, head_dim: u64) -> u64 {
    let inside = reader.rope_table().and_then(|table| table.get("partial_rotary_factor"));
    let beside = match reader.model_type {
        "gpt2" => return 0,
        "gpt_neox" => reader.get("rotary_pct"),
        _ => reader.get("partial_rotary_factor"),
    };
    let usual = if reader.model_type == "gpt_neox" { 0.25 } else { 1.0 };
    let share = inside.or(beside).and_then(Value::as_f64).unwrap_or(usual);
    (head_dim as f64 * share) as u64
}

pub(super) fn write(keys: &mut Keys, reader: &Reader, architecture: &Architecture) -> Done {
    match architecture.name {
        "llama" if architecture.experts.is_some() => mixtral(keys, reader),
        "qwen3moe" => qwen3_moe(keys, reader),
        "deepseek2" => deepseek(keys, reader),
        "llama4" => llama4(keys, reader),
        "smollm3" => smollm3(reader),
        "phi3" => {
            keys.u32("attention.sliding_window", reader.count("sliding_window")?.unwrap_or(0));
            Ok(())
        }
        "gemma2" => gemma2(keys, reader),
        "gemma3" => gemma3(keys, reader),
        "granite" => granite(keys, reader),
        "command-r" => command_r(keys, reader),
        "cohere2" => cohere2(keys, reader),
        "gpt2" => gpt2(reader),
        "gptneox" => gpt_neox(keys, reader),
        _ => has_no_window(reader),
    }
}

/// Of most architectures llama.cpp knows no window: a model with one would see more.
fn has_no_window(reader: &Reader) -> Done {
    let is_used = reader.flag("use_sliding_window").unwrap_or(true);
    let window = reader.count("sliding_window")?.filter(|_| is_used);
    let context = reader.required(&["max_position_embeddings"])?;
    match window.filter(|&window| window < context) {
        None => Ok(()),
        Some(window) => {
            let known = "null, or the whole context";
            Err(reader.inexpressible("sliding_window", window.to_string(), known))
        }
    }
}

/// A key that must have one value, where it is given.
fn only(reader: &Reader, key: &str, wanted: &Value) -> Done {
    match reader.get(key).filter(|found| *found != wanted) {
        None => Ok(()),
        Some(found) => Err(reader.inexpressible(key, found.to_string(), &wanted.to_string())),
    }
}

/// Kinds of layers by number, as the architecture has them whatever a file says.
fn only_layers(reader: &Reader, key: &str, wanted: impl Fn(u32) -> Value) -> Done {
    let layers = reader.required(LAYERS)?;
    let expected: Vec<Value> = (0..layers).map(wanted).collect();
    only(reader, key, &Value::Array(expected))
}

/// Every `n`th layer sees the whole context, the others a window.
fn full_every(n: u32, layer: u32) -> Value {
    let is_full = (layer + 1).is_multiple_of(n);
    Value::from(if is_full { "full_attention" } else { "sliding_attention" })
}

fn write_experts(keys: &mut Keys, reader: &Reader) -> Done {
    keys.u32("expert_count", reader.required(EXPERTS)?);
    keys.u32("expert_used_count", reader.required(&["num_experts_per_tok"])?);
    Ok(())
}

fn mixtral(keys: &mut Keys, reader: &Reader) -> Done {
    has_no_window(reader)?;
    write_experts(keys, reader)
}

fn qwen3_moe(keys: &mut Keys, reader: &Reader) -> Done {
    has_no_window(reader)?;
    only(reader, "decoder_sparse_step", &Value::from(1))?;
    only(reader, "mlp_only_layers", &Value::Array(Vec::new()))?;
    if reader.flag("norm_topk_prob") != Some(true) {
        return Err(reader.inexpressible("norm_topk_prob", "false", "true"));
    }
    write_experts(keys, reader)?;
    keys.u32("expert_feed_forward_length", reader.required(&["moe_intermediate_size"])?);
    Ok(())
}

fn deepseek(keys: &mut Keys, reader: &Reader) -> Done {
    only(reader, "moe_layer_freq", &Value::from(1))?;
    only(reader, "rope_interleave", &Value::Bool(true))?;
    only(reader, "attention_bias", &Value::Bool(false))?;
    let count = |key: &'static str| reader.required(&[key]);
    let dense = reader.get("first_k_dense_replace").and_then(Value::as_u64).unwrap_or(0);
    keys.u32("leading_dense_block_count", u32::try_from(dense).unwrap_or(u32::MAX));
    keys.u32("attention.q_lora_rank", reader.count("q_lora_rank")?.unwrap_or(0));
    let (rank, rotated) = (count("kv_lora_rank")?, count("qk_rope_head_dim")?);
    keys.u32("attention.kv_lora_rank", rank);
    keys.u32("attention.key_length", rank.saturating_add(rotated));
    keys.u32("attention.value_length", rank);
    keys.u32("attention.key_length_mla", count("qk_nope_head_dim")?.saturating_add(rotated));
    keys.u32("attention.value_length_mla", count("v_head_dim")?);
    write_experts(keys, reader)?;
    keys.u32("expert_feed_forward_length", count("moe_intermediate_size")?);
    keys.u32("expert_shared_count", count("n_shared_experts")?);
    let is_v2 = reader.model_type == "deepseek_v2";
    let scale = reader.number("routed_scaling_factor")?;
    keys.f32("expert_weights_scale", scale.unwrap_or(if is_v2 { 1.0 } else { 2.5 }));
    if reader.flag("norm_topk_prob").unwrap_or(!is_v2) {
        keys.flag("expert_weights_norm", Flag::Yes);
    }
    // 1 is softmax, 2 sigmoid.
    keys.u32("expert_gating_func", if is_v2 { 1 } else { 2 });
    // V2 without groups says so by its method, whatever their number.
    if reader.get("topk_method").and_then(Value::as_str) != Some("greedy") {
        let (groups, chosen) = if is_v2 { (1, 1) } else { (8, 4) };
        keys.u32("expert_group_count", reader.count("n_group")?.unwrap_or(groups));
        keys.u32("expert_group_used_count", reader.count("topk_group")?.unwrap_or(chosen));
    }
    Ok(())
}

fn llama4(keys: &mut Keys, reader: &Reader) -> Done {
    let context = u64::from(reader.required(&["max_position_embeddings"])?);
    let chunk = reader.number_of(&["attention_chunk_size"]).unwrap_or(LLAMA4_CHUNK);
    if chunk != LLAMA4_CHUNK && chunk < context {
        let known = LLAMA4_CHUNK.to_string();
        return Err(reader.inexpressible("attention_chunk_size", chunk.to_string(), &known));
    }
    only_layers(reader, "no_rope_layers", |n| u8::from((n + 1) % 4 != 0).into())?;
    only_layers(reader, "layer_types", |n| {
        let is_chunked = (n + 1) % 4 != 0;
        Value::from(if is_chunked { "chunked_attention" } else { "full_attention" })
    })?;
    only(reader, "attn_temperature_tuning", &Value::Bool(true))?;
    for (key, wanted) in [("floor_scale", LLAMA4_CHUNK as f64), ("attn_scale", 0.1)] {
        if let Some(found) = reader.number(key)?.filter(|found| (found - wanted).abs() > 1e-9) {
            return Err(reader.inexpressible(key, found.to_string(), &wanted.to_string()));
        }
    }
    write_experts(keys, reader)?;
    let experts = reader.number_of(EXPERTS).unwrap_or_default();
    only(reader, "use_qk_norm", &Value::Bool(experts != LLAMA4_EXPERTS_WITHOUT_NORM))?;
    let step = reader.count("interleave_moe_layer_step")?.unwrap_or(1);
    keys.u32("interleave_moe_layer_step", step);
    keys.u32("expert_feed_forward_length", reader.required(&["intermediate_size"])?);
    Ok(())
}

fn smollm3(reader: &Reader) -> Done {
    if reader.flag("use_sliding_window") == Some(true) {
        return Err(reader.inexpressible("use_sliding_window", "true", "false"));
    }
    only(reader, "no_rope_layer_interval", &Value::from(4))?;
    only_layers(reader, "no_rope_layers", |n| u8::from((n + 1) % 4 != 0).into())
}

/// The score's factor follows from the sizes; the largest model has another rule.
fn gemma_scale(reader: &Reader, largest: u32) -> Done {
    let head_dim = reader.required(&["head_dim"])?;
    let heads = reader.required(HEADS)?;
    let is_largest = reader.required(LAYERS)? == largest;
    let wanted =
        if is_largest { reader.required(&["hidden_size"])? / heads.max(1) } else { head_dim };
    match reader.number("query_pre_attn_scalar")? {
        Some(found) if (found - f64::from(wanted)).abs() > 1e-6 => {
            let known = wanted.to_string();
            Err(reader.inexpressible("query_pre_attn_scalar", found.to_string(), &known))
        }
        _ => Ok(()),
    }
}

fn gemma2(keys: &mut Keys, reader: &Reader) -> Done {
    gemma_scale(reader, 46)?;
    only_layers(reader, "layer_types", |layer| full_every(2, layer))?;
    for (key, usual) in [("attn_logit_softcapping", 50.0), ("final_logit_softcapping", 30.0)] {
        // llama.cpp takes the usual cap where the key is missing.
        if reader.get(key).is_none() && reader.base.config().get(key).is_some() {
            return Err(reader.inexpressible(key, "null", "a number"));
        }
        keys.f32(key, reader.number(key)?.unwrap_or(usual));
    }
    keys.u32("attention.sliding_window", reader.required(&["sliding_window"])?);
    Ok(())
}

fn gemma3(keys: &mut Keys, reader: &Reader) -> Done {
    gemma_scale(reader, 62)?;
    only_layers(reader, "layer_types", |layer| full_every(6, layer))?;
    only(reader, "sliding_window_pattern", &Value::from(6))?;
    // transformers leaves the cap out where images are seen, too.
    let cap = reader.number("final_logit_softcapping")?.filter(|_| reader.model_type != "gemma3");
    if let Some(cap) = cap {
        keys.f32("final_logit_softcapping", cap);
    }
    let table = reader.get("rope_parameters").and_then(|table| table.get("sliding_attention"));
    let local = table.and_then(|table| table.get("rope_theta")).and_then(Value::as_f64);
    let local = match local {
        Some(local) => Some(local),
        None => reader.number("rope_local_base_freq")?,
    };
    keys.f32("rope.freq_base_swa", local.unwrap_or(10_000.0));
    keys.u32("attention.sliding_window", reader.required(&["sliding_window"])?);
    Ok(())
}

fn granite(keys: &mut Keys, reader: &Reader) -> Done {
    for (name, key) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        keys.f32(name, reader.number(key)?.unwrap_or(1.0));
    }
    Ok(())
}

/// Layers from which on llama.cpp looks for norms of queries and keys.
const COMMAND_R_LAYERS_WITH_NORM: u32 = 64;

fn command_r(keys: &mut Keys, reader: &Reader) -> Done {
    let has_norm = reader.required(LAYERS)? >= COMMAND_R_LAYERS_WITH_NORM;
    if reader.flag("use_qk_norm").unwrap_or(false) != has_norm {
        let known = format!("{has_norm} in a model of that many layers");
        return Err(reader.inexpressible("use_qk_norm", (!has_norm).to_string(), &known));
    }
    keys.f32("logit_scale", reader.number("logit_scale")?.unwrap_or(0.0625));
    Ok(())
}

fn cohere2(keys: &mut Keys, reader: &Reader) -> Done {
    only_layers(reader, "layer_types", |layer| full_every(4, layer))?;
    only(reader, "sliding_window_pattern", &Value::from(4))?;
    keys.u32("attention.sliding_window", reader.required(&["sliding_window"])?);
    keys.f32("logit_scale", reader.number("logit_scale")?.unwrap_or(0.0625));
    Ok(())
}

fn gpt2(reader: &Reader) -> Done {
    only(reader, "scale_attn_by_inverse_layer_idx", &Value::Bool(false))?;
    only(reader, "scale_attn_weights", &Value::Bool(true))
}

fn gpt_neox(keys: &mut Keys, reader: &Reader) -> Done {
    only(reader, "attention_bias", &Value::Bool(true))?;
    only(reader, "hidden_act", &Value::from("gelu"))?;
    let is_parallel = reader.flag("use_parallel_residual").unwrap_or(true);
    keys.flag("use_parallel_residual", is_parallel.into());
    Ok(())
}
