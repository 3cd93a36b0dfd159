//! `tunesmith schema`: the JSON schema of recipes.

use crate::diagnostics::ExitStatus;
use crate::printer::{JsonTarget, Printer};
use crate::recipe;

/// Prints the schema to stdout.
pub fn schema(printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    printer.json(&JsonTarget::Stdout, &recipe::schema())?;
    Ok(ExitStatus::Success)
}
