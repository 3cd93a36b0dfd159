//! `tunesmith preview`: rows exactly as training will see them.
//!
//! All rows are loaded, not just the ones shown: order, packing and weights depend on every one
//! of them. What was tokenized is kept in the cache, where training finds it.

use adapters::weights::Network;
use clap::Args;
use datasets::{DatasetCounts, PreviewRow, PreviewSegment, PreviewToken, Sampler};
use serde_json::json;

use crate::cli::{JsonArgs, RecipeArgs};
use crate::diagnostics::ExitStatus;
use crate::named::{self, BaseParts};
use crate::printer::Printer;
use crate::recipe;

/// Flags of `tunesmith preview`.
#[derive(Debug, Clone, Args)]
pub struct PreviewArgs {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Rows to show, from the start of the first epoch.
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub rows: usize,
    /// Where rows and counts go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Shows the rows and what became of the others.
pub fn preview(
    arguments: &PreviewArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let loaded = recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    if !loaded.warnings.is_empty() {
        printer.warning_block(&format!("{}\n", loaded.warnings));
    }
    let recipe = &loaded.recipe;
    let base = BaseParts::of_recipe(recipe, network)?;
    let cache = named::dataset_cache();
    let dataset = datasets::load(&named::load_request(recipe, &base, cache.as_deref()))?;
    for warning in &dataset.warnings {
        printer.warning(warning);
    }
    let sampler = Sampler::new(&dataset, &recipe.dataset, &recipe.batch, recipe.seed);
    let plan = sampler.epoch(0);
    let rows = datasets::preview(&dataset, &plan, &base.tokenizer, arguments.rows)?;
    if let Some(target) = &arguments.json.json {
        let report = json!({
            "rows": rows,
            "counts": dataset.counts,
            "rows_per_epoch": plan.rows().len(),
            "steps_per_epoch": plan.steps(),
        });
        printer.json(target, &report)?;
        return Ok(ExitStatus::Success);
    }
    for (number, row) in rows.iter().enumerate() {
        show_row(printer, number + 1, row)?;
    }
    let (shown, all, steps) = (rows.len(), plan.rows().len(), plan.steps());
    printer.data(&format!("{shown} of {all} rows shown; an epoch has {steps} steps"))?;
    for counts in &dataset.counts {
        printer.data("")?;
        show_counts(printer, counts)?;
    }
    Ok(ExitStatus::Success)
}

fn show_row(printer: &mut Printer, number: usize, row: &PreviewRow) -> anyhow::Result<()> {
    let trained = row.segments.iter().map(trained_tokens).sum::<usize>();
    let (examples, tokens) = (row.segments.len(), row.tokens());
    printer.data(&format!(
        "row {number}: {examples} examples, {tokens} tokens, {trained} of them carry loss (*)"
    ))?;
    for segment in &row.segments {
        let part =
            if segment.part > 0 { format!(", part {}", segment.part) } else { String::new() };
        let (tokens, trained) = (segment.tokens.len(), trained_tokens(segment));
        printer.data(&format!(
            "--- example {}{part}: {tokens} tokens, {trained} carry loss",
            segment.place
        ))?;
        printer.data("position       id  loss  text")?;
        for (position, token) in segment.tokens.iter().enumerate() {
            printer.data(&token_line(position, token))?;
        }
    }
    printer.data("")
}

fn trained_tokens(segment: &PreviewSegment) -> usize {
    segment.tokens.iter().filter(|token| token.trained).count()
}

/// The text in quotes, so that spaces and line breaks are seen; the vocabulary's own spelling
/// where a token ends inside a character.
fn token_line(position: usize, token: &PreviewToken) -> String {
    let text = if token.text.is_empty() { &token.token } else { &token.text };
    let mark = if token.trained { '*' } else { ' ' };
    format!("{position:8} {:8}  {mark}     {text:?}", token.id)
}

/// Every number, a line each: what was dropped, cut or masked must not be missed.
fn show_counts(printer: &mut Printer, counts: &DatasetCounts) -> anyhow::Result<()> {
    let value = serde_json::to_value(counts)?;
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        printer.data(&format!("{:20} {text}", name.replace('_', " ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str) -> PreviewToken {
        PreviewToken { id: 7, token: "Ġb".into(), text: text.into(), trained: true }
    }

    #[test]
    fn loss_is_seen_without_colour_and_line_breaks_are_spelled_out() {
        assert_eq!(token_line(0, &token("a\n")), "       0        7  *     \"a\\n\"");
        assert_eq!(token_line(12, &token("")), "      12        7  *     \"Ġb\"");
    }
}
