//! `tunesmith report`: one HTML page about runs and evaluations.

use std::path::{Path, PathBuf};

use clap::Args;

use super::plan::{self, Planned};
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::{Printer, write_atomically};
use crate::report::{EvaluationFile, Page, RunFacts, Samples};

/// Flags of `tunesmith report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Folders of runs, finished or not.
    #[arg(value_name = "RUN", required = true)]
    pub runs: Vec<PathBuf>,
    /// Where the page goes: `report.html` in the run's folder where one run is named.
    #[arg(long, short, value_name = "FILE.html")]
    pub output: Option<PathBuf>,
    /// Figures of any targets to show beside the runs, from `tunesmith evaluate --json FILE`.
    #[arg(long, value_name = "FILE.json")]
    pub evaluation: Vec<PathBuf>,
    /// Prompts and answers to show, from `tunesmith evaluate --samples FILE`; the page holds no
    /// row of the data without it.
    #[arg(long, value_name = "FILE.jsonl")]
    pub samples: Vec<PathBuf>,
}

/// Writes the page.
pub fn report(arguments: &ReportArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let output = output(arguments)?;
    let runs = arguments.runs.iter().map(|run| RunFacts::read(run, planned));
    let page = Page {
        runs: runs.collect::<anyhow::Result<_>>()?,
        evaluations: all(&arguments.evaluation, EvaluationFile::read)?,
        samples: all(&arguments.samples, Samples::read)?,
    };
    write_atomically(&output, page.html()?.as_bytes())?;
    printer.data(&output.display().to_string())?;
    Ok(ExitStatus::Success)
}

fn all<T>(paths: &[PathBuf], read: impl Fn(&Path) -> anyhow::Result<T>) -> anyhow::Result<Vec<T>> {
    paths.iter().map(|path| read(path)).collect()
}

fn output(arguments: &ReportArgs) -> anyhow::Result<PathBuf> {
    match (&arguments.output, arguments.runs.as_slice()) {
        (Some(output), _) => Ok(output.clone()),
        (None, [run]) => Ok(run.join("report.html")),
        (None, _) => {
            let hint = "name the page with `--output FILE.html`";
            Err(UserError::new("several runs have no folder in common", hint).into())
        }
    }
}

/// What `tunesmith plan` says today of a run's recipe.
///
/// The reason why it says nothing may name folders of this machine, and stays out of the page.
fn planned(recipe: &str, device: Option<&str>) -> Result<Planned, String> {
    plan::of_run(recipe, device.unwrap_or("cpu")).map_err(|_| {
        "base model, data or device are not here as the run had them (`tunesmith plan` says more)"
            .to_owned()
    })
}
