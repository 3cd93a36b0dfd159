//! Experts adapted as parameters (`target_parameters`), as PEFT 0.21 writes and computes them.

use std::path::{Path, PathBuf};

use adapters::merge::{
    DEFAULT_MAX_SHARD_BYTES, MergeDtype, MergeRequest, plan_merge, write_merged,
};
use adapters::weights::{ModelFiles, Network};
use adapters::{
    AdapterWeights, LoraFactors, PeftConfig, fit_experts, read_adapter, select_targets,
    write_adapter,
};
use burn::tensor::{DType, Device};
use datasets::{IGNORED, MicroBatch};
use serde_json::{Value, json};
use trainer::base_model::{
    Decoder, DecoderConfig, ModelLoader, Recompute, StepPlace, linear_layers,
};

use crate::fixture::{self, ids, relative_error};

const VARIANTS: &[&str] = &["mixtral", "qwen3_moe_fused", "deepseek_v3_fused", "llama4_text"];

fn folder(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families").join(variant)
}

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(folder.to_str().unwrap(), Network::Offline).unwrap()
}

fn loaded(files: &ModelFiles) -> Decoder {
    ModelLoader::new(files, &Device::flex(), DType::F32).unwrap().decoder().unwrap()
}

fn sequences(variant: &str) -> Vec<Vec<u32>> {
    let text = std::fs::read(folder(variant).join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    reference["sequences"].as_array().unwrap().iter().map(ids).collect()
}

fn fitted(folder: &Path, config: &DecoderConfig) -> (PeftConfig, AdapterWeights) {
    let (peft, weights) = read_adapter(folder).unwrap();
    fit_experts(peft, weights, &linear_layers(config))
}

fn assert_logits(variant: &str, decoder: &Decoder) {
    let ids = sequences(variant).remove(1);
    let expected = fixture::tensors_of(&folder(variant).join("parameters/logits.safetensors"));
    let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
    let error = relative_error(&logits, &expected["logits"]);
    assert!(error < 1e-4, "{variant}: logits are off by {error}");
}

#[test]
fn adapters_that_peft_wrote_give_its_logits_here_and_merged() {
    for variant in VARIANTS {
        let files = open(&folder(variant));
        let mut decoder = loaded(&files);
        let (peft, weights) = fitted(&folder(variant).join("parameters"), decoder.config());
        decoder.attach(&peft, &weights);
        assert_logits(variant, &decoder);
        let request = MergeRequest {
            base: &files,
            adapter: (&peft, &weights),
            dtype: MergeDtype::F32,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let merged = tempfile::tempdir().unwrap();
        write_merged(&plan_merge(&request).unwrap(), merged.path(), &mut |_, _| {}).unwrap();
        assert_logits(variant, &loaded(&open(merged.path())));
    }
}

/// The gradients of PEFT's factors, read as an adapter, which splits them as it splits factors.
fn expected_gradients(variant: &str) -> AdapterWeights {
    let parameters = folder(variant).join("parameters");
    let copy = tempfile::tempdir().unwrap();
    for (from, to) in [
        ("adapter_config.json", "adapter_config.json"),
        ("gradients.safetensors", "adapter_model.safetensors"),
    ] {
        std::fs::copy(parameters.join(from), copy.path().join(to)).unwrap();
    }
    read_adapter(copy.path()).unwrap().1
}

fn batch(variant: &str) -> MicroBatch {
    let mut batch = MicroBatch { segment_starts: vec![0], rows: 1, ..MicroBatch::default() };
    for ids in sequences(variant) {
        batch.targets.extend(ids.iter().skip(1).map(|&id| id as i32).chain([IGNORED]));
        batch.token_ids.extend(&ids);
        batch.segment_starts.push(batch.token_ids.len());
    }
    batch
}

#[test]
fn gradients_equal_those_of_peft() {
    for variant in VARIANTS {
        let mut decoder = loaded(&open(&folder(variant)));
        let (peft, weights) = fitted(&folder(variant).join("parameters"), decoder.config());
        decoder.attach(&peft, &weights);
        let batch = batch(variant);
        let factor = 1.0 / batch.trained_tokens() as f64;
        let place = StepPlace { step: 0, micro_batch: 0 };
        let actual = decoder.loss_and_gradients(&batch, factor, place, Recompute::Nothing);
        let values = |module: &str| {
            let gradients = &actual.gradients[module];
            (kernels::to_f32(&gradients.a), kernels::to_f32(&gradients.b))
        };
        for (module, LoraFactors { a, b, .. }) in &expected_gradients(variant).modules {
            let (of_a, of_b) = if actual.gradients.contains_key(module) {
                values(module)
            } else if let Some(expert) = module.strip_suffix(".down_proj") {
                values(&format!("{}.w2", expert.replace(".mlp.", ".block_sparse_moe.")))
            } else {
                // Gate and up share PEFT's A; its B has the rows of both.
                let expert = module.strip_suffix(".gate_up_proj").unwrap();
                let mixtral = expert.replace(".mlp.", ".block_sparse_moe.");
                let names = if *variant == "mixtral" {
                    ["w1", "w3"].map(|layer| format!("{mixtral}.{layer}"))
                } else {
                    ["gate_proj", "up_proj"].map(|layer| format!("{expert}.{layer}"))
                };
                let [(gate_a, gate_b), (up_a, up_b)] = names.map(|name| values(&name));
                let sum = gate_a.iter().zip(&up_a).map(|(x, y)| x + y).collect();
                (sum, [gate_b, up_b].concat())
            };
            for (name, actual, expected) in [("A", of_a, a), ("B", of_b, b)] {
                if expected.iter().all(|&value| value == 0.0) {
                    assert!(actual.iter().all(|&value| value == 0.0), "{variant}: {module} {name}");
                    continue;
                }
                let error = relative_error(&actual, expected);
                assert!(error < 1e-3, "{variant}: {name} of {module} is off by {error}");
            }
        }
    }
}

/// Files hold the same factors after a round through here.
#[test]
fn what_peft_wrote_is_written_alike() {
    for variant in VARIANTS {
        let theirs = folder(variant).join("parameters");
        let (peft, weights) = read_adapter(&theirs).unwrap();
        let ours = tempfile::tempdir().unwrap();
        write_adapter(ours.path(), &peft, &weights).unwrap();
        let tensors =
            |folder: &Path| fixture::tensors_of(&folder.join("adapter_model.safetensors"));
        assert_eq!(tensors(ours.path()), tensors(&theirs), "{variant}");
        let text = std::fs::read(ours.path().join("adapter_config.json")).unwrap();
        let config: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(config["target_parameters"].as_array().unwrap().len(), 2);
        assert_eq!(read_adapter(ours.path()).unwrap().1, weights, "{variant}");
    }
}

/// An adapter over a recipe's `target_parameters` with random factors.
fn of_recipe(files: &ModelFiles, experts: &str) -> (PeftConfig, AdapterWeights) {
    let config = DecoderConfig::read(files.config()).unwrap();
    let layers = linear_layers(&config);
    let names = ["gate_up_proj", "down_proj"].map(|part| format!("{experts}.{part}"));
    let recipe = json!({"rank": 8, "target_modules": ["o_proj"],
        "target_parameters": names});
    let recipe = serde_json::from_value(recipe).unwrap();
    let targets = select_targets(&recipe, &layers).unwrap();
    let expert_ranks: Vec<usize> =
        targets.iter().filter(|t| t.name.contains(".experts.")).map(|t| t.rank).collect();
    let experts = config.experts.unwrap().count;
    assert!(expert_ranks.iter().all(|&rank| rank == 8 / experts), "{expert_ranks:?}");
    let peft = PeftConfig::from_recipe(&recipe, &targets, &layers, "base").unwrap();
    let mut weights = adapters::initial_factors(&targets, &recipe, 1, files).unwrap();
    let mut value = 0.0_f32;
    for factors in weights.modules.values_mut() {
        for element in &mut factors.b {
            value = (value * 1.7 + 0.137).fract();
            *element = value - 0.5;
        }
    }
    (peft, weights)
}

#[test]
fn adapters_of_recipes_come_back_from_their_files() {
    for variant in VARIANTS {
        let files = open(&folder(variant));
        let experts =
            if variant.starts_with("llama4") { "feed_forward.experts" } else { "mlp.experts" };
        let (peft, weights) = of_recipe(&files, experts);
        let written = written_folder(variant);
        write_adapter(written.path(), &peft, &weights).unwrap();
        let mut decoder = loaded(&files);
        let (read, back) = fitted(written.path(), decoder.config());
        assert_eq!(back, weights, "{variant}");
        for module in weights.modules.keys() {
            let (expected, actual) = (peft.scale(module), read.scale(module));
            assert!((expected - actual).abs() < 1e-9, "{variant}: {module} {expected} {actual}");
        }
        decoder.attach(&read, &back);
        if let Some(root) = std::env::var_os("TUNESMITH_MERGED_FAMILIES") {
            let ids = sequences(variant).remove(1);
            let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
            let path = Path::new(&root).join("parameters").join(variant).join("logits.json");
            std::fs::write(path, serde_json::to_vec(&logits).unwrap()).unwrap();
        }
    }
}

/// A temporary folder, or a lasting one for `scripts/check_merged_families.py`.
fn written_folder(variant: &str) -> Written {
    match std::env::var_os("TUNESMITH_MERGED_FAMILIES") {
        Some(root) => {
            let folder = Path::new(&root).join("parameters").join(variant);
            std::fs::create_dir_all(&folder).unwrap();
            Written::Lasting(folder)
        }
        None => Written::Temporary(tempfile::tempdir().unwrap()),
    }
}

enum Written {
    Temporary(tempfile::TempDir),
    Lasting(PathBuf),
}

impl Written {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Lasting(folder) => folder,
        }
    }
}

#[test]
fn dropout_and_unknown_parameters_are_refused() {
    let files = open(&folder("llama4_text"));
    let layers = linear_layers(&DecoderConfig::read(files.config()).unwrap());
    let recipe = serde_json::from_value(json!({"dropout": 0.1})).unwrap();
    let targets = select_targets(&recipe, &layers).unwrap();
    let error = PeftConfig::from_recipe(&recipe, &targets, &layers, "base").unwrap_err();
    assert!(error.to_string().contains("feed_forward.experts.down_proj"), "{error}");
    assert_eq!(error.hint().unwrap(), "set `dropout = 0`");
    let recipe = json!({"target_parameters": ["mlp.experts.gate_up_proj"]});
    let recipe = serde_json::from_value(recipe).unwrap();
    let error = select_targets(&recipe, &layers).unwrap_err().to_string();
    assert!(error.contains("`mlp.experts.gate_up_proj` names no experts"), "{error}");
    assert!(error.contains("feed_forward.experts.gate_up_proj"), "{error}");
}
