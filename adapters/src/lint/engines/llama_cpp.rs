//! llama.cpp: `src/llama-adapter.cpp` and `convert_lora_to_gguf.py` for adapters; `gguf` metadata
//! for models.

use super::super::subject::{AdapterFacts, AdapterLayout, ModelFacts, ModelLayout};
use super::super::{Findings, Severity};
use super::{MERGE, OTHER_KINDS, changed_base};

const TO_GGUF: &str = "`tunesmith merge ADAPTER --output DIR --format gguf`";

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if facts.layout == AdapterLayout::Gguf {
        gguf_adapter(facts, findings);
        return;
    }
    if facts.asks_for("use_dora") {
        findings.refused("it is DoRA, which GGUF adapters cannot hold", TO_GGUF);
    }
    if facts.asks_for("modules_to_save") || facts.asks_for("trainable_token_indices") {
        findings
            .refused("it trains whole tensors or tokens, which GGUF adapters cannot hold", TO_GGUF);
    }
    if facts.asks_for("bias") || facts.asks_for("lora_bias") {
        findings.refused("it trains biases, which GGUF adapters cannot hold", TO_GGUF);
    }
    for (key, word) in OTHER_KINDS {
        if facts.asks_for(key) {
            findings.refused(format!("it is {word} (`{key}`)"), MERGE);
        }
    }
    changed_base(facts, findings, Severity::Refused);
    if findings.0.is_empty() {
        findings.refused(
            "it reads adapters as GGUF files only",
            "`tunesmith adapter convert ADAPTER --to gguf --output FILE.gguf` (scales are folded in)",
        );
    }
}

pub(super) fn gguf_adapter(facts: &AdapterFacts, findings: &mut Findings) {
    let text = |key: &str| facts.config.get(key).and_then(|value| value.as_str());
    if text("adapter.type") != Some("lora") {
        findings.refused(facts.shown("adapter.type"), "only LoRA adapters are read");
    }
    if text("general.architecture").is_none() {
        findings.refused("`general.architecture` is missing", "convert the adapter again");
    }
    for name in facts.tensors.keys() {
        let partner = name
            .strip_suffix(".lora_a")
            .map(|stem| format!("{stem}.lora_b"))
            .or_else(|| name.strip_suffix(".lora_b").map(|stem| format!("{stem}.lora_a")));
        if partner.is_none_or(|partner| !facts.tensors.contains_key(&partner)) {
            findings
                .refused(format!("tensor `{name}` has no partner"), "convert the adapter again");
            return;
        }
    }
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    let Some(gguf) = &facts.gguf else {
        findings.refused(
            "it reads GGUF files only",
            "`tunesmith merge ADAPTER --output DIR --format gguf`, or `convert_hf_to_gguf.py`",
        );
        return;
    };
    debug_assert_eq!(facts.layout, ModelLayout::Gguf);
    let model = gguf.texts.get("tokenizer.ggml.model").map(String::as_str);
    if model.is_none() {
        findings
            .refused("the file holds no tokenizer", "convert the model again, with its tokenizer");
    }
    if model == Some("gpt2") && !gguf.keys.contains("tokenizer.ggml.pre") {
        findings.wrong(
            "`tokenizer.ggml.pre` is missing: text is cut by a rule that may not be the model's",
            "convert the model again with a newer converter",
        );
    }
    if !gguf.keys.contains("tokenizer.ggml.eos_token_id") {
        findings.note("`tokenizer.ggml.eos_token_id` is missing: answers may not end");
    }
}
