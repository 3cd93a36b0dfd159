//! mistral.rs: `mistralrs-quant/src/lora/mod.rs` (`validate_dynamic`) and its guide to adapters.

use super::super::subject::{AdapterFacts, ModelFacts, ModelLayout};
use super::super::{Findings, Severity};
use super::{MERGE, OTHER_KINDS, changed_base, peft_folder};

const DEFAULT_RANK: usize = 256;
const DEFAULT_BYTES: u64 = 8 << 30;

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if !peft_folder(facts, findings) {
        return;
    }
    if facts.is_pickle {
        findings.refused("the weights are a pickle file", "save the adapter as safetensors");
    }
    if facts.asks_for("use_dora") {
        findings.refused("it is DoRA", MERGE);
    }
    for key in
        ["bias", "lora_bias", "modules_to_save", "trainable_token_indices", "ensure_weight_tying"]
    {
        if facts.asks_for(key) {
            findings.refused(facts.shown(key), MERGE);
        }
    }
    for (key, word) in OTHER_KINDS {
        if facts.asks_for(key) {
            findings.refused(format!("it is {word} (`{key}`)"), MERGE);
        }
    }
    changed_base(facts, findings, Severity::Refused);
    if let Some(name) = facts.tensor_with(&["embed_tokens.", "lm_head.", "lora_embedding_"]) {
        findings.refused(format!("tensor `{name}` changes the embedding or the head"), MERGE);
    }
    let parameters = facts.config.get("target_parameters").and_then(|value| value.as_array());
    for parameter in parameters.into_iter().flatten().filter_map(|value| value.as_str()) {
        let ends = [".gate_up_proj", ".down_proj"];
        let stem = ends.iter().find_map(|end| parameter.strip_suffix(end));
        if stem.is_none_or(|stem| stem != "experts" && !stem.ends_with(".experts")) {
            findings.refused(format!("`target_parameters` names `{parameter}`, no experts"), MERGE);
        }
    }
    let rank = facts.largest_rank();
    if rank > DEFAULT_RANK {
        findings
            .setting(format!("rank {rank}"), &format!("start it with `--lora-max-rank {rank}`"));
    }
    if facts.bytes > DEFAULT_BYTES {
        findings.setting("more than 8 GiB", "start it with a larger `--lora-max-bytes`");
    }
}

pub(super) fn model(facts: &ModelFacts, findings: &mut Findings) {
    if facts.layout == ModelLayout::Folder
        && facts.has_nested_rope_theta_only()
        && facts.model_type() != "mistral"
    {
        findings.refused(
            "`rope_theta` stands only in `rope_parameters`, as transformers 5 writes it",
            "`tunesmith lint TARGET --for mistral.rs --fix --output DIR` writes both",
        );
    }
}
