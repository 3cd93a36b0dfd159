//! The tensors that hold a layer of all experts of a block, and latent attention's expansion, which
//! files hold in two.

use super::architecture::Architecture;
use super::config::Sizes;
use super::placement::{FilePlace, Half, LatentHeads, Reading};
use crate::weights::decode::RowOrder;

/// Names of the experts of a block in HF.
pub(super) struct ExpertTensors {
    /// What stands before the expert's number, after the block's.
    pub(super) prefix: &'static str,
    pub(super) layers: ExpertLayers,
}

/// Layers of an expert.
#[derive(Clone, Copy)]
pub(super) enum ExpertLayers {
    /// Gate, up and down.
    Separate([&'static str; 3]),
    /// Gate and up side by side in `[d_in, d_out]`, and down as `[d_in, d_out]`.
    Together,
}

/// Gate, up and down in the file.
const STACKS: [&str; 3] = ["ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
const BOTH: &str = "gate_up_proj";
const DOWN: &str = "down_proj";

impl ExpertTensors {
    /// The HF layer of a tensor of the file, and how it is read.
    fn layer(&self, stack: usize) -> (&'static str, Reading) {
        match (self.layers, stack) {
            (ExpertLayers::Separate(names), stack) => {
                (names[stack], Reading::Rows(RowOrder::AsStored))
            }
            (ExpertLayers::Together, 0) => (BOTH, Reading::HalfTransposed(Half::First)),
            (ExpertLayers::Together, 1) => (BOTH, Reading::HalfTransposed(Half::Second)),
            (ExpertLayers::Together, _) => (DOWN, Reading::Transposed),
        }
    }
}

/// What latent attention's expansion is called in HF, and in files that hold it in two.
const EXPANSION: &str = "self_attn.kv_b_proj.weight";
const KEYS: &str = "attn_k_b.weight";
const VALUES: &str = "attn_v_b.weight";
/// The same in files from before 2025-04, in one.
pub(super) const EXPANSION_IN_ONE: (&str, &str) = ("attn_kv_b", "self_attn.kv_b_proj");

/// How a file holds latent attention's expansion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LatentForm {
    Apart,
    InOne,
}

/// Whole names of a block's tensors that end on neither `weight` nor `bias` in HF.
const ODD_NAMES: &[(&str, &str)] = &[("exp_probs_b.bias", "mlp.gate.e_score_correction_bias")];

fn latent_heads(sizes: Sizes) -> LatentHeads {
    let size = |value: u64| usize::try_from(value).unwrap_or(usize::MAX);
    LatentHeads { heads: size(sizes.heads), content: size(sizes.content), value: size(sizes.value) }
}

/// Layer and part of a block's tensor: `blk.3.attn_q.weight` is layer 3's `attn_q.weight`.
fn in_block<'a>(name: &'a str, blocks: &str) -> Option<(usize, &'a str)> {
    let (layer, part) = name.strip_prefix(blocks)?.strip_prefix('.')?.split_once('.')?;
    // Written back as a number: `blk.007` must not become a second name of layer 7.
    let layer = layer.parse().ok().filter(|n: &usize| n.to_string() == layer)?;
    Some((layer, part))
}

/// Whether a tensor of the file holds one layer of all experts of a block.
pub(super) fn is_stack(gguf_name: &str) -> bool {
    in_block(gguf_name, "blk").is_some_and(|(_, part)| STACKS.contains(&part))
}

impl Architecture {
    /// Every HF tensor that a tensor of the file is, or is a piece of, in the file's order. `stack`
    /// is the size of its outermost axis.
    pub(super) fn hf_places(
        &self,
        gguf_name: &str,
        stack: usize,
        sizes: Sizes,
    ) -> Option<Vec<(String, Reading)>> {
        let Some((layer, part)) = in_block(gguf_name, "blk") else {
            return Some(vec![(self.hf_name(gguf_name)?, self.reading(gguf_name, sizes))]);
        };
        let block = format!("{}.{layer}", self.blocks);
        let found = STACKS.iter().position(|name| *name == part);
        if let Some((experts, found)) = self.experts.as_ref().zip(found) {
            let (layer, reading) = experts.layer(found);
            let name = |expert| format!("{block}.{}.{expert}.{layer}.weight", experts.prefix);
            return Some((0..stack).map(|expert| (name(expert), reading)).collect());
        }
        if self.is_latent() {
            let latent = latent_heads(sizes);
            let expansion = format!("{block}.{EXPANSION}");
            match part {
                KEYS => return Some(vec![(expansion, Reading::LatentKeys(latent))]),
                VALUES => return Some(vec![(expansion, Reading::LatentValues(latent))]),
                _ => {}
            }
        }
        let odd = ODD_NAMES.iter().find(|row| self.experts.is_some() && row.0 == part);
        let name = match odd {
            Some((_, hf)) => format!("{block}.{hf}"),
            None => self.hf_name(gguf_name)?,
        };
        Some(vec![(name, self.reading(gguf_name, sizes))])
    }

