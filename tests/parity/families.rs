//! Every family against transformers and PEFT (`tests/fixtures/families`, written by
//! `scripts/make_family_fixtures.py`): logits, losses, greedy tokens, gradients, merged weights.

use std::path::{Path, PathBuf};

use adapters::merge::{
    DEFAULT_MAX_SHARD_BYTES, GgufPlan, MergeDtype, MergeRequest, plan_merge, write_merged,
};
use adapters::weights::{GgufFacts, GgufFileType, ModelFiles, Network};
use adapters::{AdapterWeights, PeftConfig, read_adapter};
use burn::tensor::{DType, Device};
use datasets::{IGNORED, MicroBatch};
use serde_json::Value;
use trainer::RopeScalingConfig;
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
    assert!(names.len() >= 44, "fixtures are missing: {names:?}");
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

/// `rope_parameters` and `dtype` of transformers 5 as 4 wrote them.
#[test]
fn configurations_of_transformers_4_and_5_are_read_alike() {
    let mut compared = 0;
    for fixture in fixtures() {
        let new = fixture.files.config();
        let Some(rope) = new.get("rope_parameters").and_then(Value::as_object) else { continue };
        // Gemma 3 has keys of its own for two embeddings; other fixtures hold them.
        if rope.contains_key("full_attention") || new.get("text_config").is_some() {
            continue;
        }
        let mut old = new.clone();
        let keys = old.as_object_mut().unwrap();
        keys.remove("rope_parameters");
        let dtype = keys.remove("dtype");
        keys.extend(dtype.map(|dtype| ("torch_dtype".to_owned(), dtype)));
        let mut scaling = rope.clone();
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = scaling.remove(key) {
                let key = match (new["model_type"].as_str(), key) {
                    (Some("gpt_neox"), "rope_theta") => "rotary_emb_base",
                    (Some("gpt_neox"), _) => "rotary_pct",
                    _ => key,
                };
                keys.insert(key.to_owned(), value);
            }
        }
        let is_scaled = scaling["rope_type"] != "default";
        keys.insert("rope_scaling".to_owned(), is_scaled.then_some(scaling).into());
        let [old, new] = [&old, new].map(|config| DecoderConfig::read(config).unwrap());
        assert_eq!(old, new, "{}", fixture.name);
        compared += 1;
    }
    assert!(compared > 20, "{compared}");
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

/// The loss that spreads tokens over experts (`scripts/make_balance_fixtures.py`).
#[test]
fn losses_and_gradients_with_balanced_experts_equal_those_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/balance");
    let text = std::fs::read(folder.join("reference.json")).unwrap();
    let reference: Value = serde_json::from_slice(&text).unwrap();
    for mut fixture in fixtures() {
        let Some(expected) = reference.get(&fixture.name) else { continue };
        let number = |key: &str| expected[key].as_f64().unwrap();
        let mut config = fixture.files.config().clone();
        config["output_router_logits"] = true.into();
        config["router_aux_loss_coef"] = expected["factor"].clone();
        fixture.files.set_config(config);
        let gradients = fixture::tensors_of(&folder.join(format!("{}.safetensors", fixture.name)));
        let decoder = fixture.adapted();
        let batch = fixture.batch();
        let factor = 1.0 / batch.trained_tokens() as f64;
        let place = StepPlace { step: 0, micro_batch: 0 };
        for recompute in [Recompute::Nothing, Recompute::Blocks] {
            let result = decoder.loss_and_gradients(&batch, factor, place, recompute);
            let auxiliary = result.router_aux_loss.unwrap();
            assert!((auxiliary / number("router_aux_loss") - 1.0).abs() < 1e-4, "{auxiliary}");
            let loss = result.loss_sum * factor + number("factor") * auxiliary;
            assert!((loss / number("loss") - 1.0).abs() < 1e-4, "{}: {loss}", fixture.name);
            assert_eq!(gradients.len(), 2 * result.gradients.len(), "{}", fixture.name);
            for (module, actual) in &result.gradients {
                for (factor, actual) in [("lora_A", &actual.a), ("lora_B", &actual.b)] {
                    let name = format!("gradient.base_model.model.{module}.{factor}.weight");
                    let error = relative_error(&kernels::to_f32(actual), &gradients[&name]);
                    assert!(error < GRADIENTS, "{}: {name} is off by {error}", fixture.name);
                }
            }
        }
    }
}

