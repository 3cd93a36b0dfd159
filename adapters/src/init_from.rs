//! Training that starts from an existing adapter (`init_from`).
//!
//! Rank, alpha, targets and scaling come from the adapter. A recipe may repeat them, as the one
//! that is written back into a run folder does; a value that differs is a conflict.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::{AdapterConfig, LoraConfig};
use crate::error::{AdapterError, TensorProblem};
use crate::modules_to_save::{BiasMode, WeightTying};
use crate::peft::{AdapterWeights, PeftConfig, Scaling};
use crate::target::{LinearLayer, Target, names_any, recipe_patterns, select_layers};

/// The targets that an adapter's tensors stand for, in the model's order.
///
/// Every module that the model does not have, or has in another shape, is in the error.
pub fn targets_of_adapter(
    config: &PeftConfig,
    weights: &AdapterWeights,
    linear_layers: &[LinearLayer],
) -> Result<Vec<Target>, AdapterError> {
    let layers: BTreeMap<_, _> =
        linear_layers.iter().map(|layer| (layer.name.as_str(), layer)).collect();
    let problems: Vec<_> = weights
        .modules
        .iter()
        .filter_map(|(module, factors)| {
            let reason = match layers.get(module.as_str()) {
                None => "is no linear layer of the model".to_owned(),
                Some(layer) if (layer.d_in, layer.d_out) != (factors.d_in, factors.d_out) => {
                    format!(
                        "maps {} to {} features, the model's layer {} to {}",
                        factors.d_in, factors.d_out, layer.d_in, layer.d_out
                    )
                }
                Some(_) => return None,
            };
            Some(TensorProblem::new(module, reason))
        })
        .collect();
    if !problems.is_empty() {
        return Err(AdapterError::Misfit { problems });
    }
    let is_adapted = |layer: &&LinearLayer| weights.modules.contains_key(&layer.name);
    let target = |layer: &LinearLayer| Target {
        name: layer.name.clone(),
        d_in: layer.d_in,
        d_out: layer.d_out,
        rank: config.rank(&layer.name),
        alpha: config.alpha(&layer.name),
        scale: config.scale(&layer.name),
    };
    Ok(linear_layers.iter().filter(is_adapted).map(target).collect())
}

/// What a recipe says explicitly and the adapter it starts from has otherwise, one line each.
///
/// `linear_layers` are the model's: `target_modules` and `exclude_modules` conflict where they
/// select other layers than the adapter has, however they are written.
pub fn conflicts(
    recipe: &LoraConfig,
    adapter: &PeftConfig,
    weights: &AdapterWeights,
    linear_layers: &[LinearLayer],
) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(rank) = recipe.rank.filter(|rank| rank.get() != adapter.rank) {
        lines.push(format!("`rank` is {rank}, the adapter's is {}", adapter.rank));
    }
    if let Some(alpha) = recipe.alpha.filter(|&alpha| differ(alpha, adapter.alpha)) {
        lines.push(format!("`alpha` is {alpha}, the adapter's is {}", adapter.alpha));
    }
    let is_rslora = adapter.scaling == Scaling::BySquareRootOfRank;
    if let Some(wanted) = recipe.use_rslora.filter(|&wanted| wanted != is_rslora) {
        lines.push(format!("`use_rslora` is {wanted}, the adapter's is {is_rslora}"));
    }
    lines.extend(whole_conflicts(recipe, adapter));
    lines.extend(pattern_conflicts(recipe, adapter, weights));
    lines.extend(selection_conflict(recipe, weights, linear_layers));
    lines
}

