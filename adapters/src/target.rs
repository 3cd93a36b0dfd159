//! Which linear layers of a model get an update, and of which rank and scale.

use std::collections::BTreeSet;

use crate::config::{AdapterConfig, LoraConfig, TargetModules};
use crate::error::AdapterError;
use crate::expert_parameters::{self, ExpertRanks, parameter_path};
use crate::pattern::{ModulePatterns, names_module};
use crate::peft::Scaling;

/// Rank where a recipe gives none.
pub const DEFAULT_RANK: usize = 16;
/// Alpha where a recipe gives none.
pub const DEFAULT_ALPHA: f64 = 32.0;
/// The word for every linear layer but the head.
pub(crate) const ALL_LINEAR: &str = "all-linear";
/// The layer from hidden states to logits.
pub(crate) const HEAD: &str = "lm_head";

/// A linear layer of a model. A head that shares the embedding's weights is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearLayer {
    /// Module path, such as `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Features that enter.
    pub d_in: usize,
    /// Features that leave.
    pub d_out: usize,
}

/// A linear layer with its update.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// Module path.
    pub name: String,
    /// Features that enter the layer.
    pub d_in: usize,
    /// Features that leave the layer.
    pub d_out: usize,
    /// Inner dimension of the update.
    pub rank: usize,
    /// Alpha of this layer.
    pub alpha: f64,
    /// Factor on `B·A`, from alpha and rank.
    pub scale: f64,
}

impl Target {
    /// Numbers that are trained.
    pub fn parameters(&self, adapter: &AdapterConfig) -> u64 {
        let magnitudes = if adapter.is_dora() { self.d_out } else { 0 };
        (self.rank * (self.d_in + self.d_out) + magnitudes) as u64
    }

    /// Bytes that the backward pass needs of the update, a token.
    pub fn saved_bytes_per_token(&self, adapter: &AdapterConfig) -> u64 {
        let unscaled = if adapter.is_dora() { self.d_out } else { 0 };
        4 * (self.rank + unscaled) as u64
    }
}

/// The layers that `config` adapts, in the model's order; every fault of the selection at once.
///
/// `linear_layers` are all of the model, the head among them where it has weights of its own.
pub fn select_targets(
    config: &LoraConfig,
    linear_layers: &[LinearLayer],
) -> Result<Vec<Target>, AdapterError> {
    let mut errors = Vec::new();
    let selected = select_layers(config, linear_layers, &mut errors);
    let ranks = compiled("rank_pattern", rank_entries(config), &mut errors);
    let alphas = compiled("alpha_pattern", alpha_entries(config), &mut errors);
    check_alpha(config, &mut errors);
    AdapterError::collected(errors)?;
    let idle = idle_patterns(&ranks, &alphas, &selected);
    AdapterError::collected(idle)?;
    let scaling = Scaling::of(config.use_rslora);
    let experts = ExpertRanks::of(config, linear_layers);
    let target = |layer: &LinearLayer| {
        let parameter = experts.parameter_of(&layer.name);
        let key = parameter.as_deref().unwrap_or(&layer.name);
        let default_rank = experts.default_rank(parameter.as_deref());
        let rank = ranks.get(key).unwrap_or(default_rank);
        let default_alpha = config.alpha.unwrap_or(DEFAULT_ALPHA);
        let alpha = alphas.get(key).unwrap_or(default_alpha);
        Target {
            name: layer.name.clone(),
            d_in: layer.d_in,
            d_out: layer.d_out,
            rank,
            alpha,
            scale: scaling.scale(alpha, rank),
        }
    };
    Ok(selected.into_iter().map(target).collect())
}

/// Layers that `config` selects, without a look at ranks; faults are added to `errors`.
pub(crate) fn select_layers<'a>(
    config: &LoraConfig,
    linear_layers: &'a [LinearLayer],
    errors: &mut Vec<AdapterError>,
) -> Vec<&'a LinearLayer> {
    let chosen = match config.target_modules.as_ref() {
        None if !config.target_parameters.is_empty() => Vec::new(),
        None => all_but_head(linear_layers),
        Some(TargetModules::Word(word)) if word == ALL_LINEAR => all_but_head(linear_layers),
        Some(TargetModules::Word(word)) => {
            let available = last_components(linear_layers.iter().map(|l| l.name.as_str()));
            errors.push(AdapterError::UnknownWord { word: word.clone(), available });
            return Vec::new();
        }
        Some(TargetModules::List(entries)) => {
            missing_entries("target_modules", entries, linear_layers, errors);
            let named = |layer: &&LinearLayer| names_any(entries, &layer.name);
            linear_layers.iter().filter(named).collect()
        }
    };
    missing_entries("exclude_modules", &config.exclude_modules, linear_layers, errors);
    let chosen = expert_parameters::with_parameters(config, chosen, linear_layers, errors);
    let is_kept =
        |l: &&LinearLayer| !names_any(&config.exclude_modules, &l.name) && !config.saves(&l.name);
    let kept: Vec<_> = chosen.into_iter().filter(is_kept).collect();
    if kept.is_empty() && errors.is_empty() {
        errors.push(AdapterError::NothingSelected);
    }
    kept
}