/// A recipe's `[rope_scaling]` (`scripts/make_context_fixtures.py`).
#[test]
fn extended_contexts_have_the_logits_of_transformers_also_when_merged() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/context.json");
    let reference: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let ids = ids(&reference["ids"]);
    let fixtures = fixtures();
    for case in reference["cases"].as_array().unwrap() {
        let base = case["base"].as_str().unwrap();
        let fixture = fixtures.iter().find(|fixture| fixture.name == base).unwrap();
        let scaling: RopeScalingConfig = serde_json::from_value(case["table"].clone()).unwrap();
        let extended = scaling.extend(fixture.files.config()).unwrap();
        assert_eq!(extended["max_position_embeddings"], case["positions"], "{case}");
        let mut files = open(&fixture.folder);
        files.set_config(extended);
        let expected: Vec<f32> =
            case["logits"].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect();
        let check = |decoder: &Decoder, expected: &[f32]| {
            let logits = kernels::to_f32(&decoder.logits(&ids, &[0, ids.len()]));
            let last = &logits[logits.len() - expected.len()..];
            let error = relative_error(last, expected);
            assert!(error < LOGITS, "{base} {}: off by {error}", case["table"]);
        };
        check(&decoder(&files), &expected);
        // The merged folder says so itself.
        let (config, weights) = fixture.adapter();
        let mut adapted = decoder(&files);
        adapted.attach(&config, &weights);
        let whole = kernels::to_f32(&adapted.logits(&ids, &[0, ids.len()]));
        let request = MergeRequest {
            base: &files,
            adapter: (&config, &weights),
            dtype: MergeDtype::F32,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let folder = tempfile::tempdir().unwrap();
        write_merged(&plan_merge(&request).unwrap(), folder.path(), &mut |_, _| {}).unwrap();
        check(&decoder(&open(folder.path())), &whole[whole.len() - expected.len()..]);
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
    assert!(compared >= 22, "{compared}");
}

/// Variants that llama.cpp has no way to compute, and the key that says why.
const NOT_IN_GGUF: &[(&str, &str)] = &[
    ("cohere2", "layer_types"),
    ("cohere_qk_norm_old", "use_qk_norm"),
    ("deepseek_v2_groups_old", "attention_bias"),
    ("deepseek_v3", "rope_scaling.mscale"),
    ("deepseek_v3_old", "rope_interleave"),
    ("gemma2", "query_pre_attn_scalar"),
    ("gemma2_old", "final_logit_softcapping"),
    ("gemma3", "query_pre_attn_scalar"),
    ("gemma3_text", "query_pre_attn_scalar"),
    ("gemma3_text_old", "query_pre_attn_scalar"),
    ("gpt2_old", "scale_attn_by_inverse_layer_idx"),
    ("gpt_neox_sequential_old", "hidden_act"),
    ("llama4", "attention_chunk_size"),
    ("llama4_text", "attention_chunk_size"),
    ("llama4_text_old", "attention_chunk_size"),
    ("llama_longrope", "rotary scaling"),
    ("mistral", "sliding_window"),
    ("mixtral_old", "sliding_window"),
    ("qwen2_sliding_old", "sliding_window"),
    ("qwen3_bias", "sliding_window"),
    ("qwen3_moe", "mlp_only_layers"),
    ("qwen3_moe_old", "decoder_sparse_step"),
    ("smollm3_old", "use_sliding_window"),
];

/// What is written out of a folder and read again computes what base and adapter compute.
#[test]
fn gguf_files_of_merged_folders_have_the_logits_of_base_and_adapter() {
    let mut refused = Vec::new();
    for fixture in fixtures() {
        let folder = with_tokenizer(&fixture.folder);
        let base = open(folder.path());
        let (config, weights) = fixture.adapter();
        let request = MergeRequest {
            base: &base,
            adapter: (&config, &weights),
            dtype: MergeDtype::F32,
            max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
        };
        let plan = plan_merge(&request).unwrap();
        let gguf = match GgufPlan::new(&plan, GgufFileType::F32, &GgufFacts::default()) {
            Ok(gguf) => gguf,
            Err(error) => {
                refused.push((fixture.name, error.to_string()));
                continue;
            }
        };
        let merged = merged_folder(&format!("{}_gguf", fixture.name));
        let path = merged.path().join("model.gguf");
        gguf.write(&path, &mut |_, _| {}).unwrap();
        let decoder = decoder(&open(&path));
        fixture.assert_logits(&decoder, "adapter_logits");
    }
    for (name, error) in &refused {
        let key = NOT_IN_GGUF.iter().find(|row| row.0 == name).map(|row| row.1);
        assert!(key.is_some_and(|key| error.contains(key)), "{name}: {error}");
    }
    assert_eq!(refused.len(), NOT_IN_GGUF.len());
}

/// A copy of a model, with a tokenizer of as many tokens as it has.
fn with_tokenizer(model: &Path) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(model.join(name), folder.path().join(name)).unwrap();
    }
    let letter = |id: u32| char::from_u32(u32::from('!') + id).unwrap().to_string();
    let vocabulary: serde_json::Map<String, Value> =
        (0..64).map(|id| (letter(id), id.into())).collect();
    let tokenizer = serde_json::json!({
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    });
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    folder
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
