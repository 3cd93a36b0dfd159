//! Several models of one architecture made one: averages, SLERP, task arithmetic, TIES, DARE.
//!
//! Nothing is written here: [`mix`] opens the models as one whose tensors are computed when they are
//! read, a block of rows at a time, so that a merge writes it as it writes any model. Rules are those
//! of mergekit under the same names, but for the rescaling of DARE, which is its paper's and PEFT's;
//! `tests/fixtures/mix` holds what they are compared with.

mod rules;
#[cfg(test)]
mod tests;
mod weights;

use serde_json::Value;

use crate::error::{TensorProblem, list};
use crate::weights::ModelFiles;

pub(crate) use weights::MixedWeights;

/// How several models become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixMethod {
    /// The mean of the weights, each model times its share.
    Linear,
    /// Two models along the arc between their tensors (Shoemake 1985).
    Slerp,
    /// The base, and the weighted sum of what each model changed in it (arXiv 2212.04089).
    TaskArithmetic,
    /// Of what each model changed the largest elements, signs elected, the agreeing ones averaged
    /// (arXiv 2306.01708).
    Ties,
    /// Of what each model changed random elements, scaled up, summed (arXiv 2311.03099).
    DareLinear,
    /// Of what each model changed random elements, scaled up, signs elected, the agreeing summed.
    DareTies,
}

impl MixMethod {
    /// Every method by its name.
    pub const ALL: [(&'static str, Self); 6] = [
        ("linear", Self::Linear),
        ("slerp", Self::Slerp),
        ("task_arithmetic", Self::TaskArithmetic),
        ("ties", Self::Ties),
        ("dare_linear", Self::DareLinear),
        ("dare_ties", Self::DareTies),
    ];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|row| row.1 == self).map_or("?", |row| row.0)
    }

    /// Whether changes against a common base are worked on.
    fn needs_base(self) -> bool {
        !matches!(self, Self::Linear | Self::Slerp)
    }

    fn needs_density(self) -> bool {
        matches!(self, Self::Ties | Self::DareLinear | Self::DareTies)
    }
}

/// Numbers of a mix.
#[derive(Debug, Clone)]
pub struct MixSettings {
    /// How.
    pub method: MixMethod,
    /// A factor for each model; 1 each where it is empty. Not for SLERP.
    pub weights: Vec<f64>,
    /// Place on the arc of SLERP: 0 is the first model, 1 the second; 0.5 by default.
    pub position: Option<f64>,
    /// Share of the changes that TIES and DARE keep, above 0 and up to 1.
    pub density: Option<f64>,
    /// Decides what DARE drops.
    pub seed: u64,
}

/// Models that cannot be mixed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MixError {
    /// Settings that do not go together.
    #[error("method `{method}` {problem}")]
    Settings {
        /// The method.
        method: &'static str,
        /// What it needs, or does not know.
        problem: String,
    },
    /// A key of `config.json` that says something else in another model.
    #[error("`{other}` is another kind of model than `{first}`: {}", list(.keys))]
    Config {
        /// The first model.
        first: String,
        /// The other one.
        other: String,
        /// Each key with both values.
        keys: Vec<String>,
    },
    /// Tensors that the models do not share.
    #[error("`{other}` has other tensors than `{first}`: {}", list(.problems))]
    Tensors {
        /// The first model.
        first: String,
        /// The other one.
        other: String,
        /// Every tensor that does not fit.
        problems: Vec<TensorProblem>,
    },
}

impl MixError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Settings { problem, .. } if problem.contains("base") => {
                "name the model that all of them were tuned from with `--base`"
            }
            Self::Settings { problem, .. } if problem.contains("density") => {
                "`--density 0.5` keeps half of the changes; only ties and dare take it"
            }
            Self::Settings { .. } => "see `tunesmith merge --help`",
            Self::Config { .. } | Self::Tensors { .. } => {
                "only tunes of one base model can be mixed"
            }
        };
        Some(hint.to_owned())
    }
}

