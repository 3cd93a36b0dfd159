//! `tunesmith merge MODEL MODEL --method ...`: whole models made one.

use std::fmt;
use std::path::Path;

use adapters::mix::{MixMethod, MixSettings};
use adapters::weights::{ModelFiles, Network};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::{MergeArgs, Source};
use crate::diagnostics::UserError;
use crate::named::BaseParts;
use crate::target::check_vocabulary;

/// Flags of mixing whole models.
#[derive(Debug, Clone, Default, Args)]
pub struct MixArgs {
    /// Merge whole models by this method; `--base` names what they were tuned from.
    #[arg(long, value_enum)]
    pub method: Option<MixChoice>,
    /// Place between the two models of slerp: 0 is the first, 1 the second; 0.5 by default.
    #[arg(long = "t", value_name = "T", requires = "method")]
    pub position: Option<f64>,
    /// Share of the changes that ties and `dare_*` keep.
    #[arg(long, value_name = "SHARE", requires = "method")]
    pub density: Option<f64>,
    /// Decides what `dare_*` drops.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
}

/// Methods by the names that mergekit has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
#[value(rename_all = "snake_case")]
pub enum MixChoice {
    /// The weighted mean.
    Linear,
    /// Two models, along the arc between their tensors.
    Slerp,
    /// The base and the weighted sum of the changes.
    TaskArithmetic,
    /// The largest changes, signs elected, the agreeing averaged.
    Ties,
    /// Random changes, scaled up, summed.
    DareLinear,
    /// Random changes, scaled up, signs elected, the agreeing summed.
    DareTies,
}

impl MixChoice {
    fn method(self) -> MixMethod {
        match self {
            Self::Linear => MixMethod::Linear,
            Self::Slerp => MixMethod::Slerp,
            Self::TaskArithmetic => MixMethod::TaskArithmetic,
            Self::Ties => MixMethod::Ties,
            Self::DareLinear => MixMethod::DareLinear,
            Self::DareTies => MixMethod::DareTies,
        }
    }
}

/// What `merge_report.json` says of a mix.
#[derive(Debug, Clone, Serialize)]
pub(super) struct MixReport {
    method: &'static str,
    models: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    position: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    density: Option<f64>,
    seed: u64,
}

impl fmt::Display for MixReport {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{} models by {}", self.models.len(), self.method)
    }
}

impl MixReport {
    /// For the model card; folders stay out of it.
    pub(super) fn sentence(&self) -> String {
        let last = |path: &String| {
            let name = Path::new(path).file_name().unwrap_or_default();
            let is_special = |c: char| c.is_control() || "`|<>".contains(c);
            format!("`{}`", name.to_string_lossy().replace(is_special, " "))
        };
        let models: Vec<_> = self.models.iter().map(last).collect();
        let base = self.base.as_ref().map_or(String::new(), |base| format!(" over {}", last(base)));
        format!("{} merged by `{}`{base}.", models.join(" and "), self.method)
    }
}

/// Opens the models as one.
pub(super) fn open(
    choice: MixChoice,
    arguments: &MergeArgs,
    network: Network,
) -> anyhow::Result<Source> {
    let names: Vec<String> =
        arguments.adapters.iter().map(|path| path.display().to_string()).collect();
    if let Some(adapter) = arguments.adapters.iter().find(|path| is_adapter(path)) {
        let message =
            format!("`{}` is an adapter; `--method` merges whole models", adapter.display());
        let hint = "`tunesmith adapter combine` makes one adapter of several by these methods";
        return Err(UserError::new(message, hint).into());
    }
    let opened = names.iter().map(|name| ModelFiles::open(name, network));
    let models = opened.collect::<Result<Vec<_>, _>>()?;
    let base = arguments.base.as_ref().map(|name| ModelFiles::open(name, network)).transpose()?;
    for other in models.iter().skip(1).chain(&base) {
        check_vocabulary(&models[0], other)?;
    }
    let settings = MixSettings {
        method: choice.method(),
        weights: arguments.weights.clone(),
        position: arguments.mix.position,
        density: arguments.mix.density,
        seed: arguments.mix.seed,
    };
    let mix = MixReport {
        method: MixMethod::ALL.iter().find(|row| row.1 == settings.method).map_or("?", |row| row.0),
        models: names.clone(),
        base: arguments.base.clone(),
        position: arguments.mix.position,
        density: arguments.mix.density,
        seed: arguments.mix.seed,
    };
    let files = adapters::mix::mix(models, base, &settings)?;
    let (peft, weights) = adapters::convert::no_update();
    Ok(Source {
        name: names.join(", "),
        factors: arguments.weights.clone(),
        facts: Vec::new(),
        peft,
        weights,
        base: BaseParts::of(files)?,
        mix: Some(mix),
    })
}

fn is_adapter(path: &Path) -> bool {
    crate::target::adapter_folder(path).is_some()
}
