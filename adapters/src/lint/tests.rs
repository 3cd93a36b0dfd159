use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;
use crate::peft::{AdapterWeights, LoraFactors};
use crate::{read_adapter, write_adapter};

const Q: &str = "model.layers.0.self_attn.q_proj";
const V: &str = "model.layers.0.self_attn.v_proj";

/// A small adapter whose config has `changes` in it.
fn adapter(changes: &Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let mut weights = AdapterWeights::default();
    for (module, rank) in [(Q, 4), (V, 2)] {
        let value = |i: usize| (i as f32 * 0.37).sin();
        let factors = LoraFactors {
            a: (0..rank * 6).map(value).collect(),
            b: (0..5 * rank).map(value).collect(),
            rank,
            d_in: 6,
            d_out: 5,
        };
        weights.modules.insert(module.to_owned(), factors);
    }
    let plain = json!({
        "peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2}, "base_model_name_or_path": "base",
    });
    fs::write(dir.path().join("adapter_config.json"), plain.to_string()).unwrap();
    let config = {
        fs::write(dir.path().join("adapter_model.safetensors"), b"").unwrap();
        crate::peft::PeftConfig { ..config_of(dir.path()) }
    };
    write_adapter(dir.path(), &config, &weights).unwrap();
    let path = dir.path().join("adapter_config.json");
    let mut keys: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        keys[key] = value.clone();
    }
    fs::write(&path, keys.to_string()).unwrap();
    dir
}

fn config_of(folder: &Path) -> crate::PeftConfig {
    let text = fs::read(folder.join("adapter_config.json")).unwrap();
    crate::peft::parse_config(folder, &text).unwrap()
}

fn verdict(folder: &Path, engine: Engine) -> (Option<Severity>, String) {
    let report = lint(&Subject::open(folder, None).unwrap(), engine);
    let what: Vec<_> = report.findings.iter().map(|finding| finding.what.clone()).collect();
    (report.worst(), what.join("; "))
}

#[test]
fn a_plain_adapter_is_taken_by_those_that_read_peft() {
    let dir = adapter(&json!({"rank_pattern": {}}));
    for engine in [Engine::Vllm, Engine::MistralRs, Engine::Ollama] {
        assert_eq!(verdict(dir.path(), engine), (None, String::new()), "{engine:?}");
    }
    for (engine, part) in [
        (Engine::LlamaCpp, "GGUF files only"),
        (Engine::Mlx, "its own layout"),
        (Engine::Candle, "no loader of adapters"),
    ] {
        let (worst, what) = verdict(dir.path(), engine);
        assert!(worst == Some(Severity::Refused) && what.contains(part), "{engine:?}: {what}");
    }
    assert_eq!(verdict(dir.path(), Engine::Groq).0, Some(Severity::Note));
}

/// Each row: what the config says, an engine, its verdict, and a part of the finding.
#[test]
fn what_an_engine_does_not_know_is_named() {
    use Severity::{Refused, Setting, Wrong};
    let rows = [
        (json!({"use_dora": true}), Engine::Vllm, Refused, "DoRA"),
        (json!({"use_dora": true}), Engine::Ollama, Wrong, "magnitudes"),
        (json!({"modules_to_save": ["lm_head"]}), Engine::Vllm, Refused, "modules_to_save"),
        (json!({"modules_to_save": ["lm_head"]}), Engine::LlamaCpp, Refused, "whole tensors"),
        (json!({"bias": "all"}), Engine::Vllm, Refused, "biases"),
        (json!({"bias": "lora_only"}), Engine::MistralRs, Refused, "lora_only"),
        (json!({"r": 24, "rank_pattern": {}}), Engine::Vllm, Setting, "rank 24"),
        (json!({"r": 1000, "rank_pattern": {}}), Engine::Vllm, Refused, "rank 1000"),
        (json!({"r": 300}), Engine::MistralRs, Setting, "rank 300"),
        (json!({"alpha_pattern": {"q_proj": 4}}), Engine::Vllm, Wrong, "alpha_pattern"),
        (json!({}), Engine::Vllm, Wrong, "rank_pattern"),
        (json!({"use_rslora": true}), Engine::Ollama, Wrong, "use_rslora"),
        (json!({"lora_alpha": 8.5}), Engine::Ollama, Refused, "lora_alpha"),
        (json!({"init_lora_weights": "pissa"}), Engine::MistralRs, Refused, "pissa"),
        (json!({"init_lora_weights": "pissa_niter_4"}), Engine::Vllm, Wrong, "changed base"),
        (json!({"layer_replication": [[0, 2]]}), Engine::Mlx, Refused, "replicated"),
        (json!({"target_parameters": ["x.y"]}), Engine::MistralRs, Refused, "no experts"),
        (json!({"peft_type": "IA3"}), Engine::Vllm, Refused, "IA3"),
    ];
    for (changes, engine, severity, part) in rows {
        let dir = adapter(&changes);
        let (worst, what) = verdict(dir.path(), engine);
        assert_eq!(worst, Some(severity), "{changes} {engine:?}: {what}");
        assert!(what.contains(part), "{changes} {engine:?}: {what}");
    }
}

