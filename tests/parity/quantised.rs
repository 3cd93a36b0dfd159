//! A GGUF trained as it stands against its dequantised copies, in memory and as an f32 folder.

use std::path::Path;

use adapters::merge::{DEFAULT_MAX_SHARD_BYTES, GgufPlan, MergeDtype, MergeRequest, plan_merge};
use adapters::weights::{GgufFacts, GgufFileType, ModelFiles, Network};
use adapters::{AdapterWeights, LoraConfig, PeftConfig, initial_factors, select_targets};
use burn::tensor::{DType, Device};
use datasets::{MicroBatch, Origin, TokenizedExample};
use safetensors::tensor::{Dtype, TensorView};
use trainer::base_model::{
    BaseFormat, BaseStorage, Decoder, MicroBatchResult, ModelLoader, Recompute, StepPlace,
    linear_layers,
};

use crate::fixture;

/// A fresh adapter of rank 4 on every layer whose `B` is not zero.
fn adapter(files: &ModelFiles) -> (PeftConfig, AdapterWeights) {
    let format = BaseFormat::from(DType::F32);
    let loader = ModelLoader::new(files, &Device::flex(), format).unwrap();
    let layers = linear_layers(loader.config());
    let lora: LoraConfig =
        serde_json::from_value(serde_json::json!({"rank": 4, "alpha": 8.0})).unwrap();
    let targets = select_targets(&lora, &layers).unwrap();
    let peft = PeftConfig::from_recipe(&lora, &targets, &layers, "base").unwrap();
    let mut weights: AdapterWeights = initial_factors(&targets, &lora, 3, files).unwrap();
    for factors in weights.modules.values_mut() {
        let numbers = factors.b.iter_mut().enumerate();
        numbers.for_each(|(i, value)| *value = (i as f32 * 0.61).sin() * 0.05);
    }
    (peft, weights)
}

fn decoder(files: &ModelFiles, storage: BaseStorage) -> Decoder {
    let format = BaseFormat { dtype: DType::F32, storage };
    let loader = ModelLoader::new(files, &Device::flex(), format).unwrap();
    let mut decoder = loader.decoder().unwrap();
    let (peft, weights) = adapter(files);
    decoder.attach(&peft, &weights);
    decoder
}

fn gradients(decoder: &Decoder, length: u32) -> MicroBatchResult {
    let vocab = decoder.config().vocab_size as u32;
    let ids: Vec<u32> = (0..length).map(|i| (i * 37 + 5) % vocab).collect();
    let example = TokenizedExample {
        labels: ids.iter().map(|&id| id as i32).collect(),
        token_ids: ids,
        dataset: 0,
        origin: Origin { file: 0, line: 1, part: 0 },
    };
    let mut batch = MicroBatch::default();
    batch.push(&example);
    let place = StepPlace { step: 0, micro_batch: 0 };
    decoder.loss_and_gradients(&batch, 0.1, place, Recompute::Nothing)
}

fn assert_same_bits(a: &MicroBatchResult, b: &MicroBatchResult, what: &str) {
    assert_eq!(a.loss_sum.to_bits(), b.loss_sum.to_bits(), "{what}");
    assert_eq!(a.gradients.len(), b.gradients.len(), "{what}");
    for (module, gradients) in &a.gradients {
        let other = &b.gradients[module];
        assert_eq!(kernels::to_f32(&gradients.a), kernels::to_f32(&other.a), "{what}: {module}");
        assert_eq!(kernels::to_f32(&gradients.b), kernels::to_f32(&other.b), "{what}: {module}");
    }
}

/// A model's weights as a folder in f32: what somebody would train on who cannot train on the file.
fn write_f32_folder(files: &ModelFiles, folder: &Path) {
    let source = files.weights();
    let bytes: Vec<(&String, Vec<usize>, Vec<u8>)> = source
        .entries()
        .iter()
        .map(|(name, entry)| {
            let values = source.read_f32(name).unwrap();
            (name, entry.shape.clone(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
        })
        .collect();
    let views = bytes.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), files.config().to_string()).unwrap();
}

