//! Makes one adapter of several, as PEFT's `add_weighted_adapter` does.
//!
//! `cat` and `svd` work on the updates `scale·B·A` themselves: the one keeps their sum exactly at
//! the rank of all together, the other is the best approximation of it at a given rank. The other
//! methods work on the factors A and B apart, as PEFT does, and give something else than a sum of
//! updates; they need one rank for all. Those called `*_svd` do the same to the dense updates and
//! cut the result back to a rank.

mod dense;
mod elements;
mod factors;
mod low_rank;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{TensorProblem, list};
use crate::peft::{AdapterWeights, LoraFactors, ModuleNames, PeftConfig, Scaling};
use factors::Elementwise;

pub use elements::{ElementMethod, Elements, MajoritySign};

pub use low_rank::truncated;

/// How several updates become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CombineMethod {
    /// Weighted sums of A and of B.
    Linear,
    /// All ranks side by side: the exact sum of the updates.
    Cat,
    /// The best approximation of the sum of the updates at a given rank.
    Svd,
    /// Small elements dropped, signs elected, the agreeing ones averaged (arXiv 2306.01708).
    Ties,
    /// Random elements dropped and the rest scaled up, then summed (arXiv 2311.03099).
    DareLinear,
    /// Random elements dropped and the rest scaled up, then as TIES.
    DareTies,
    /// Small elements dropped, then summed.
    MagnitudePrune,
    /// TIES on the dense updates.
    TiesSvd,
    /// Random pruning of the dense updates, then summed.
    DareLinearSvd,
    /// Random pruning of the dense updates, then as TIES.
    DareTiesSvd,
    /// Small elements of the dense updates dropped, then summed.
    MagnitudePruneSvd,
}

impl CombineMethod {
    /// Every method, with PEFT's name for it.
    pub const ALL: [(&'static str, Self); 11] = [
        ("linear", Self::Linear),
        ("cat", Self::Cat),
        ("svd", Self::Svd),
        ("ties", Self::Ties),
        ("dare_linear", Self::DareLinear),
        ("dare_ties", Self::DareTies),
        ("magnitude_prune", Self::MagnitudePrune),
        ("ties_svd", Self::TiesSvd),
        ("dare_linear_svd", Self::DareLinearSvd),
        ("dare_ties_svd", Self::DareTiesSvd),
        ("magnitude_prune_svd", Self::MagnitudePruneSvd),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.1 == self).map_or("?", |row| row.0)
    }

    /// What is done element by element; `cat` and `svd` work on whole updates.
    fn elements(self) -> ElementMethod {
        match self {
            Self::Linear | Self::Cat | Self::Svd => ElementMethod::Sum,
            Self::Ties | Self::TiesSvd => ElementMethod::Ties,
            Self::DareLinear | Self::DareLinearSvd => ElementMethod::DareLinear,
            Self::DareTies | Self::DareTiesSvd => ElementMethod::DareTies,
            Self::MagnitudePrune | Self::MagnitudePruneSvd => ElementMethod::MagnitudePrune,
        }
    }

    fn prunes(self) -> bool {
        self.elements() != ElementMethod::Sum
    }

    /// Whether the dense updates are combined and cut back to a rank.
    fn is_dense(self) -> bool {
        matches!(
            self,
            Self::TiesSvd | Self::DareLinearSvd | Self::DareTiesSvd | Self::MagnitudePruneSvd
        )
    }

    /// Whether the rank of the result can be chosen, and those of the adapters may differ.
    fn takes_rank(self) -> bool {
        self == Self::Svd || self.is_dense()
    }
}

/// What to combine, and how.
#[derive(Debug, Clone, Copy)]
pub struct CombineRequest<'a> {
    /// The adapters.
    pub adapters: &'a [(PeftConfig, AdapterWeights)],
    /// A factor for each; may be negative.
    pub weights: &'a [f64],
    /// How.
    pub method: CombineMethod,
    /// Share of the elements that pruning keeps, above 0 and up to 1.
    pub density: Option<f64>,
    /// Rank of the result, for [`CombineMethod::Svd`] and the `*_svd` methods; the largest of the adapters' by default.
    pub rank: Option<usize>,
    /// How TIES elects signs.
    pub majority_sign: MajoritySign,
    /// Decides what random pruning drops.
    pub seed: u64,
}

impl CombineRequest<'_> {
    fn elements(&self) -> Elements {
        Elements {
            method: self.method.elements(),
            density: self.density.unwrap_or(1.0),
            majority_sign: self.majority_sign,
        }
    }
}

