//! One file an engine: what it makes of adapters and of models.

mod candle;
mod groq;
mod llama_cpp;
mod mistral_rs;
mod mlx;
mod ollama;
mod vllm;

use serde_json::Value;

use super::subject::{AdapterFacts, AdapterLayout, ModelFacts, ModelLayout};
use super::{Engine, Findings, Severity};

/// The way out of everything an engine cannot do with an adapter.
const MERGE: &str = "merge it: `tunesmith merge ADAPTER --output DIR`";
/// What brings an adapter to one scale and rank.
const FIX: &str =
    "`tunesmith lint TARGET --for ENGINE --fix --output DIR` writes one scale and rank";

pub(super) fn adapter(engine: Engine, facts: &AdapterFacts, findings: &mut Findings) {
    match engine {
        Engine::Vllm => vllm::adapter(facts, findings),
        Engine::LlamaCpp => llama_cpp::adapter(facts, findings),
        Engine::Ollama => ollama::adapter(facts, findings),
        Engine::Mlx => mlx::adapter(facts, findings),
        Engine::MistralRs => mistral_rs::adapter(facts, findings),
        Engine::Candle => candle::adapter(findings),
        Engine::Groq => groq::adapter(facts, findings),
    }
}

pub(super) fn model(engine: Engine, facts: &ModelFacts, findings: &mut Findings) {
    consistent(facts, findings);
    match engine {
        Engine::Vllm => vllm::model(facts, findings),
        Engine::LlamaCpp => llama_cpp::model(facts, findings),
        Engine::Ollama => ollama::model(facts, findings),
        Engine::Mlx => mlx::model(facts, findings),
        Engine::MistralRs => mistral_rs::model(facts, findings),
        Engine::Candle => candle::model(facts, findings),
        Engine::Groq => groq::model(findings),
    }
}

/// What every program stumbles over.
fn consistent(facts: &ModelFacts, findings: &mut Findings) {
    if let (Some(rows), Some(tokens)) = (facts.embedding_rows, facts.tokens)
        && tokens > rows as u64
    {
        let what = format!("the tokenizer has ids up to {}, the embedding {rows} rows", tokens - 1);
        findings.refused(what, "take the tokenizer files that belong to these weights");
    }
    if let (Some(rows), Some(said)) = (facts.embedding_rows, facts.config["vocab_size"].as_u64())
        && said != rows as u64
    {
        let what =
            format!("`vocab_size` of `config.json` is {said}, the embedding has {rows} rows");
        findings.refused(what, "set `vocab_size` to the number of rows");
    }
    if facts.tokens.is_none() && facts.layout == ModelLayout::Folder {
        let has_model = facts.files.iter().any(|name| name == "tokenizer.model");
        if !has_model {
            findings
                .refused("there is no `tokenizer.json`", "copy the base model's tokenizer files");
        }
    }
    if !facts.has_chat_template {
        findings.note("there is no chat template: chat endpoints refuse requests, or guess one");
    }
    if facts.layout == ModelLayout::Folder && facts.generation_config.is_none() {
        findings.note("there is no `generation_config.json`: the end of a turn comes from `config.json` alone");
    }
}

/// A PEFT folder that is not one after all.
fn peft_folder(facts: &AdapterFacts, findings: &mut Findings) -> bool {
    if facts.layout != AdapterLayout::Peft {
        let what = "this is no PEFT folder, which is what the engine reads";
        findings.refused(what, "`tunesmith adapter convert ADAPTER --to peft --output DIR`");
        return false;
    }
    let kind = facts.config.get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
    if !kind.eq_ignore_ascii_case("lora") {
        findings.refused(
            facts.shown("peft_type"),
            "only LoRA adapters are read; merge it with the tool that made it",
        );
    }
    if let Some(name) = facts.tensor_with(&[".lora_A.default.", ".lora_B.default."]) {
        let what = format!("tensor `{name}` has the adapter's name in its own");
        findings
            .refused(what, "save the adapter with `PeftModel.save_pretrained`, which strips it");
    }
    true
}

/// Keys that change what the adapter computes, each with the word for it.
const OTHER_KINDS: [(&str, &str); 7] = [
    ("layer_replication", "replicated layers"),
    ("alora_invocation_tokens", "aLoRA"),
    ("use_qalora", "QALoRA"),
    ("use_bdlora", "block-diagonal LoRA"),
    ("arrow_config", "Arrow"),
    ("monteclora_config", "MonteCLoRA"),
    ("megatron_config", "Megatron's configuration"),
];

/// An adapter whose file only fits a base that was changed with it.
fn changed_base(facts: &AdapterFacts, findings: &mut Findings, severity: Severity) {
    let Some(start) = facts.base_changing_start() else { return };
    let what = format!(
        "`init_lora_weights` = \"{start}\": the adapter fits a changed base, not the original"
    );
    let fix = "save it with PEFT's `path_initial_model_for_weight_conversion`, or merge it there";
    findings.add(severity, what, Some(fix));
}
