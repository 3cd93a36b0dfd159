//! Apple's MLX: `mlx_lm/tuner/utils.py` (adapters) and `mlx_lm/models` (version 0.32) for models.

use super::super::subject::{AdapterFacts, AdapterLayout, ModelFacts, ModelLayout};
use super::super::{Findings, Severity};
use super::{MERGE, OTHER_KINDS, changed_base};

/// `model_type`s that it has, as far as this program trains them; it takes Mistral for Llama.
const MODELS: [&str; 23] = [
    "cohere",
    "cohere2",
    "deepseek_v2",
    "deepseek_v3",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "granite",
    "llama",
    "llama4",
    "llama4_text",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "stablelm",
];

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if facts.layout == AdapterLayout::Mlx {
        if facts.ranks().len() > 1 {
            let what = format!("ranks differ ({:?}), and it knows one", facts.ranks());
            findings.refused(what, "convert the adapter again: ranks are filled up with zeros");
        }
        return;
    }
    for key in ["modules_to_save", "trainable_token_indices", "bias", "lora_bias"] {
        if facts.asks_for(key) {
            findings.refused(facts.shown(key), MERGE);
        }
    }
    if facts.asks_for("use_dora") {
        findings.refused("DoRA is not converted", MERGE);
    }
    for (key, word) in OTHER_KINDS {
        if facts.asks_for(key) {
            findings.refused(format!("it is {word} (`{key}`)"), MERGE);
        }
    }
    changed_base(facts, findings, Severity::Refused);
    if findings.0.is_empty() {
        findings.refused(
            "it reads adapters in its own layout only",
            "`tunesmith adapter convert ADAPTER --to mlx --output DIR`",
        );
    }
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    if facts.layout == ModelLayout::Gguf {
        findings.refused(
            "it reads no GGUF files",
            "merge to safetensors: `tunesmith merge ADAPTER --output DIR`",
        );
        return;
    }
    if !MODELS.contains(&facts.model_type()) {
        findings.refused(format!("it has no model `{}`", facts.model_type()), "use another engine");
    }
}
