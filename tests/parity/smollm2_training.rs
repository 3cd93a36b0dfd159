//! Four steps over the real model, its weights kept in every way, against PEFT on the same values
//! (`tests/fixtures/smollm2/training.json`, written by `scripts/make_smollm2_training.py`).

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::sync::atomic::AtomicBool;

use adapters::weights::ModelFiles;
use adapters::{AdapterWeights, LoraConfig, PeftConfig, initial_factors, select_targets};
use burn::tensor::{DType, Device};
use datasets::{BatchConfig, Dataset, OnOverlong, Origin, Sampler, TokenizedExample};
use trainer::base_model::{BaseFormat, BaseStorage, ModelLoader, linear_layers};
use trainer::{
    AdamwConfig, CheckpointConfig, Event, OptimizerConfig, ScheduleConfig, TrainConfig,
    TrainSettings, Trainer, WarmupConfig,
};

use crate::fixture;
use crate::smollm2;

const STEPS: u64 = 4;
const ROWS: usize = 2;
const LENGTH: usize = 48;
const UNTRAINED: usize = 12;

/// `ids` of the script.
fn row(row: usize) -> TokenizedExample {
    let id = |place: usize| 100 + (7919 * (row * LENGTH + place) + 31 * place * place) % 48_000;
    let token_ids: Vec<u32> = (0..LENGTH).map(|place| id(place) as u32).collect();
    let label = |(place, &id): (usize, &u32)| if place < UNTRAINED { -100 } else { id as i32 };
    let labels = token_ids.iter().enumerate().map(label).collect();
    let origin = Origin { file: 0, line: row as u64 + 1, part: 0 };
    TokenizedExample { token_ids, labels, dataset: 0, origin }
}

/// `factor` of the script.
fn fill(values: &mut [f32], scale: f64) {
    for (index, value) in values.iter_mut().enumerate() {
        *value = (scale * (0.37 * index as f64 + 0.5).sin()) as f32;
    }
}

fn adapter(files: &ModelFiles, loader: &ModelLoader) -> (PeftConfig, AdapterWeights) {
    let lora: LoraConfig =
        serde_json::from_value(serde_json::json!({"rank": 2, "alpha": 4.0})).unwrap();
    let layers = linear_layers(loader.config());
    let targets = select_targets(&lora, &layers).unwrap();
    let peft = PeftConfig::from_recipe(&lora, &targets, &layers, "base").unwrap();
    let mut weights = initial_factors(&targets, &lora, 0, files).unwrap();
    for factors in weights.modules.values_mut() {
        fill(&mut factors.a, 0.04);
        fill(&mut factors.b, 0.02);
    }
    (peft, weights)
}

fn settings() -> TrainSettings {
    let count = |n| NonZeroUsize::new(n).unwrap();
    TrainSettings {
        batch: BatchConfig {
            sequence_length: count(LENGTH),
            packing: false,
            on_overlong: OnOverlong::Error,
            sequences_per_micro_batch: count(ROWS),
            micro_batches_per_step: count(1),
            shuffle: false,
        },
        optimizer: OptimizerConfig::Adamw(AdamwConfig {
            learning_rate: 1e-3,
            weight_decay: 0.0,
            ..AdamwConfig::default()
        }),
        schedule: ScheduleConfig::Constant(WarmupConfig::default()),
        train: TrainConfig {
            steps: NonZeroU64::new(STEPS),
            max_gradient_norm: 0.0,
            ..TrainConfig::default()
        },
        checkpoint: CheckpointConfig::default(),
        learning_rate_ratio: 1.0,
        validate_every: None,
    }
}

/// Losses of all steps, and what training added to each factor, by `<module>.lora_A` and so on.
fn train(files: &ModelFiles, storage: BaseStorage) -> (Vec<f64>, BTreeMap<String, Vec<f32>>) {
    let format = BaseFormat { dtype: DType::F32, storage };
    let loader = ModelLoader::new(files, &Device::flex(), format).unwrap();
    let (peft, before) = adapter(files, &loader);
    let mut decoder = loader.decoder().unwrap();
    decoder.attach(&peft, &before);
    let train = (0..STEPS as usize * ROWS).map(row).collect();
    let dataset = Dataset { train, ..Dataset::default() };
    let config = serde_json::from_value(serde_json::json!({"path": "rows.jsonl"})).unwrap();
    let settings = settings();
    let sampler = Sampler::new(&dataset, &[config], &settings.batch, 0);
    let folder = tempfile::tempdir().unwrap();
    let trainer = Trainer::new(decoder, peft, (&dataset, sampler), settings, folder.path());
    let mut losses = Vec::new();
    let outcome = trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Step { metrics, .. } = event {
            losses.push(metrics.loss);
        }
    });
    outcome.unwrap();
    let trained = trainer::publish_adapter(folder.path()).unwrap();
    let (_, after) = adapters::read_adapter(&trained).unwrap();
    let mut updates = BTreeMap::new();
    for (module, factors) in after.modules {
        let start = &before.modules[&module];
        for (name, values, start) in
            [("lora_A", factors.a, &start.a), ("lora_B", factors.b, &start.b)]
        {
            let update = values.iter().zip(start).map(|(value, start)| value - start).collect();
            updates.insert(format!("{module}.{name}"), update);
        }
    }
    (losses, updates)
}

/// Norm of the difference over the norm of what is expected.
fn distance(actual: &[f32], expected: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f32>| -> f64 {
        values.map(|value| f64::from(value).powi(2)).sum::<f64>().sqrt()
    };
    assert_eq!(actual.len(), expected.len());
    let difference = norm(&mut actual.iter().zip(expected).map(|(a, b)| a - b));
    difference / norm(&mut expected.iter().copied())
}

#[test]
fn the_real_model_trains_as_in_peft_however_its_weights_are_kept() {
    let Some(files) = smollm2::gguf() else { return };
    let reference: serde_json::Value =
        serde_json::from_slice(&std::fs::read(fixture::path("../smollm2/training.json")).unwrap())
            .unwrap();
    let expected_updates = fixture::tensors_of(&fixture::path("../smollm2/training.safetensors"));
    let mut as_it_stands = None;
    for (name, storage) in [
        ("plain", BaseStorage::AsStored),
        ("plain", BaseStorage::Dense),
        ("int8", BaseStorage::Int8),
        ("nf4", BaseStorage::Nf4),
    ] {
        let (losses, updates) = train(&files, storage);
        let expected = reference[name].as_array().unwrap();
        assert_eq!(losses.len(), expected.len());
        for (loss, expected) in losses.iter().zip(expected) {
            let error = (loss / expected.as_f64().unwrap() - 1.0).abs();
            assert!(error < 1e-5, "{storage:?}: {losses:?}, not {expected}");
        }
        let mut compared = 0;
        for (key, expected) in &expected_updates {
            let Some(key) = key.strip_prefix(&format!("{name}.")) else { continue };
            let error = distance(&updates[key], expected);
            assert!(error < 1e-3, "{storage:?}: the update of {key} is off by {error:.1e}");
            compared += 1;
        }
        assert_eq!(compared, 4);
        match (&as_it_stands, storage) {
            (None, _) => as_it_stands = Some((losses, updates)),
            (Some(stored), BaseStorage::Dense) => {
                assert!(*stored == (losses, updates), "dequantising changed the results");
            }
            _ => {}
        }
    }
}
