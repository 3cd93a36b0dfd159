//! Model architectures that are read from GGUF: their tensor names, and how rotary rows lie.

use std::collections::BTreeMap;

use super::experts::{EXPANSION_IN_ONE, ExpertTensors};
use super::placement::Reading;
use super::{architectures, config::Sizes, family_config::Configure};
use crate::weights::decode::RowOrder;

/// In what the file's tensors differ from those of HF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// In nothing.
    Same,
    /// Rotary pairs of queries and keys side by side; the HF layout has them half a head apart.
    InterleavedPairs,
    /// Norms hold `1 + w`.
    NormsPlusOne,
    /// All queries, all keys, all values; in HF those of a head together.
    HeadsApart,
    /// Linear weights as `[d_out, d_in]`; in HF the other way round.
    LinearTransposed,
}

/// One architecture.
pub(super) struct Architecture {
    /// `general.architecture`, and the prefix of its metadata keys.
    pub(super) name: &'static str,
    /// `model_type` of the HF configuration.
    pub(super) model_type: &'static str,
    /// `architectures` of the HF configuration.
    pub(super) hf_class: &'static str,
    pub(super) layout: Layout,
    /// HF prefix of the blocks.
    pub(super) blocks: &'static str,
    /// (GGUF, HF) names outside the blocks.
    pub(super) tensors: &'static [(&'static str, &'static str)],
    /// (GGUF, HF) names after `blk.N.` and the HF prefix, without `.weight` or `.bias`.
    pub(super) block_tensors: &'static [(&'static str, &'static str)],
    /// Experts, where blocks have them.
    pub(super) experts: Option<ExpertTensors>,
    /// Metadata keys that the family's configuration expresses, where they would change the
    /// mathematics of others.
    pub(super) expressed: &'static [&'static str],
    /// Puts what is peculiar to the family into the configuration.
    pub(super) configure: Configure,
}

/// Every architecture that is read, looked up by `general.architecture`.
///
/// To add one: write its tables in `architectures.rs`, add it here, and write its keys in
/// `family_config.rs` where its configuration has keys that Llama's lacks.
pub(super) const ARCHITECTURES: &[Architecture] = &[
    architectures::LLAMA,
    architectures::MIXTRAL,
    architectures::QWEN2,
    architectures::QWEN3,
    architectures::QWEN3_MOE,
    architectures::DEEPSEEK2,
    architectures::LLAMA4,
    architectures::SMOLLM3,
    architectures::PHI3,
    architectures::GEMMA2,
    architectures::GEMMA3,
    architectures::OLMO2,
    architectures::GRANITE,
    architectures::COMMAND_R,
    architectures::COHERE2,
    architectures::GPT2,
    architectures::GPT_NEOX,
];

/// HF models that go by another `model_type` than the one their architecture is read as.
const ALIASES: &[(&str, &str)] = &[
    ("mistral", "llama"),
    ("gemma3", "gemma3_text"),
    ("llama4", "llama4_text"),
    ("deepseek_v2", "deepseek_v3"),
];

/// Queries.
pub(super) const QUERY: &str = "attn_q";
/// Keys.
pub(super) const KEY: &str = "attn_k";
/// Queries, keys and values in one.
pub(super) const FUSED: &str = "attn_qkv";

/// The tensor whose values are the `llama3` scaling of the rotary frequencies.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Tensors whose values are the two sets of `LongRoPE` divisors.
pub(super) const LONG_ROPE: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];

/// Whether a tensor belongs to the configuration and not to the weights.
pub(super) fn is_rope_table(gguf_name: &str) -> bool {
    gguf_name == ROPE_FACTORS || LONG_ROPE.contains(&gguf_name)
}