/// Differences in what of the base is trained.
fn whole_conflicts(recipe: &LoraConfig, adapter: &PeftConfig) -> Vec<String> {
    let mut lines = Vec::new();
    let sorted = |entries: &[String]| entries.iter().cloned().collect::<BTreeSet<String>>();
    let (wanted, has) = (sorted(&recipe.modules_to_save), sorted(&adapter.modules_to_save));
    if !wanted.is_empty() && wanted != has {
        lines.push(format!("`modules_to_save` is {wanted:?}, the adapter's is {has:?}"));
    }
    let has = adapter.weight_tying == WeightTying::Ensured;
    if let Some(wanted) = recipe.ensure_weight_tying.filter(|&wanted| wanted != has) {
        lines.push(format!("`ensure_weight_tying` is {wanted}, the adapter's is {has}"));
    }
    if let Some(wanted) = recipe.bias.filter(|&wanted| wanted != adapter.bias) {
        let [wanted, has] = [wanted, adapter.bias].map(BiasMode::word);
        lines.push(format!("`bias` is \"{wanted}\", the adapter's is \"{has}\""));
    }
    lines
}

/// What to say where a recipe asks for another method than the adapter was made by.
pub fn method_conflict(recipe: &AdapterConfig, adapter: &PeftConfig) -> Option<String> {
    if recipe.is_dora() == adapter.use_dora {
        return None;
    }
    let table = if adapter.use_dora { "adapter.dora" } else { "adapter.lora" };
    Some(format!("the recipe has `[{}]`, the adapter belongs to `[{table}]`", recipe.table()))
}

/// Whether two numbers that were written down are not the same.
fn differ(x: f64, y: f64) -> bool {
    x.to_bits() != y.to_bits()
}

/// Patterns that give a module of the adapter another rank or alpha.
fn pattern_conflicts(
    recipe: &LoraConfig,
    adapter: &PeftConfig,
    weights: &AdapterWeights,
) -> Vec<String> {
    let (ranks, alphas) = match recipe_patterns(recipe) {
        Ok(patterns) => patterns,
        Err(error) => return vec![error.to_string()],
    };
    let mut lines = Vec::new();
    for module in weights.modules.keys() {
        let has = adapter.rank(module);
        if let Some(rank) = ranks.get(module).filter(|&rank| rank != has) {
            lines.push(format!("`rank_pattern` gives `{module}` {rank}, the adapter has {has}"));
        }
        let has = adapter.alpha(module);
        if let Some(alpha) = alphas.get(module).filter(|&alpha| differ(alpha, has)) {
            lines.push(format!("`alpha_pattern` gives `{module}` {alpha}, the adapter has {has}"));
        }
    }
    lines
}

