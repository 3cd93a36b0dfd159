//! Experts that a checkpoint holds in one tensor, as transformers 5 has them in memory, given out
//! as a linear layer each, as checkpoints and adapters usually name them.

use std::{collections::BTreeMap, ops::Range};

use serde_json::Value;

use super::TensorEntry;

/// File and bytes of each tensor.
pub(super) type Places = BTreeMap<String, (usize, Range<usize>)>;

/// How a family names the layers of an expert.
struct ExpertNames {
    model_type: &'static str,
    /// In place of `.mlp.`.
    part: &'static str,
    /// Gate, up and down.
    layers: [&'static str; 3],
}

const FAMILIES: &[ExpertNames] = &[
    ExpertNames { model_type: "mixtral", part: ".block_sparse_moe.", layers: ["w1", "w3", "w2"] },
    ExpertNames {
        model_type: "qwen3_moe",
        part: ".mlp.",
        layers: ["gate_proj", "up_proj", "down_proj"],
    },
];

/// Replaces every tensor of all experts by one for each layer of each expert.
pub(super) fn split(
    config: &Value,
    entries: &mut BTreeMap<String, TensorEntry>,
    places: &mut Places,
) {
    let model_type = config.get("model_type").and_then(Value::as_str);
    let Some(names) = FAMILIES.iter().find(|names| Some(names.model_type) == model_type) else {
        return;
    };
    let [gate, up, down] = names.layers;
    for (ending, layers) in
        [(".experts.gate_up_proj", &[gate, up][..]), (".experts.down_proj", &[down][..])]
    {
        let fused: Vec<String> =
            entries.keys().filter(|name| name.ends_with(ending)).cloned().collect();
        for name in fused {
            split_one(&name, (ending, layers, names.part), entries, places);
        }
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
}