fn all_but_head(linear_layers: &[LinearLayer]) -> Vec<&LinearLayer> {
    linear_layers.iter().filter(|layer| !names_module(HEAD, &layer.name)).collect()
}

/// Whether an entry names `module`.
pub(crate) fn names_any(entries: &[String], module: &str) -> bool {
    entries.iter().any(|entry| names_module(entry, module))
}

fn missing_entries(
    key: &'static str,
    entries: &[String],
    linear_layers: &[LinearLayer],
    errors: &mut Vec<AdapterError>,
) {
    for entry in entries {
        if linear_layers.iter().any(|layer| names_module(entry, &layer.name)) {
            continue;
        }
        if entry == HEAD {
            // Leaving out a head that is not there asks for nothing.
            if key == "target_modules" {
                errors.push(AdapterError::TiedHead);
            }
            continue;
        }
        let available = last_components(linear_layers.iter().map(|l| l.name.as_str()));
        errors.push(AdapterError::NoSuchModule { key, entry: entry.clone(), available });
    }
}

fn rank_entries(config: &LoraConfig) -> Vec<(String, usize)> {
    config.rank_pattern.iter().map(|(key, &rank)| (key.clone(), rank.get())).collect()
}

fn alpha_entries(config: &LoraConfig) -> Vec<(String, f64)> {
    config.alpha_pattern.iter().map(|(key, &alpha)| (key.clone(), alpha)).collect()
}

/// The patterns of a recipe, in the order of their keys.
pub(crate) fn recipe_patterns(
    config: &LoraConfig,
) -> Result<(ModulePatterns<usize>, ModulePatterns<f64>), AdapterError> {
    let mut errors = Vec::new();
    let ranks = compiled("rank_pattern", rank_entries(config), &mut errors);
    let alphas = compiled("alpha_pattern", alpha_entries(config), &mut errors);
    AdapterError::collected(errors)?;
    Ok((ranks, alphas))
}

fn compiled<T: Copy>(
    table: &'static str,
    entries: Vec<(String, T)>,
    errors: &mut Vec<AdapterError>,
) -> ModulePatterns<T> {
    ModulePatterns::new(entries).unwrap_or_else(|bad| {
        errors.extend(bad.into_iter().map(|pattern| AdapterError::Pattern { table, pattern }));
        ModulePatterns::default()
    })
}

fn idle_patterns(
    ranks: &ModulePatterns<usize>,
    alphas: &ModulePatterns<f64>,
    selected: &[&LinearLayer],
) -> Vec<AdapterError> {
    let parameters = selected.iter().filter_map(|layer| parameter_path(&layer.name));
    let parameters: BTreeSet<String> = parameters.collect();
    let names = selected.iter().map(|layer| layer.name.as_str());
    let names: Vec<&str> = names.chain(parameters.iter().map(String::as_str)).collect();
    let error = |table: &'static str, key: String| AdapterError::IdlePattern {
        table,
        key,
        available: last_components(names.iter().copied()),
    };
    let idle_ranks = ranks.unmatched(&names).into_iter();
    let idle_alphas = alphas.unmatched(&names).into_iter();
    idle_ranks
        .map(|key| error("rank_pattern", key))
        .chain(idle_alphas.map(|key| error("alpha_pattern", key)))
        .collect()
}

fn check_alpha(config: &LoraConfig, errors: &mut Vec<AdapterError>) {
    let of_patterns = config.alpha_pattern.iter().map(|(key, &value)| (key.clone(), value));
    let all = config.alpha.map(|value| ("alpha".to_owned(), value)).into_iter().chain(of_patterns);
    for (key, value) in all {
        if !(value.is_finite() && value > 0.0) {
            errors.push(AdapterError::Alpha { key, value });
        }
    }
}