fn selection_conflict(
    recipe: &LoraConfig,
    weights: &AdapterWeights,
    linear_layers: &[LinearLayer],
) -> Vec<String> {
    if recipe.target_modules.is_none() {
        let excluded = |module: &&String| names_any(&recipe.exclude_modules, module);
        return weights
            .modules
            .keys()
            .filter(excluded)
            .map(|module| format!("`exclude_modules` names `{module}`, which the adapter has"))
            .collect();
    }
    let mut errors = Vec::new();
    let selected = select_layers(recipe, linear_layers, &mut errors);
    if !errors.is_empty() {
        return errors.iter().map(ToString::to_string).collect();
    }
    let is_selected = |module: &str| selected.iter().any(|layer| layer.name == module);
    let extra = selected.iter().find(|layer| !weights.modules.contains_key(&layer.name));
    let missing = weights.modules.keys().find(|module| !is_selected(module));
    let extra = extra.map(|layer| {
        format!("`target_modules` selects `{}`, which the adapter does not have", layer.name)
    });
    let missing = missing.map(|module| {
        format!("`target_modules` does not select `{module}`, which the adapter has")
    });
    extra.into_iter().chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TargetModules;
    use crate::peft::LoraFactors;
    use crate::target::select_targets;
    use crate::target::tests::{llama_layers, lora};

    fn adapter_of(recipe: &LoraConfig) -> (PeftConfig, AdapterWeights) {
        let layers = llama_layers();
        let targets = select_targets(recipe, &layers).unwrap();
        let config = PeftConfig::from_recipe(recipe, &targets, &layers, "base").unwrap();
        let factors = |target: &Target| {
            let Target { rank, d_in, d_out, .. } = *target;
            let (a, b) = (vec![0.5; rank * d_in], vec![0.0; d_out * rank]);
            (target.name.clone(), LoraFactors { a, b, rank, d_in, d_out })
        };
        let modules = targets.iter().map(factors).collect();
        (config, AdapterWeights { modules, ..AdapterWeights::default() })
    }

    fn listing(entries: &[&str]) -> TargetModules {
        TargetModules::List(entries.iter().map(|&entry| entry.to_owned()).collect())
    }

    fn patterned() -> LoraConfig {
        let mut recipe = LoraConfig { use_rslora: Some(true), ..lora() };
        recipe.target_modules = Some(listing(&["q_proj", "up_proj"]));
        recipe.rank_pattern.insert("layers.1.mlp.up_proj".to_owned(), 4.try_into().unwrap());
        recipe.alpha_pattern.insert("q_proj".to_owned(), 64.0);
        recipe
    }

    #[test]
    fn targets_of_an_adapter_are_those_it_was_made_for() {
        let (config, weights) = adapter_of(&patterned());
        let targets = targets_of_adapter(&config, &weights, &llama_layers()).unwrap();
        assert_eq!(targets, select_targets(&patterned(), &llama_layers()).unwrap());
    }

    #[test]
    fn every_module_that_does_not_fit_is_named() {
        let (config, weights) = adapter_of(&patterned());
        let mut layers = llama_layers();
        layers.retain(|layer| layer.name != "model.layers.1.self_attn.q_proj");
        layers[2].d_out = 99;
        let error = targets_of_adapter(&config, &weights, &layers).unwrap_err().to_string();
        assert!(error.contains("`model.layers.0.mlp.up_proj` maps 8 to 12"), "{error}");
        assert!(error.contains("`model.layers.1.self_attn.q_proj` is no linear layer"), "{error}");
    }

    #[test]
    fn a_recipe_that_says_nothing_or_the_same_does_not_conflict() {
        let (config, weights) = adapter_of(&patterned());
        let layers = llama_layers();
        assert!(conflicts(&lora(), &config, &weights, &layers).is_empty());
        let mut same = patterned();
        same.rank = Some(16.try_into().unwrap());
        same.alpha = Some(32.0);
        same.target_modules = Some(listing(&["self_attn.q_proj", "mlp.up_proj"]));
        assert!(conflicts(&same, &config, &weights, &layers).is_empty());
    }

    #[test]
    fn every_explicit_difference_is_a_line() {
        let (config, weights) = adapter_of(&patterned());
        let mut other = LoraConfig { use_rslora: Some(false), ..lora() };
        other.rank = Some(8.try_into().unwrap());
        other.alpha = Some(16.0);
        other.rank_pattern.insert("q_proj".to_owned(), 2.try_into().unwrap());
        other.target_modules = Some(listing(&["q_proj", "k_proj"]));
        let lines = conflicts(&other, &config, &weights, &llama_layers());
        assert_eq!(
            lines,
            [
                "`rank` is 8, the adapter's is 16",
                "`alpha` is 16, the adapter's is 32",
                "`use_rslora` is false, the adapter's is true",
                "`rank_pattern` gives `model.layers.0.self_attn.q_proj` 2, the adapter has 16",
                "`rank_pattern` gives `model.layers.1.self_attn.q_proj` 2, the adapter has 16",
                "`target_modules` selects `model.layers.0.self_attn.k_proj`, which the adapter \
                 does not have",
                "`target_modules` does not select `model.layers.0.mlp.up_proj`, which the \
                 adapter has",
            ]
        );
        let excluding = LoraConfig { exclude_modules: vec!["up_proj".to_owned()], ..lora() };
        assert_eq!(conflicts(&excluding, &config, &weights, &llama_layers()).len(), 2);
    }
}
