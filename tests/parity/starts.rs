//! Adapters that begin as a part of the base, against PEFT.

use std::collections::BTreeMap;

use adapters::{AdapterConfig, AdapterWeights, LoraConfig, PeftConfig, initial_factors};
use burn::tensor::{DType, Device};
use serde_json::json;
use trainer::GradientCheckpointing;
use trainer::base_model::{Decoder, ModelLoader, linear_layers};

use crate::fixture;
use crate::methods::{base_at, json as read_json, reference};
use crate::training::{Shape, settings, train_decoder};

fn recipe(method: &str) -> LoraConfig {
    let keys = match method {
        "pissa" => {
            json!({"rank": 4, "alpha": 8.0, "init": "pissa", "rank_pattern": {"q_proj": 2}})
        }
        _ => json!({"rank": 4, "alpha": 8.0, "init": "olora", "use_rslora": true}),
    };
    serde_json::from_value(keys).unwrap()
}

/// The decoder with a fresh adapter on it, and what it began with.
fn started(config: &AdapterConfig) -> (Decoder, PeftConfig, AdapterWeights) {
    let files = base_at("llama/gqa");
    let loader = ModelLoader::new(&files, &Device::flex(), DType::F32).unwrap();
    let mut decoder = loader.decoder().unwrap();
    let layers = linear_layers(decoder.config());
    let lora = config.low_rank();
    let targets = adapters::select_targets(lora, &layers).unwrap();
    let weights = initial_factors(&targets, lora, 1, &files).unwrap();
    let peft = PeftConfig::from_recipe(lora, &targets, &layers, "base").unwrap();
    let peft = PeftConfig { use_dora: config.is_dora(), ..peft };
    decoder.attach(&peft, &weights);
    (decoder, peft, weights)
}

/// Largest difference of `B·A`, relative to the largest value.
fn product_error(
    [a, b]: [&[f32]; 2],
    [expected_a, expected_b]: [&[f32]; 2],
    [rank, expected_rank]: [usize; 2],
) -> f32 {
    let product = |a: &[f32], b: &[f32], rank: usize| -> Vec<f32> {
        let d_in = a.len() / rank;
        let element = |row: &[f32], column: usize| -> f64 {
            (0..rank).map(|k| f64::from(row[k]) * f64::from(a[k * d_in + column])).sum()
        };
        b.chunks(rank)
            .flat_map(|row| (0..d_in).map(move |column| element(row, column) as f32))
            .collect()
    };
    let expected = product(expected_a, expected_b, expected_rank);
    fixture::relative_error(&product(a, b, rank), &expected)
}

fn pair<'a>(tensors: &'a BTreeMap<String, Vec<f32>>, module: &str) -> [&'a [f32]; 2] {
    ["lora_A", "lora_B"].map(|factor| tensors[&format!("{module}.{factor}")].as_slice())
}

#[test]
fn starts_equal_those_of_peft_up_to_sign() {
    for method in ["pissa", "olora"] {
        let (_, _, weights) = started(&AdapterConfig::Lora(recipe(method)));
        let expected = reference(method, "start.safetensors");
        assert_eq!(expected.len(), 2 * weights.modules.len());
        for (module, factors) in &weights.modules {
            let [a, b] = pair(&expected, module);
            let (rank, d_in) = (factors.rank, factors.d_in);
            let column = |values: &[f32], k: usize| -> Vec<f32> {
                values.iter().skip(k).step_by(rank).copied().collect()
            };
            for k in 0..rank {
                let (own, peft) = (&factors.a[k * d_in..][..d_in], &a[k * d_in..][..d_in]);
                let sign = fixture::cosine(own, peft).signum() as f32;
                let turned: Vec<f32> = own.iter().map(|x| sign * x).collect();
                let error = fixture::relative_error(&turned, peft);
                assert!(error < 1e-4, "{method}: A of {module}, {k}: {error}");
                let turned: Vec<f32> = column(&factors.b, k).iter().map(|x| sign * x).collect();
                let error = fixture::relative_error(&turned, &column(b, k));
                assert!(error < 1e-4, "{method}: B of {module}, {k}: {error}");
            }
        }
    }
}

#[test]
fn twenty_steps_from_a_part_of_the_base_equal_those_of_peft_and_fit_the_whole_base() {
    for method in ["pissa", "olora"] {
        let (decoder, peft, _) = started(&AdapterConfig::Lora(recipe(method)));
        let checkpointing = GradientCheckpointing::Off;
        let shape = Shape { rows: 4, micro_batches: 1, checkpointing, packing: false };
        let folder = tempfile::tempdir().unwrap();
        let (steps, weights) =
            train_decoder("gqa", (decoder, peft.clone()), settings(&shape, 20), folder.path());
        let losses = read_json(method, "training.json")["losses"].clone();
        for (step, loss) in steps.iter().zip(losses.as_array().unwrap()) {
            let loss = loss.as_f64().unwrap();
            let place = format!("{method}, step {}", step.step);
            assert!((step.loss / loss - 1.0).abs() < 1e-4, "{place}: {} not {loss}", step.loss);
        }
        // What is on disk is a LoRA of twice the rank, as PEFT converts it.
        let expected = reference(method, "adapter/adapter_model.safetensors");
        let read = adapters::read_adapter(&folder.path().join("adapter")).unwrap();
        assert_eq!(read.1, weights);
        let converted = read_json(method, "adapter/adapter_config.json");
        assert_eq!(converted["r"].as_u64(), Some(read.0.rank as u64));
        assert!((converted["lora_alpha"].as_f64().unwrap() / read.0.alpha - 1.0).abs() < 1e-12);
        for (module, factors) in &weights.modules {
            assert_eq!(factors.rank, 2 * peft.rank(module));
            assert!((read.0.scale(module) / peft.scale(module) - 1.0).abs() < 1e-12);
            let [a, b] = pair(&expected, module);
            let own = [factors.a.as_slice(), factors.b.as_slice()];
            let error = product_error(own, [a, b], [factors.rank; 2]);
            assert!(error < 2e-3, "{method}: {module}: {error}");
        }
    }
}

#[test]
fn fast_iterations_come_near_the_exact_start() {
    let exact = started(&AdapterConfig::Lora(recipe("pissa"))).2;
    let mut config = recipe("pissa");
    config.pissa_iterations = std::num::NonZeroUsize::new(24);
    let fast = started(&AdapterConfig::Lora(config)).2;
    for (module, expected) in &exact.modules {
        let actual = &fast.modules[module];
        let ranks = [actual.rank, expected.rank];
        let error = product_error([&actual.a, &actual.b], [&expected.a, &expected.b], ranks);
        assert!(error < 1e-3, "{module}: {error}");
    }
}

#[test]
fn every_start_gives_the_logits_of_the_base() {
    let ids: Vec<u32> = (3..40).collect();
    let plain = fixture::decoder("gqa").logits(&ids, &[0, ids.len()]);
    let expected = kernels::to_f32(&plain);
    for init in ["kaiming_uniform", "gaussian", "orthogonal", "pissa", "olora"] {
        let config: LoraConfig = serde_json::from_value(json!({"rank": 4, "init": init})).unwrap();
        for config in [AdapterConfig::Lora(config.clone()), AdapterConfig::Dora(config)] {
            let (decoder, _, weights) = started(&config);
            let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
            let error = fixture::relative_error(&logits, &expected);
            assert!(error < 1e-4, "{init}, {}: {error}", config.method());
            assert_eq!(weights.starts.is_empty(), !matches!(init, "pissa" | "olora"));
        }
    }
}
