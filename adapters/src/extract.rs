//! A LoRA out of a base model and a full fine-tune of it: `B·A ≈ W_tuned - W_base`, layer by layer.
//!
//! The update is the best one of its rank (Eckart and Young 1936); what it misses is reported. A
//! fine-tune may change tensors that no LoRA of linear layers holds, such as norms and embeddings:
//! they are named, never dropped in silence.

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::Serialize;

use crate::convert::from_scaled;
use crate::error::{AdapterError, TensorProblem};
use crate::init::{random, svd};
use crate::peft::{AdapterWeights, LoraFactors, PeftConfig, transposed};
use crate::target::LinearLayer;
use crate::weights::{ModelFiles, WeightsError};

/// Elements of a block of rows where tensors are only compared.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// What to extract from.
#[derive(Clone, Copy)]
pub struct ExtractRequest<'a> {
    /// The model that was tuned.
    pub base: &'a ModelFiles,
    /// What became of it.
    pub tuned: &'a ModelFiles,
    /// Linear layers of the model.
    pub layers: &'a [LinearLayer],
    /// Inner dimension of the updates.
    pub rank: usize,
    /// Iterations of a fast decomposition; an exact one where there are none.
    pub iterations: Option<usize>,
}

/// What was extracted, and what was not.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtractReport {
    /// Norm of what the updates miss over the norm of the change, all layers together.
    pub relative_error: f64,
    /// Layers that changed.
    pub layers: Vec<ExtractedLayer>,
    /// Tensors that changed and that no update of a linear layer holds.
    pub left_out: Vec<ChangedTensor>,
}

/// A layer's update.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExtractedLayer {
    /// Module path.
    pub module: String,
    /// Inner dimension: the one asked for, or what the layer has.
    pub rank: usize,
    /// Frobenius norm of the change.
    pub change_norm: f64,
    /// Norm of what the update misses, over that of the change.
    pub relative_error: f64,
}

/// A tensor that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangedTensor {
    /// Its name.
    pub tensor: String,
    /// Frobenius norm of the change.
    pub change_norm: f64,
}

/// Extracts. `location` is for messages: the fine-tune.
pub fn extract(
    request: &ExtractRequest,
    location: &Path,
) -> Result<(PeftConfig, AdapterWeights, ExtractReport), AdapterError> {
    check_tensors(request, location)?;
    let found: Vec<_> = request.layers.par_iter().map(|layer| of_layer(request, layer)).collect();
    let mut modules = BTreeMap::new();
    let mut layers = Vec::new();
    let mut problems = Vec::new();
    for (layer, outcome) in request.layers.iter().zip(found) {
        match outcome {
            Ok(None) => {}
            Ok(Some((factors, figures))) => {
                modules.insert(layer.name.clone(), (factors, 1.0));
                layers.push(figures);
            }
            Err(reason) => problems.push(TensorProblem::new(&layer.name, reason)),
        }
    }
    let left_out = changed_elsewhere(request)?;
    if problems.is_empty() && modules.is_empty() {
        let reason = match left_out.first() {
            None => "no tensor differs from the base's".to_owned(),
            Some(other) => format!("only others differ, such as `{}`", other.tensor),
        };
        problems.push(TensorProblem::new("the linear layers", format!("are the base's: {reason}")));
    }
    if !problems.is_empty() {
        return Err(AdapterError::Extract { path: location.to_owned(), problems });
    }
    let (config, weights) = from_scaled(modules);
    let report = ExtractReport { relative_error: overall(&layers), layers, left_out };
    Ok((config, weights, report))
}

/// Both models have the same tensors in the same shapes.
fn check_tensors(request: &ExtractRequest, location: &Path) -> Result<(), AdapterError> {
    let (base, tuned) = (request.base.weights().entries(), request.tuned.weights().entries());
    let mut problems = Vec::new();
    for (name, entry) in base {
        match tuned.get(name) {
            None => problems.push(TensorProblem::new(name, "is missing, the base has it")),
            Some(other) if other.shape != entry.shape => {
                let reason = format!("has shape {:?}, the base's {:?}", other.shape, entry.shape);
                problems.push(TensorProblem::new(name, reason));
            }
            Some(_) => {}
        }
    }
    for name in tuned.keys().filter(|name| !base.contains_key(*name)) {
        problems.push(TensorProblem::new(name, "is not in the base"));
    }
    if problems.is_empty() {
        return Ok(());
    }
    Err(AdapterError::Extract { path: location.to_owned(), problems })
}

/// The update of a layer and its figures; nothing where the layer is the base's.
fn of_layer(
    request: &ExtractRequest,
    layer: &LinearLayer,
) -> Result<Option<(LoraFactors, ExtractedLayer)>, String> {
    let LinearLayer { name: module, d_in, d_out } = layer;
    let name = format!("{module}.weight");
    let read = |files: &ModelFiles| {
        let values = files.weights().read_f32(&name).map_err(|error| error.to_string());
        files.weights().release(&name);
        values
    };
    let mut change = read(request.tuned)?;
    change.iter_mut().zip(read(request.base)?).for_each(|(value, base)| *value -= base);
    let square_sum = square_sum(&change);
    if square_sum == 0.0 {
        return Ok(None);
    }
    if !square_sum.is_finite() {
        return Err("has values that are not finite".to_owned());
    }
    if request.base.stores_transposed(&name) {
        change = transposed(&change, *d_out);
    }
    let matrix = svd::matrix(&change, [*d_out, *d_in]);
    drop(change);
    let rank = request.rank.min(*d_in).min(*d_out);
    let triples = match request.iterations {
        None => svd::largest(&matrix, rank),
        Some(iterations) => svd::approximate(
            &matrix,
            rank,
            iterations,
            random::key("tunesmith/extract/v1", 0, module),
        ),
    };
    let triples = triples.ok_or("has a change that cannot be decomposed")?;
    let kept: f64 = triples.sizes.iter().map(|size| size * size).sum();
    let figures = ExtractedLayer {
        module: module.clone(),
        rank,
        change_norm: square_sum.sqrt(),
        relative_error: (1.0 - kept / square_sum).max(0.0).sqrt(),
    };
    Ok(Some((triples.factors(1.0), figures)))
}

