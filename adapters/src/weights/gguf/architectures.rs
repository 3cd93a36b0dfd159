//! The architectures: names and layouts, as llama.cpp's converter writes them.

use super::architecture::{Architecture, FUSED, KEY, Layout, QUERY};
use super::experts::{EXPANSION_IN_ONE, ExpertLayers, ExpertTensors};
use super::family_config;

type Names = &'static [(&'static str, &'static str)];

const TENSORS: Names =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const NORM: (&str, &str) = ("attn_norm", "input_layernorm");
const Q: (&str, &str) = (QUERY, "self_attn.q_proj");
const K: (&str, &str) = (KEY, "self_attn.k_proj");
const V: (&str, &str) = ("attn_v", "self_attn.v_proj");
const OUTPUT: (&str, &str) = ("attn_output", "self_attn.o_proj");
const Q_NORM: (&str, &str) = ("attn_q_norm", "self_attn.q_norm");
const K_NORM: (&str, &str) = ("attn_k_norm", "self_attn.k_norm");
const FFN_NORM: (&str, &str) = ("ffn_norm", "post_attention_layernorm");
const GATE: (&str, &str) = ("ffn_gate", "mlp.gate_proj");
const UP: (&str, &str) = ("ffn_up", "mlp.up_proj");
const DOWN: (&str, &str) = ("ffn_down", "mlp.down_proj");
/// Norms behind attention and feed-forward.
const AFTER_ATTENTION: (&str, &str) = ("post_attention_norm", "post_attention_layernorm");
const AFTER_FFN: (&str, &str) = ("post_ffw_norm", "post_feedforward_layernorm");
/// The norm before the feed-forward half where there is one behind attention, too.
const BEFORE_FFN: (&str, &str) = ("ffn_norm", "pre_feedforward_layernorm");

pub(super) const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    hf_class: "LlamaForCausalLM",
    layout: Layout::InterleavedPairs,
    blocks: "model.layers",
    tensors: TENSORS,
    block_tensors: &[NORM, Q, K, V, OUTPUT, FFN_NORM, GATE, UP, DOWN],
    experts: None,
    expressed: &[],
    configure: family_config::llama,
};

const MLP_EXPERTS: ExpertTensors = ExpertTensors {
    prefix: "mlp.experts",
    layers: ExpertLayers::Separate(["gate_proj", "up_proj", "down_proj"]),
};
/// The router.
const ROUTER: (&str, &str) = ("ffn_gate_inp", "mlp.gate");

pub(super) const MIXTRAL: Architecture = Architecture {
    model_type: "mixtral",
    hf_class: "MixtralForCausalLM",
    block_tensors: &[NORM, Q, K, V, OUTPUT, FFN_NORM, ("ffn_gate_inp", "block_sparse_moe.gate")],
    experts: Some(ExpertTensors {
        prefix: "block_sparse_moe.experts",
        layers: ExpertLayers::Separate(["w1", "w3", "w2"]),
    }),
    expressed: &["expert_count"],
    configure: family_config::mixtral,
    ..LLAMA
};

pub(super) const QWEN2: Architecture = Architecture {
    name: "qwen2",
    model_type: "qwen2",
    hf_class: "Qwen2ForCausalLM",
    layout: Layout::Same,
    configure: family_config::qwen,
    ..LLAMA
};

pub(super) const QWEN3: Architecture = Architecture {
    name: "qwen3",
    model_type: "qwen3",
    hf_class: "Qwen3ForCausalLM",
    block_tensors: &[NORM, Q, K, V, OUTPUT, Q_NORM, K_NORM, FFN_NORM, GATE, UP, DOWN],
    ..QWEN2
};

pub(super) const QWEN3_MOE: Architecture = Architecture {
    name: "qwen3moe",
    model_type: "qwen3_moe",
    hf_class: "Qwen3MoeForCausalLM",
    block_tensors: &[NORM, Q, K, V, OUTPUT, Q_NORM, K_NORM, FFN_NORM, ROUTER],
    experts: Some(MLP_EXPERTS),
    expressed: &["expert_count"],
    configure: family_config::qwen3_moe,
    ..QWEN2
};

/// `DeepSeek` V2, too; what the file says of routing tells which.
pub(super) const DEEPSEEK2: Architecture = Architecture {
    name: "deepseek2",
    model_type: "deepseek_v3",
    hf_class: "DeepseekV3ForCausalLM",
    layout: Layout::Same,
    block_tensors: &[
        NORM,
        Q,
        ("attn_q_a", "self_attn.q_a_proj"),
        ("attn_q_a_norm", "self_attn.q_a_layernorm"),
        ("attn_q_b", "self_attn.q_b_proj"),
        ("attn_kv_a_mqa", "self_attn.kv_a_proj_with_mqa"),
        ("attn_kv_a_norm", "self_attn.kv_a_layernorm"),
        EXPANSION_IN_ONE,
        OUTPUT,
        FFN_NORM,
        GATE,
        UP,
        DOWN,
        ROUTER,
        ("ffn_gate_shexp", "mlp.shared_experts.gate_proj"),
        ("ffn_up_shexp", "mlp.shared_experts.up_proj"),
        ("ffn_down_shexp", "mlp.shared_experts.down_proj"),
    ],
    experts: Some(MLP_EXPERTS),
    expressed: &[
        "expert_count",
        "expert_shared_count",
        "expert_group_count",
        "expert_group_used_count",
        "expert_weights_scale",
        "expert_gating_func",
        "leading_dense_block_count",
        "rope.scaling.yarn_log_multiplier",
    ],
    configure: family_config::deepseek2,
    ..LLAMA
};

