//! Tensor names that differ from the modules they belong to.
//!
//! Adapters name modules as today's classes of `transformers` have them. Some checkpoints name
//! their tensors otherwise, because they are older or because they were saved without the head.

use serde_json::Value;

use super::fused_experts;

/// One way in which checkpoints of a type differ.
struct Rule {
    /// `model_type` in `config.json`.
    model_type: &'static str,
    /// Beginning of the tensor's name, and what modules have in its place.
    prefix: (&'static str, &'static str),
}

/// Every known difference; the first that fits a name is taken.
const RULES: &[Rule] = &[
    // GPT-2's first files hold the network without its head.
    Rule { model_type: "gpt2", prefix: ("wte.", "transformer.wte.") },
    Rule { model_type: "gpt2", prefix: ("wpe.", "transformer.wpe.") },
    Rule { model_type: "gpt2", prefix: ("h.", "transformer.h.") },
    Rule { model_type: "gpt2", prefix: ("ln_f.", "transformer.ln_f.") },
    Rule { model_type: "gpt_neox", prefix: ("embed_out.", "lm_head.") },
    Rule { model_type: "gemma3", prefix: ("language_model.lm_head.", "lm_head.") },
    Rule { model_type: "gemma3", prefix: ("language_model.model.", "model.language_model.") },
    Rule { model_type: "gemma3", prefix: ("vision_tower.", "model.vision_tower.") },
    Rule {
        model_type: "gemma3",
        prefix: ("multi_modal_projector.", "model.multi_modal_projector."),
    },
];

/// What transformers 5 calls a part of Mixtral's blocks in memory, and checkpoints otherwise.
const MIXTRAL_ROUTER: (&str, &str) = (".mlp.gate.", ".block_sparse_moe.gate.");

/// The name by which modules know a stored tensor.
pub(super) fn module_name(config: &Value, stored: &str) -> String {
    let model_type = config.get("model_type").and_then(Value::as_str);
    for Rule { model_type: of, prefix: (from, to) } in RULES {
        if model_type == Some(of)
            && let Some(rest) = stored.strip_prefix(from)
        {
            return format!("{to}{rest}");
        }
    }
    if model_type == Some("mixtral") {
        return stored.replace(MIXTRAL_ROUTER.0, MIXTRAL_ROUTER.1);
    }
    stored.to_owned()
}

/// Endings of linear weights that GPT-2 stores as `[d_in, d_out]`.
const GPT2_LINEARS: &[&str] =
    &[".c_attn.weight", ".attn.c_proj.weight", ".c_fc.weight", ".mlp.c_proj.weight"];

/// Whether a linear weight lies as `[d_in, d_out]`.
pub(super) fn is_transposed(config: &Value, name: &str) -> bool {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let is_gpt2 = model_type == "gpt2" && GPT2_LINEARS.iter().any(|ending| name.ends_with(ending));
    is_gpt2 || fused_experts::is_transposed(model_type, name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_of_old_files_become_those_of_modules() {
        let gpt2 = json!({"model_type": "gpt2"});
        assert_eq!(
            module_name(&gpt2, "h.0.attn.c_attn.weight"),
            "transformer.h.0.attn.c_attn.weight"
        );
        assert_eq!(module_name(&gpt2, "transformer.wte.weight"), "transformer.wte.weight");
        let vision = json!({"model_type": "gemma3"});
        assert_eq!(
            module_name(&vision, "language_model.model.norm.weight"),
            "model.language_model.norm.weight"
        );
        let llama = json!({"model_type": "llama"});
        assert_eq!(module_name(&llama, "h.0.weight"), "h.0.weight");
    }
}
