//! `tunesmith adapter combine`: several adapters → one.

use std::path::PathBuf;

use adapters::combine::{CombineMethod, CombineRequest, MajoritySign};
use adapters::{AdapterWeights, PeftConfig};
use clap::{Args, ValueEnum};

use super::{open, write_peft};
use crate::diagnostics::ExitStatus;
use crate::printer::Printer;

/// Flags of `tunesmith adapter combine`.
#[derive(Debug, Clone, Args)]
pub struct CombineArgs {
    /// The adapters: PEFT folders or finished runs.
    #[arg(value_name = "ADAPTER", required = true, num_args = 1..)]
    pub adapters: Vec<PathBuf>,
    /// Folder of the new adapter; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// How; `cat` keeps the exact sum, `svd` approximates it at a rank.
    #[arg(long, value_enum)]
    pub method: MethodChoice,
    /// A factor for each adapter, such as `0.7,0.3`; may be negative. 1 for each by default.
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_hyphen_values = true)]
    pub weights: Vec<f64>,
    /// Share of the elements that pruning keeps: for ties, `dare_*`, `magnitude_prune*`.
    #[arg(long, value_name = "SHARE")]
    pub density: Option<f64>,
    /// Rank of the result, for svd and `*_svd`; the largest of the adapters' by default.
    #[arg(long, value_name = "R")]
    pub rank: Option<usize>,
    /// How ties elects signs.
    #[arg(long, value_enum, default_value_t = SignChoice::Total)]
    pub majority_sign: SignChoice,
    /// Decides what `dare_*` drops.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Methods by the names that PEFT has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum MethodChoice {
    /// Weighted sums of A and of B.
    Linear,
    /// The exact sum of the updates, at the rank of all together.
    Cat,
    /// The best approximation of the sum of the updates at a rank.
    Svd,
    /// Small elements dropped, signs elected.
    Ties,
    /// Random elements dropped, the rest scaled up.
    DareLinear,
    /// Random elements dropped, the rest scaled up, signs elected.
    DareTies,
    /// Small elements dropped.
    MagnitudePrune,
    /// As ties, on the dense updates, cut back to a rank.
    TiesSvd,
    /// As `dare_linear`, on the dense updates, cut back to a rank.
    DareLinearSvd,
    /// As `dare_ties`, on the dense updates, cut back to a rank.
    DareTiesSvd,
    /// As `magnitude_prune`, on the dense updates, cut back to a rank.
    MagnitudePruneSvd,
}

/// Elections of signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum SignChoice {
    /// The sign of the sum.
    Total,
    /// The sign that more elements have.
    Frequency,
}

impl MethodChoice {
    fn method(self) -> CombineMethod {
        match self {
            Self::Linear => CombineMethod::Linear,
            Self::Cat => CombineMethod::Cat,
            Self::Svd => CombineMethod::Svd,
            Self::Ties => CombineMethod::Ties,
            Self::DareLinear => CombineMethod::DareLinear,
            Self::DareTies => CombineMethod::DareTies,
            Self::MagnitudePrune => CombineMethod::MagnitudePrune,
            Self::TiesSvd => CombineMethod::TiesSvd,
            Self::DareLinearSvd => CombineMethod::DareLinearSvd,
            Self::DareTiesSvd => CombineMethod::DareTiesSvd,
            Self::MagnitudePruneSvd => CombineMethod::MagnitudePruneSvd,
        }
    }
}

/// Combines, and writes the result as a PEFT folder.
pub(super) fn combine(
    arguments: &CombineArgs,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let opened = arguments.adapters.iter().map(|path| open(path));
    let opened = opened.collect::<anyhow::Result<Vec<_>>>()?;
    let (folders, adapters): (Vec<_>, Vec<_>) =
        opened.into_iter().map(|(folder, peft, weights)| (folder, (peft, weights))).unzip();
    let weights = weights_or_ones(&arguments.weights, adapters.len());
    let (config, combined) = adapters::combine::combine(&CombineRequest {
        adapters: &adapters,
        weights: &weights,
        method: arguments.method.method(),
        density: arguments.density,
        rank: arguments.rank,
        majority_sign: match arguments.majority_sign {
            SignChoice::Total => MajoritySign::Total,
            SignChoice::Frequency => MajoritySign::Frequency,
        },
        seed: arguments.seed,
    })?;
    warn_of_bases(&adapters, printer);
    write_peft(&arguments.output, &config, &combined, &folders)?;
    printer.status(&format!(
        "combined: {}, {} modules of rank {}",
        arguments.output.display(),
        combined.modules.len(),
        config.rank
    ));
    Ok(ExitStatus::Success)
}

/// The weights given, or 1 for each adapter.
pub(in crate::commands) fn weights_or_ones(given: &[f64], adapters: usize) -> Vec<f64> {
    if given.is_empty() { vec![1.0; adapters] } else { given.to_vec() }
}

/// Updates of different models have nothing in common.
pub(in crate::commands) fn warn_of_bases(
    adapters: &[(PeftConfig, AdapterWeights)],
    printer: &mut Printer,
) {
    let mut names = adapters.iter().filter_map(|row| row.0.base_model_name_or_path.as_deref());
    let Some(first) = names.next() else { return };
    if let Some(other) = names.find(|name| *name != first) {
        printer.warning(&format!("the adapters name different bases: `{first}` and `{other}`"));
    }
}
