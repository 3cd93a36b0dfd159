//! What is peculiar to each family in the `config.json` that a GGUF's metadata stands for.
//!
//! Some of it is in no metadata: llama.cpp knows it by the architecture, and so does this file.

use serde_json::{Map, Value, json};

use super::architecture::LONG_ROPE;
use super::config::{Keys, Sizes};
use crate::weights::WeightsError;

/// Extends or changes the configuration that is made for Llama.
pub(super) type Configure = fn(&Keys, Sizes, &mut Map<String, Value>) -> Result<(), WeightsError>;

type Config = Map<String, Value>;
type Done = Result<(), WeightsError>;

fn set(config: &mut Config, key: &str, value: impl Into<Value>) {
    config.insert(key.to_owned(), value.into());
}

/// Renames a key.
fn rename(config: &mut Config, from: &str, to: &str) {
    if let Some(value) = config.remove(from) {
        config.insert(to.to_owned(), value);
    }
}

/// The rotary embedding must turn whole heads.
fn turns_whole_heads(keys: &Keys, sizes: Sizes) -> Done {
    if sizes.rotated == sizes.head_dim {
        return Ok(());
    }
    let known = format!("the head size, {}", sizes.head_dim);
    Err(keys.unsupported("rope.dimension_count", sizes.rotated.to_string(), &known))
}

pub(super) fn llama(keys: &Keys, sizes: Sizes, _: &mut Config) -> Done {
    turns_whole_heads(keys, sizes)
}

pub(super) fn qwen(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    set(config, "use_sliding_window", false);
    turns_whole_heads(keys, sizes)
}

/// Experts as all families name them, but for `count`.
fn experts(keys: &Keys, count: &str, config: &mut Config) -> Done {
    set(config, count, keys.required("expert_count")?);
    set(config, "num_experts_per_tok", keys.required("expert_used_count")?);
    Ok(())
}

pub(super) fn mixtral(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    set(config, "sliding_window", Value::Null);
    experts(keys, "num_local_experts", config)?;
    turns_whole_heads(keys, sizes)
}

pub(super) fn qwen3_moe(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    const INNER: &str = "expert_feed_forward_length";
    experts(keys, "num_experts", config)?;
    // llama.cpp, too, takes the quotient where the key is missing.
    let inner = match keys.integer(INNER)? {
        Some(inner) if inner > 0 => inner,
        _ => keys.required("feed_forward_length")? / keys.required("expert_used_count")?,
    };
    set(config, "moe_intermediate_size", inner);
    set(config, "norm_topk_prob", true);
    set(config, "decoder_sparse_step", 1);
    set(config, "mlp_only_layers", json!([]));
    qwen(keys, sizes, config)
}

/// Values of `expert_gating_func`.
const SOFTMAX: u64 = 1;
const SIGMOID: u64 = 2;

pub(super) fn deepseek2(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    config.remove("head_dim");
    config.remove("mlp_bias");
    experts(keys, "n_routed_experts", config)?;
    for (name, key) in [
        ("expert_shared_count", "n_shared_experts"),
        ("expert_feed_forward_length", "moe_intermediate_size"),
        ("attention.kv_lora_rank", "kv_lora_rank"),
    ] {
        set(config, key, keys.required(name)?);
    }
    let query_rank = keys.integer("attention.q_lora_rank")?.filter(|&rank| rank > 0);
    set(config, "q_lora_rank", query_rank);
    set(config, "qk_rope_head_dim", sizes.rotated);
    set(config, "qk_nope_head_dim", sizes.content);
    set(config, "v_head_dim", sizes.value);
    let dense = keys.integer("leading_dense_block_count")?.unwrap_or(0);
    set(config, "first_k_dense_replace", dense);
    set(config, "num_key_value_heads", sizes.heads);
    set(config, "moe_layer_freq", 1);
    let scale = keys.number("expert_weights_scale")?.filter(|&scale| scale > 0.0);
    set(config, "routed_scaling_factor", scale.unwrap_or(1.0));
    set(config, "norm_topk_prob", keys.flag("expert_weights_norm")?.unwrap_or(false));
    set(config, "num_nextn_predict_layers", 0);
    let groups = keys.integer("expert_group_count")?.unwrap_or(1).max(1);
    set(config, "n_group", groups);
    set(config, "topk_group", keys.integer("expert_group_used_count")?.unwrap_or(1).max(1));
    let (version, scores, method) = match keys.integer("expert_gating_func")? {
        None | Some(0 | SOFTMAX) if groups > 1 => ("V2", "softmax", "group_limited_greedy"),
        None | Some(0 | SOFTMAX) => ("V2", "softmax", "greedy"),
        Some(SIGMOID) => ("V3", "sigmoid", "noaux_tc"),
        Some(other) => {
            let known = "1 (softmax) or 2 (sigmoid)";
            return Err(keys.unsupported("expert_gating_func", other.to_string(), known));
        }
    };
    set(config, "scoring_func", scores);
    set(config, "topk_method", method);
    set(config, "model_type", format!("deepseek_{}", version.to_lowercase()));
    set(config, "architectures", json!([format!("Deepseek{version}ForCausalLM")]));
    Ok(())
}

