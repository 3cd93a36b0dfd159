//! Experts of a recipe that are adapted as PEFT adapts parameters: which, and of which rank.
//!
//! A model that holds gate and up of an expert in one layer has no modules that PEFT could name, so
//! its experts are always adapted so; others where `target_parameters` asks for it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use crate::config::LoraConfig;
use crate::error::AdapterError;
use crate::pattern::{ModulePatterns, names_module};
use crate::peft::{ExpertLayer, PARAMETERS};
use crate::target::{DEFAULT_RANK, LinearLayer, Target};

/// The parameter that a module is a part of.
pub(crate) fn parameter_path(module: &str) -> Option<String> {
    ExpertLayer::parse(module)?.parameter()
}

/// The end of a parameter's path that is the same in all blocks: `mlp.experts.down_proj`.
fn short(parameter: &str) -> &str {
    let dots = parameter.rmatch_indices('.').nth(2);
    dots.map_or(parameter, |(place, _)| &parameter[place + 1..])
}

/// The recipe's entries, and those of layers that nothing else can name.
fn entries<'a>(config: &'a LoraConfig, layers: &'a [LinearLayer]) -> Vec<Cow<'a, str>> {
    let mut entries: Vec<Cow<str>> =
        config.target_parameters.iter().map(|entry| Cow::Borrowed(entry.as_str())).collect();
    let together: BTreeSet<&str> = layers
        .iter()
        .filter_map(|layer| ExpertLayer::parse(&layer.name))
        .filter(|layer| layer.layer == PARAMETERS[0])
        .map(|layer| layer.experts)
        .collect();
    let of_these = layers.iter().filter(|layer| {
        ExpertLayer::parse(&layer.name).is_some_and(|layer| together.contains(layer.experts))
    });
    let added: BTreeSet<String> = of_these
        .filter_map(|layer| parameter_path(&layer.name))
        .map(|path| short(&path).to_owned())
        .collect();
    entries.extend(added.into_iter().map(Cow::Owned));
    entries
}

/// Adds the layers that `target_parameters` names; entries that name none are errors.
pub(crate) fn with_parameters<'a>(
    config: &LoraConfig,
    chosen: Vec<&'a LinearLayer>,
    layers: &'a [LinearLayer],
    errors: &mut Vec<AdapterError>,
) -> Vec<&'a LinearLayer> {
    if config.target_parameters.is_empty() {
        return chosen;
    }
    let names = |entry: &str, layer: &LinearLayer| {
        parameter_path(&layer.name).is_some_and(|path| names_module(entry, &path))
    };
    for entry in &config.target_parameters {
        if !layers.iter().any(|layer| names(entry, layer)) {
            let available: BTreeSet<String> = layers
                .iter()
                .filter_map(|layer| parameter_path(&layer.name))
                .map(|path| short(&path).to_owned())
                .collect();
            errors.push(AdapterError::NoSuchParameter {
                entry: entry.clone(),
                available: available.into_iter().collect(),
            });
        }
    }
    let chosen: BTreeSet<&str> = chosen.iter().map(|layer| layer.name.as_str()).collect();
    let is_wanted = |layer: &&LinearLayer| {
        let named = config.target_parameters.iter().any(|entry| names(entry, layer));
        named || chosen.contains(layer.name.as_str())
    };
    layers.iter().filter(is_wanted).collect()
}

/// Ranks of experts that no pattern sets.
pub(crate) struct ExpertRanks<'a> {
    entries: Vec<Cow<'a, str>>,
    rank: usize,
    /// Experts of each parameter.
    counts: BTreeMap<String, usize>,
}

impl<'a> ExpertRanks<'a> {
    pub(crate) fn of(config: &'a LoraConfig, layers: &'a [LinearLayer]) -> Self {
        let mut counts = BTreeMap::new();
        for layer in layers.iter().filter_map(|layer| ExpertLayer::parse(&layer.name)) {
            if let Some(parameter) = layer.parameter() {
                let count: &mut usize = counts.entry(parameter).or_default();
                *count = (*count).max(layer.index + 1);
            }
        }
        let rank = config.rank.map_or(DEFAULT_RANK, usize::from);
        Self { entries: entries(config, layers), rank, counts }
    }

    /// The parameter that a module is adapted as a part of.
    pub(crate) fn parameter_of(&self, module: &str) -> Option<String> {
        let parameter = parameter_path(module)?;
        self.entries.iter().any(|entry| names_module(entry, &parameter)).then_some(parameter)
    }

    /// A layer's rank where no pattern says it: a parameter's is shared out to its experts.
    pub(crate) fn default_rank(&self, parameter: Option<&str>) -> usize {
        let count = parameter.and_then(|parameter| self.counts.get(parameter));
        count.map_or(self.rank, |&count| (self.rank / count.max(1)).max(1))
    }
}

/// What `adapter_config.json` says of experts that are adapted as parameters.
pub(crate) struct ExpertParameters {
    /// `target_parameters`
    pub(crate) entries: Vec<String>,
    ranks: Vec<(String, usize)>,
}

impl ExpertParameters {
    /// Those among `targets`. They have no dropout, because PEFT can give them none.
    pub(crate) fn of(
        config: &LoraConfig,
        targets: &[Target],
        layers: &[LinearLayer],
    ) -> Result<Self, AdapterError> {
        let experts = ExpertRanks::of(config, layers);
        let mut found: BTreeMap<String, usize> = BTreeMap::new();
        for target in targets {
            if let Some(parameter) = experts.parameter_of(&target.name) {
                found.insert(short(&parameter).to_owned(), target.rank);
            }
        }
        if !found.is_empty() && config.dropout > 0.0 {
            return Err(AdapterError::ExpertDropout {
                dropout: config.dropout,
                parameters: found.into_keys().collect(),
            });
        }
        Ok(Self { entries: found.keys().cloned().collect(), ranks: found.into_iter().collect() })
    }

    /// Targets that are modules to PEFT.
    pub(crate) fn others(&self, targets: &[Target]) -> Vec<Target> {
        let is_parameter = |name: &str| {
            parameter_path(name)
                .is_some_and(|path| self.entries.iter().any(|entry| names_module(entry, &path)))
        };
        targets.iter().filter(|target| !is_parameter(&target.name)).cloned().collect()
    }

    /// The recipe's patterns, and the ranks that were shared out.
    pub(crate) fn with_ranks(&self, patterns: &ModulePatterns<usize>) -> ModulePatterns<usize> {
        patterns.clone().followed_by(&ModulePatterns::of_names(self.ranks.iter().cloned()))
    }
}
