//! Reads the reference files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use adapters::weights::{ModelFiles, Network};
use burn::tensor::{DType, Device};
use safetensors::SafeTensors;
use serde_json::Value;
use trainer::base_model::{BaseFormat, BaseStorage, Decoder, ModelLoader};

/// Variants of the tiny Llama.
pub(crate) const VARIANTS: &[&str] = &[
    "mha",
    "gqa",
    "mqa",
    "attention_bias",
    "mlp_bias",
    "tied",
    "attention_bias_tied",
    "odd_head_size",
    "rope_linear",
    "rope_dynamic",
    "rope_llama3",
    "sharded",
    "f16",
    "bf16",
    "old_config",
    "old_config_linear",
    "old_config_minimal",
];

pub(crate) fn path(variant: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llama").join(variant)
}

pub(crate) fn json(variant: &str, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(path(variant).join(file)).unwrap()).unwrap()
}

/// Tensors of a file as f32, by name.
pub(crate) fn tensors(variant: &str, file: &str) -> BTreeMap<String, Vec<f32>> {
    tensors_of(&path(variant).join(file))
}

/// Tensors of a file as f32, by name.
pub(crate) fn tensors_of(path: &Path) -> BTreeMap<String, Vec<f32>> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, view)| {
            let values =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            (name.to_owned(), values.collect())
        })
        .collect()
}

pub(crate) fn decoder(variant: &str) -> Decoder {
    decoder_in(variant, BaseStorage::Dense)
}

pub(crate) fn decoder_in(variant: &str, storage: BaseStorage) -> Decoder {
    let files = ModelFiles::open(path(variant).to_str().unwrap(), Network::Offline).unwrap();
    let format = BaseFormat { dtype: DType::F32, storage };
    ModelLoader::new(&files, &Device::flex(), format).unwrap().decoder().unwrap()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Largest difference, relative to the largest reference value.
pub(crate) fn relative_error(actual: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(actual.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, v| largest.max(v.abs()));
    let error = actual.iter().zip(expected).fold(0.0_f32, |e, (a, b)| e.max((a - b).abs()));
    assert!(actual.iter().all(|v| v.is_finite()));
    error / largest.max(f32::MIN_POSITIVE)
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}