/// The chunk of attention that llama.cpp takes for every model of the architecture, and the floor of
/// the temperature.
pub(super) const LLAMA4_CHUNK: u64 = 8192;
/// Of that many experts queries and keys have no norm.
pub(super) const LLAMA4_EXPERTS_WITHOUT_NORM: u64 = 128;

pub(super) fn llama4(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    experts(keys, "num_local_experts", config)?;
    rename(config, "intermediate_size", "intermediate_size_mlp");
    set(config, "intermediate_size", keys.required("expert_feed_forward_length")?);
    let step = keys.required("interleave_moe_layer_step")?;
    set(config, "interleave_moe_layer_step", step);
    let has_norm = keys.required("expert_count")? != LLAMA4_EXPERTS_WITHOUT_NORM;
    set(config, "use_qk_norm", has_norm);
    if let Some(found) = keys.integer("expert_gating_func")?.filter(|&found| found != SIGMOID) {
        return Err(keys.unsupported("expert_gating_func", found.to_string(), "2 (sigmoid)"));
    }
    let layers = keys.required("block_count")?;
    let chunked = match keys.integer("attention.sliding_window")? {
        None | Some(LLAMA4_CHUNK) => true,
        Some(0) => false,
        Some(found) => {
            let known = format!("0 or {LLAMA4_CHUNK}");
            return Err(keys.unsupported("attention.sliding_window", found.to_string(), &known));
        }
    };
    let turned: Vec<u8> = (1..=layers).map(|n| u8::from(!chunked || n % 4 != 0)).collect();
    let kind =
        |turned: &u8| if chunked && *turned == 1 { "chunked_attention" } else { "full_attention" };
    set(config, "layer_types", turned.iter().map(kind).collect::<Vec<_>>());
    set(config, "no_rope_layers", turned);
    set(config, "attention_chunk_size", LLAMA4_CHUNK);
    set(config, "attn_temperature_tuning", true);
    set(config, "floor_scale", LLAMA4_CHUNK);
    set(config, "attn_scale", 0.1);
    turns_whole_heads(keys, sizes)
}

pub(super) fn smollm3(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    set(config, "no_rope_layer_interval", 4);
    set(config, "use_sliding_window", false);
    turns_whole_heads(keys, sizes)
}

pub(super) fn phi3(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    let original = keys.integer("rope.scaling.original_context_length")?;
    let context = keys.required("context_length")?;
    let original = original.unwrap_or(context);
    set(config, "original_max_position_embeddings", original);
    set(config, "sliding_window", keys.integer("attention.sliding_window")?.filter(|&n| n > 0));
    set(config, "partial_rotary_factor", sizes.rotated as f64 / sizes.head_dim as f64);
    set(config, "attention_bias", false);
    let [short, long] = LONG_ROPE.map(|name| keys.table(name));
    if let (Some(short), Some(long)) = (short, long) {
        let factor = context as f64 / original as f64;
        let usual =
            if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original as f64).ln()).sqrt() };
        let found = keys.number("rope.scaling.attn_factor")?.unwrap_or(usual);
        if (found - usual).abs() > 1e-3 * usual {
            let known = format!("{usual:.6}, which follows from the context lengths");
            return Err(keys.unsupported("rope.scaling.attn_factor", found.to_string(), &known));
        }
        let scaling = json!({"type": "longrope", "short_factor": short, "long_factor": long});
        set(config, "rope_scaling", scaling);
    }
    Ok(())
}