pub(super) const LLAMA4: Architecture = Architecture {
    name: "llama4",
    model_type: "llama4_text",
    hf_class: "Llama4ForCausalLM",
    layout: Layout::Same,
    block_tensors: &[
        NORM,
        Q,
        K,
        V,
        OUTPUT,
        FFN_NORM,
        ("ffn_gate", "feed_forward.gate_proj"),
        ("ffn_up", "feed_forward.up_proj"),
        ("ffn_down", "feed_forward.down_proj"),
        ("ffn_gate_inp", "feed_forward.router"),
        ("ffn_gate_shexp", "feed_forward.shared_expert.gate_proj"),
        ("ffn_up_shexp", "feed_forward.shared_expert.up_proj"),
        ("ffn_down_shexp", "feed_forward.shared_expert.down_proj"),
    ],
    experts: Some(ExpertTensors { prefix: "feed_forward.experts", layers: ExpertLayers::Together }),
    expressed: &["expert_count", "attention.sliding_window", "expert_gating_func"],
    configure: family_config::llama4,
    ..LLAMA
};

pub(super) const SMOLLM3: Architecture = Architecture {
    name: "smollm3",
    model_type: "smollm3",
    hf_class: "SmolLM3ForCausalLM",
    configure: family_config::smollm3,
    ..LLAMA
};

pub(super) const PHI3: Architecture = Architecture {
    name: "phi3",
    model_type: "phi3",
    hf_class: "Phi3ForCausalLM",
    layout: Layout::Same,
    block_tensors: &[
        NORM,
        (FUSED, "self_attn.qkv_proj"),
        OUTPUT,
        FFN_NORM,
        ("ffn_up", "mlp.gate_up_proj"),
        DOWN,
    ],
    expressed: &["attention.sliding_window"],
    configure: family_config::phi3,
    ..LLAMA
};

pub(super) const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    model_type: "gemma2",
    hf_class: "Gemma2ForCausalLM",
    layout: Layout::NormsPlusOne,
    block_tensors: &[NORM, Q, K, V, OUTPUT, AFTER_ATTENTION, BEFORE_FFN, AFTER_FFN, GATE, UP, DOWN],
    expressed: &["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"],
    configure: family_config::gemma2,
    ..LLAMA
};

pub(super) const GEMMA3: Architecture = Architecture {
    name: "gemma3",
    model_type: "gemma3_text",
    hf_class: "Gemma3ForCausalLM",
    block_tensors: &[
        NORM,
        Q,
        K,
        V,
        OUTPUT,
        Q_NORM,
        K_NORM,
        AFTER_ATTENTION,
        BEFORE_FFN,
        AFTER_FFN,
        GATE,
        UP,
        DOWN,
    ],
    expressed: &["attention.sliding_window", "final_logit_softcapping"],
    configure: family_config::gemma3,
    ..GEMMA2
};

pub(super) const OLMO2: Architecture = Architecture {
    name: "olmo2",
    model_type: "olmo2",
    hf_class: "Olmo2ForCausalLM",
    layout: Layout::Same,
    block_tensors: &[Q, K, V, OUTPUT, Q_NORM, K_NORM, AFTER_ATTENTION, AFTER_FFN, GATE, UP, DOWN],
    ..LLAMA
};

pub(super) const GRANITE: Architecture = Architecture {
    name: "granite",
    model_type: "granite",
    hf_class: "GraniteForCausalLM",
    expressed: &["embedding_scale", "residual_scale", "logit_scale", "attention.scale"],
    configure: family_config::granite,
    ..LLAMA
};

pub(super) const COMMAND_R: Architecture = Architecture {
    name: "command-r",
    model_type: "cohere",
    hf_class: "CohereForCausalLM",
    layout: Layout::Same,
    block_tensors: &[NORM, Q, K, V, OUTPUT, Q_NORM, K_NORM, GATE, UP, DOWN],
    expressed: &["logit_scale"],
    configure: family_config::command_r,
    ..LLAMA
};

pub(super) const COHERE2: Architecture = Architecture {
    name: "cohere2",
    model_type: "cohere2",
    hf_class: "Cohere2ForCausalLM",
    block_tensors: &[NORM, Q, K, V, OUTPUT, GATE, UP, DOWN],
    expressed: &["logit_scale", "attention.sliding_window"],
    configure: family_config::cohere2,
    ..COMMAND_R
};

pub(super) const GPT2: Architecture = Architecture {
    name: "gpt2",
    model_type: "gpt2",
    hf_class: "GPT2LMHeadModel",
    layout: Layout::LinearTransposed,
    blocks: "transformer.h",
    tensors: &[
        ("token_embd", "transformer.wte"),
        ("position_embd", "transformer.wpe"),
        ("output_norm", "transformer.ln_f"),
        ("output", "lm_head"),
    ],
    block_tensors: &[
        ("attn_norm", "ln_1"),
        (FUSED, "attn.c_attn"),
        ("attn_output", "attn.c_proj"),
        ("ffn_norm", "ln_2"),
        ("ffn_up", "mlp.c_fc"),
        ("ffn_down", "mlp.c_proj"),
    ],
    experts: None,
    expressed: &[],
    configure: family_config::gpt2,
};

pub(super) const GPT_NEOX: Architecture = Architecture {
    name: "gptneox",
    model_type: "gpt_neox",
    hf_class: "GPTNeoXForCausalLM",
    layout: Layout::HeadsApart,
    blocks: "gpt_neox.layers",
    tensors: &[
        ("token_embd", "gpt_neox.embed_in"),
        ("output_norm", "gpt_neox.final_layer_norm"),
        ("output", "lm_head"),
    ],
    block_tensors: &[
        ("attn_norm", "input_layernorm"),
        (FUSED, "attention.query_key_value"),
        ("attn_output", "attention.dense"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ],
    experts: None,
    expressed: &[],
    configure: family_config::gpt_neox,
};
