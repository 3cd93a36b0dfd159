//! Merges written as GGUF, read back.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::tests::{adapter, factors, open};
use super::*;
use crate::weights::decode::RowOrder;
use crate::weights::gguf::placement::Reading;
use crate::weights::{GgufFacts, GgufFileType, ModelFiles, StoredDtype, WeightSource};
use crate::{AdapterWeights, PeftConfig};

type Adapter = (PeftConfig, AdapterWeights);

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn facts() -> GgufFacts {
    GgufFacts { name: "mine".to_owned(), licence: Some("mit".to_owned()), base_model: None }
}

/// Writes the merge into `folder` and gives the summary.
fn write(base: &Path, adapter: &Adapter, file_type: GgufFileType, folder: &Path) -> MergeSummary {
    let base = open(base);
    let request = MergeRequest {
        base: &base,
        adapter: (&adapter.0, &adapter.1),
        dtype: MergeDtype::Same,
        max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
    };
    let plan = plan_merge(&request).unwrap();
    let gguf = GgufPlan::new(&plan, file_type, &facts()).unwrap();
    let mut last = 0;
    let summary = gguf
        .write(&folder.join("model.gguf"), &mut |done, total| {
            assert!(done >= last && total == gguf.total_bytes());
            last = done;
        })
        .unwrap();
    assert_eq!(last, gguf.total_bytes());
    let view = MergedWeights::of(&plan);
    if file_type == GgufFileType::F32 {
        let written = open(folder);
        assert_eq!(written.weights().entries(), view.entries());
        for name in view.entries().keys() {
            let values = written.weights().read_f32(name).unwrap();
            let expected = view.read_f32(name).unwrap();
            // Norms that the file holds as 1 + w come back with a rounding more.
            let same = values.iter().zip(&expected).all(|(x, y)| (x - y).abs() < 1e-6);
            assert!(same && values.len() == expected.len(), "{name} differs");
        }
    }
    summary
}

/// An update of keys, whose rows a GGUF has in another order, and of a down projection.
fn adapter_of(base: &Path) -> Adapter {
    let base = open(base);
    let modules = ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.down_proj"];
    let factors_of = |module| {
        let shape = &base.weights().entries()[&format!("{module}.weight")].shape;
        (module, factors(shape[0], shape[1], 3))
    };
    adapter(modules.into_iter().map(factors_of).collect())
}

#[test]
fn a_gguf_base_passes_its_metadata_on() {
    let base = repository("tests/fixtures/gguf/tiny_llama.gguf");
    let out = tempfile::tempdir().unwrap();
    let summary = write(&base, &adapter_of(&base), GgufFileType::F32, out.path());
    assert_eq!((summary.adapter_tensors, summary.adapter_tensors_consumed), (4, 4));
    assert_eq!((summary.dtype, summary.files.len()), ("F32", 1));
    let (before, after) = (open(&base), open(out.path()));
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert_eq!(before.side_file(name).unwrap(), after.side_file(name).unwrap(), "{name}");
    }
    let mut config = before.config().clone();
    config["torch_dtype"] = json!("float32");
    assert_eq!(after.config(), &config);
}

#[test]
fn every_family_that_is_read_is_written() {
    let families = fs::read_dir(repository("tests/fixtures/families")).unwrap();
    let mut count = 0;
    for folder in families.map(|entry| entry.unwrap().path()) {
        let (base, adapter) = (folder.join("model.gguf"), folder.join("adapter"));
        if !base.is_file() {
            continue;
        }
        let out = tempfile::tempdir().unwrap();
        let adapter = crate::read_adapter(&adapter).unwrap();
        write(&base, &adapter, GgufFileType::F32, out.path());
        let mut config = open(&base).config().clone();
        config["torch_dtype"] = json!("float32");
        assert_eq!(open(out.path()).config(), &config, "{}", folder.display());
        count += 1;
    }
    assert!(count > 10);
}

/// The stored bytes of a tensor, however its rows lie.
fn blocks<'a>(model: &'a ModelFiles, name: &str) -> Option<(StoredDtype, &'a [u8])> {
    let head_dim = model.config()["head_dim"].as_u64().unwrap() as usize;
    let orders = [RowOrder::AsStored, RowOrder::Interleaved { head_dim }];
    let found = orders.into_iter().find_map(|order| model.gguf_blocks(name, Reading::Rows(order)));
    assert!(found.is_some(), "{name}");
    found
}

