//! Whole merges: against f64, against PEFT, and what is refused.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::round::OutputDtype;
use super::*;
use crate::peft::{LoraFactors, read_adapter};
use crate::safetensors_file::{TensorSpec, header};
use crate::weights::Network;

type Tensor = (&'static str, Vec<usize>, OutputDtype, Vec<f32>);

/// Values in ±1 that look random and are the same each time.
fn noise(count: usize, salt: u32) -> Vec<f32> {
    let word = |n: usize| (n as u32).wrapping_mul(2_654_435_761) ^ salt.wrapping_mul(0x9e37_79b9);
    (0..count)
        .map(|n| (word(n).wrapping_mul(0x85eb_ca6b) >> 8) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

/// A model folder with these tensors.
fn model(config: &Value, tensors: &[Tensor]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let spec = |(name, shape, dtype, _): &Tensor| TensorSpec {
        name: (*name).to_owned(),
        dtype: dtype.in_header(),
        shape: shape.clone(),
    };
    let mut file = header(&tensors.iter().map(spec).collect::<Vec<_>>());
    for (_, _, dtype, values) in tensors {
        let mut bytes = Vec::new();
        dtype.encode(values, &mut bytes).unwrap();
        file.extend(bytes);
    }
    fs::write(dir.path().join("model.safetensors"), file).unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    fs::write(dir.path().join("tokenizer.json"), "{ \"a\":1}").unwrap();
    dir
}

pub(super) fn open(dir: &Path) -> ModelFiles {
    ModelFiles::open(dir.to_str().unwrap(), Network::Offline).unwrap()
}

pub(super) fn factors(d_out: usize, d_in: usize, rank: usize) -> LoraFactors {
    LoraFactors { a: noise(rank * d_in, 7), b: noise(d_out * rank, 9), rank, d_in, d_out }
}

pub(super) fn adapter(modules: Vec<(&str, LoraFactors)>) -> (PeftConfig, AdapterWeights) {
    let rank = modules.first().map_or(1, |(_, factors)| factors.rank);
    let config = PeftConfig { rank, alpha: 1.5, ..PeftConfig::default() };
    let modules = modules.into_iter().map(|(name, factors)| (name.to_owned(), factors)).collect();
    (config, AdapterWeights { modules, ..AdapterWeights::default() })
}

struct Merge {
    dtype: MergeDtype,
    max_shard_bytes: u64,
}

const PLAIN: Merge = Merge { dtype: MergeDtype::Same, max_shard_bytes: DEFAULT_MAX_SHARD_BYTES };

impl Merge {
    fn write(
        &self,
        base: &Path,
        adapter: &(PeftConfig, AdapterWeights),
        out: &Path,
    ) -> Result<MergeSummary, MergeError> {
        let base = open(base);
        let request = MergeRequest {
            base: &base,
            adapter: (&adapter.0, &adapter.1),
            dtype: self.dtype,
            max_shard_bytes: self.max_shard_bytes,
        };
        let mut last = (0, plan_merge(&request)?.total_bytes());
        let summary = write_merged(&plan_merge(&request)?, out, &mut |done, total| {
            assert!(done >= last.0 && total == last.1);
            last.0 = done;
        })?;
        assert_eq!(last.0, last.1, "progress ends at the whole");
        Ok(summary)
    }

    fn run(
        &self,
        base: &Path,
        adapter: &(PeftConfig, AdapterWeights),
    ) -> Result<(TempDir, MergeSummary), MergeError> {
        let out = tempfile::tempdir().unwrap();
        let summary = self.write(base, adapter, out.path())?;
        Ok((out, summary))
    }
}

fn all_values(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let model = open(dir);
    let weights = model.weights();
    weights.entries().keys().map(|name| (name.clone(), weights.read_f32(name).unwrap())).collect()
}

/// Distance to the next value of the type at `value`.
fn step(dtype: OutputDtype, value: f64) -> f64 {
    let (bits, smallest) = match dtype {
        OutputDtype::F32 => (23, -126),
        OutputDtype::F16 => (10, -14),
        OutputDtype::Bf16 => (7, -126),
    };
    let exponent = value.abs().log2().floor().max(f64::from(smallest));
    (exponent - f64::from(bits)).exp2()
}

const LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
    "torch_dtype": "float32", "tie_word_embeddings": false, "vocab_size": 6}"#;

fn llama() -> Value {
    serde_json::from_str(LLAMA).unwrap()
}

fn small() -> TempDir {
    let f32 = OutputDtype::F32;
    model(
        &llama(),
        &[
            ("model.embed_tokens.weight", vec![6, 4], f32, noise(24, 1)),
            ("model.layers.0.q_proj.weight", vec![8, 4], f32, noise(32, 2)),
            ("model.layers.0.norm.weight", vec![4], f32, noise(4, 3)),
            ("lm_head.weight", vec![6, 4], OutputDtype::Bf16, noise(24, 4)),
        ],
    )
}

#[test]
fn each_element_is_the_exact_sum_rounded_once_in_every_type() {
    // Two blocks of rows: 1 200 × 1 000 elements are more than one holds.
    let (d_out, d_in, rank) = (1200, 1000, 5);
    let weight = noise(d_out * d_in, 2);
    let name = "model.layers.0.q_proj.weight";
    let base = model(&llama(), &[(name, vec![d_out, d_in], OutputDtype::F32, weight.clone())]);
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(d_out, d_in, rank))]);
    let LoraFactors { a, b, .. } = &adapter.1.modules["model.layers.0.q_proj"];
    let delta = |n: usize| -> f64 {
        let (row, column) = (n / d_in, n % d_in);
        (0..rank).map(|k| f64::from(b[row * rank + k]) * f64::from(a[k * d_in + column])).sum()
    };
    let scale = 1.5 / 5.0;
    let norm = (0..d_out * d_in).map(|n| (scale * delta(n)).powi(2)).sum::<f64>().sqrt();
    for (dtype, output) in [
        (MergeDtype::Same, OutputDtype::F32),
        (MergeDtype::F16, OutputDtype::F16),
        (MergeDtype::Bf16, OutputDtype::Bf16),
    ] {
        let (out, summary) = Merge { dtype, ..PLAIN }.run(base.path(), &adapter).unwrap();
        let merged = &all_values(out.path())[name];
        for (n, (&merged, &weight)) in merged.iter().zip(&weight).enumerate() {
            let exact = f64::from(weight) + scale * delta(n);
            // Half a step of the type, and what f32 sums of this size may be off.
            let allowed = step(output, exact) / 2.0 + 8e-7;
            assert!(
                (f64::from(merged) - exact).abs() <= allowed,
                "{dtype:?} {n}: {merged} {exact}"
            );
        }
        let update = summary.tensors[0].update.as_ref().unwrap();
        assert!((update.delta_norm / norm - 1.0).abs() < 1e-6, "{} {norm}", update.delta_norm);
        assert!(summary.tensors[0].changed && update.changed_elements > 900_000);
    }
}

