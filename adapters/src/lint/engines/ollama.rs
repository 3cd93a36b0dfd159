//! Ollama: `convert/convert.go` and `convert/convert_llama_adapter.go` of its repository.

use serde_json::Value;

use super::super::subject::{AdapterFacts, AdapterLayout, ModelFacts, ModelLayout};
use super::super::{Findings, Severity};
use super::llama_cpp::gguf_adapter;
use super::{FIX, MERGE, OTHER_KINDS, changed_base};

/// `model_type`s whose safetensors adapters it converts: its architectures `llama` and `gemma2`.
const ADAPTED: [&str; 4] = ["llama", "mistral", "mixtral", "gemma2"];
/// Architectures whose safetensors folders it converts.
const CONVERTED: [&str; 13] = [
    "LlamaForCausalLM",
    "Llama4ForConditionalGeneration",
    "Mistral3ForConditionalGeneration",
    "Ministral3ForCausalLM",
    "MixtralForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "Gemma3ForConditionalGeneration",
    "Phi3ForCausalLM",
    "Qwen2ForCausalLM",
    "CohereForCausalLM",
    "DeepseekV3ForCausalLM",
];
const TO_GGUF: &str =
    "`tunesmith adapter convert ADAPTER --to gguf --output FILE.gguf`, and `ADAPTER FILE.gguf`";

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if facts.layout == AdapterLayout::Gguf {
        gguf_adapter(facts, findings);
        return;
    }
    if let Some(base) = &facts.base {
        if !ADAPTED.contains(&base.model_type.as_str()) {
            let what = format!("safetensors adapters of `{}` are not converted", base.model_type);
            findings.refused(what, TO_GGUF);
        }
        if base.is_quantised {
            findings.note("the base is quantised: its adapter fits best on the same quantisation");
        }
    }
    let alpha = facts.config.get("lora_alpha");
    if alpha.is_some_and(|alpha| !alpha.is_null() && alpha.as_u64().is_none()) {
        findings.refused(format!("{} is no whole number", facts.shown("lora_alpha")), FIX);
    }
    if facts.asks_for("use_dora") {
        findings.wrong("it is DoRA, whose magnitudes are dropped", MERGE);
    }
    for key in ["modules_to_save", "trainable_token_indices", "lora_bias", "bias"] {
        if facts.asks_for(key) {
            findings.wrong(format!("{} is ignored", facts.shown(key)), MERGE);
        }
    }
    for (key, word) in OTHER_KINDS {
        if facts.asks_for(key) {
            findings.wrong(format!("it is {word} (`{key}`), which is ignored"), MERGE);
        }
    }
    changed_base(facts, findings, Severity::Wrong);
    for key in ["use_rslora", "rank_pattern", "alpha_pattern"] {
        if facts.asks_for(key) {
            findings
                .wrong(format!("`{key}` is ignored: `lora_alpha / r` scales every module"), FIX);
        }
    }
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    if facts.layout == ModelLayout::Gguf {
        super::llama_cpp::model(facts, findings);
        if !facts.files.iter().any(|name| name == "Modelfile") {
            findings.note(
                "there is no `Modelfile`: `ollama create` needs one, `FROM ./FILE.gguf` is enough",
            );
        }
        return;
    }
    let architecture = facts.config["architectures"][0].as_str().unwrap_or("none");
    if !CONVERTED.contains(&architecture) {
        let what = format!("safetensors folders of `{architecture}` are not converted");
        findings
            .refused(what, "merge to GGUF: `tunesmith merge ADAPTER --output DIR --format gguf`");
    }
    if facts.config["quantization_config"] != Value::Null {
        findings.refused("the weights are quantised", "merge to GGUF");
    }
}