/// Adapters that cannot be combined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CombineError {
    /// No adapter.
    #[error("there is no adapter to combine")]
    Nothing,
    /// Not one weight for each adapter, or one that is no number.
    #[error("{weights} weights for {adapters} adapters")]
    Weights {
        /// Weights given.
        weights: usize,
        /// Adapters given.
        adapters: usize,
    },
    /// A weight that is not finite.
    #[error("weight {value} is not a finite number")]
    Weight {
        /// The weight.
        value: f64,
    },
    /// A density that is missing, or beside the point.
    #[error("method `{method}` {problem}")]
    Option {
        /// The method.
        method: &'static str,
        /// What it needs, or does not know.
        problem: String,
    },
    /// Updates that are no sums.
    #[error(
        "adapter {number} is DoRA, whose magnitudes rescale the base: such updates cannot be added up or scaled"
    )]
    Dora {
        /// Place of the adapter, from 1.
        number: usize,
    },
    /// Tensors that are no updates.
    #[error(
        "adapter {number} holds whole tensors (`modules_to_save`, biases) of {}: they take the place \
         of the base's and cannot be added up or scaled", .modules.join(", ")
    )]
    Whole {
        /// Place of the adapter, from 1.
        number: usize,
        /// Modules of the tensors.
        modules: Vec<String>,
    },
    /// Modules that do not go together.
    #[error("the adapters cannot be combined by `{method}`: {}", list(.problems))]
    Misfit {
        /// The method.
        method: &'static str,
        /// Every module that does not fit.
        problems: Vec<TensorProblem>,
    },
}

impl CombineError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Weights { .. } => "give one weight for each: `--weights 0.7,0.3`",
            Self::Dora { .. } | Self::Whole { .. } => {
                "merge it alone and without `--weights`: `tunesmith merge ADAPTER --output DIR`"
            }
            Self::Option { problem, .. } if problem.contains("density") => {
                "`--density 0.5` keeps half of the elements; only pruning methods take it"
            }
            Self::Misfit { problems, .. }
                if problems.iter().any(|problem| problem.reason.contains("rank")) =>
            {
                "`--method cat` and `--method svd` take adapters of different ranks"
            }
            _ => return None,
        };
        Some(hint.to_owned())
    }
}

/// One module of one adapter, with the factor on its update.
#[derive(Clone, Copy)]
struct Part<'a> {
    factors: &'a LoraFactors,
    /// The adapter's own.
    scale: f64,
    /// What the user wants of it.
    weight: f64,
    /// Place of the adapter among all.
    adapter: usize,
}

impl Part<'_> {
    fn factor(&self) -> f64 {
        self.weight * self.scale
    }
}

/// Makes one adapter of several. The result has scale 1: alpha is its rank.
pub fn combine(request: &CombineRequest) -> Result<(PeftConfig, AdapterWeights), CombineError> {
    check_options(request)?;
    let parts = parts_by_module(request);
    check_shapes(request.method, &parts)?;
    let rank = output_rank(request, &parts);
    let mut weights = AdapterWeights::default();
    for (module, parts) in &parts {
        let combined = match request.method {
            CombineMethod::Cat => low_rank::side_by_side(parts, rank),
            CombineMethod::Svd => low_rank::truncated_sum(parts, rank),
            method if method.is_dense() => dense::combine(request, module, parts, rank)?,
            _ => Elementwise::new(request, module).combine(parts),
        };
        weights.modules.insert((*module).to_owned(), combined);
    }
    Ok((output_config(request, &weights, rank), weights))
}

fn check_options(request: &CombineRequest) -> Result<(), CombineError> {
    let (adapters, weights) = (request.adapters.len(), request.weights.len());
    if let Some(place) = request.adapters.iter().position(|(config, _)| config.use_dora) {
        return Err(CombineError::Dora { number: place + 1 });
    }
    let whole = request.adapters.iter().position(|(_, weights)| !weights.whole.is_empty());
    if let Some(place) = whole {
        let modules = request.adapters[place].1.whole_modules();
        let modules = modules.into_iter().map(str::to_owned).collect();
        return Err(CombineError::Whole { number: place + 1, modules });
    }
    if adapters == 0 {
        return Err(CombineError::Nothing);
    }
    if adapters != weights {
        return Err(CombineError::Weights { weights, adapters });
    }
    if let Some(&value) = request.weights.iter().find(|weight| !weight.is_finite()) {
        return Err(CombineError::Weight { value });
    }
    let method = request.method;
    let problem = |problem: String| CombineError::Option { method: method.name(), problem };
    match request.density {
        None if method.prunes() => return Err(problem("needs a density".to_owned())),
        Some(_) if !method.prunes() => return Err(problem("takes no density".to_owned())),
        Some(density) if !(density > 0.0 && density <= 1.0) => {
            return Err(problem(format!("needs a density above 0 and up to 1, not {density}")));
        }
        _ => {}
    }
    match request.rank {
        Some(_) if !method.takes_rank() => Err(problem("takes no rank".to_owned())),
        Some(0) => Err(problem("needs a rank above 0".to_owned())),
        _ => Ok(()),
    }
}