/// The scalar under the root of the score's factor: the head size, but in the largest model.
fn gemma(keys: &Keys, sizes: Sizes, largest: u64, config: &mut Config) -> Done {
    rename(config, "hidden_act", "hidden_activation");
    set(config, "hidden_activation", "gelu_pytorch_tanh");
    let scalar = if keys.required("block_count")? == largest {
        keys.required("embedding_length")? / sizes.heads
    } else {
        sizes.head_dim
    };
    set(config, "query_pre_attn_scalar", scalar);
    set(config, "sliding_window", keys.required("attention.sliding_window")?);
    turns_whole_heads(keys, sizes)
}

pub(super) fn gemma2(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        set(config, key, keys.number(key)?.filter(|&cap| cap > 0.0));
    }
    gemma(keys, sizes, 46, config)
}

pub(super) fn gemma3(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    let cap = keys.number("final_logit_softcapping")?.filter(|&cap| cap > 0.0);
    set(config, "final_logit_softcapping", cap);
    let local = keys.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
    set(config, "rope_local_base_freq", local);
    set(config, "sliding_window_pattern", 6);
    gemma(keys, sizes, 62, config)
}

pub(super) fn granite(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    for (name, key) in [
        ("attention.scale", "attention_multiplier"),
        ("embedding_scale", "embedding_multiplier"),
        ("residual_scale", "residual_multiplier"),
        ("logit_scale", "logits_scaling"),
    ] {
        set(config, key, keys.number(name)?.unwrap_or(1.0));
    }
    turns_whole_heads(keys, sizes)
}

pub(super) fn command_r(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    rename(config, "rms_norm_eps", "layer_norm_eps");
    set(config, "use_qk_norm", keys.has_tensor("blk.0.attn_q_norm.weight"));
    cohere(keys, sizes, config)
}

pub(super) fn cohere2(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    rename(config, "rms_norm_eps", "layer_norm_eps");
    set(config, "sliding_window", keys.required("attention.sliding_window")?);
    set(config, "sliding_window_pattern", 4);
    cohere(keys, sizes, config)
}

fn cohere(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    let scale = keys.number("logit_scale")?.filter(|&scale| scale > 0.0);
    let scale = scale.ok_or_else(|| keys.damaged("logit_scale", "missing or not positive"))?;
    set(config, "logit_scale", scale);
    turns_whole_heads(keys, sizes)
}

/// Families without groups: a key and value head for each query head.
fn has_no_groups(keys: &Keys, sizes: Sizes) -> Done {
    if sizes.kv_heads == sizes.heads {
        return Ok(());
    }
    let known = format!("the number of heads, {}", sizes.heads);
    Err(keys.unsupported("attention.head_count_kv", sizes.kv_heads.to_string(), &known))
}

pub(super) fn gpt2(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    for (from, to) in [
        ("hidden_size", "n_embd"),
        ("intermediate_size", "n_inner"),
        ("num_hidden_layers", "n_layer"),
        ("num_attention_heads", "n_head"),
        ("max_position_embeddings", "n_positions"),
        ("rms_norm_eps", "layer_norm_epsilon"),
    ] {
        rename(config, from, to);
    }
    for key in ["num_key_value_heads", "head_dim", "rope_theta", "rope_scaling", "attention_bias"] {
        config.remove(key);
    }
    config.remove("mlp_bias");
    config.remove("hidden_act");
    set(config, "activation_function", "gelu_new");
    has_no_groups(keys, sizes)
}

pub(super) fn gpt_neox(keys: &Keys, sizes: Sizes, config: &mut Config) -> Done {
    rename(config, "rms_norm_eps", "layer_norm_eps");
    rename(config, "rope_theta", "rotary_emb_base");
    for key in ["num_key_value_heads", "head_dim", "mlp_bias"] {
        config.remove(key);
    }
    set(config, "hidden_act", "gelu");
    set(config, "rotary_pct", sizes.rotated as f64 / sizes.head_dim as f64);
    set(config, "attention_bias", keys.has_tensor("blk.0.attn_qkv.bias"));
    let parallel = keys.flag("use_parallel_residual")?.unwrap_or(true);
    set(config, "use_parallel_residual", parallel);
    has_no_groups(keys, sizes)
}
