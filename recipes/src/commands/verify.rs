//! `tunesmith verify`: is everything that a run was made of still what it was?

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::JsonArgs;
use crate::diagnostics::ExitStatus;
use crate::machine;
use crate::printer::Printer;
use crate::provenance::Lock;

/// Flags of `tunesmith verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// Folder of a run.
    #[arg(value_name = "RUN")]
    pub run: PathBuf,
    /// Where the differences go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Re-hashes the files of the lock.
pub fn verify(arguments: &VerifyArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let lock = Lock::read(&arguments.run)?;
    let differences = lock.differences(&arguments.run)?;
    let environment = lock.environment_differences(&machine::environment_facts());
    if let Some(target) = &arguments.json.json {
        let environment: Vec<_> = environment
            .iter()
            .map(|(name, then, now)| json!({ "name": name, "then": then, "now": now }))
            .collect();
        let report = json!({
            "files": lock.file.len(),
            "differences": differences,
            "environment": environment,
        });
        printer.json(target, &report)?;
    }
    for (name, then, now) in &environment {
        printer.warning(&format!("{name} was `{then}` and is `{now}`: results can differ in bits"));
    }
    for difference in &differences {
        let path = match difference.path.as_str() {
            "" => String::new(),
            path => format!(" `{path}`"),
        };
        printer.error_block(&format!("error: {}{path} {}", difference.what, difference.change));
    }
    if differences.is_empty() {
        printer.status(&format!("{} files are as the run left them", lock.file.len()));
        return Ok(ExitStatus::Success);
    }
    Ok(ExitStatus::Failure)
}
