//! Experts that PEFT adapts as parameters (`target_parameters`), and their modules here.
//!
//! transformers 5 holds the experts of a layer as two parameters, `experts.gate_up_proj` and
//! `experts.down_proj`. PEFT writes their updates as `lora_A`, `[experts * rank, d_in]`, expert by
//! expert, and `lora_B`, `[d_out, rank * experts]`, where the experts of one rank stand together.
//! The wrapper of the second parameter holds that of the first, as `experts.base_layer`. Here each
//! expert has modules of its own, such as `experts.3.gate_up_proj`.
//!
//! Where gate and up are layers of their own, their factors become those of both side by side,
//! `[A_gate; A_up]` and `[[B_gate, 0], [0, B_up]]`, as PEFT itself converts them.

use std::collections::BTreeMap;

use super::{AdapterWeights, LoraFactors, ParameterAxes, PeftConfig};
use crate::error::TensorProblem;
use crate::pattern::ModulePatterns;
use crate::target::LinearLayer;

/// The parameters, in the order in which PEFT wraps them.
pub(crate) const PARAMETERS: [&str; 2] = ["gate_up_proj", "down_proj"];
const WRAPPED: &str = ".base_layer";
/// Experts whose parameters lie as `[d_in, d_out]`, which PEFT takes for `[d_out, d_in]`.
const TRANSPOSED: &str = "feed_forward.experts";
/// What checkpoints call a part of Mixtral's blocks, and memory otherwise.
const MIXTRAL: (&str, &str) = (".block_sparse_moe.experts", ".mlp.experts");

/// A layer of one expert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExpertLayer<'a> {
    /// Path of the experts: `model.layers.0.mlp.experts`.
    pub(crate) experts: &'a str,
    /// Which expert.
    pub(crate) index: usize,
    /// Its layer: `gate_proj`.
    pub(crate) layer: &'a str,
}

impl<'a> ExpertLayer<'a> {
    /// Reads a module path.
    pub(crate) fn parse(module: &'a str) -> Option<Self> {
        let (rest, layer) = module.rsplit_once('.')?;
        let (experts, index) = rest.rsplit_once('.')?;
        let is_experts = experts.ends_with(".experts");
        is_experts.then_some(())?;
        Some(Self { experts, index: index.parse().ok()?, layer })
    }

    /// The parameter that the layer is a part of, as PEFT names it.
    pub(crate) fn parameter(&self) -> Option<String> {
        let parameter = match self.layer {
            "gate_up_proj" | "gate_proj" | "up_proj" | "w1" | "w3" => PARAMETERS[0],
            "down_proj" | "w2" => PARAMETERS[1],
            _ => return None,
        };
        Some(format!("{}.{parameter}", self.experts.replace(MIXTRAL.0, MIXTRAL.1)))
    }

    /// Where the layer's rows lie in the parameter: the second half, or the beginning.
    fn is_second(&self) -> bool {
        matches!(self.layer, "up_proj" | "w3")
    }
}

/// A parameter's wrapper in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wrapper {
    /// Path of the experts.
    pub(super) experts: String,
    pub(super) parameter: &'static str,
}

impl Wrapper {
    pub(super) fn path(&self) -> String {
        format!("{}.{}", self.experts, self.parameter)
    }
}

impl PeftConfig {
    /// Whether PEFT adapts the parameter: entries are whole paths or their ends after a dot.
    pub(crate) fn targets_parameter(&self, path: &str) -> bool {
        self.target_parameters.iter().any(|entry| crate::pattern::names_module(entry, path))
    }

    /// The parameter that a module's rank and alpha are looked up by, where it is a part of one.
    pub(crate) fn parameter_of(&self, module: &str) -> Option<String> {
        if self.target_parameters.is_empty() {
            return None;
        }
        let parameter = ExpertLayer::parse(module)?.parameter()?;
        self.targets_parameter(&parameter).then_some(parameter)
    }

    /// The parameter whose factors stand under `module` in a file.
    pub(super) fn wrapper_at(&self, module: &str) -> Option<Wrapper> {
        let experts = module.trim_end_matches(WRAPPED);
        let depth = (module.len() - experts.len()) / WRAPPED.len();
        let wrapped: Vec<&'static str> = self.wrapped(experts);
        let place = wrapped.len().checked_sub(depth + 1)?;
        Some(Wrapper { experts: experts.to_owned(), parameter: wrapped[place] })
    }

