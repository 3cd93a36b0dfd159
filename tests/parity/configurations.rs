//! Published configurations: how many parameters they are read as; and changes to them that must
//! be refused by name.

use serde_json::{Value, json};
use trainer::base_model::{DecoderConfig, linear_layers};

fn merged(base: &Value, changes: &Value) -> Value {
    let mut config = base.clone();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn llama2() -> Value {
    json!({
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": false, "hidden_act": "silu", "rope_scaling": null
    })
}

/// (name, configuration, parameters as counted from the published weights)
type Published = (&'static str, Value, u64);

fn published() -> Vec<Published> {
    llamas().into_iter().chain(others()).chain(with_experts()).collect()
}

fn mixtral() -> Value {
    json!({
        "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
        "vocab_size": 32000, "num_local_experts": 8, "num_experts_per_tok": 2,
        "sliding_window": null, "output_router_logits": false
    })
}

fn with_experts() -> Vec<Published> {
    let qwen3_30b = json!({
        "model_type": "qwen3_moe", "hidden_size": 2048, "intermediate_size": 6144,
        "moe_intermediate_size": 768, "num_hidden_layers": 48, "num_attention_heads": 32,
        "num_key_value_heads": 4, "head_dim": 128, "vocab_size": 151_936, "num_experts": 128,
        "num_experts_per_tok": 8, "norm_topk_prob": true, "tie_word_embeddings": false,
        "decoder_sparse_step": 1, "mlp_only_layers": []
    });
    vec![
        ("Mixtral-8x7B", mixtral(), 46_702_792_704),
        ("Qwen3-30B-A3B", qwen3_30b, 30_532_122_624),
        ("DeepSeek-V2-Lite", deepseek_v2_lite(), 15_706_484_224),
        ("DeepSeek-V3", deepseek_v3(), 671_026_419_200),
        ("Llama-4-Scout, its language model", scout(), 107_769_861_120),
        ("Llama-4-Maverick, its language model", maverick(), 400_711_848_960),
    ]
}

fn deepseek_v2_lite() -> Value {
    json!({
        "model_type": "deepseek_v2", "hidden_size": 2048, "intermediate_size": 10944,
        "moe_intermediate_size": 1408, "num_hidden_layers": 27, "num_attention_heads": 16,
        "num_key_value_heads": 16, "vocab_size": 102_400, "n_routed_experts": 64,
        "n_shared_experts": 2, "num_experts_per_tok": 6, "first_k_dense_replace": 1,
        "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "moe_layer_freq": 1, "n_group": 1, "topk_group": 1,
        "topk_method": "greedy", "norm_topk_prob": false, "scoring_func": "softmax",
        "routed_scaling_factor": 1.0, "rope_scaling": {"beta_fast": 32, "beta_slow": 1,
        "factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707,
        "original_max_position_embeddings": 4096, "type": "yarn"}
    })
}

fn deepseek_v3() -> Value {
    json!({
        "model_type": "deepseek_v3", "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "vocab_size": 129_280, "n_routed_experts": 256,
        "n_shared_experts": 1, "num_experts_per_tok": 8, "first_k_dense_replace": 3,
        "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
        "v_head_dim": 128, "moe_layer_freq": 1, "n_group": 8, "topk_group": 4,
        "topk_method": "noaux_tc", "norm_topk_prob": true, "scoring_func": "sigmoid",
        "routed_scaling_factor": 2.5, "num_nextn_predict_layers": 1,
        "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
        "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096, "type": "yarn"}
    })
}

fn llama4(text: &Value) -> Value {
    let shared = json!({
        "model_type": "llama4_text", "hidden_size": 5120, "intermediate_size": 8192,
        "intermediate_size_mlp": 16384, "num_hidden_layers": 48, "num_attention_heads": 40,
        "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 202_048,
        "num_experts_per_tok": 1, "no_rope_layers": [], "attention_chunk_size": 8192,
        "attn_scale": 0.1, "floor_scale": 8192, "rope_theta": 5e5
    });
    json!({
        "model_type": "llama4", "architectures": ["Llama4ForConditionalGeneration"],
        "text_config": merged(&shared, text), "vision_config": {"model_type": "llama4_vision_model"}
    })
}

fn scout() -> Value {
    llama4(&json!({
        "num_local_experts": 16, "interleave_moe_layer_step": 1, "use_qk_norm": true,
        "rope_scaling": {"factor": 16.0, "high_freq_factor": 1.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3"}
    }))
}

fn maverick() -> Value {
    llama4(&json!({
        "num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": false,
        "rope_scaling": null
    }))
}

fn llamas() -> Vec<Published> {
    let llama_13b = json!({
        "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "num_key_value_heads": 40
    });
    let llama_70b = json!({
        "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8
    });
    let llama3_8b = json!({
        "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128_256,
        "rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    });
    let llama3_405b = json!({
        "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126,
        "num_attention_heads": 128, "num_key_value_heads": 8, "vocab_size": 128_256
    });
    vec![
        ("Llama-2-7b", llama2(), 6_738_415_616),
        ("Llama-2-13b", merged(&llama2(), &llama_13b), 13_015_864_320),
        ("Llama-2-70b", merged(&llama2(), &llama_70b), 68_976_648_192),
        ("Llama-3.1-8B", merged(&llama2(), &llama3_8b), 8_030_261_248),
        ("Llama-3.1-405B", merged(&llama2(), &llama3_405b), 405_853_388_800),
    ]
}

fn others() -> Vec<Published> {
    let gemma3_4b = json!({
        "model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240,
            "model_type": "gemma3_text", "num_hidden_layers": 34, "sliding_window": 1024,
            "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
        "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"}
    });
    let qwen3_600m = json!({
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "head_dim": 128,
        "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8,
        "vocab_size": 151_936, "tie_word_embeddings": true, "rope_theta": 1_000_000,
        "use_sliding_window": false, "sliding_window": null, "max_window_layers": 28
    });
    let qwen25_500m = json!({
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2,
        "vocab_size": 151_936, "tie_word_embeddings": true, "use_sliding_window": false,
        "sliding_window": 32768, "max_window_layers": 24, "rope_theta": 1e6
    });
    let phi3_mini = json!({
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "vocab_size": 32064, "sliding_window": 2047, "rope_scaling": null,
        "original_max_position_embeddings": 4096, "max_position_embeddings": 4096
    });
    let gpt2 = json!({
        "model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "n_ctx": 1024, "vocab_size": 50257, "activation_function": "gelu_new"
    });
    let pythia_70m = json!({
        "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048,
        "num_hidden_layers": 6, "num_attention_heads": 8, "vocab_size": 50304, "rotary_pct": 0.25,
        "rotary_emb_base": 10000, "hidden_act": "gelu", "tie_word_embeddings": false,
        "use_parallel_residual": true, "max_position_embeddings": 2048
    });
    vec![
        ("Gemma-3-4b, its language model", gemma3_4b, 3_880_263_168),
        ("Qwen3-0.6B", qwen3_600m, 596_049_920),
        ("Qwen2.5-0.5B", qwen25_500m, 494_032_768),
        ("Phi-3-mini-4k", phi3_mini, 3_821_079_552),
        ("gpt2", gpt2, 124_439_808),
        ("pythia-70m", pythia_70m, 70_426_624),
    ]
}

#[test]
fn published_configurations_have_their_parameters() {
    for (name, config, parameters) in published() {
        let decoder = DecoderConfig::read(&config).unwrap();
        assert_eq!(decoder.parameters(), parameters, "{name}");
    }
}

#[test]
fn a_token_passes_through_its_experts_alone() {
    let active = |name: &str| {
        let config = published().into_iter().find(|row| row.0 == name).unwrap().1;
        DecoderConfig::read(&config).unwrap().active_parameters()
    };
    assert_eq!(active("Mixtral-8x7B"), 12_879_925_248);
    assert_eq!(active("Qwen3-30B-A3B"), 3_353_032_704);
    assert_eq!(active("Llama-2-7b"), 6_738_415_616);
    assert_eq!(active("DeepSeek-V2-Lite"), 2_661_150_208);
    assert_eq!(active("DeepSeek-V3"), 37_552_297_472);
    assert_eq!(active("Llama-4-Scout, its language model"), 17_172_894_720);
    assert_eq!(active("Llama-4-Maverick, its language model"), 17_184_691_200);
}

/// Of rank 16 on every linear layer but the head. Llama 4's experts are parameters, whose rank is
/// shared out to 16 of them.
#[test]
fn adapters_train_as_many_parameters_as_their_factors_have() {
    let lora = serde_json::from_value(json!({"rank": 16})).unwrap();
    let trained = |name: &str| -> usize {
        let config = published().into_iter().find(|row| row.0 == name).unwrap().1;
        let layers = linear_layers(&DecoderConfig::read(&config).unwrap());
        let targets = adapters::select_targets(&lora, &layers).unwrap();
        targets.iter().map(|target| target.rank * (target.d_in + target.d_out)).sum()
    };
    for (name, parameters) in [
        ("Llama-2-7b", 39_976_960),
        ("Llama-2-13b", 62_586_880),
        ("Llama-2-70b", 207_093_760),
        ("Llama-3.1-8B", 41_943_040),
        ("Llama-3.1-405B", 623_443_968),
        ("Gemma-3-4b, its language model", 29_802_496),
        ("Mixtral-8x7B", 240_123_904),
        ("Qwen3-30B-A3B", 843_841_536),
        ("DeepSeek-V3", 6_694_630_400),
        ("Llama-4-Scout, its language model", 82_575_360),
    ] {
        assert_eq!(trained(name), parameters, "{name}");
    }
}

/// What must be refused: a configuration, a change, and the key that the message names.
#[test]
fn what_would_be_computed_wrongly_is_refused_by_name() {
    let llama = llama2();
    let of = |name: &str| published().into_iter().find(|row| row.0 == name).unwrap().1;
    let gemma = of("Gemma-3-4b, its language model");
    let cases = [
        (&llama, json!({"model_type": "mamba"}), "mamba"),
        (&llama, json!({"hidden_act": "relu2"}), "hidden_act"),
        (&llama, json!({"num_key_value_heads": 5}), "num_key_value_heads"),
        (&llama, json!({"num_hidden_layers": 1_000_000}), "num_hidden_layers"),
        (&llama, json!({"partial_rotary_factor": 0.5}), "partial_rotary_factor"),
        (&llama, json!({"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}), "rope_type"),
        (&llama, json!({"rope_scaling": {"type": "linear"}}), "factor"),
        (
            &llama,
            json!({"rope_scaling": {"type": "longrope", "short_factor": [1.0], "long_factor": []}}),
            "short_factor",
        ),
        (&of("Qwen3-0.6B"), json!({"layer_types": ["full_attention"]}), "layer_types"),
        (&of("Qwen3-0.6B"), json!({"layer_types": vec!["sliding_attention"; 28]}), "layer_types"),
        (
            &of("Qwen3-0.6B"),
            json!({"layer_types": vec!["linear_attention"; 28]}),
            "linear_attention",
        ),
        (&of("Phi-3-mini-4k"), json!({"attention_bias": true}), "attention_bias"),
        (&of("Phi-3-mini-4k"), json!({"rope_scaling": {"type": "linear"}}), "rope_type"),
        (&of("Phi-3-mini-4k"), json!({"partial_rotary_factor": 0.1}), "partial_rotary_factor"),
        (&of("gpt2"), json!({"activation_function": "silu"}), "activation_function"),
        (&of("gpt2"), json!({"add_cross_attention": true}), "add_cross_attention"),
        (&of("gpt2"), json!({"n_head": 7}), "n_head"),
        (&gemma, json!({"text_config": {"final_logit_softcapping": 30.0}}), "text_config"),
        (&gemma, json!({"text_config": 3}), "text_config"),
        (&mixtral(), json!({"num_experts_per_tok": 9}), "num_experts_per_tok"),
        (&mixtral(), json!({"num_local_experts": 100_000}), "num_experts"),
        (&of("Qwen3-30B-A3B"), json!({"mlp_only_layers": 3}), "mlp_only_layers"),
        (
            &gemma,
            json!({"text_config": {"num_hidden_layers": 2, "use_bidirectional_attention": true}}),
            "use_bidirectional_attention",
        ),
    ];
    for (base, change, key) in cases {
        assert_refused(base, &change, key);
    }
}

fn assert_refused(base: &Value, change: &Value, key: &str) {
    let error = DecoderConfig::read(&merged(base, change)).unwrap_err().to_string();
    assert!(error.contains(key), "{change}: {error}");
}

#[test]
fn experts_and_latent_rows_that_would_be_computed_wrongly_are_refused_by_name() {
    let cases = [
        (&deepseek_v3(), json!({"num_key_value_heads": 8}), "num_key_value_heads"),
        (&deepseek_v3(), json!({"scoring_func": "softmax"}), "scoring_func"),
        (&deepseek_v3(), json!({"topk_method": "greedy"}), "topk_method"),
        (&deepseek_v3(), json!({"n_group": 7}), "n_group"),
        (&deepseek_v3(), json!({"topk_group": 9}), "topk_group"),
        (&deepseek_v3(), json!({"moe_layer_freq": 2}), "moe_layer_freq"),
        (&deepseek_v3(), json!({"qk_rope_head_dim": 63}), "qk_rope_head_dim"),
        (&deepseek_v2_lite(), json!({"norm_topk_prob": true}), "norm_topk_prob"),
        (&deepseek_v2_lite(), json!({"topk_method": "noaux_tc"}), "topk_method"),
        (&llama4(&json!({"layer_types": ["x"]})), json!({}), "layer_types"),
        (&llama4(&json!({"attention_chunk_size": null})), json!({}), "attention_chunk_size"),
        (&llama4(&json!({"moe_layers": [-1]})), json!({}), "moe_layers"),
        (
            &llama4(&json!({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}})),
            json!({}),
            "rope_type",
        ),
        (&deepseek_v3(), json!({"hidden_act": "relu"}), "hidden_act"),
        (&deepseek_v3(), json!({"rope_scaling": {"type": "ntk", "factor": 2.0}}), "rope_type"),
    ];
    for (base, change, key) in cases {
        assert_refused(base, &change, key);
    }
}

#[test]
fn no_value_of_any_key_panics() {
    let odd = [
        json!(null),
        json!(0),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!([]),
        json!({}),
        json!(true),
        json!([[[]]]),
        json!({"rope_type": 3}),
        json!(1e308),
    ];
    let texts = [scout()["text_config"].clone()].into_iter();
    for config in published().into_iter().map(|row| row.1).chain(texts) {
        for key in config.as_object().unwrap().keys() {
            for value in &odd {
                let _ = DecoderConfig::read(&merged(&config, &json!({key.as_str(): value})));
            }
        }
    }
}