/// The distinct last components of module paths, sorted.
pub(crate) fn last_components<'a>(names: impl Iterator<Item = &'a str>) -> Vec<String> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    names.map(last).collect::<BTreeSet<_>>().into_iter().map(str::to_owned).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use std::num::NonZeroUsize;

    use super::*;

    /// Two Llama blocks with q, k, up and down projections, and a head.
    pub(crate) fn llama_layers() -> Vec<LinearLayer> {
        let mut layers = Vec::new();
        for block in 0..2 {
            for (name, d_in, d_out) in [
                ("self_attn.q_proj", 8, 8),
                ("self_attn.k_proj", 8, 4),
                ("mlp.up_proj", 8, 12),
                ("mlp.down_proj", 12, 8),
            ] {
                layers.push(LinearLayer {
                    name: format!("model.layers.{block}.{name}"),
                    d_in,
                    d_out,
                });
            }
        }
        layers.push(LinearLayer { name: "lm_head".to_owned(), d_in: 8, d_out: 32 });
        layers
    }

    pub(crate) fn lora() -> LoraConfig {
        serde_json::from_str("{}").unwrap()
    }

    fn listing(entries: &[&str]) -> TargetModules {
        TargetModules::List(entries.iter().map(|&entry| entry.to_owned()).collect())
    }

    fn names(targets: &[Target]) -> Vec<&str> {
        targets.iter().map(|target| target.name.as_str()).collect()
    }

    #[test]
    fn all_linear_is_every_layer_but_the_head_with_default_rank_and_scale() {
        let targets = select_targets(&lora(), &llama_layers()).unwrap();
        assert_eq!(targets.len(), 8);
        assert!(targets.iter().all(|t| (t.rank, t.scale) == (16, 2.0) && t.name != "lm_head"));
        assert_eq!((targets[3].d_in, targets[3].d_out), (12, 8));
    }

    #[test]
    fn lists_match_whole_paths_and_ends_after_a_dot() {
        let config = LoraConfig {
            target_modules: Some(listing(&["q_proj", "model.layers.1.mlp.up_proj", "lm_head"])),
            ..lora()
        };
        let targets = select_targets(&config, &llama_layers()).unwrap();
        assert_eq!(
            names(&targets),
            [
                "model.layers.0.self_attn.q_proj",
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.mlp.up_proj",
                "lm_head"
            ]
        );
    }

    #[test]
    fn patterns_set_rank_and_alpha_of_single_layers() {
        let mut config = LoraConfig { use_rslora: Some(true), ..lora() };
        let four = NonZeroUsize::new(4).unwrap();
        config.rank_pattern.insert("layers.1.mlp.up_proj".to_owned(), four);
        config.alpha_pattern.insert("(q|k)_proj".to_owned(), 8.0);
        let targets = select_targets(&config, &llama_layers()).unwrap();
        assert_eq!((targets[0].rank, targets[0].alpha, targets[0].scale), (16, 8.0, 2.0));
        assert_eq!((targets[2].rank, targets[2].alpha, targets[2].scale), (16, 32.0, 8.0));
        assert_eq!((targets[6].rank, targets[6].alpha, targets[6].scale), (4, 32.0, 16.0));
    }

    #[test]
    fn every_entry_that_matches_nothing_is_in_one_error() {
        let config = LoraConfig {
            target_modules: Some(listing(&["q_proj", "c_attn", "proj"])),
            exclude_modules: vec!["gate_proj".to_owned()],
            ..lora()
        };
        let error = select_targets(&config, &llama_layers()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "\n  - `target_modules` entry `c_attn` matches no linear layer; the model has: \
             down_proj, k_proj, lm_head, q_proj, up_proj\
             \n  - `target_modules` entry `proj` matches no linear layer; the model has: \
             down_proj, k_proj, lm_head, q_proj, up_proj\
             \n  - `exclude_modules` entry `gate_proj` matches no linear layer; the model has: \
             down_proj, k_proj, lm_head, q_proj, up_proj"
        );
    }

    #[test]
    fn exclusions_are_left_out() {
        let config = LoraConfig { exclude_modules: vec!["mlp.up_proj".to_owned()], ..lora() };
        let targets = select_targets(&config, &llama_layers()).unwrap();
        assert_eq!(targets.len(), 6);
        let all = ["q_proj", "k_proj", "up_proj", "down_proj"].map(str::to_owned).to_vec();
        let config = LoraConfig { exclude_modules: all, ..lora() };
        let error = select_targets(&config, &llama_layers()).unwrap_err();
        assert!(matches!(error, AdapterError::NothingSelected));
    }

    #[test]
    fn another_word_is_refused_with_the_names_that_exist() {
        let word = TargetModules::Word("q_proj".to_owned());
        let config = LoraConfig { target_modules: Some(word), ..lora() };
        let error = select_targets(&config, &llama_layers()).unwrap_err();
        assert!(error.to_string().contains("down_proj, k_proj, lm_head, q_proj, up_proj"));
        assert!(error.hint().unwrap().contains("all-linear"));
    }

    #[test]
    fn a_head_tied_to_the_embedding_is_explained() {
        let mut layers = llama_layers();
        layers.pop();
        let config = LoraConfig { target_modules: Some(listing(&["q_proj", "lm_head"])), ..lora() };
        let error = select_targets(&config, &layers).unwrap_err();
        assert!(matches!(error, AdapterError::TiedHead), "{error}");
    }

    #[test]
    fn patterns_that_match_nothing_or_are_broken_are_errors() {
        let mut config = lora();
        config.alpha_pattern.insert("v_proj".to_owned(), 8.0);
        let error = select_targets(&config, &llama_layers()).unwrap_err().to_string();
        assert!(error.starts_with("`alpha_pattern` key `v_proj` matches no"), "{error}");
        config.alpha_pattern.insert("q_proj[".to_owned(), f64::NAN);
        let error = select_targets(&config, &llama_layers()).unwrap_err().to_string();
        assert!(error.contains("unclosed character class"), "{error}");
        assert!(error.contains("`q_proj[` is NaN, but must be a positive number"), "{error}");
    }
}
