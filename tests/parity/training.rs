//! Gradients and 20 steps of training against PEFT.

use std::collections::BTreeMap;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::Path;
use std::sync::atomic::AtomicBool;

use adapters::{AdapterWeights, read_adapter};
use datasets::{BatchConfig, Dataset, MicroBatch, OnOverlong, Origin, Sampler, TokenizedExample};
use trainer::base_model::{BaseStorage, Decoder, Recompute, StepPlace};
use trainer::{
    AdamwConfig, CheckpointConfig, Event, GradientCheckpointing, OptimizerConfig, Outcome,
    ScheduleConfig, StepMetrics, TrainConfig, TrainSettings, Trainer, WarmupConfig,
};

use crate::fixture;

const VARIANTS: [&str; 3] = ["gqa", "attention_bias_tied", "rope_llama3"];

pub(crate) fn rows(variant: &str) -> Vec<TokenizedExample> {
    let text = std::fs::read_to_string(fixture::path(variant).join("rows.jsonl")).unwrap();
    let row = |(index, line): (usize, &str)| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let labels = row["labels"].as_array().unwrap();
        TokenizedExample {
            token_ids: fixture::ids(&row["input_ids"]),
            labels: labels.iter().map(|label| label.as_i64().unwrap() as i32).collect(),
            dataset: 0,
            origin: Origin { file: 0, line: index as u64 + 1, part: 0 },
        }
    };
    text.lines().enumerate().map(row).collect()
}

fn adapted(variant: &str) -> (Decoder, adapters::PeftConfig) {
    adapted_in(variant, BaseStorage::Dense)
}

fn adapted_in(variant: &str, storage: BaseStorage) -> (Decoder, adapters::PeftConfig) {
    let mut decoder = fixture::decoder_in(variant, storage);
    let (config, weights) = read_adapter(&fixture::path(variant).join("adapter")).unwrap();
    decoder.attach(&config, &weights);
    (decoder, config)
}

pub(crate) struct Shape {
    pub(crate) rows: usize,
    pub(crate) micro_batches: usize,
    pub(crate) checkpointing: GradientCheckpointing,
    pub(crate) packing: bool,
}

pub(crate) fn settings(shape: &Shape, steps: u64) -> TrainSettings {
    let count = |n| NonZeroUsize::new(n).unwrap();
    TrainSettings {
        batch: BatchConfig {
            sequence_length: count(if shape.packing { 64 } else { 512 }),
            packing: shape.packing,
            on_overlong: OnOverlong::Error,
            sequences_per_micro_batch: count(shape.rows),
            micro_batches_per_step: count(shape.micro_batches),
            shuffle: false,
        },
        optimizer: OptimizerConfig::Adamw(AdamwConfig {
            learning_rate: 1e-3,
            weight_decay: 0.01,
            ..AdamwConfig::default()
        }),
        schedule: ScheduleConfig::Constant(WarmupConfig::default()),
        train: TrainConfig {
            steps: NonZeroU64::new(steps),
            gradient_checkpointing: shape.checkpointing,
            ..TrainConfig::default()
        },
        checkpoint: CheckpointConfig::default(),
        learning_rate_ratio: 1.0,
        validate_every: None,
    }
}

/// Trains from the fixture's adapter and gives every step's figures and the final adapter.
fn train(variant: &str, shape: &Shape, folder: &Path) -> (Vec<StepMetrics>, AdapterWeights) {
    train_in(variant, BaseStorage::Dense, shape, folder)
}

fn train_in(
    variant: &str,
    storage: BaseStorage,
    shape: &Shape,
    folder: &Path,
) -> (Vec<StepMetrics>, AdapterWeights) {
    train_decoder(variant, adapted_in(variant, storage), settings(shape, 20), folder)
}