type Parts<'a> = BTreeMap<&'a str, Vec<Part<'a>>>;

fn parts_by_module<'a>(request: &CombineRequest<'a>) -> Parts<'a> {
    let mut parts = Parts::new();
    let weighted = request.adapters.iter().zip(request.weights).enumerate();
    for (adapter, ((config, weights), weight)) in weighted {
        for (module, factors) in &weights.modules {
            let scale = config.scale(module);
            let part = Part { factors, scale, weight: *weight, adapter };
            parts.entry(module.as_str()).or_default().push(part);
        }
    }
    parts
}

fn check_shapes(method: CombineMethod, parts: &Parts) -> Result<(), CombineError> {
    let mixes_ranks = method == CombineMethod::Cat || method.takes_rank();
    let mut problems = Vec::new();
    for (module, parts) in parts {
        let shapes: BTreeSet<_> =
            parts.iter().map(|part| (part.factors.d_out, part.factors.d_in)).collect();
        let ranks: BTreeSet<_> = parts.iter().map(|part| part.factors.rank).collect();
        if shapes.len() > 1 {
            let reason = format!("belongs to weights of different shapes: {shapes:?}");
            problems.push(TensorProblem::new(*module, reason));
        } else if ranks.len() > 1 && !mixes_ranks {
            problems.push(TensorProblem::new(*module, format!("has different ranks: {ranks:?}")));
        } else if let Some(fault) = parts.iter().find_map(|part| part.factors.fault()) {
            problems.push(TensorProblem::new(*module, fault));
        }
    }
    if problems.is_empty() {
        Ok(())
    } else {
        Err(CombineError::Misfit { method: method.name(), problems })
    }
}

/// The rank that every module gets; methods that keep ranks leave it to the module.
fn output_rank(request: &CombineRequest, parts: &Parts) -> usize {
    let sums = parts.values().map(|parts| parts.iter().map(|part| part.factors.rank).sum());
    let largest = |ranks: &mut dyn Iterator<Item = usize>| ranks.max().unwrap_or(1);
    match request.method {
        CombineMethod::Cat => largest(&mut sums.into_iter()),
        _ => request.rank.unwrap_or_else(|| {
            largest(&mut parts.values().flatten().map(|part| part.factors.rank))
        }),
    }
}

fn output_config(request: &CombineRequest, weights: &AdapterWeights, rank: usize) -> PeftConfig {
    let (first, _) = &request.adapters[0];
    let differ = weights.modules.iter().filter(|(_, factors)| factors.rank != rank);
    let key = |module: &String| first.parameter_of(module).unwrap_or_else(|| module.clone());
    let other: BTreeMap<String, usize> =
        differ.map(|(module, factors)| (key(module), factors.rank)).collect();
    let alpha_pattern = crate::ModulePatterns::of_names(
        other.iter().map(|(module, &rank)| (module.clone(), rank as f64)),
    );
    PeftConfig {
        rank,
        alpha: rank as f64,
        scaling: Scaling::ByRank,
        target_modules: Some(target_modules(request, weights)),
        exclude_modules: None,
        rank_pattern: crate::ModulePatterns::of_names(other),
        alpha_pattern,
        unknown_keys: Vec::new(),
        ..first.clone()
    }
}

/// The lists of all adapters together; whole paths where one of them is no list.
fn target_modules(request: &CombineRequest, weights: &AdapterWeights) -> ModuleNames {
    let mut names = BTreeSet::new();
    for (config, _) in request.adapters {
        match &config.target_modules {
            Some(ModuleNames::List(entries)) if config.exclude_modules.is_none() => {
                names.extend(entries.iter().cloned());
            }
            _ => return ModuleNames::List(weights.modules.keys().cloned().collect()),
        }
    }
    ModuleNames::List(names.into_iter().collect())
}
