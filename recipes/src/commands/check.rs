//! `tunesmith check`: a recipe and everything it names, all errors at once, nothing run.

use adapters::weights::Network;
use clap::Args;
use serde_json::json;

use crate::cli::{JsonArgs, RecipeArgs};
use crate::diagnostics::ExitStatus;
use crate::named;
use crate::printer::Printer;
use crate::recipe::{Draft, Findings, RecipeError};

/// Flags of `tunesmith check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Where the findings go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Checks the recipe and what it names.
pub fn check(
    arguments: &CheckArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let mut draft = Draft::read(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    let facts = named::inspect(&mut draft, network);
    let (findings, warnings) = (draft.findings(), draft.warnings());
    if let Some(target) = &arguments.json.json {
        let report = json!({
            "recipe": arguments.recipe.recipe,
            "errors": entries(&findings),
            "warnings": entries(&warnings),
            "facts": facts.iter().cloned().collect::<serde_json::Map<_, _>>(),
        });
        printer.json(target, &report)?;
    }
    if !warnings.is_empty() {
        printer.warning_block(&format!("{warnings}\n"));
    }
    if !findings.is_empty() {
        return Err(RecipeError::Invalid(findings).into());
    }
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or_default();
    for (name, value) in &facts {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        printer.status(&format!("{name:width$}  {text}"));
    }
    printer.status(&format!("`{}` is ready to run", arguments.recipe.recipe.display()));
    Ok(ExitStatus::Success)
}

fn entries(findings: &Findings) -> Vec<serde_json::Value> {
    findings
        .located()
        .map(|(problem, position)| {
            json!({
                "message": problem.to_string(),
                "hint": problem.hint(),
                "line": position.map(|(line, _)| line),
                "column": position.map(|(_, column)| column),
            })
        })
        .collect()
}