fn fixture(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/merge").join(case)
}

/// Merges a fixture and gives every element with PEFT's, and the merged folder.
fn merged_by_both(case: &str) -> (Vec<(String, f32, f32)>, TempDir, MergeSummary) {
    let folder = fixture(case);
    let adapter = read_adapter(&folder.join("adapter")).unwrap();
    assert!(adapter.0.unknown_keys.is_empty(), "{:?}", adapter.0.unknown_keys);
    let (out, summary) = PLAIN.run(&folder.join("base"), &adapter).unwrap();
    let ours = all_values(out.path());
    // PEFT's folder has weights alone: a config makes it a model.
    let theirs = tempfile::tempdir().unwrap();
    for (from, name) in [("base", "config.json"), ("merged", "model.safetensors")] {
        fs::copy(folder.join(from).join(name), theirs.path().join(name)).unwrap();
    }
    let theirs = all_values(theirs.path());
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>());
    let pairs = ours.into_iter().flat_map(|(name, values)| {
        let theirs = theirs[&name].clone();
        assert_eq!(values.len(), theirs.len());
        values.into_iter().zip(theirs).map(move |(a, b)| (name.clone(), a, b))
    });
    (pairs.collect(), out, summary)
}

#[test]
fn an_rslora_adapter_with_patterns_merges_as_peft_merges_it() {
    let (pairs, _out, summary) = merged_by_both("f32");
    for (name, ours, theirs) in pairs {
        assert!((ours - theirs).abs() <= 5e-7 * theirs.abs().max(1.0), "{name}: {ours} {theirs}");
    }
    assert_eq!((summary.adapter_tensors, summary.adapter_tensors_consumed), (28, 28));
    assert_eq!(summary.tensors.iter().filter(|tensor| tensor.changed).count(), 14);
}

