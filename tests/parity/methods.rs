//! Methods other than plain LoRA against PEFT: logits, gradients, 20 steps, merged weights.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use adapters::merge::{
    DEFAULT_MAX_SHARD_BYTES, MergeDtype, MergeRequest, plan_merge, write_merged,
};
use adapters::weights::{ModelFiles, Network, UntiedHead};
use adapters::{AdapterWeights, PeftConfig, WholeSelection, read_adapter};
use burn::tensor::{DType, Device};
use datasets::MicroBatch;
use serde_json::Value;
use trainer::GradientCheckpointing;
use trainer::base_model::{
    Decoder, DecoderConfig, ModelLoader, Recompute, StepPlace, base_tensors,
};

use crate::fixture;
use crate::training::{Shape, rows, settings, train_decoder};

const METHODS: [&str; 10] = [
    "dora",
    "dora_rslora",
    "lora_plus",
    "dora_gpt2",
    "save_ends",
    "save_tied_head",
    "save_tied_pair",
    "save_norms",
    "bias_all",
    "save_gpt2",
];
/// Those over a base with rows to train on.
const TRAINED: [&str; 8] = [
    "dora",
    "dora_rslora",
    "lora_plus",
    "save_ends",
    "save_tied_head",
    "save_tied_pair",
    "save_norms",
    "bias_all",
];

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures")
}

fn path(method: &str) -> PathBuf {
    fixtures().join("methods").join(method)
}

pub(crate) fn json(method: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(method).join(file)).unwrap()).unwrap()
}

fn base(method: &str) -> ModelFiles {
    base_at(json(method, "reference.json")["base"].as_str().unwrap())
}

/// A base by its folder in the fixtures.
pub(crate) fn base_at(folder: &str) -> ModelFiles {
    ModelFiles::open(fixtures().join(folder).to_str().unwrap(), Network::Offline).unwrap()
}

/// The tiny Llama that a trained method stands on.
fn variant(method: &str) -> String {
    let base = json(method, "reference.json")["base"].as_str().unwrap().to_owned();
    base.strip_prefix("llama/").unwrap().to_owned()
}

/// The base with the adapter's whole tensors in it, and what is trained of it.
fn changed(method: &str) -> (ModelFiles, WholeSelection, PeftConfig, AdapterWeights) {
    let files = base(method);
    let (config, weights) = read_adapter(&path(method).join("adapter")).unwrap();
    let tensors = base_tensors(&DecoderConfig::read(files.config()).unwrap());
    let modules = weights.modules.keys().map(String::as_str);
    let selection = config.select_whole(modules, &tensors).unwrap();
    let head = if selection.unties_head { UntiedHead::Always } else { UntiedHead::WhereDifferent };
    let files = files.with_whole(&weights.whole, &tensors, head).unwrap();
    (files, selection, config, weights)
}

fn adapted(method: &str) -> (Decoder, PeftConfig) {
    let (files, selection, config, weights) = changed(method);
    let loader = ModelLoader::new(&files, &Device::flex(), DType::F32).unwrap();
    let mut decoder = loader.training(&selection).decoder().unwrap();
    decoder.attach(&config, &weights);
    // What is read is what is written again.
    let expected = by_name(&weights);
    assert_eq!(by_name(&decoder.adapter_weights()), expected, "{method}");
    (decoder, config)
}

/// Trained tensors by their names in the adapter's file, without prefix and `.weight`.
fn by_name(weights: &AdapterWeights) -> BTreeMap<String, Vec<f32>> {
    let mut tensors = BTreeMap::new();
    for (module, factors) in &weights.modules {
        tensors.insert(format!("{module}.lora_A"), factors.a.clone());
        tensors.insert(format!("{module}.lora_B"), factors.b.clone());
    }
    for (module, values) in &weights.magnitudes {
        tensors.insert(format!("{module}.lora_magnitude_vector"), values.clone());
    }
    for (name, tensor) in &weights.whole {
        tensors.insert(name.trim_end_matches(".weight").to_owned(), tensor.values.clone());
    }
    tensors
}

pub(crate) fn reference(method: &str, file: &str) -> BTreeMap<String, Vec<f32>> {
    let short = |name: &str| {
        name.trim_start_matches("base_model.model.").trim_end_matches(".weight").to_owned()
    };
    let tensors = fixture::tensors_of(&path(method).join(file));
    tensors.into_iter().map(|(name, values)| (short(&name), values)).collect()
}

#[test]
fn logits_of_base_and_adapter_equal_those_of_peft() {
    for method in METHODS {
        let (decoder, _) = adapted(method);
        let ids = fixture::ids(&json(method, "reference.json")["input_ids"]);
        let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
        let expected = &fixture::tensors_of(&path(method).join("reference.safetensors"))["logits"];
        let error = fixture::relative_error(&logits, expected);
        assert!(error < 1e-5, "{method}: {error}");
    }
}