/// Tensors besides the layers' weights that differ.
fn changed_elsewhere(request: &ExtractRequest) -> Result<Vec<ChangedTensor>, WeightsError> {
    let weights: Vec<String> =
        request.layers.iter().map(|layer| format!("{}.weight", layer.name)).collect();
    let mut changed = Vec::new();
    let entries = request.base.weights().entries();
    for (name, entry) in entries.iter().filter(|(name, _)| !weights.contains(name)) {
        let (rows, columns) = (entry.rows(), entry.columns().max(1));
        let step = (BLOCK_ELEMENTS / columns).max(1);
        let mut sum = 0.0;
        for start in (0..rows).step_by(step) {
            let end = rows.min(start + step);
            let read = |files: &ModelFiles| {
                if entry.shape.is_empty() {
                    files.weights().read_f32(name)
                } else {
                    files.weights().read_rows_f32(name, start..end)
                }
            };
            let mut difference = read(request.tuned)?;
            let base = read(request.base)?;
            difference.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
            sum += square_sum(&difference);
        }
        request.base.weights().release(name);
        request.tuned.weights().release(name);
        // A NaN is a change too.
        if sum != 0.0 {
            changed.push(ChangedTensor { tensor: name.clone(), change_norm: sum.sqrt() });
        }
    }
    Ok(changed)
}

fn overall(layers: &[ExtractedLayer]) -> f64 {
    let squares = |of: &dyn Fn(&ExtractedLayer) -> f64| -> f64 {
        layers.iter().map(|layer| of(layer).powi(2)).sum()
    };
    let missed = squares(&|layer| layer.change_norm * layer.relative_error);
    (missed / squares(&|layer| layer.change_norm)).sqrt()
}

fn square_sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Network;

    fn fixture(name: &str) -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/llama").join(name)
    }

    fn layers() -> Vec<LinearLayer> {
        let sizes = [
            ("self_attn.q_proj", 32, 32),
            ("self_attn.k_proj", 32, 16),
            ("self_attn.v_proj", 32, 16),
            ("self_attn.o_proj", 32, 32),
            ("mlp.gate_proj", 32, 48),
            ("mlp.up_proj", 32, 48),
            ("mlp.down_proj", 48, 32),
        ];
        let of_block = |block: usize| {
            sizes.iter().map(move |&(name, d_in, d_out)| LinearLayer {
                name: format!("model.layers.{block}.{name}"),
                d_in,
                d_out,
            })
        };
        (0..2).flat_map(of_block).collect()
    }

    /// What PEFT merged into the tiny Llama, an adapter of rank 4.
    fn merged() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(fixture("gqa/config.json"), folder.path().join("config.json")).unwrap();
        let weights = folder.path().join("model.safetensors");
        std::fs::copy(fixture("gqa/merged.safetensors"), weights).unwrap();
        folder
    }

    fn open(path: &Path) -> ModelFiles {
        ModelFiles::open(path.to_str().unwrap(), Network::Offline).unwrap()
    }

    fn run(rank: usize, iterations: Option<usize>) -> (AdapterWeights, ExtractReport) {
        let folder = merged();
        let (base, tuned) = (open(&fixture("gqa")), open(folder.path()));
        let layers = layers();
        let request =
            ExtractRequest { base: &base, tuned: &tuned, layers: &layers, rank, iterations };
        let (config, weights, report) = extract(&request, folder.path()).unwrap();
        assert!(layers.iter().all(|layer| config.scale(&layer.name) == 1.0));
        (weights, report)
    }

    #[test]
    fn a_merged_lora_comes_out_again_at_its_rank() {
        for iterations in [None, Some(8)] {
            let (weights, report) = run(4, iterations);
            assert_eq!(weights.modules.len(), 14);
            assert!(report.relative_error < 1e-4, "{}", report.relative_error);
            assert!(report.left_out.is_empty(), "{:?}", report.left_out);
            let (peft, original) = crate::read_adapter(&fixture("gqa/adapter")).unwrap();
            for (module, factors) in &weights.modules {
                let norm = peft.scale(module) * original.modules[module].delta_norm();
                assert!((factors.delta_norm() / norm - 1.0).abs() < 1e-4, "{module}");
            }
        }
    }

    #[test]
    fn a_lower_rank_says_what_it_misses() {
        let errors: Vec<f64> = [1, 2, 3].map(|rank| run(rank, None).1.relative_error).to_vec();
        assert!(errors.windows(2).all(|pair| pair[0] > pair[1]), "{errors:?}");
        assert!(errors[2] > 0.01 && errors[0] < 1.0, "{errors:?}");
    }

    #[test]
    fn the_base_itself_and_another_model_are_refused() {
        let base = open(&fixture("gqa"));
        let layers = layers();
        let of = |tuned: &ModelFiles| {
            let request =
                ExtractRequest { base: &base, tuned, layers: &layers, rank: 4, iterations: None };
            extract(&request, Path::new("tuned")).unwrap_err().to_string()
        };
        assert!(of(&base).contains("no tensor differs from the base's"), "{}", of(&base));
        let other = of(&open(&fixture("mha")));
        assert!(other.contains("k_proj.weight` has shape"), "{other}");
    }
}
