//! Groq: hosted inference of customers' own adapters. Its page says who may bring one, and not which
//! ranks, formats or sizes it takes, so little is claimed here.

use super::super::subject::AdapterFacts;
use super::super::{Findings, Severity};
use super::{changed_base, peft_folder};

pub(super) fn adapter(facts: &AdapterFacts, findings: &mut Findings) {
    if !peft_folder(facts, findings) {
        return;
    }
    for key in ["use_dora", "modules_to_save", "bias", "lora_bias", "trainable_token_indices"] {
        if facts.asks_for(key) {
            let what = format!("{}: more than the factors of a plain LoRA", facts.shown(key));
            findings.setting(what, "ask whether it is served, or merge it and serve it elsewhere");
        }
    }
    changed_base(facts, findings, Severity::Wrong);
    findings.note(
        "it serves adapters of enterprise customers; limits of rank and size are not published",
    );
}

pub(super) fn model(findings: &mut Findings) {
    findings.refused(
        "it serves its own base models, and adapters for them",
        "lint the adapter instead",
    );
}