/// Trains over the rows of a variant and gives every step's figures and the final adapter.
pub(crate) fn train_decoder(
    variant: &str,
    (decoder, peft): (Decoder, adapters::PeftConfig),
    settings: TrainSettings,
    folder: &Path,
) -> (Vec<StepMetrics>, AdapterWeights) {
    let dataset = Dataset { train: rows(variant), ..Dataset::default() };
    let config = serde_json::from_value(serde_json::json!({"path": "rows.jsonl"})).unwrap();
    let sampler = Sampler::new(&dataset, &[config], &settings.batch, 0);
    let trainer = Trainer::new(decoder, peft, (&dataset, sampler), settings, folder);
    let mut steps = Vec::new();
    let outcome = trainer.run(&AtomicBool::new(false), &mut |event| {
        if let Event::Step { metrics, .. } = event {
            steps.push(metrics.clone());
        }
    });
    assert!(matches!(outcome.unwrap(), Outcome::Finished(summary) if summary.steps == 20));
    let adapter = trainer::publish_adapter(folder).unwrap();
    (steps, read_adapter(&adapter).unwrap().1)
}

/// The adapter of a reference file, by module and factor.
fn reference_factors(variant: &str, file: &str) -> BTreeMap<String, Vec<f32>> {
    fixture::tensors(variant, file)
        .into_iter()
        .map(|(name, values)| {
            let name = name.trim_start_matches("base_model.model.").trim_end_matches(".weight");
            (name.replace(".default", ""), values)
        })
        .collect()
}

#[test]
fn gradients_of_the_first_step_equal_those_of_peft() {
    for variant in VARIANTS {
        let (decoder, _) = adapted(variant);
        let mut batch = MicroBatch::default();
        for row in &rows(variant)[..4] {
            batch.push(row);
        }
        let factor = 1.0 / batch.trained_tokens() as f64;
        let place = StepPlace { step: 0, micro_batch: 0 };
        let result = decoder.loss_and_gradients(&batch, factor, place, Recompute::Nothing);
        let expected = reference_factors(variant, "step_1_gradients.safetensors");
        assert_eq!(expected.len(), 2 * result.gradients.len());
        for (module, gradients) in &result.gradients {
            for (factor, actual) in [("lora_A", &gradients.a), ("lora_B", &gradients.b)] {
                let expected = &expected[&format!("{module}.{factor}")];
                let error = fixture::relative_error(&kernels::to_f32(actual), expected);
                assert!(error < 1e-4, "{variant}: gradient of {module}.{factor} is off by {error}");
            }
        }
    }
}

/// Blocks that keep everything, that run again, and whose inputs wait elsewhere, in every mix.
#[test]
fn what_blocks_keep_changes_no_bit() {
    for variant in VARIANTS {
        let (mut decoder, _) = adapted(variant);
        decoder.set_dropout(0.1, 5);
        let mut batch = MicroBatch::default();
        for row in &rows(variant)[..3] {
            batch.push(row);
        }
        let place = StepPlace { step: 3, micro_batch: 1 };
        let run = |choice| decoder.loss_and_gradients(&batch, 0.01, place, choice);
        let kept = run(Recompute::Nothing);
        let blocks = decoder.config().layers();
        let partly = (0..=blocks).map(Recompute::First);
        let parked = (0..=blocks).map(Recompute::Parked);
        for choice in partly.chain(parked).chain([Recompute::Blocks]) {
            let again = run(choice);
            assert_eq!(again.loss_sum.to_bits(), kept.loss_sum.to_bits(), "{choice:?}");
            assert_eq!(again.gradients.len(), kept.gradients.len());
            for (module, gradients) in &again.gradients {
                let kept = &kept.gradients[module];
                let what = format!("{variant}: {module}, {choice:?}");
                assert_eq!(kernels::to_f32(&gradients.a), kernels::to_f32(&kept.a), "{what}");
                assert_eq!(kernels::to_f32(&gradients.b), kernels::to_f32(&kept.b), "{what}");
            }
        }
    }
}