/// Opens `models`, and the `base` they were tuned from, as one model.
pub fn mix(
    models: Vec<ModelFiles>,
    base: Option<ModelFiles>,
    settings: &MixSettings,
) -> Result<ModelFiles, MixError> {
    check_settings(models.len(), base.as_ref(), settings)?;
    for other in models.iter().skip(1).chain(&base) {
        check_alike(&models[0], other)?;
    }
    let weights = match settings.weights.as_slice() {
        [] => vec![1.0; models.len()],
        given => given.to_vec(),
    };
    let mut models = models.into_iter();
    let Some(first) = models.next() else {
        return Err(problem(settings, "needs at least two models".to_owned()));
    };
    let others = models.collect();
    Ok(first.with_mixed(|first| MixedWeights::new(first, others, base, settings, weights)))
}

fn problem(settings: &MixSettings, problem: String) -> MixError {
    MixError::Settings { method: settings.method.name(), problem }
}

fn check_settings(
    models: usize,
    base: Option<&ModelFiles>,
    settings: &MixSettings,
) -> Result<(), MixError> {
    let MixSettings { method, weights, position, density, .. } = settings;
    let fault = match (method.needs_base(), base) {
        (true, None) => Some("needs the base that the models were tuned from"),
        (false, Some(_)) => Some("takes no base"),
        _ if models == 0 || (models == 1 && base.is_none()) => Some("needs at least two models"),
        _ if *method == MixMethod::Slerp && models != 2 => Some("takes exactly two models"),
        _ => None,
    };
    let fault = fault.or_else(|| match density {
        None => method.needs_density().then_some("needs a density"),
        Some(_) if !method.needs_density() => Some("takes no density"),
        Some(share) if *share > 0.0 && *share <= 1.0 => None,
        Some(_) => Some("needs a density above 0 and up to 1"),
    });
    let fault = fault.or_else(|| match position {
        Some(_) if *method != MixMethod::Slerp => Some("takes no position on an arc (`--t`)"),
        Some(place) if !(0.0..=1.0).contains(place) => Some("needs a position from 0 to 1"),
        _ => None,
    });
    let fault = fault.or_else(|| match weights.as_slice() {
        [] => None,
        _ if *method == MixMethod::Slerp => Some("takes a position (`--t`), not weights"),
        given if given.len() != models => Some("needs one weight for each model"),
        given if given.iter().any(|weight| !weight.is_finite()) => Some("needs finite weights"),
        given if *method == MixMethod::Linear && given.iter().sum::<f64>() == 0.0 => {
            Some("needs weights whose sum is not 0")
        }
        _ => None,
    });
    match fault {
        Some(fault) => Err(problem(settings, fault.to_owned())),
        None => Ok(()),
    }
}

/// Keys of `config.json` that say where a model comes from or how it was stored.
const INCIDENTAL: &[&str] = &[
    "_name_or_path",
    "architectures",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "pad_token_id",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
];

fn check_alike(first: &ModelFiles, other: &ModelFiles) -> Result<(), MixError> {
    let name = |files: &ModelFiles| files.location().display().to_string();
    let keys = differing_keys(first.config(), other.config());
    if !keys.is_empty() {
        return Err(MixError::Config { first: name(first), other: name(other), keys });
    }
    let (of_first, of_other) = (first.weights().entries(), other.weights().entries());
    let missing = of_first.iter().filter_map(|(tensor, entry)| match of_other.get(tensor) {
        None => Some(TensorProblem::new(tensor, "is missing")),
        Some(found) if found.shape != entry.shape => {
            let reason = format!("has {:?}, not {:?}", found.shape, entry.shape);
            Some(TensorProblem::new(tensor, reason))
        }
        Some(_) => None,
    });
    let further = of_other.keys().filter(|tensor| !of_first.contains_key(*tensor));
    let further = further.map(|tensor| TensorProblem::new(tensor, "is there only"));
    let problems: Vec<_> = missing.chain(further).collect();
    if problems.is_empty() {
        return Ok(());
    }
    Err(MixError::Tensors { first: name(first), other: name(other), problems })
}

fn differing_keys(first: &Value, other: &Value) -> Vec<String> {
    let (Some(first), Some(other)) = (first.as_object(), other.as_object()) else {
        return Vec::new();
    };
    // Older versions of transformers leave out what newer ones write: absent keys say nothing.
    let shared = first.iter().filter(|(key, _)| !INCIDENTAL.contains(&key.as_str()));
    shared
        .filter_map(|(key, value)| {
            let found = other.get(key).filter(|found| *found != value)?;
            Some(format!("`{key}` is {value} and {found}"))
        })
        .collect()
}
