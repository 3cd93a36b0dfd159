//! Experts that a checkpoint holds in one tensor, as transformers 5 has them in memory, given out
//! as a linear layer each, as checkpoints and adapters usually name them.

use std::{collections::BTreeMap, ops::Range};

use serde_json::Value;

use super::{TensorEntry, TensorPart};

/// File and bytes of each tensor.
pub(super) type Places = BTreeMap<String, (usize, Range<usize>)>;

/// How families name the layers of an expert.
struct ExpertNames {
    model_types: &'static [&'static str],
    /// In place of `.mlp.`.
    part: &'static str,
    /// Gate, up and down.
    layers: [&'static str; 3],
}

const FAMILIES: &[ExpertNames] = &[
    ExpertNames {
        model_types: &["mixtral"],
        part: ".block_sparse_moe.",
        layers: ["w1", "w3", "w2"],
    },
    ExpertNames {
        model_types: &["qwen3_moe", "deepseek_v2", "deepseek_v3"],
        part: ".mlp.",
        layers: ["gate_proj", "up_proj", "down_proj"],
    },
];

/// Families whose experts are `[experts, d_in, d_out]` in every file, gate and up in one.
const TOGETHER: &[&str] = &["llama4", "llama4_text"];
/// What the tensors of such a family's experts are called.
const TOGETHER_TENSORS: [&str; 2] =
    [".feed_forward.experts.gate_up_proj", ".feed_forward.experts.down_proj"];

/// Whether the expert's weight lies as `[d_in, d_out]`.
pub(super) fn is_transposed(model_type: &str, name: &str) -> bool {
    TOGETHER.contains(&model_type) && name.contains(".feed_forward.experts.")
}

/// Replaces every tensor of all experts by one for each layer of each expert. Those that are
/// written as one again are in the answer, by name.
pub(super) fn split(
    config: &Value,
    entries: &mut BTreeMap<String, TensorEntry>,
    places: &mut Places,
) -> BTreeMap<String, TensorPart> {
    let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
    let mut parts = BTreeMap::new();
    if TOGETHER.contains(&model_type) {
        for name in named(entries, &TOGETHER_TENSORS) {
            split_apart(&name, entries, places, &mut parts);
        }
    }
    let Some(names) = FAMILIES.iter().find(|names| names.model_types.contains(&model_type)) else {
        return parts;
    };
    let [gate, up, down] = names.layers;
    for (ending, layers) in
        [(".experts.gate_up_proj", &[gate, up][..]), (".experts.down_proj", &[down][..])]
    {
        for name in named(entries, &[ending]) {
            split_one(&name, (ending, layers, names.part), entries, places);
        }
    }
    parts
}

/// Names with one of some endings.
fn named(entries: &BTreeMap<String, TensorEntry>, endings: &[&str]) -> Vec<String> {
    let is_wanted = |name: &&String| endings.iter().any(|ending| name.ends_with(ending));
    entries.keys().filter(is_wanted).cloned().collect()
}

/// One tensor for each expert.
fn split_apart(
    name: &str,
    entries: &mut BTreeMap<String, TensorEntry>,
    places: &mut Places,
    parts: &mut BTreeMap<String, TensorPart>,
) {
    let Some((entry, (shard, range))) = entries.get(name).cloned().zip(places.get(name).cloned())
    else {
        return;
    };
    let &[experts, rows, columns] = entry.shape.as_slice() else { return };
    let Some((prefix, layer)) = name.rsplit_once('.') else { return };
    if experts == 0 || range.len() % experts != 0 {
        return;
    }
    entries.remove(name);
    places.remove(name);
    let bytes = range.len() / experts;
    for expert in 0..experts {
        let start = range.start + expert * bytes;
        let of_expert = format!("{prefix}.{expert}.{layer}.weight");
        let shape = vec![rows, columns];
        entries.insert(of_expert.clone(), TensorEntry { shape, dtype: entry.dtype });
        places.insert(of_expert.clone(), (shard, start..start + bytes));
        let part = TensorPart { whole: name.to_owned(), index: expert, count: experts };
        parts.insert(of_expert, part);
    }
}

fn split_one(
    name: &str,
    (ending, layers, part): (&str, &[&str], &str),
    entries: &mut BTreeMap<String, TensorEntry>,
    places: &mut Places,
) {
    let Some((entry, (shard, range))) = entries.get(name).cloned().zip(places.get(name).cloned())
    else {
        return;
    };
    let &[experts, rows, columns] = entry.shape.as_slice() else { return };
    let pieces = experts * layers.len();
    if pieces == 0 || rows % layers.len() != 0 || range.len() % pieces != 0 {
        return;
    }
    entries.remove(name);
    places.remove(name);
    let prefix = name.trim_end_matches(ending).replace(".mlp", part.trim_end_matches('.'));
    let bytes = range.len() / pieces;
    for piece in 0..pieces {
        let (expert, layer) = (piece / layers.len(), layers[piece % layers.len()]);
        let start = range.start + piece * bytes;
        let name = format!("{prefix}.experts.{expert}.{layer}.weight");
        let shape = vec![rows / layers.len(), columns];
        entries.insert(name.clone(), TensorEntry { shape, dtype: entry.dtype });
        places.insert(name, (shard, start..start + bytes));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::weights::StoredDtype;

    #[test]
    fn each_layer_gets_its_rows() {
        let config = json!({"model_type": "mixtral"});
        let name = "model.layers.0.mlp.experts.gate_up_proj".to_owned();
        let entry = TensorEntry { shape: vec![2, 4, 3], dtype: StoredDtype::F32 };
        let mut entries = BTreeMap::from([(name.clone(), entry)]);
        let mut places = Places::from([(name, (0, 100..196))]);
        split(&config, &mut entries, &mut places);
        let names: Vec<&str> = entries.keys().map(String::as_str).collect();
        let prefix = "model.layers.0.block_sparse_moe.experts";
        let expected = ["0.w1", "0.w3", "1.w1", "1.w3"].map(|n| format!("{prefix}.{n}.weight"));
        assert_eq!(names, expected);
        assert_eq!(entries[&expected[0]].shape, [2, 3]);
        assert_eq!(places[&expected[3]], (0, 172..196));
    }

    #[test]
    fn experts_that_are_written_as_one_are_parts_of_it() {
        let config = json!({"model_type": "llama4_text"});
        let name = "model.layers.0.feed_forward.experts.down_proj".to_owned();
        let entry = TensorEntry { shape: vec![2, 4, 3], dtype: StoredDtype::F32 };
        let mut entries = BTreeMap::from([(name.clone(), entry)]);
        let mut places = Places::from([(name.clone(), (0, 100..196))]);
        let parts = split(&config, &mut entries, &mut places);
        let second = "model.layers.0.feed_forward.experts.1.down_proj.weight";
        assert_eq!(entries[second].shape, [4, 3]);
        assert_eq!(places[second], (0, 148..196));
        assert_eq!(parts[second], TensorPart { whole: name, index: 1, count: 2 });
        assert!(is_transposed("llama4_text", second));
    }
}
