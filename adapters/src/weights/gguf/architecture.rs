//! Model architectures that are read from GGUF: their tensor names, and how rotary rows lie.

use std::collections::BTreeMap;

use crate::weights::decode::RowOrder;

/// How the rows of the query and key projections lie in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RotaryRows {
    /// Rotary pairs side by side; the HF layout has them half a head apart.
    Interleaved,
}

/// One architecture.
pub(super) struct Architecture {
    /// `general.architecture`, and the prefix of its metadata keys.
    pub(super) name: &'static str,
    /// `model_type` of the HF configuration.
    pub(super) model_type: &'static str,
    /// `architectures` of the HF configuration.
    pub(super) hf_class: &'static str,
    pub(super) rotary_rows: RotaryRows,
    /// (GGUF, HF) names outside the blocks.
    pub(super) tensors: &'static [(&'static str, &'static str)],
    /// (GGUF, HF) names after `blk.N.` and `model.layers.N.`, without `.weight` or `.bias`.
    pub(super) block_tensors: &'static [(&'static str, &'static str)],
}

/// Every architecture that is read, looked up by `general.architecture`.
///
/// To add one: write its tables as `LLAMA`'s below, add it here, and extend `gguf/config.rs` where
/// its configuration has keys that Llama's lacks.
pub(super) const ARCHITECTURES: &[Architecture] = &[LLAMA];

const LLAMA: Architecture = Architecture {
    name: "llama",
    model_type: "llama",
    hf_class: "LlamaForCausalLM",
    rotary_rows: RotaryRows::Interleaved,
    tensors: &[
        ("token_embd", "model.embed_tokens"),
        ("output_norm", "model.norm"),
        ("output", "lm_head"),
    ],
    block_tensors: &[
        ("attn_norm", "input_layernorm"),
        (QUERY, "self_attn.q_proj"),
        (KEY, "self_attn.k_proj"),
        ("attn_v", "self_attn.v_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_norm", "post_attention_layernorm"),
        ("ffn_gate", "mlp.gate_proj"),
        ("ffn_up", "mlp.up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ],
};

const QUERY: &str = "attn_q";
const KEY: &str = "attn_k";

/// The tensor whose values are the `llama3` scaling of the rotary frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

impl Architecture {
    pub(super) fn find(name: &str) -> Option<&'static Self> {
        ARCHITECTURES.iter().find(|architecture| architecture.name == name)
    }

    pub(super) fn all_names() -> String {
        ARCHITECTURES.iter().map(|architecture| architecture.name).collect::<Vec<_>>().join(", ")
    }

    /// The HF name of a tensor, or `None` where the architecture has no such tensor.
    pub(super) fn hf_name(&self, gguf_name: &str) -> Option<String> {
        let (stem, kind) = gguf_name.rsplit_once('.')?;
        if !matches!(kind, "weight" | "bias") {
            return None;
        }
        if let Some((layer, part)) = stem.strip_prefix("blk.").and_then(|rest| rest.split_once('.'))
        {
            // Written back as a number: `blk.007` must not become a second name of layer 7.
            let layer: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
            let hf = lookup(self.block_tensors, part)?;
            return Some(format!("model.layers.{layer}.{hf}.{kind}"));
        }
        Some(format!("{}.{kind}", lookup(self.tensors, stem)?))
    }

    /// How the rows of a tensor are brought into the HF order.
    pub(super) fn row_order(&self, gguf_name: &str, head_dim: usize) -> RowOrder {
        let part = gguf_name.split('.').nth(2).unwrap_or_default();
        let rotated = gguf_name.starts_with("blk.") && (part == QUERY || part == KEY);
        match self.rotary_rows {
            RotaryRows::Interleaved if rotated => RowOrder::Interleaved { head_dim },
            RotaryRows::Interleaved => RowOrder::AsStored,
        }
    }
}

fn lookup(table: &[(&str, &'static str)], gguf: &str) -> Option<&'static str> {
    table.iter().find(|row| row.0 == gguf).map(|row| row.1)
}

/// Whether any of the tensors named as in GGUF is a bias of `parts`.
pub(super) fn has_bias<T>(tensors: &BTreeMap<String, T>, parts: &[&str]) -> bool {
    tensors.keys().any(|name| {
        let mut words = name.split('.').skip(2);
        words.next().is_some_and(|part| parts.contains(&part)) && words.next() == Some("bias")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_translate() {
        let hf = |name| LLAMA.hf_name(name);
        assert_eq!(hf("token_embd.weight").as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(
            hf("blk.12.attn_q.bias").as_deref(),
            Some("model.layers.12.self_attn.q_proj.bias")
        );
        assert_eq!(hf("blk.01.attn_q.weight"), None);
        assert_eq!(hf("blk.1.ffn_gate_exps.weight"), None);
        assert_eq!(hf("output.scale"), None);
    }

    #[test]
    fn only_queries_and_keys_are_reordered() {
        let order = RowOrder::Interleaved { head_dim: 8 };
        assert_eq!(LLAMA.row_order("blk.0.attn_k.bias", 8), order);
        assert_eq!(LLAMA.row_order("blk.0.attn_v.weight", 8), RowOrder::AsStored);
    }
}
