//! vLLM: `vllm/lora/peft_helper.py` (features, rank, bias) and `vllm/config/lora.py` (ranks).

use super::super::subject::{AdapterFacts, ModelFacts, ModelLayout};
use super::super::{Findings, Severity};
use super::{FIX, MERGE, OTHER_KINDS, changed_base, peft_folder};

/// Values that `--max-lora-rank` takes.
const RANKS: [usize; 9] = [1, 8, 16, 32, 64, 128, 256, 320, 512];
const DEFAULT_RANK: usize = 16;

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if !peft_folder(facts, findings) {
        return;
    }
    if facts.asks_for("use_dora") {
        findings.refused("it is DoRA", MERGE);
    }
    if facts.asks_for("modules_to_save") {
        findings.refused(facts.shown("modules_to_save"), MERGE);
    }
    if facts.asks_for("bias") || facts.asks_for("lora_bias") {
        findings.refused("it trains biases", MERGE);
    }
    for (key, word) in OTHER_KINDS {
        if facts.asks_for(key) {
            findings.wrong(format!("it is {word} (`{key}`), which is ignored"), MERGE);
        }
    }
    changed_base(facts, findings, Severity::Wrong);
    rank(facts, findings);
    for key in ["rank_pattern", "alpha_pattern"] {
        if facts.asks_for(key) {
            findings
                .wrong(format!("`{key}` is ignored: `lora_alpha / r` scales every module"), FIX);
        }
    }
    if facts.asks_for("trainable_token_indices") {
        findings.setting(
            "it trains rows of single tokens, which older versions ignore",
            "`--max-lora-trainable-tokens N` in versions that know it, else merge it",
        );
    }
    if facts.asks_for("target_parameters") {
        findings.setting("it adapts the experts of a layer as one tensor", "vLLM 0.11.2 or later");
    }
    if facts.tensor_with(&["lora_embedding_", "lm_head.lora_", "embed_tokens.lora_"]).is_some() {
        findings.note("it adapts embeddings or the head, which not every model of vLLM allows");
    }
}

fn rank(facts: &AdapterFacts, findings: &mut Findings) {
    let rank = facts.largest_rank();
    match RANKS.iter().find(|&&limit| limit >= rank) {
        None => findings.refused(
            format!("rank {rank} is above the largest that it takes, 512"),
            "`tunesmith adapter combine ADAPTER --method svd --rank 512 --output DIR`, or merge it",
        ),
        Some(limit) if *limit > DEFAULT_RANK => {
            findings.setting(
                format!("rank {rank}"),
                &format!("start it with `--max-lora-rank {limit}`"),
            );
        }
        Some(_) => {}
    }
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    if facts.layout == ModelLayout::Gguf {
        findings.setting(
            "GGUF is experimental there",
            "name the tokenizer of the base with `--tokenizer`, or merge to safetensors",
        );
        return;
    }
    if facts.config["architectures"].as_array().is_none_or(Vec::is_empty) {
        findings.refused(
            "`config.json` has no `architectures`",
            "copy that key from the base model's `config.json`",
        );
    }
    if facts.dtypes == ["F32"] {
        findings.setting(
            "weights in f32 run as bf16 or f16 by default",
            "`--dtype float32` keeps them",
        );
    }
}