#[test]
fn settings_name_the_next_value_that_the_engine_takes() {
    let dir = adapter(&json!({"r": 24, "rank_pattern": {}}));
    let report = lint(&Subject::open(dir.path(), None).unwrap(), Engine::Vllm);
    assert_eq!(report.findings[0].fix.as_deref(), Some("start it with `--max-lora-rank 32`"));
    assert!(report.is_usable());
}

fn update(folder: &Path) -> Vec<f64> {
    let (config, weights) = read_adapter(folder).unwrap();
    let mut out = Vec::new();
    for (module, f) in &weights.modules {
        for row in 0..f.d_out {
            for column in 0..f.d_in {
                let terms = (0..f.rank).map(|k| {
                    f64::from(f.b[row * f.rank + k]) * f64::from(f.a[k * f.d_in + column])
                });
                out.push(config.scale(module) * terms.sum::<f64>());
            }
        }
    }
    out
}

#[test]
fn a_fix_changes_the_layout_and_not_the_update() {
    let cases = [
        (json!({"rank_pattern": {"v_proj": 2}, "alpha_pattern": {"v_proj": 4}}), 0.0),
        (json!({"alpha_pattern": {"q_proj": 5}}), 1e-6),
        (json!({"use_rslora": true}), 1e-6),
        (json!({"use_rslora": true, "r": 4, "rank_pattern": {"v_proj": 2}}), 1e-6),
    ];
    for (changes, tolerance) in cases {
        let dir = adapter(&changes);
        let fix = fix(dir.path()).unwrap();
        assert!(!fix.changes.is_empty());
        let out = tempfile::tempdir().unwrap();
        write_adapter(out.path(), &fix.fixed.0, &fix.fixed.1).unwrap();
        for engine in [Engine::Vllm, Engine::Ollama, Engine::MistralRs] {
            assert_eq!(verdict(out.path(), engine), (None, String::new()), "{changes}");
        }
        for (before, after) in update(dir.path()).into_iter().zip(update(out.path())) {
            assert!((before - after).abs() <= tolerance * before.abs(), "{changes}");
        }
    }
    let dir = adapter(&json!({"rank_pattern": {}}));
    let (config, mut weights) = read_adapter_of_one_rank(dir.path());
    weights.modules.remove(V);
    write_adapter(dir.path(), &config, &weights).unwrap();
    assert_eq!(fix(dir.path()).unwrap().changes, Vec::<String>::new());
}

fn read_adapter_of_one_rank(folder: &Path) -> (crate::PeftConfig, AdapterWeights) {
    let mut keys: Value =
        serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
    keys["rank_pattern"] = json!({"v_proj": 2});
    fs::write(folder.join("adapter_config.json"), keys.to_string()).unwrap();
    let (mut config, weights) = read_adapter(folder).unwrap();
    config.rank_pattern = crate::ModulePatterns::default();
    (config, weights)
}