    fn wrapped(&self, experts: &str) -> Vec<&'static str> {
        let is_target = |name: &&str| self.targets_parameter(&format!("{experts}.{name}"));
        PARAMETERS.into_iter().filter(is_target).collect()
    }
}

/// Whether a file's factors are those of the transposed weight.
fn is_transposed(experts: &str, axes: ParameterAxes) -> bool {
    experts.ends_with(TRANSPOSED) != (axes == ParameterAxes::InOut)
}

/// The modules of a parameter, each with its part of the factors.
pub(super) fn split(
    config: &PeftConfig,
    wrapper: &Wrapper,
    whole: &LoraFactors,
    rank: usize,
) -> Vec<(String, LoraFactors)> {
    let LoraFactors { ref a, ref b, rank: total, d_in, d_out } = *whole;
    let experts = total / rank;
    let part = |expert: usize| {
        let a = a[expert * rank * d_in..(expert + 1) * rank * d_in].to_vec();
        let b = b
            .chunks_exact(total)
            .flat_map(|row| (0..rank).map(move |place| row[place * experts + expert]));
        let factors = LoraFactors { a, b: b.collect(), rank, d_in, d_out };
        if is_transposed(&wrapper.experts, config.parameter_axes) {
            factors.transposed()
        } else {
            factors
        }
    };
    let name = |expert: usize| format!("{}.{expert}.{}", wrapper.experts, wrapper.parameter);
    (0..experts).map(|expert| (name(expert), part(expert))).collect()
}

/// Modules under the names of the file that PEFT writes: those of parameters put together.
pub(super) fn joined(
    config: &PeftConfig,
    weights: &AdapterWeights,
) -> Result<BTreeMap<String, LoraFactors>, Vec<TensorProblem>> {
    let mut modules = BTreeMap::new();
    let mut parameters: BTreeMap<String, BTreeMap<usize, Vec<Part>>> = BTreeMap::new();
    for (module, factors) in &weights.modules {
        let layer = ExpertLayer::parse(module).zip(config.parameter_of(module));
        let Some((layer, parameter)) = layer else {
            modules.insert(module.clone(), factors.clone());
            continue;
        };
        let part = Part { is_second: layer.is_second(), factors };
        parameters.entry(parameter).or_default().entry(layer.index).or_default().push(part);
    }
    let mut problems = Vec::new();
    for (parameter, experts) in parameters {
        match joined_parameter(config, &parameter, &experts) {
            Ok((name, factors)) => _ = modules.insert(name, factors),
            Err(reason) => problems.push(TensorProblem::new(&parameter, reason)),
        }
    }
    if problems.is_empty() { Ok(modules) } else { Err(problems) }
}

struct Part<'a> {
    is_second: bool,
    factors: &'a LoraFactors,
}

fn joined_parameter(
    config: &PeftConfig,
    parameter: &str,
    experts: &BTreeMap<usize, Vec<Part>>,
) -> Result<(String, LoraFactors), String> {
    let (path, name) = parameter.rsplit_once('.').unwrap_or(("", parameter));
    if !experts.keys().copied().eq(0..experts.len()) {
        return Err("needs an update of every expert from the first on".to_owned());
    }
    let factors: Vec<LoraFactors> = experts.values().map(|parts| side_by_side(parts)).collect();
    let Some(first) = factors.first() else { return Err("has no experts".to_owned()) };
    let shape = |f: &LoraFactors| (f.rank, f.d_in, f.d_out);
    if factors.iter().any(|f| shape(f) != shape(first)) {
        return Err("has experts of different ranks, which PEFT cannot hold".to_owned());
    }
    // Always written as PEFT has it today, whatever the file was that they came from.
    let turned: Vec<LoraFactors> = if is_transposed(path, ParameterAxes::OutIn) {
        factors.iter().map(LoraFactors::transposed).collect()
    } else {
        factors
    };
    let (rank, d_in, d_out) = shape(&turned[0]);
    let count = turned.len();
    let a = turned.iter().flat_map(|f| f.a.iter().copied()).collect();
    let mut b = Vec::with_capacity(d_out * rank * count);
    for row in 0..d_out {
        for place in 0..rank {
            b.extend(turned.iter().map(|f| f.b[row * rank + place]));
        }
    }
    let wrapped = config.wrapped(path);
    let depth = wrapped.iter().rev().position(|wrapped| *wrapped == name).unwrap_or(0);
    let module = format!("{path}{}", WRAPPED.repeat(depth));
    Ok((module, LoraFactors { a, b, rank: rank * count, d_in, d_out }))
}

