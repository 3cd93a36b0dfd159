//! Adapters in the formats of other programs: GGUF for llama.cpp, MLX for Apple's.

mod mlx;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::error::{AdapterError, TensorProblem};
use crate::pattern::ModulePatterns;
use crate::peft::{AdapterWeights, LoraFactors, ModuleNames, PeftConfig, Scaling};
use crate::target::{HEAD, last_components};
use crate::weights::{AdaptedModel, ModelFiles, ScaledModules};

pub use mlx::{is_mlx_adapter, read_mlx_adapter, write_mlx_adapter};

/// Writes the adapter as one GGUF file for llama.cpp. `base` is the model it was trained on.
///
/// The file gets its name when it is complete and on disk.
pub fn write_gguf_adapter(
    path: &Path,
    (config, weights): (&PeftConfig, &AdapterWeights),
    base: &ModelFiles,
    name: &str,
) -> Result<(), AdapterError> {
    refuse_dora(path, config, "llama.cpp knows no magnitudes of DoRA")?;
    refuse_whole(path, weights, "is a whole tensor, and llama.cpp's adapters hold updates alone")?;
    let model = AdaptedModel::of(base)?;
    let modules = scaled_modules(config, weights);
    let mut problems: Vec<TensorProblem> = model
        .nameless(weights.modules.keys())
        .into_iter()
        .map(|module| TensorProblem::new(module, "has no name in GGUF files of this model"))
        .collect();
    let is_tied = base.config()["tie_word_embeddings"] == serde_json::Value::Bool(true);
    if is_tied && weights.modules.contains_key(HEAD) {
        problems.push(TensorProblem::new(HEAD, "is tied to the embedding in this model"));
    }
    if !problems.is_empty() {
        return Err(AdapterError::Unwritable { path: path.to_owned(), problems });
    }
    // One alpha stands in the file: the config's own leaves most factors as they are.
    let usual = config.scaling.scale(config.alpha, config.rank) * config.rank as f64;
    let alpha = if usual.abs() > 0.0 && usual.is_finite() { usual as f32 } else { 1.0 };
    let partial = partial_name(path);
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(AdapterError::io("create the folder", folder))?;
    }
    let written = model.write(&partial, name, alpha, &modules).map_err(AdapterError::from);
    let written = written
        .and_then(|()| std::fs::rename(&partial, path).map_err(AdapterError::io("write", path)));
    if written.is_err() {
        // The error that led here is the one to report.
        let _ = std::fs::remove_file(&partial);
    }
    written
}

/// Reads an adapter out of a GGUF file for `base`.
pub fn read_gguf_adapter(
    path: &Path,
    base: &ModelFiles,
) -> Result<(PeftConfig, AdapterWeights), AdapterError> {
    let modules = AdaptedModel::of(base)?.read(path)?;
    if modules.is_empty() {
        let problems = vec![TensorProblem::new("the file", "holds no update")];
        return Err(AdapterError::Tensors { path: path.to_owned(), problems });
    }
    Ok(from_scaled(modules))
}

fn refuse_dora(path: &Path, config: &PeftConfig, reason: &str) -> Result<(), AdapterError> {
    if !config.use_dora {
        return Ok(());
    }
    let problems = vec![TensorProblem::new("use_dora", format!("is set: {reason}"))];
    Err(AdapterError::Unwritable { path: path.to_owned(), problems })
}

fn refuse_whole(path: &Path, weights: &AdapterWeights, reason: &str) -> Result<(), AdapterError> {
    let problems = weights.refuse_whole(reason);
    if problems.is_empty() {
        return Ok(());
    }
    Err(AdapterError::Unwritable { path: path.to_owned(), problems })
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn scaled_modules(config: &PeftConfig, weights: &AdapterWeights) -> ScaledModules {
    let scaled = |(module, factors): (&String, &LoraFactors)| {
        (module.clone(), (factors.clone(), config.scale(module)))
    };
    weights.modules.iter().map(scaled).collect()
}

/// An adapter that changes nothing: what goes with models that are written as they are.
pub fn no_update() -> (PeftConfig, AdapterWeights) {
    from_scaled(ScaledModules::new())
}

/// A PEFT adapter of modules whose scales are known: the commonest rank and alpha stand in the
/// config, others in its patterns.
pub(crate) fn from_scaled(modules: ScaledModules) -> (PeftConfig, AdapterWeights) {
    let alpha_of = |(factors, scale): &(LoraFactors, f64)| scale * factors.rank as f64;
    let rank = commonest(modules.values().map(|module| module.0.rank)).unwrap_or(1);
    let alpha = f64::from_bits(
        commonest(modules.values().map(|module| alpha_of(module).to_bits())).unwrap_or_default(),
    );
    let ranks = modules.iter().filter(|(_, module)| module.0.rank != rank);
    let rank_pattern = ModulePatterns::of_names(ranks.map(|(name, m)| (name.clone(), m.0.rank)));
    let alphas = modules.iter().filter(|(_, module)| alpha_of(module) != alpha);
    let alphas = alphas.map(|(name, m)| (name.clone(), alpha_of(m)));
    let alpha_pattern = ModulePatterns::of_names(alphas);
    let target_modules = Some(ModuleNames::List(module_names(modules.keys())));
    let config = PeftConfig {
        base_model_name_or_path: None,
        revision: None,
        rank,
        alpha,
        dropout: 0.0,
        scaling: Scaling::ByRank,
        use_dora: false,
        target_modules,
        exclude_modules: None,
        rank_pattern,
        alpha_pattern,
        ..PeftConfig::default()
    };
    let modules = modules.into_iter().map(|(name, module)| (name, module.0)).collect();
    (config, AdapterWeights { modules, ..AdapterWeights::default() })
}

/// The value that occurs most often; of equally frequent ones the largest.
fn commonest<T: Ord + Copy>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut counts: BTreeMap<T, usize> = BTreeMap::new();
    for value in values {
        *counts.entry(value).or_default() += 1;
    }
    counts.into_iter().max_by_key(|&(value, count)| (count, value)).map(|(value, _)| value)
}

/// Last components where each of them is adapted in all of the layers 0 to n, else whole paths.
fn module_names<'a>(modules: impl Iterator<Item = &'a String> + Clone) -> Vec<String> {
    let layer_of =
        |module: &str| -> Option<usize> { module.split('.').find_map(|part| part.parse().ok()) };
    let layers: BTreeSet<usize> = modules.clone().filter_map(|module| layer_of(module)).collect();
    let is_from_first = layers.iter().copied().eq(0..layers.len());
    let short = last_components(modules.clone().map(String::as_str));
    let in_layers = modules.clone().filter(|module| layer_of(module).is_some()).count();
    let kinds = last_components(
        modules.clone().map(String::as_str).filter(|module| layer_of(module).is_some()),
    );
    if is_from_first && in_layers == kinds.len() * layers.len() {
        short
    } else {
        modules.cloned().collect()
    }
}