#[test]
fn blocks_of_the_wanted_type_are_passed_on_as_they_lie() {
    let base = repository("tests/fixtures/gguf/tiny_llama.gguf");
    let model = open(&base);
    let mut kept = 0;
    for file_type in [GgufFileType::Q8_0, GgufFileType::Q4_0, GgufFileType::F16] {
        let out = tempfile::tempdir().unwrap();
        write(&base, &adapter_of(&base), file_type, out.path());
        let written = open(out.path());
        for (name, entry) in written.weights().entries() {
            let adapted = name.contains("0.self_attn.k_proj") || name.contains("1.mlp.down_proj");
            if !adapted && model.weights().entries()[name].dtype == entry.dtype {
                assert_eq!(blocks(&model, name), blocks(&written, name), "{name}");
                kept += usize::from(entry.dtype != StoredDtype::F32);
            }
        }
    }
    assert!(kept > 0, "the fixture has no tensor of these types");
}

#[test]
fn a_sentencepiece_vocabulary_survives_the_way_through_a_folder() {
    let base = repository("tests/fixtures/gguf/tiny_llama.gguf");
    let adapter = adapter_of(&base);
    let folder = tempfile::tempdir().unwrap();
    let model = open(&base);
    let request = MergeRequest {
        base: &model,
        adapter: (&adapter.0, &adapter.1),
        dtype: MergeDtype::F32,
        max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
    };
    write_merged(&plan_merge(&request).unwrap(), folder.path(), &mut |_, _| {}).unwrap();
    let out = tempfile::tempdir().unwrap();
    write(folder.path(), &adapter, GgufFileType::F32, out.path());
    let written = open(out.path());
    let bytes = written.side_file("tokenizer.json").unwrap().unwrap();
    let tokenizer = tokenizers::Tokenizer::from_bytes(bytes).unwrap();
    let cases = fs::read(repository("tests/fixtures/gguf/tiny_llama_ids.json")).unwrap();
    let cases: Vec<Value> = serde_json::from_slice(&cases).unwrap();
    for case in cases {
        let encoding = tokenizer.encode(case["text"].as_str().unwrap(), true).unwrap();
        assert_eq!(json!(encoding.get_ids()), case["ids"], "{}", case["text"]);
    }
    assert_eq!(written.config()["rope_scaling"], json!({"rope_type": "linear", "factor": 2.0}));
}

/// The embedded base with other keys in its configuration.
fn tiny_with(change: impl Fn(&mut Value)) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(repository("recipes/tiny_llama")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut config);
    fs::write(&path, config.to_string()).unwrap();
    folder
}

#[test]
fn scaling_of_llama_3_becomes_factors() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 8192});
    let base = tiny_with(|config| {
        config["rope_parameters"] = Value::Null;
        config["rope_theta"] = json!(500_000.0);
        config["rope_scaling"] = scaling.clone();
    });
    let out = tempfile::tempdir().unwrap();
    write(base.path(), &adapter_of(base.path()), GgufFileType::F32, out.path());
    let written = open(out.path());
    assert_eq!(written.config()["rope_scaling"], scaling);
    assert_eq!(written.config()["rope_theta"], json!(500_000.0));
    assert_eq!(written.config()["head_dim"], json!(32));
}

#[test]
fn what_the_format_cannot_express_is_refused_by_name() {
    let problem = |base: &Path| {
        let adapter = adapter_of(base);
        let base = open(base);
        let request = MergeRequest {
            base: &base,
            adapter: (&adapter.0, &adapter.1),
            dtype: MergeDtype::Same,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let plan = plan_merge(&request).unwrap();
        let Err(error) = GgufPlan::new(&plan, GgufFileType::F16, &facts()) else {
            panic!("it was laid out");
        };
        error.to_string()
    };
    let dynamic = tiny_with(|config| {
        config["rope_parameters"] = json!({"rope_type": "dynamic", "factor": 4.0});
    });
    let found = problem(dynamic.path());
    assert!(found.contains("rotary scaling in GGUF output of llama `dynamic`"), "{found}");
    let words = tiny_with(|_| {});
    let path = words.path().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    json["pre_tokenizer"] = json!({"type": "Whitespace"});
    fs::write(&path, json.to_string()).unwrap();
    let found = problem(words.path());
    assert!(found.contains("splitting text into words") && found.contains("Whitespace"), "{found}");
    let other = tiny_with(|config| config["model_type"] = json!("opt"));
    assert!(problem(other.path()).contains("GGUF output of model type `opt`"));
}