#[test]
fn a_sharded_bf16_base_merges_as_peft_merges_it() {
    let (pairs, out, summary) = merged_by_both("bf16");
    let total = pairs.len();
    let mut equal = 0;
    for (name, ours, theirs) in pairs {
        let allowed = step(OutputDtype::Bf16, f64::from(theirs)) * 1.001;
        assert!(f64::from((ours - theirs).abs()) <= allowed, "{name}: {ours} {theirs}");
        equal += usize::from(ours.to_bits() == theirs.to_bits());
    }
    assert!(equal * 1000 >= total * 999, "{equal} of {total} are equal");
    assert_eq!(summary.adapter_tensors_consumed, 12);
    assert!(!all_values(out.path()).contains_key("lm_head.weight"), "the head is tied");
    let config = fs::read_to_string(out.path().join("config.json")).unwrap();
    let config: Value = serde_json::from_str(&config).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
    assert_eq!(config.get("torch_dtype"), None);
}

#[test]
fn tensors_without_an_update_and_side_files_keep_their_bytes() {
    let base = small();
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(8, 4, 2))]);
    let (out, summary) = PLAIN.run(base.path(), &adapter).unwrap();
    let (base_model, merged) = (open(base.path()), open(out.path()));
    for name in ["model.embed_tokens.weight", "model.layers.0.norm.weight", "lm_head.weight"] {
        assert_eq!(base_model.weights().raw(name).unwrap(), merged.weights().raw(name).unwrap());
    }
    assert_eq!(fs::read(out.path().join("tokenizer.json")).unwrap(), b"{ \"a\":1}");
    assert_eq!(summary.files, ["model.safetensors", "config.json", "tokenizer.json"]);
    assert!(!out.path().join("model.safetensors.index.json").exists());
    let changed: Vec<_> = summary.tensors.iter().filter(|t| t.changed).map(|t| &t.name).collect();
    assert_eq!(changed, ["model.layers.0.q_proj.weight"]);
}

#[test]
fn tensors_without_an_update_are_converted_where_another_type_is_asked_for() {
    let base = small();
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(8, 4, 2))]);
    let merge = Merge { dtype: MergeDtype::F16, ..PLAIN };
    let (out, summary) = merge.run(base.path(), &adapter).unwrap();
    let merged = all_values(out.path());
    for (&merged, value) in merged["model.embed_tokens.weight"].iter().zip(noise(24, 1)) {
        assert_eq!(merged.to_bits(), f16::from_f32(value).to_f32().to_bits());
    }
    for (&merged, value) in merged["lm_head.weight"].iter().zip(noise(24, 4)) {
        let stored = bf16::from_f32(value).to_f32();
        assert_eq!(merged.to_bits(), f16::from_f32(stored).to_f32().to_bits());
    }
    assert!(summary.tensors.iter().all(|tensor| tensor.dtype == "F16"));
    assert_eq!(summary.dtype, "float16");
}