impl Architecture {
    /// The architecture of that name. One name stands for models with and without experts.
    pub(super) fn find(name: &str, experts: u64) -> Option<&'static Self> {
        let named = || ARCHITECTURES.iter().filter(|architecture| architecture.name == name);
        named().find(|found| found.experts.is_some() == (experts > 0)).or_else(|| named().next())
    }

    /// The architecture that HF models of this `model_type` are written as.
    pub(super) fn of_model_type(model_type: &str) -> Option<&'static Self> {
        let alias = ALIASES.iter().find(|row| row.0 == model_type);
        let wanted = alias.map_or(model_type, |row| row.1);
        ARCHITECTURES.iter().find(|architecture| architecture.model_type == wanted)
    }

    /// Every `model_type` that [`Self::of_model_type`] knows.
    pub(super) fn written_types() -> String {
        let aliases = ALIASES.iter().map(|row| row.0);
        let types = ARCHITECTURES.iter().map(|architecture| architecture.model_type);
        types.chain(aliases).collect::<Vec<_>>().join(", ")
    }

    pub(super) fn all_names() -> String {
        let mut names: Vec<&str> = ARCHITECTURES.iter().map(|row| row.name).collect();
        names.dedup();
        names.join(", ")
    }

    /// Whether keys and values are expanded from a narrow row.
    pub(super) fn is_latent(&self) -> bool {
        self.block_tensors.contains(&EXPANSION_IN_ONE)
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
            return Some(format!("{}.{layer}.{hf}.{kind}", self.blocks));
        }
        Some(format!("{}.{kind}", lookup(self.tensors, stem)?))
    }

    /// The GGUF name of a tensor, or `None` where the architecture has no such tensor.
    pub(super) fn gguf_name(&self, hf_name: &str) -> Option<String> {
        let (stem, kind) = hf_name.rsplit_once('.')?;
        if !matches!(kind, "weight" | "bias") {
            return None;
        }
        let reverse = |table: &[(&'static str, &str)], hf: &str| {
            table.iter().find(|row| row.1 == hf).map(|row| row.0)
        };
        let block =
            stem.strip_prefix(self.blocks).and_then(|rest| rest.strip_prefix('.')?.split_once('.'));
        if let Some((layer, part)) = block {
            let layer: usize = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
            return Some(format!("blk.{layer}.{}.{kind}", reverse(self.block_tensors, part)?));
        }
        Some(format!("{}.{kind}", reverse(self.tensors, stem)?))
    }

    /// How the rows of a tensor are brought into the HF order.
    pub(super) fn row_order(&self, gguf_name: &str, head_dim: usize) -> RowOrder {
        let rotated = matches!(part(gguf_name), QUERY | KEY);
        match self.layout {
            Layout::InterleavedPairs if rotated => RowOrder::Interleaved { head_dim },
            _ => RowOrder::AsStored,
        }
    }

    /// How a tensor is brought into the HF layout.
    pub(super) fn reading(&self, gguf_name: &str, sizes: Sizes) -> Reading {
        let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
        let (heads, head_dim) = (size(sizes.heads), size(sizes.head_dim));
        let part = part(gguf_name);
        match self.layout {
            Layout::HeadsApart if part == FUSED => {
                Reading::Rows(RowOrder::ByHead { heads, head_dim })
            }
            Layout::NormsPlusOne if gguf_name.ends_with("norm.weight") => Reading::MinusOne,
            Layout::LinearTransposed
                if matches!(part, FUSED | "attn_output" | "ffn_up" | "ffn_down")
                    && gguf_name.ends_with(".weight") =>
            {
                Reading::Transposed
            }
            _ => Reading::Rows(self.row_order(gguf_name, head_dim)),
        }
    }
}

/// The part of a block that a tensor belongs to.
fn part(gguf_name: &str) -> &str {
    match gguf_name.strip_prefix("blk.") {
        Some(rest) => rest.split('.').nth(1).unwrap_or_default(),
        None => "",
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
        let hf = |name| architectures::LLAMA.hf_name(name);
        assert_eq!(hf("token_embd.weight").as_deref(), Some("model.embed_tokens.weight"));
        assert_eq!(
            hf("blk.12.attn_q.bias").as_deref(),
            Some("model.layers.12.self_attn.q_proj.bias")
        );
        assert_eq!(hf("blk.01.attn_q.weight"), None);
        assert_eq!(hf("blk.1.ffn_gate_exps.weight"), None);
        assert_eq!(hf("output.scale"), None);
        for name in
            ["token_embd.weight", "output.weight", "blk.12.attn_q.bias", "blk.0.ffn_norm.weight"]
        {
            assert_eq!(architectures::LLAMA.gguf_name(&hf(name).unwrap()).as_deref(), Some(name));
        }
        assert_eq!(
            architectures::LLAMA.gguf_name("model.layers.0.self_attn.rotary_emb.inv_freq"),
            None
        );
    }

    #[test]
    fn only_queries_and_keys_are_reordered() {
        let order = RowOrder::Interleaved { head_dim: 8 };
        let llama = architectures::LLAMA;
        assert_eq!(llama.row_order("blk.0.attn_k.bias", 8), order);
        assert_eq!(llama.row_order("blk.0.attn_v.weight", 8), RowOrder::AsStored);
        assert_eq!(architectures::QWEN2.row_order("blk.0.attn_k.weight", 8), RowOrder::AsStored);
    }
}