    /// Every tensor of the file that an HF tensor goes into, or `None` where it has no place.
    pub(super) fn file_places(
        &self,
        hf_name: &str,
        form: LatentForm,
        sizes: Sizes,
    ) -> Option<Vec<FilePlace>> {
        if let Some((layer, part)) = in_block(hf_name, self.blocks) {
            if let Some(places) = self.places_of_expert(layer, part) {
                return Some(places);
            }
            if self.is_latent() && form == LatentForm::Apart && part == EXPANSION {
                let latent = latent_heads(sizes);
                let place =
                    |name, reading| FilePlace::whole(format!("blk.{layer}.{name}"), reading);
                return Some(vec![
                    place(KEYS, Reading::LatentKeys(latent)),
                    place(VALUES, Reading::LatentValues(latent)),
                ]);
            }
            if let Some((gguf, _)) = ODD_NAMES.iter().find(|row| row.1 == part) {
                let name = format!("blk.{layer}.{gguf}");
                let reading = self.reading(&name, sizes);
                return self.experts.as_ref().map(|_| vec![FilePlace::whole(name, reading)]);
            }
        }
        let name = self.gguf_name(hf_name)?;
        let reading = self.reading(&name, sizes);
        Some(vec![FilePlace::whole(name, reading)])
    }

    fn places_of_expert(&self, block: usize, part: &str) -> Option<Vec<FilePlace>> {
        let experts = self.experts.as_ref()?;
        let (expert, layer) = in_block(part, experts.prefix)?;
        let layer = layer.strip_suffix(".weight")?;
        let of_stack = |stack: usize| {
            let (name, reading) = experts.layer(stack);
            let name_in_file = format!("blk.{block}.{}", STACKS[stack]);
            (name == layer).then_some(FilePlace {
                name: name_in_file,
                expert: Some(expert),
                reading,
            })
        };
        let places: Vec<FilePlace> = (0..STACKS.len()).filter_map(of_stack).collect();
        (!places.is_empty()).then_some(places)
    }
}

#[cfg(test)]
mod tests {
    use super::super::architectures;
    use super::*;

    const SIZES: Sizes =
        Sizes { heads: 2, kv_heads: 2, head_dim: 8, rotated: 2, content: 6, value: 4 };

    fn round_trip(architecture: &Architecture, gguf: &str, stack: usize) -> Vec<String> {
        let names = architecture.hf_places(gguf, stack, SIZES).unwrap();
        for (expert, (hf, reading)) in names.iter().enumerate() {
            let places = architecture.file_places(hf, LatentForm::Apart, SIZES).unwrap();
            let place = places.iter().find(|place| place.name == gguf).unwrap();
            assert_eq!(place.reading, *reading, "{hf}");
            assert_eq!(place.expert, is_stack(gguf).then_some(expert), "{hf}");
        }
        names.into_iter().map(|row| row.0).collect()
    }

    #[test]
    fn experts_are_named_by_number() {
        let name = "blk.3.ffn_up_exps.weight";
        assert_eq!(
            round_trip(&architectures::MIXTRAL, name, 2),
            ["0", "1"].map(|e| format!("model.layers.3.block_sparse_moe.experts.{e}.w3.weight"))
        );
        assert_eq!(
            round_trip(&architectures::QWEN3_MOE, name, 1),
            ["model.layers.3.mlp.experts.0.up_proj.weight"]
        );
        let both = "model.layers.3.feed_forward.experts.0.gate_up_proj.weight";
        assert_eq!(round_trip(&architectures::LLAMA4, name, 1), [both]);
        assert_eq!(architectures::LLAMA.hf_places(name, 1, SIZES), None);
    }

    #[test]
    fn latent_attention_lies_in_two_tensors_or_in_one() {
        let deepseek = architectures::DEEPSEEK2;
        let hf = "model.layers.0.self_attn.kv_b_proj.weight";
        for name in ["blk.0.attn_k_b.weight", "blk.0.attn_v_b.weight"] {
            assert_eq!(round_trip(&deepseek, name, 2), [hf]);
        }
        let places = deepseek.file_places(hf, LatentForm::InOne, SIZES).unwrap();
        assert_eq!(places[0].name, "blk.0.attn_kv_b.weight");
        assert_eq!(
            round_trip(&deepseek, "blk.1.exp_probs_b.bias", 4),
            ["model.layers.1.mlp.gate.e_score_correction_bias"]
        );
    }
}