#[test]
fn shards_stay_below_the_limit_and_hold_everything_once() {
    let base = small();
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(8, 4, 2))]);
    let (whole, _) = PLAIN.run(base.path(), &adapter).unwrap();
    // 48 + 96 bytes of head and embedding; 16 and 128 bytes of norm and projection.
    let merge = Merge { max_shard_bytes: 144, ..PLAIN };
    let (out, summary) = merge.run(base.path(), &adapter).unwrap();
    assert_eq!(
        summary.files[..2].to_vec(),
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    );
    let index = fs::read_to_string(out.path().join("model.safetensors.index.json")).unwrap();
    let index: Value = serde_json::from_str(&index).unwrap();
    assert_eq!(index["metadata"]["total_size"], json!(288));
    assert_eq!(index["weight_map"]["lm_head.weight"], "model-00001-of-00002.safetensors");
    assert_eq!(
        index["weight_map"]["model.layers.0.q_proj.weight"],
        "model-00002-of-00002.safetensors"
    );
    assert_eq!(all_values(out.path()), all_values(whole.path()));
}

#[test]
fn every_module_that_cannot_be_merged_is_in_one_error() {
    let base = small();
    let mut broken = factors(8, 4, 2);
    broken.b[3] = f32::NAN;
    let adapter = adapter(vec![
        ("model.layers.0.q_proj", broken),
        ("model.layers.0.k_proj", factors(8, 4, 2)),
        ("model.embed_tokens", factors(6, 4, 2)),
        ("lm_head", factors(7, 4, 2)),
        ("model.layers.0.norm", factors(4, 4, 2)),
    ]);
    let error = PLAIN.run(base.path(), &adapter).unwrap_err();
    let text = error.to_string();
    for part in [
        "`model.layers.0.q_proj` has NaN in B, at element 3",
        "`model.layers.0.k_proj` has no tensor `model.layers.0.k_proj.weight` in the base",
        "`model.embed_tokens` is an embedding",
        "`lm_head` is made for a weight [7, 4], the base has [6, 4]",
        "`model.layers.0.norm` is made for a weight [4, 4], the base has [4]",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn an_adapter_that_changes_nothing_is_refused_and_a_module_that_does_not_is_listed() {
    let base = small();
    let mut zero = factors(8, 4, 2);
    zero.b.fill(0.0);
    let only_zero = adapter(vec![("model.layers.0.q_proj", zero.clone())]);
    let error = PLAIN.run(base.path(), &only_zero).unwrap_err().to_string();
    assert_eq!(
        error,
        "the adapter changes nothing: B·A is zero in all of its 1 modules, such as \
         `model.layers.0.q_proj`"
    );
    let both = adapter(vec![("model.layers.0.q_proj", zero), ("lm_head", factors(6, 4, 2))]);
    let (_, summary) = PLAIN.run(base.path(), &both).unwrap();
    assert_eq!(summary.zero_deltas, ["model.layers.0.q_proj"]);
    assert!(summary.lost_to_rounding.is_empty());
    let none = PLAIN.run(base.path(), &adapter(vec![])).unwrap_err();
    assert!(matches!(none, MergeError::Empty));
}

#[test]
fn an_update_too_small_for_the_type_is_reported_as_lost() {
    let base = small();
    let mut faint = factors(6, 4, 2);
    faint.b.iter_mut().for_each(|b| *b *= 1e-12);
    let (_, summary) = PLAIN.run(base.path(), &adapter(vec![("lm_head", faint)])).unwrap();
    assert_eq!(summary.lost_to_rounding, ["lm_head.weight"]);
    let update = summary.tensors[0].update.as_ref().unwrap();
    assert!(update.delta_norm > 0.0 && update.changed_elements == 0);
}

#[test]
fn a_value_too_large_for_the_type_names_its_tensor() {
    let f32 = OutputDtype::F32;
    let mut values = noise(16, 1);
    values[9] = 70_000.0;
    let weights =
        [("a.weight", vec![4, 4], f32, noise(16, 3)), ("b.weight", vec![4, 4], f32, values)];
    let base = model(&llama(), &weights);
    let adapter = adapter(vec![("a", factors(4, 4, 2))]);
    let merge = Merge { dtype: MergeDtype::F16, ..PLAIN };
    let error = merge.run(base.path(), &adapter).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`b.weight` would hold 70000 at element 9, which is no finite F16"
    );
    assert!(error.hint().unwrap().contains("--dtype bf16"));
}

#[test]
fn a_stored_head_that_is_tied_is_left_out_and_cannot_be_merged_into() {
    let mut config = llama();
    config["tie_word_embeddings"] = json!(true);
    let f32 = OutputDtype::F32;
    let tensors = [
        ("model.q.weight", vec![8, 4], f32, noise(32, 2)),
        ("lm_head.weight", vec![6, 4], f32, noise(24, 1)),
    ];
    let base = model(&config, &tensors);
    let good = adapter(vec![("model.q", factors(8, 4, 2))]);
    let (out, summary) = PLAIN.run(base.path(), &good).unwrap();
    assert_eq!(summary.left_out, ["lm_head.weight"]);
    let names: Vec<_> = all_values(out.path()).into_keys().collect();
    assert_eq!(names, ["model.q.weight"]);
    let head = adapter(vec![("lm_head", factors(6, 4, 2))]);
    let error = PLAIN.run(base.path(), &head).unwrap_err().to_string();
    assert!(error.contains("`lm_head` is tied to the embedding"), "{error}");
}

#[test]
fn unwritable_output_and_a_full_disk_name_the_file() {
    let base = small();
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(8, 4, 2))]);
    let out = tempfile::tempdir().unwrap();
    let missing = out.path().join("missing");
    let error = PLAIN.write(base.path(), &adapter, &missing).unwrap_err().to_string();
    assert!(error.starts_with("cannot create `") && error.contains("missing/model.safetensors"));
    std::os::unix::fs::symlink("/dev/full", out.path().join("model.safetensors")).unwrap();
    let error = PLAIN.write(base.path(), &adapter, out.path()).unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("cannot write `") && text.contains("model.safetensors"), "{text}");
    assert!(error.hint().unwrap().starts_with("free disk space"));
}

