//! Figures and verdicts for the terminal.

use std::collections::BTreeSet;

use trainer::evaluate::Measured;

use super::Scored;
use super::differences::TaskDifference;
use super::tasks::NamedTask;
use crate::printer::Printer;

/// A table a task: a line a target, a column a figure; then the differences.
pub(super) fn show(
    scored: &[Scored],
    tasks: &[NamedTask],
    differences: &[TaskDifference],
    printer: &mut Printer,
) -> anyhow::Result<()> {
    for (index, task) in tasks.iter().enumerate() {
        if index > 0 {
            printer.data("")?;
        }
        let of_task: Vec<&Measured> = scored.iter().map(|scored| &scored.tasks[index]).collect();
        figures(&task.name, task.seed(), scored, &of_task, printer)?;
        let of_task: Vec<&TaskDifference> =
            differences.iter().filter(|difference| difference.task == task.name).collect();
        verdicts(&of_task, printer)?;
    }
    Ok(())
}

fn figures(
    task: &str,
    seed: u64,
    scored: &[Scored],
    of_task: &[&Measured],
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let metrics = of_task.first().map_or(&[][..], |measured| &measured.metrics);
    // Targets may differ in what is counted: the training data of a base is not known.
    let counts: BTreeSet<&String> = of_task.iter().flat_map(|one| one.counts.keys()).collect();
    let mut rows = vec![vec![task.to_owned()]];
    rows[0].extend(metrics.iter().map(|metric| metric.name.clone()));
    rows[0].extend(counts.iter().map(|name| (*name).clone()).chain(["items".to_owned()]));
    for (scored, measured) in scored.iter().zip(of_task) {
        let mut row = vec![scored.target.clone()];
        row.extend(measured.metrics.iter().map(|metric| {
            let error = metric.standard_error(seed);
            let error = error.map_or(String::new(), |error| format!(" ±{error:.4}"));
            format!("{:.4}{error}", metric.value())
        }));
        let count =
            |name: &&String| measured.counts.get(*name).map_or("-".to_owned(), u64::to_string);
        row.extend(counts.iter().map(count));
        row.push(measured.metrics.first().map_or(0, |metric| metric.items.len()).to_string());
        rows.push(row);
    }
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    for row in &rows {
        let mut line = format!("{:1$}", row[0], widths[0]);
        for (cell, width) in row.iter().zip(&widths).skip(1) {
            let padding = width.saturating_sub(cell.chars().count()) + 2;
            line.extend([" ".repeat(padding).as_str(), cell.as_str()]);
        }
        printer.data(&line)?;
    }
    Ok(())
}

fn verdicts(differences: &[&TaskDifference], printer: &mut Printer) -> anyhow::Result<()> {
    for one in differences {
        let [low, high] = one.difference.interval;
        printer.data(&format!(
            "{} against {}: {} {:+.4}, 95 % interval {low:+.4} to {high:+.4}: {}",
            one.target,
            one.baseline,
            one.metric,
            one.difference.difference,
            one.difference.verdict.text()
        ))?;
    }
    Ok(())
}
