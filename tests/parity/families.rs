//! Every family against transformers and PEFT (`tests/fixtures/families`, written by
//! `scripts/make_family_fixtures.py`): logits, losses, greedy tokens, gradients, merged weights.

use std::path::{Path, PathBuf};

use adapters::merge::{
    DEFAULT_MAX_SHARD_BYTES, MergeDtype, MergeRequest, plan_merge, write_merged,
};
use adapters::weights::{ModelFiles, Network};
use adapters::{AdapterWeights, PeftConfig, read_adapter};
use burn::tensor::{DType, Device};
use datasets::{IGNORED, MicroBatch};
use serde_json::Value;
use trainer::base_model::{Decoder, DecoderConfig, ModelLoader, Recompute, StepPlace};

use crate::fixture::{self, ids, relative_error};
use crate::forward::greedy;

const LOGITS: f32 = 1e-4;
const GRADIENTS: f32 = 1e-3;

struct Fixture {
    name: String,
    folder: PathBuf,
    files: ModelFiles,
    reference: Value,
}

/// Every folder of the fixtures.
fn fixtures() -> Vec<Fixture> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/families");
    let mut names: Vec<String> = std::fs::read_dir(&root)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert!(names.len() >= 42, "fixtures are missing: {names:?}");
    names
        .into_iter()
        .map(|name| {
            let folder = root.join(&name);
            let files = open(&folder);
            let text = std::fs::read(folder.join("reference.json")).unwrap();
            let reference = serde_json::from_slice(&text).unwrap();
            Fixture { name, folder, files, reference }
        })
        .collect()
}

fn open(folder: &Path) -> ModelFiles {
    ModelFiles::open(folder.to_str().unwrap(), Network::Offline).unwrap()
}

fn decoder(files: &ModelFiles) -> Decoder {
    ModelLoader::new(files, &Device::flex(), DType::F32).unwrap().decoder().unwrap()
}

impl Fixture {
    fn sequences(&self) -> Vec<Vec<u32>> {
        self.reference["sequences"].as_array().unwrap().iter().map(ids).collect()
    }

    fn tensor(&self, name: &str) -> Vec<f32> {
        fixture::tensors_of(&self.folder.join("reference.safetensors")).remove(name).unwrap()
    }

    fn number(&self, key: &str) -> f64 {
        self.reference[key].as_f64().unwrap()
    }

    fn adapter(&self) -> (PeftConfig, AdapterWeights) {
        read_adapter(&self.folder.join("adapter")).unwrap()
    }

    fn adapted(&self) -> Decoder {
        let mut decoder = decoder(&self.files);
        let (config, weights) = self.adapter();
        decoder.attach(&config, &weights);
        decoder
    }

    /// Both sequences in one row.
    fn batch(&self) -> MicroBatch {
        let mut batch = MicroBatch { segment_starts: vec![0], rows: 1, ..MicroBatch::default() };
        for ids in self.sequences() {
            batch.targets.extend(ids.iter().skip(1).map(|&id| id as i32).chain([IGNORED]));
            batch.token_ids.extend(&ids);
            batch.segment_starts.push(batch.token_ids.len());
        }
        batch
    }

    fn assert_logits(&self, decoder: &Decoder, tensor: &str) {
        let ids = &self.sequences()[1];
        let logits = kernels::to_f32(&decoder.logits(ids, &[0, ids.len()]));
        let error = relative_error(&logits, &self.tensor(tensor));
        assert!(error < LOGITS, "{}: {tensor} are off by {error}", self.name);
    }
}

#[test]
fn logits_and_losses_equal_those_of_transformers() {
    for fixture in fixtures() {
        let decoder = decoder(&fixture.files);
        fixture.assert_logits(&decoder, "logits");
        let batch = fixture.batch();
        let loss = decoder.loss_sum(&batch) / batch.trained_tokens() as f64;
        let expected = fixture.number("mean_loss");
        assert!((loss / expected - 1.0).abs() < 1e-4, "{}: {loss}, not {expected}", fixture.name);
    }
}

#[test]
fn twenty_greedy_tokens_equal_those_of_transformers() {
    for fixture in fixtures() {
        let prompt = ids(&fixture.reference["greedy_prompt"]);
        let expected = ids(&fixture.reference["greedy"]);
        let tokens = greedy(&decoder(&fixture.files), &prompt, expected.len());
        assert_eq!(tokens, expected, "{}", fixture.name);
    }
}