/// One update out of that of gate and that of up, or the only one.
fn side_by_side(parts: &[Part]) -> LoraFactors {
    let mut parts: Vec<&Part> = parts.iter().collect();
    parts.sort_by_key(|part| part.is_second);
    let (first, second) = match parts.as_slice() {
        [first, second] => (first.factors, second.factors),
        _ => return parts[0].factors.clone(),
    };
    let rank = first.rank + second.rank;
    let a = first.a.iter().chain(&second.a).copied().collect();
    let mut b = Vec::with_capacity((first.d_out + second.d_out) * rank);
    for row in first.b.chunks_exact(first.rank) {
        b.extend(row);
        b.extend(std::iter::repeat_n(0.0, second.rank));
    }
    for row in second.b.chunks_exact(second.rank) {
        b.extend(std::iter::repeat_n(0.0, first.rank));
        b.extend(row);
    }
    LoraFactors { a, b, rank, d_in: first.d_in, d_out: first.d_out + second.d_out }
}

/// Rank and alpha of each parameter as the file must say them.
pub(super) fn parameter_settings(
    config: &PeftConfig,
    weights: &AdapterWeights,
) -> BTreeMap<String, (usize, f64)> {
    let mut settings = BTreeMap::new();
    for (module, factors) in &weights.modules {
        let Some(layer) = ExpertLayer::parse(module) else { continue };
        let Some(parameter) = config.parameter_of(module).filter(|_| layer.index == 0) else {
            continue;
        };
        let entry = settings.entry(parameter).or_insert((0, config.scale(module)));
        entry.0 += factors.rank;
    }
    for (rank, value) in settings.values_mut() {
        // From the scale to the alpha that gives it at the rank of both.
        *value /= config.scaling.scale(1.0, *rank);
    }
    settings
}

/// An adapter over parameters as one over the layers that the model has: where gate and up are
/// layers of their own, each takes its half. Without such parameters it stays as it is.
#[must_use]
pub fn fit_experts(
    config: PeftConfig,
    weights: AdapterWeights,
    linear_layers: &[LinearLayer],
) -> (PeftConfig, AdapterWeights) {
    let has = |name: &str| linear_layers.iter().any(|layer| layer.name == name);
    let is_foreign = |module: &String| config.parameter_of(module).is_some() && !has(module);
    if !weights.modules.keys().any(is_foreign) {
        return (config, weights);
    }
    let names: std::collections::HashSet<&str> =
        linear_layers.iter().map(|layer| layer.name.as_str()).collect();
    let mut modules = BTreeMap::new();
    let mut settings = BTreeMap::new();
    for (module, factors) in weights.modules {
        let scale = config.scale(&module);
        let layer = config.parameter_of(&module).and_then(|_| ExpertLayer::parse(&module));
        let is_expert = layer.is_some();
        for (name, factors) in parts_of(layer, &module, factors, &names) {
            // The model's own layers; what fits none of them is named where it is put on.
            if is_expert && names.contains(name.as_str()) {
                settings.insert(pattern_of(&name), (factors.rank, scale));
            }
            modules.insert(name, factors);
        }
    }
    let alpha = |(rank, scale): (usize, f64)| scale / config.scaling.scale(1.0, rank);
    let ranks = settings.iter().map(|(key, setting)| (key.clone(), setting.0));
    let alphas = settings.iter().map(|(key, setting)| (key.clone(), alpha(*setting)));
    let own = "the model's own names, escaped, are patterns";
    let ranks = ModulePatterns::new(ranks).expect(own).followed_by(&config.rank_pattern);
    let alphas = ModulePatterns::new(alphas).expect(own).followed_by(&config.alpha_pattern);
    let magnitudes = weights.magnitudes;
    let config = PeftConfig {
        rank_pattern: ranks,
        alpha_pattern: alphas,
        target_parameters: Vec::new(),
        ..config
    };
    let whole = weights.whole;
    (config, AdapterWeights { modules, magnitudes, whole, ..AdapterWeights::default() })
}

