//! What can be put right without loss: one scale and one rank for every module of an adapter, and
//! the keys of `config.json` that transformers 5 moved.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::subject::{ModelFacts, ModelLayout};
use crate::ModulePatterns;
use crate::error::AdapterError;
use crate::peft::{AdapterWeights, PeftConfig, Scaling, read_adapter};

/// Something put right, and what was done, a sentence each.
#[derive(Debug)]
pub struct Fix<T> {
    /// The result.
    pub fixed: T,
    /// What was done; empty where nothing had to be.
    pub changes: Vec<String>,
}

/// Writes the same update with one rank and `lora_alpha / r` as the scale of every module.
///
/// Lower ranks are filled up with zeros, which changes nothing. A scale that one whole `lora_alpha`
/// cannot express for all goes into B, rounded once to f32 (exact where it is a power of two).
pub fn fix(folder: &Path) -> Result<Fix<(PeftConfig, AdapterWeights)>, AdapterError> {
    let (config, weights) = read_adapter(folder)?;
    if !config.target_parameters.is_empty() {
        let features =
            vec!["`target_parameters`: their ranks and scales are left alone".to_owned()];
        return Err(AdapterError::Unsupported { path: folder.to_owned(), features });
    }
    Ok(uniform(config, weights))
}

fn uniform(config: PeftConfig, mut weights: AdapterWeights) -> Fix<(PeftConfig, AdapterWeights)> {
    let rank = weights.modules.values().map(|factors| factors.rank).max().unwrap_or(config.rank);
    let scales: Vec<f64> = weights.modules.keys().map(|module| config.scale(module)).collect();
    let shared = scales.first().copied().filter(|first| scales.iter().all(|scale| scale == first));
    let whole = shared.map(|scale| scale * rank as f64).filter(|alpha| alpha.fract() == 0.0);
    let mut changes = Vec::new();
    let (mut folded, mut padded) = (0, 0);
    for (module, factors) in &mut weights.modules {
        if whole.is_none() {
            let scale = config.scale(module);
            factors.b.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
            folded += 1;
        }
        if factors.rank < rank {
            *factors = factors.padded_to(rank);
            padded += 1;
        }
    }
    if folded > 0 {
        changes.push(format!("the scales of {folded} modules went into B, rounded once to f32"));
    }
    if padded > 0 {
        changes.push(format!("{padded} modules were filled up with zeros to rank {rank}"));
    }
    if config.scaling != Scaling::ByRank && whole.is_some() {
        changes.push("`use_rslora` became the same scale by `lora_alpha / r`".to_owned());
    }
    let fixed = PeftConfig {
        rank,
        alpha: whole.unwrap_or(rank as f64),
        scaling: Scaling::ByRank,
        rank_pattern: ModulePatterns::default(),
        alpha_pattern: ModulePatterns::default(),
        ..config
    };
    Fix { fixed: (fixed, weights), changes }
}

impl ModelFacts {
    /// `config.json` with the rotary keys where older readers look, besides where transformers 5
    /// puts them.
    pub fn fixed_config(&self) -> Option<Fix<Value>> {
        if self.layout != ModelLayout::Folder || !self.has_nested_rope_theta_only() {
            return None;
        }
        let mut config: Map<String, Value> = self.config.as_object()?.clone();
        let parameters = config.get("rope_parameters")?.as_object()?.clone();
        let mut changes = vec!["`rope_theta` was written beside `rope_parameters`".to_owned()];
        config.insert("rope_theta".to_owned(), parameters.get("rope_theta")?.clone());
        let kind = parameters.get("rope_type").and_then(Value::as_str).unwrap_or("default");
        if kind != "default" && config.get("rope_scaling").is_none_or(Value::is_null) {
            let mut scaling = parameters.clone();
            scaling.remove("rope_theta");
            config.insert("rope_scaling".to_owned(), json!(scaling));
            changes.push(format!("`rope_scaling` of `{kind}` was written beside it"));
        }
        Some(Fix { fixed: Value::Object(config), changes })
    }
}