#[test]
fn gradients_of_every_adapter_equal_those_of_peft() {
    for fixture in fixtures() {
        let decoder = fixture.adapted();
        fixture.assert_logits(&decoder, "adapter_logits");
        let batch = fixture.batch();
        let factor = 1.0 / batch.trained_tokens() as f64;
        let place = StepPlace { step: 0, micro_batch: 0 };
        let expected = fixture::tensors_of(&fixture.folder.join("reference.safetensors"));
        let gradients = expected.keys().filter(|name| name.starts_with("gradient.")).count();
        for recompute in [Recompute::Nothing, Recompute::Blocks] {
            let result = decoder.loss_and_gradients(&batch, factor, place, recompute);
            let loss = result.loss_sum * factor;
            let expected_loss = fixture.number("adapter_mean_loss");
            assert!((loss / expected_loss - 1.0).abs() < 1e-4, "{}: {loss}", fixture.name);
            assert_eq!(gradients, 2 * result.gradients.len(), "{}", fixture.name);
            for (module, actual) in &result.gradients {
                for (factor, actual) in [("lora_A", &actual.a), ("lora_B", &actual.b)] {
                    let name = format!("gradient.base_model.model.{module}.{factor}.weight");
                    let error = relative_error(&kernels::to_f32(actual), &expected[&name]);
                    assert!(error < GRADIENTS, "{}: {name} is off by {error}", fixture.name);
                }
            }
        }
    }
}

/// The same model as a GGUF, where the folder has one (`scripts/make_family_gguf_fixtures.py`).
#[test]
fn gguf_files_give_the_logits_of_the_hf_folders() {
    let mut compared = 0;
    for fixture in fixtures() {
        let path = fixture.folder.join("model.gguf");
        if !path.exists() {
            continue;
        }
        let files = open(&path);
        let decoder = decoder(&files);
        fixture.assert_logits(&decoder, "logits");
        let prompt = ids(&fixture.reference["greedy_prompt"]);
        let expected = ids(&fixture.reference["greedy"]);
        assert_eq!(greedy(&decoder, &prompt, expected.len()), expected, "{}", fixture.name);
        compared += 1;
    }
    assert!(compared >= 16, "{compared}");
}

/// Gradients do not depend on which blocks have adapters.
#[test]
fn adapters_on_upper_blocks_alone_get_the_same_gradients() {
    for fixture in fixtures() {
        let mut decoder = decoder(&fixture.files);
        let (config, mut weights) = fixture.adapter();
        weights.modules.retain(|name, _| name.contains(".1."));
        decoder.attach(&config, &weights);
        let whole = fixture.adapted();
        let batch = fixture.batch();
        let place = StepPlace { step: 0, micro_batch: 0 };
        let upper = decoder.loss_and_gradients(&batch, 1.0, place, Recompute::Nothing);
        assert_eq!(upper.gradients.len(), weights.modules.len(), "{}", fixture.name);
        assert!(upper.loss_sum.is_finite());
        // Other adapters below change the values, so only their presence and size are compared.
        let all = whole.loss_and_gradients(&batch, 1.0, place, Recompute::Nothing);
        for (module, gradients) in &upper.gradients {
            assert_eq!(gradients.a.dims(), all.gradients[module].a.dims(), "{}", fixture.name);
        }
    }
}

#[test]
fn merged_folders_have_the_logits_of_base_and_adapter() {
    for fixture in fixtures() {
        let (config, weights) = fixture.adapter();
        let request = MergeRequest {
            base: &fixture.files,
            adapter: (&config, &weights),
            dtype: MergeDtype::F32,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let folder = merged_folder(&fixture.name);
        let plan = plan_merge(&request).unwrap();
        write_merged(&plan, folder.path(), &mut |_, _| {}).unwrap();
        let merged = open(folder.path());
        fixture.assert_logits(&decoder(&merged), "adapter_logits");
        let stored = |files: &ModelFiles| -> Vec<String> {
            let weights = files.weights();
            weights.entries().keys().map(|name| weights.stored_name(name).to_owned()).collect()
        };
        assert_eq!(stored(&merged), stored(&fixture.files), "{}", fixture.name);
    }
}

#[test]
fn what_a_checkpoint_holds_besides_its_language_model_is_said() {
    let said: Vec<(String, &str)> = fixtures()
        .into_iter()
        .filter_map(|fixture| {
            let config = DecoderConfig::read(fixture.files.config()).unwrap();
            Some((fixture.name, config.left_out(fixture.files.weights())?))
        })
        .collect();
    let expected = [
        ("deepseek_v3", "layers for multi-token prediction"),
        ("gemma3", "vision tower and multi-modal projector"),
        ("llama4", "vision tower and multi-modal projector"),
    ];
    assert_eq!(said, expected.map(|(name, parts)| (name.to_owned(), parts)));
}

/// A temporary folder, or a lasting one for `scripts/check_merged_families.py`.
fn merged_folder(name: &str) -> Merged {
    match std::env::var_os("TUNESMITH_MERGED_FAMILIES") {
        Some(root) => {
            let folder = Path::new(&root).join(name);
            std::fs::create_dir_all(&folder).unwrap();
            Merged::Lasting(folder)
        }
        None => Merged::Temporary(tempfile::tempdir().unwrap()),
    }
}

enum Merged {
    Temporary(tempfile::TempDir),
    Lasting(PathBuf),
}

impl Merged {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Lasting(folder) => folder,
        }
    }
}