#[test]
fn the_report_is_json_with_the_figures_of_each_tensor() {
    let base = small();
    let adapter = adapter(vec![("model.layers.0.q_proj", factors(8, 4, 2))]);
    let (_, summary) = PLAIN.run(base.path(), &adapter).unwrap();
    let report = serde_json::to_value(&summary).unwrap();
    let of = |place: usize| &report["tensors"][place];
    assert_eq!(
        of(0),
        &json!({"name": "lm_head.weight", "shape": [6, 4], "dtype": "BF16", "changed": false})
    );
    assert_eq!(of(3)["scale"], json!(0.75));
    assert_eq!(of(3)["changed_elements"], json!(32));
    assert!(of(3)["relative_delta"].as_f64().unwrap() > 0.0);
}

#[test]
fn magnitudes_that_are_the_norms_of_the_base_change_nothing() {
    let base = small();
    let mut zero = factors(8, 4, 2);
    zero.b.fill(0.0);
    let (config, mut weights) = adapter(vec![("model.layers.0.q_proj", zero)]);
    let config = PeftConfig { use_dora: true, ..config };
    let rows = all_values(base.path())["model.layers.0.q_proj.weight"].clone();
    let norm = |row: &[f32]| row.iter().map(|x| x * x).sum::<f32>().sqrt();
    let norms: Vec<f32> = rows.chunks(4).map(norm).collect();
    weights.magnitudes.insert("model.layers.0.q_proj".to_owned(), norms.clone());
    let error = PLAIN.run(base.path(), &(config.clone(), weights.clone())).unwrap_err();
    assert!(matches!(error, MergeError::Unchanged { modules: 1, .. }), "{error}");
    let doubled = norms.iter().map(|norm| 2.0 * norm).collect();
    weights.magnitudes.insert("model.layers.0.q_proj".to_owned(), doubled);
    let (out, summary) = PLAIN.run(base.path(), &(config.clone(), weights.clone())).unwrap();
    assert_eq!((summary.adapter_tensors, summary.adapter_tensors_consumed), (3, 3));
    let merged = all_values(out.path())["model.layers.0.q_proj.weight"].clone();
    for (merged, base) in merged.iter().zip(&rows) {
        assert!((merged - 2.0 * base).abs() < 1e-5, "{merged} {base}");
    }
    weights.magnitudes.clear();
    let error = PLAIN.run(base.path(), &(config, weights)).unwrap_err().to_string();
    assert!(error.contains("has no magnitude"), "{error}");
}
