//! candle: the configurations in `candle-transformers` 0.11.

use super::super::Findings;
use super::super::subject::{ModelFacts, ModelLayout};
use super::MERGE;

/// `model_type`s that it has, as far as this program trains them.
const MODELS: [&str; 14] = [
    "deepseek_v2",
    "gemma",
    "gemma2",
    "gemma3",
    "gemma3_text",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo2",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
];
/// Architectures of GGUF files that its quantised models read.
const QUANTISED: [&str; 7] = ["gemma3", "glm4", "llama", "phi3", "qwen2", "qwen3", "qwen3moe"];
const FLATTEN: &str = "`tunesmith lint TARGET --for candle --fix --output DIR` writes both";

pub(super) fn adapter(findings: &mut Findings) {
    findings.refused("it has no loader of adapters", MERGE);
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    if facts.layout == ModelLayout::Gguf {
        let name = facts.gguf.as_ref().and_then(|gguf| gguf.texts.get("general.architecture"));
        let name = name.map_or("none", String::as_str);
        if !QUANTISED.contains(&name) {
            let what = format!("it reads no GGUF files of `{name}`");
            findings.refused(what, "merge to safetensors, or use llama.cpp");
        }
        return;
    }
    let model = facts.model_type();
    if !MODELS.contains(&model) {
        findings.refused(format!("it has no model `{model}`"), "use another engine, or GGUF");
        return;
    }
    let nested = "`rope_theta` stands only in `rope_parameters`, as transformers 5 writes it";
    if facts.has_nested_rope_theta_only() {
        if model == "llama" {
            findings.wrong(format!("{nested}: candle takes 10,000 in its place"), FLATTEN);
        } else {
            findings.refused(nested, FLATTEN);
        }
    }
    let scaling = &facts.config["rope_scaling"];
    let kind = scaling["rope_type"].as_str().or_else(|| scaling["type"].as_str());
    if model == "llama" && kind.is_some_and(|kind| !matches!(kind, "llama3" | "default")) {
        let what = format!("`rope_scaling` is `{}`, candle knows llama3", kind.unwrap_or_default());
        findings.refused(what, "use another engine");
    }
}