/// As it stands, expanded in memory, and as a dequantised folder: the same bits.
fn assert_storage_changes_nothing(gguf: &Path, lengths: &[u32]) {
    let files = ModelFiles::open(gguf.to_str().unwrap(), Network::Offline).unwrap();
    assert!(files.is_quantised());
    let folder = tempfile::tempdir().unwrap();
    write_f32_folder(&files, folder.path());
    let wide = ModelFiles::open(folder.path().to_str().unwrap(), Network::Offline).unwrap();
    assert!(!wide.is_quantised());
    let stored = decoder(&files, BaseStorage::AsStored);
    let copies = [
        ("expanded", decoder(&files, BaseStorage::Dense)),
        ("folder", decoder(&wide, BaseStorage::Dense)),
    ];
    for &length in lengths {
        let as_it_stands = gradients(&stored, length);
        for (name, copy) in &copies {
            let what = format!("{} against {name}, {length} tokens", gguf.display());
            assert_same_bits(&as_it_stands, &gradients(copy, length), &what);
        }
    }
}

#[test]
fn a_gguf_as_it_stands_gives_the_bits_of_its_dequantised_weights() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures");
    assert_storage_changes_nothing(&fixtures.join("gguf/tiny_llama.gguf"), &[7, 61]);
}

/// A model with rows of 256 and 512 numbers, which blocks of 256 divide, and random weights.
fn wide_model(folder: &Path) -> ModelFiles {
    let tiny = fixture::path("../../../recipes/tiny_llama");
    for entry in std::fs::read_dir(&tiny).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
    }
    let mut config: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", 256),
        ("intermediate_size", 512),
        ("num_hidden_layers", 2),
        ("head_dim", 64),
    ] {
        config[key] = value.into();
    }
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let (vocab, hidden, wide, keys) = (1024, 256, 512, 128);
    let mut shapes = vec![
        ("model.embed_tokens".to_owned(), vec![vocab, hidden]),
        ("model.norm".to_owned(), vec![hidden]),
    ];
    for layer in 0..2 {
        let prefix = format!("model.layers.{layer}");
        let linear = |name: &str, d_out, d_in| (format!("{prefix}.{name}"), vec![d_out, d_in]);
        shapes.extend([
            linear("self_attn.q_proj", hidden, hidden),
            linear("self_attn.k_proj", keys, hidden),
            linear("self_attn.v_proj", keys, hidden),
            linear("self_attn.o_proj", hidden, hidden),
            linear("mlp.gate_proj", wide, hidden),
            linear("mlp.up_proj", wide, hidden),
            linear("mlp.down_proj", hidden, wide),
            (format!("{prefix}.input_layernorm"), vec![hidden]),
            (format!("{prefix}.post_attention_layernorm"), vec![hidden]),
        ]);
    }
    let mut state = 1_u32;
    let mut number = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / f64::from(u32::MAX) - 0.5) as f32
    };
    let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = shapes
        .into_iter()
        .map(|(name, shape)| {
            let is_norm = shape.len() == 1;
            let value = |x: f32| if is_norm { 1.0 + 0.1 * x } else { 0.2 * x };
            let count = shape.iter().product();
            let bytes =
                std::iter::repeat_with(|| value(number())).take(count).flat_map(f32::to_le_bytes);
            (format!("{name}.weight"), shape, bytes.collect())
        })
        .collect();
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    ModelFiles::open(folder.to_str().unwrap(), Network::Offline).unwrap()
}

#[test]
fn k_quants_as_they_stand_give_the_bits_of_their_dequantised_weights() {
    let folder = tempfile::tempdir().unwrap();
    let base = wide_model(folder.path());
    let (peft, weights) = adapter(&base);
    let request = MergeRequest {
        base: &base,
        adapter: (&peft, &weights),
        dtype: MergeDtype::Same,
        max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
    };
    let plan = plan_merge(&request).unwrap();
    let facts = GgufFacts { name: "wide".to_owned(), licence: None, base_model: None };
    let mut types = std::collections::BTreeSet::new();
    for name in ["Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0"] {
        let path = folder.path().join(format!("{name}.gguf"));
        let file_type = GgufFileType::named(name).unwrap();
        let gguf = GgufPlan::new(&plan, file_type, &facts).unwrap();
        gguf.write(&path, &mut |_, _| {}).unwrap();
        let written = ModelFiles::open(path.to_str().unwrap(), Network::Offline).unwrap();
        let entries = written.weights().entries().values();
        types.extend(entries.map(|entry| entry.dtype.name()));
        assert_storage_changes_nothing(&path, &[33]);
    }
    for wanted in ["Q4_K", "Q5_K", "Q6_K", "Q8_0"] {
        assert!(types.contains(wanted), "no tensor is {wanted}: {types:?}");
    }
}