/// A model folder in f32 with an embedding of 8 rows.
fn model(config: &Value, tokens: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let vocabulary: serde_json::Map<_, _> =
        (0..tokens).map(|id| (format!("t{id}"), json!(id))).collect();
    let tokenizer = json!({"model": {"vocab": vocabulary}, "added_tokens": []});
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    fs::write(dir.path().join("generation_config.json"), "{}").unwrap();
    fs::write(dir.path().join("chat_template.jinja"), "x").unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let spec = crate::safetensors_file::TensorSpec {
        name: "model.embed_tokens.weight".to_owned(),
        dtype: safetensors::Dtype::F32,
        shape: vec![8, 2],
    };
    let mut bytes = crate::safetensors_file::header(std::slice::from_ref(&spec));
    bytes.resize(bytes.len() + 64, 0);
    fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    dir
}

fn llama(changes: &Value) -> Value {
    let mut config = json!({
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 8,
        "rope_theta": 10000.0,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

#[test]
fn models_are_looked_at_for_what_engines_read() {
    use Severity::{Refused, Setting, Wrong};
    let dir = model(&llama(&json!({})), 8);
    for engine in [Engine::Ollama, Engine::Mlx, Engine::MistralRs, Engine::Candle] {
        assert_eq!(verdict(dir.path(), engine), (None, String::new()), "{engine:?}");
    }
    assert_eq!(verdict(dir.path(), Engine::Vllm).0, Some(Setting));
    let nested = json!({"rope_theta": null, "rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0}});
    let rows = [
        (json!({}), 9, Engine::Vllm, Refused, "ids up to 8, the embedding 8 rows"),
        (json!({"vocab_size": 9}), 8, Engine::Mlx, Refused, "`vocab_size`"),
        (json!({"architectures": []}), 8, Engine::Vllm, Refused, "architectures"),
        (nested.clone(), 8, Engine::Candle, Wrong, "10,000"),
        (nested.clone(), 8, Engine::MistralRs, Refused, "rope_parameters"),
        (json!({"model_type": "smollm3"}), 8, Engine::Candle, Refused, "no model `smollm3`"),
        (json!({"architectures": ["GPT2LMHeadModel"]}), 8, Engine::Ollama, Refused, "GPT2"),
        (json!({"rope_scaling": {"rope_type": "yarn"}}), 8, Engine::Candle, Refused, "yarn"),
        (json!({}), 8, Engine::LlamaCpp, Refused, "GGUF files only"),
        (json!({}), 8, Engine::Groq, Refused, "its own base models"),
    ];
    for (changes, tokens, engine, severity, part) in rows {
        let dir = model(&llama(&changes), tokens);
        let (worst, what) = verdict(dir.path(), engine);
        assert!(worst == Some(severity) && what.contains(part), "{changes} {engine:?}: {what}");
    }

    let dir = model(&llama(&nested), 8);
    let Subject::Model(facts) = Subject::open(dir.path(), None).unwrap() else { panic!() };
    let fixed = facts.fixed_config().unwrap().fixed;
    assert_eq!(fixed["rope_theta"], 5e5);
    assert_eq!(fixed["rope_scaling"], json!({"rope_type": "llama3", "factor": 8.0}));
    let dir = model(&fixed, 8);
    assert_eq!(verdict(dir.path(), Engine::Candle), (None, String::new()));
}

#[test]
fn adapters_of_other_layouts_are_known_by_their_files() {
    let dir = adapter(&json!({}));
    let path = dir.path().join("adapter_config.json");
    fs::write(&path, r#"{"fine_tune_type": "lora", "num_layers": 1, "lora_parameters": {}}"#)
        .unwrap();
    fs::rename(
        dir.path().join("adapter_model.safetensors"),
        dir.path().join("adapters.safetensors"),
    )
    .unwrap();
    assert_eq!(verdict(dir.path(), Engine::Mlx).0, None);
    let (worst, what) = verdict(dir.path(), Engine::Vllm);
    assert!(worst == Some(Severity::Refused) && what.contains("no PEFT folder"), "{what}");
}