#[test]
fn twenty_steps_equal_those_of_peft() {
    let shapes = [
        (4, 1, GradientCheckpointing::Off),
        (2, 2, GradientCheckpointing::On),
        (1, 4, GradientCheckpointing::Auto),
    ];
    for variant in VARIANTS {
        let reference = fixture::json(variant, "training.json");
        let numbers = |key: &str| -> Vec<f64> {
            reference[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        let (losses, norms) = (numbers("losses"), numbers("gradient_norms_before_clipping"));
        for (rows, micro_batches, checkpointing) in shapes {
            let folder = tempfile::tempdir().unwrap();
            let shape = Shape { rows, micro_batches, checkpointing, packing: false };
            let (steps, adapter) = train(variant, &shape, folder.path());
            for (step, (loss, norm)) in steps.iter().zip(losses.iter().zip(&norms)) {
                let place = format!("{variant} {rows}x{micro_batches}, step {}", step.step);
                assert!((step.loss / loss - 1.0).abs() < 1e-4, "{place}: {} not {loss}", step.loss);
                assert!((step.gradient_norm / norm - 1.0).abs() < 1e-3, "{place}: norm");
            }
            let counts = |key: &str| numbers(key).into_iter().map(|n| n as u64).collect::<Vec<_>>();
            assert_eq!(steps.iter().map(|s| s.tokens).collect::<Vec<_>>(), counts("tokens"));
            let trained: Vec<u64> = steps.iter().map(|s| s.trained_tokens).collect();
            assert_eq!(trained, counts("trained_tokens"));
            let expected = reference_factors(variant, "adapter_after_20_steps.safetensors");
            for (module, factors) in &adapter.modules {
                for (factor, actual) in [("lora_A", &factors.a), ("lora_B", &factors.b)] {
                    let cosine = fixture::cosine(actual, &expected[&format!("{module}.{factor}")]);
                    assert!(cosine > 0.9999, "{variant}: {module}.{factor} has cosine {cosine}");
                }
            }
        }
    }
}

#[test]
fn accumulation_does_not_change_losses() {
    let run = |rows, micro_batches| {
        let folder = tempfile::tempdir().unwrap();
        let checkpointing = GradientCheckpointing::Off;
        let shape = Shape { rows, micro_batches, checkpointing, packing: false };
        train("gqa", &shape, folder.path()).0
    };
    let whole = run(4, 1);
    for parts in [run(2, 2), run(1, 4)] {
        for (a, b) in whole.iter().zip(&parts) {
            assert!((a.loss / b.loss - 1.0).abs() < 1e-5, "{} and {}", a.loss, b.loss);
        }
    }
}

#[test]
fn a_packed_row_has_the_loss_of_its_examples_alone() {
    for variant in VARIANTS {
        let (decoder, _) = adapted(variant);
        let examples = &rows(variant)[..6];
        let (mut packed, mut alone) = (MicroBatch::default(), 0.0);
        for example in examples {
            packed.push(example);
            let mut single = MicroBatch::default();
            single.push(example);
            alone += decoder.loss_sum(&single);
        }
        let together = decoder.loss_sum(&packed);
        assert!((together / alone - 1.0).abs() < 1e-6, "{variant}: {together}, not {alone}");
    }
}

#[test]
fn packing_trains_on_every_token_once() {
    let folder = tempfile::tempdir().unwrap();
    let checkpointing = GradientCheckpointing::Off;
    let shape = Shape { rows: 2, micro_batches: 1, checkpointing, packing: true };
    let (steps, _) = train("gqa", &shape, folder.path());
    assert!(steps.iter().all(|step| step.loss.is_finite() && step.tokens <= 128));
    assert!(steps[19].loss < steps[0].loss * 1.2);
}

#[test]
fn twenty_steps_over_a_quantised_base_equal_those_of_peft_over_its_values() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/quantise");
    let text = std::fs::read_to_string(path.join("training.json")).unwrap();
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    for (name, storage) in [("int8", BaseStorage::Int8), ("nf4", BaseStorage::Nf4)] {
        let folder = tempfile::tempdir().unwrap();
        let checkpointing = GradientCheckpointing::Off;
        let shape = Shape { rows: 4, micro_batches: 1, checkpointing, packing: false };
        let (steps, _) = train_in("gqa", storage, &shape, folder.path());
        let losses = reference[name].as_array().unwrap();
        assert_eq!(steps.len(), losses.len());
        for (step, loss) in steps.iter().zip(losses) {
            let loss = loss.as_f64().unwrap();
            let place = format!("{name}, step {}", step.step);
            assert!((step.loss / loss - 1.0).abs() < 1e-4, "{place}: {} not {loss}", step.loss);
        }
    }
}
