//! The JSON files of a merged folder: `config.json` and the index of shards.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::MergeError;
use super::plan::{MergePlan, shard_name};
use super::round::OutputDtype;

/// The base's `config.json` with the output's type and without a trace of quantisation.
///
/// The type stays under the key found: `torch_dtype`, or `dtype` since transformers 5. What
/// transformers 5 gathers in `rope_parameters` is said in the keys of before as well.
pub(super) fn config_text(
    config: &Value,
    dtype: OutputDtype,
    base: &Path,
) -> Result<String, MergeError> {
    let Value::Object(mut keys) = config.clone() else {
        return Err(MergeError::Config { base: base.to_owned() });
    };
    keys.shift_remove("quantization_config");
    let found: Vec<&str> =
        ["torch_dtype", "dtype"].into_iter().filter(|&key| keys.contains_key(key)).collect();
    let used = if found.is_empty() { vec!["torch_dtype"] } else { found };
    for key in used {
        keys.insert(key.to_owned(), json!(dtype.config_name()));
    }
    add_former_rope_keys(&mut keys);
    Ok(format!("{:#}\n", Value::Object(keys)))
}

/// Adds `rope_theta` and `rope_scaling` beside `rope_parameters`, where they are not there.
///
/// Programs that know only the former keys would not fail without them: they would take a base of
/// 10000 and no scaling, and write nonsense.
fn add_former_rope_keys(keys: &mut Map<String, Value>) {
    let Some(Value::Object(parameters)) = keys.get("rope_parameters").cloned() else { return };
    let Some(theta) = parameters.get("rope_theta").filter(|theta| theta.is_number()) else {
        return;
    };
    if !is_given(keys, "rope_theta") {
        keys.insert("rope_theta".to_owned(), theta.clone());
    }
    let kind = parameters.get("rope_type").and_then(Value::as_str).unwrap_or("default");
    if kind != "default" && !is_given(keys, "rope_scaling") {
        let mut scaling = parameters.clone();
        scaling.shift_remove("rope_theta");
        keys.insert("rope_scaling".to_owned(), Value::Object(scaling));
    }
}

fn is_given(keys: &Map<String, Value>, key: &str) -> bool {
    keys.get(key).is_some_and(|value| !value.is_null())
}

/// `model.safetensors.index.json`: which file each tensor is in.
pub(super) fn index_text(plan: &MergePlan) -> String {
    let count = plan.shards.len();
    let mut map = Map::new();
    for (place, shard) in plan.shards.iter().enumerate() {
        for tensor in plan.tensors.get(shard.clone()).unwrap_or_default() {
            map.insert(tensor.stored_name.to_owned(), json!(shard_name(place, count)));
        }
    }
    let index = json!({"metadata": {"total_size": plan.total_bytes()}, "weight_map": map});
    format!("{index:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(found: &Value) -> Value {
        let text = config_text(found, OutputDtype::F16, Path::new("base")).unwrap();
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn the_dtype_keeps_the_key_it_was_found_under_and_its_place() {
        let old = config(&json!({"torch_dtype": "bfloat16", "vocab_size": 5}));
        assert_eq!(old.to_string(), r#"{"torch_dtype":"float16","vocab_size":5}"#);
        let new = config(&json!({"vocab_size": 5, "dtype": "bfloat16", "x": 1}));
        assert_eq!(new.to_string(), r#"{"vocab_size":5,"dtype":"float16","x":1}"#);
        let none = config(&json!({"a": 1, "quantization_config": {"bits": 4}, "b": 2}));
        assert_eq!(none.to_string(), r#"{"a":1,"b":2,"torch_dtype":"float16"}"#);
    }

    #[test]
    fn rope_parameters_are_said_in_the_former_keys_as_well() {
        let plain = config(&json!({"rope_parameters": {"rope_theta": 5e5}}));
        assert_eq!((&plain["rope_theta"], plain.get("rope_scaling")), (&json!(5e5), None));
        let scaled = json!({"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0});
        let both = config(&json!({"rope_parameters": scaled, "rope_scaling": null}));
        assert_eq!(both["rope_scaling"], json!({"rope_type": "linear", "factor": 2.0}));
        assert_eq!(both["rope_parameters"], scaled);
        let former = json!({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 4.0}});
        let kept = config(&former);
        assert_eq!(kept["rope_theta"], former["rope_theta"]);
        assert_eq!(kept["rope_scaling"], former["rope_scaling"]);
        let by_kind = json!({"rope_parameters": {"full_attention": {"rope_theta": 1e6}}});
        assert_eq!(config(&by_kind).get("rope_theta"), None);
    }

    #[test]
    fn a_config_that_is_no_object_is_refused() {
        let error = config_text(&json!([1]), OutputDtype::F32, Path::new("m")).unwrap_err();
        assert_eq!(error.to_string(), "`config.json` of `m` is not a JSON object");
    }
}