#[test]
fn gradients_of_the_first_step_equal_those_of_peft() {
    for method in TRAINED {
        let (decoder, _) = adapted(method);
        let mut batch = MicroBatch::default();
        for row in &rows(&variant(method))[..4] {
            batch.push(row);
        }
        let factor = 1.0 / batch.trained_tokens() as f64;
        let place = StepPlace { step: 0, micro_batch: 0 };
        let result = decoder.loss_and_gradients(&batch, factor, place, Recompute::Nothing);
        let expected = reference(method, "step_1_gradients.safetensors");
        let mut compared = 0;
        for (module, gradients) in &result.gradients {
            let magnitude = gradients.magnitude.iter().map(|m| ("lora_magnitude_vector", m));
            let pairs = [("lora_A", &gradients.a), ("lora_B", &gradients.b)];
            for (name, actual) in pairs.into_iter().chain(magnitude) {
                let expected = &expected[&format!("{module}.{name}")];
                let error = fixture::relative_error(&kernels::to_f32(actual), expected);
                assert!(error < 1e-4, "{method}: gradient of {module}.{name} is off by {error}");
                compared += 1;
            }
        }
        for (name, actual) in &result.whole_gradients {
            let expected = &expected[name.trim_end_matches(".weight")];
            let error = fixture::relative_error(&kernels::to_f32(actual), expected);
            assert!(error < 1e-4, "{method}: gradient of {name} is off by {error}");
            compared += 1;
        }
        assert_eq!(compared, expected.len(), "{method}");
    }
}

#[test]
fn twenty_steps_equal_those_of_peft() {
    for method in TRAINED {
        let training = json(method, "training.json");
        let numbers = |key: &str| -> Vec<f64> {
            training[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        for (rows, checkpointing) in
            [(4, GradientCheckpointing::Off), (2, GradientCheckpointing::On)]
        {
            let shape = Shape { rows, micro_batches: 4 / rows, checkpointing, packing: false };
            let mut settings = settings(&shape, 20);
            settings.learning_rate_ratio = training["learning_rate_ratio"].as_f64().unwrap();
            let folder = tempfile::tempdir().unwrap();
            let (steps, weights) =
                train_decoder(&variant(method), adapted(method), settings, folder.path());
            let expected =
                numbers("losses").into_iter().zip(numbers("gradient_norms_before_clipping"));
            for (step, (loss, norm)) in steps.iter().zip(expected) {
                let place = format!("{method}, step {}", step.step);
                assert!((step.loss / loss - 1.0).abs() < 1e-4, "{place}: {} not {loss}", step.loss);
                assert!((step.gradient_norm / norm - 1.0).abs() < 1e-3, "{place}: norm");
            }
            let expected = reference(method, "adapter_after_20_steps.safetensors");
            let mut actual = by_name(&weights);
            if method == "save_tied_pair" {
                // Files hold the one matrix by both names, as PEFT's do.
                assert_eq!(actual.remove("lm_head"), Some(actual["model.embed_tokens"].clone()));
            }
            assert!(actual.keys().eq(expected.keys()), "{method}");
            for (name, values) in &actual {
                let cosine = fixture::cosine(values, &expected[name]);
                assert!(cosine > 0.9999, "{method}: {name} has cosine {cosine}");
            }
        }
    }
}

#[test]
fn merged_weights_equal_those_of_peft() {
    for method in METHODS {
        let (base, _, peft, weights) = changed(method);
        let request = MergeRequest {
            base: &base,
            adapter: (&peft, &weights),
            dtype: MergeDtype::F32,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let folder = tempfile::tempdir().unwrap();
        let plan = plan_merge(&request).unwrap();
        let summary = write_merged(&plan, folder.path(), &mut |_, _| {}).unwrap();
        assert_eq!(summary.adapter_tensors, summary.adapter_tensors_consumed, "{method}");
        let merged = fixture::tensors_of(&folder.path().join("model.safetensors"));
        let expected = fixture::tensors_of(&path(method).join("merged.safetensors"));
        assert_eq!(expected.len(), weights.modules.len() + weights.whole.len(), "{method}");
        for (name, expected) in &expected {
            let found = match name.as_str() {
                "lm_head.weight" if method == "save_tied_pair" => {
                    merged.get("model.embed_tokens.weight")
                }
                name => merged.get(name).or_else(|| merged.get(name.split_once('.').unwrap().1)),
            };
            let error = fixture::relative_error(found.unwrap(), expected);
            assert!(error < 1e-6, "{method}: {name} is off by {error}");
        }
    }
}