/// A key for a layer of all experts of a block.
fn pattern_of(module: &str) -> String {
    ExpertLayer::parse(module).map_or_else(
        || module.to_owned(),
        |layer| format!("{}\\.\\d+\\.{}", regex::escape(layer.experts), layer.layer),
    )
}

fn parts_of(
    layer: Option<ExpertLayer>,
    module: &str,
    factors: LoraFactors,
    names: &std::collections::HashSet<&str>,
) -> Vec<(String, LoraFactors)> {
    let Some(layer) = layer.filter(|_| !names.contains(module)) else {
        return vec![(module.to_owned(), factors)];
    };
    let mixtral = layer.experts.replace(MIXTRAL.1, MIXTRAL.0);
    for (experts, [gate, up, down]) in
        [(layer.experts, ["gate_proj", "up_proj", "down_proj"]), (&mixtral, ["w1", "w3", "w2"])]
    {
        let name = |layer_name: &str| format!("{experts}.{}.{layer_name}", layer.index);
        if !names.contains(name(gate).as_str()) {
            continue;
        }
        if layer.layer == PARAMETERS[1] {
            return vec![(name(down), factors)];
        }
        let [of_gate, of_up] = halves(&factors);
        return vec![(name(gate), of_gate), (name(up), of_up)];
    }
    vec![(module.to_owned(), factors)]
}

/// Updates of both halves of the rows; of half the rank where the factors are two side by side.
fn halves(factors: &LoraFactors) -> [LoraFactors; 2] {
    let LoraFactors { ref a, ref b, rank, d_in, d_out } = *factors;
    let (half, inner) = (d_out / 2, rank / 2);
    let is_zero = |rows: &[f32], places: std::ops::Range<usize>| {
        rows.chunks_exact(rank).all(|row| row[places.clone()].iter().all(|&value| value == 0.0))
    };
    let (upper, lower) = b.split_at(half * rank);
    if rank.is_multiple_of(2) && is_zero(upper, inner..rank) && is_zero(lower, 0..inner) {
        let side = |rows: &[f32], first: usize| LoraFactors {
            a: a[first * d_in..(first + inner) * d_in].to_vec(),
            b: rows.chunks_exact(rank).flat_map(|row| row[first..first + inner].to_vec()).collect(),
            rank: inner,
            d_in,
            d_out: half,
        };
        return [side(upper, 0), side(lower, inner)];
    }
    [upper, lower].map(|rows| LoraFactors {
        a: a.clone(),
        b: rows.to_vec(),
        rank,
        d_in,
        d_out: half,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(axes: ParameterAxes) -> PeftConfig {
        let text = br#"{"peft_type": "LORA", "r": 1, "peft_version": "0.19.0",
            "target_parameters": ["mlp.experts.down_proj"]}"#;
        let config = super::super::config_json::parse(std::path::Path::new("a"), text).unwrap();
        PeftConfig { parameter_axes: axes, ..config }
    }

    #[test]
    fn files_from_before_peft_0_19_are_turned_around() {
        let whole = LoraFactors {
            a: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            b: vec![1.0, 10.0, 2.0, 20.0],
            rank: 2,
            d_in: 3,
            d_out: 2,
        };
        let experts = "model.layers.0.mlp.experts".to_owned();
        let wrapper = Wrapper { experts, parameter: "down_proj" };
        let new = split(&config(ParameterAxes::OutIn), &wrapper, &whole, 1);
        let old = split(&config(ParameterAxes::InOut), &wrapper, &whole, 1);
        assert_eq!(new[1].0, "model.layers.0.mlp.experts.1.down_proj");
        assert_eq!((&new[1].1.a, &new[1].1.b), (&vec![4.0, 5.0, 6.0], &vec![10.0, 20.0]));
        assert_eq!(old[1].1, new[1].1.transposed());
        let weights = AdapterWeights { modules: new.into_iter().collect(), ..Default::default() };
        for axes in [ParameterAxes::OutIn, ParameterAxes::InOut] {
            let written = joined(&config(axes), &weights).unwrap();
            assert_eq!(written["model.layers.0.mlp.experts"], whole);
        }
    }
}
