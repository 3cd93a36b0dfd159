//! What the page says of runs, for the template.

use serde::Serialize;
use serde_json::{Map, Value};

use super::curve::{Chart, Look, Series, chart};
use super::evaluations::{TaskView, differences, figures_table};
use super::run::{RunEvaluation, RunFacts, RunReport};
use super::table::{Cell, Table};
use crate::provenance::Role;

/// A run.
#[derive(Debug, Serialize)]
pub(super) struct RunView {
    name: String,
    state: String,
    broken_lines: usize,
    loss: Option<Chart>,
    others: Vec<Chart>,
    plan: Option<Table>,
    /// Why there is none.
    no_plan: Option<String>,
    scores: Vec<TaskView>,
    /// Whose weights the adapter has.
    chosen: Option<String>,
    against_before: Option<Table>,
    contamination: Option<Table>,
    data: Option<Table>,
    files: Table,
    licence: Option<LicenceView>,
    recipe: String,
}

#[derive(Debug, Serialize)]
struct LicenceView {
    name: String,
    duties: Vec<String>,
}

impl RunView {
    /// Everything about a run.
    pub(super) fn of(run: &RunFacts) -> Self {
        let evaluation = run.report.as_ref().and_then(|report| report.evaluation.as_ref());
        let before = evaluation.and_then(|evaluation| evaluation.against_before_training.as_ref());
        let licence = run.licence.as_ref();
        Self {
            name: run.name.clone(),
            state: state(run),
            broken_lines: run.broken_lines,
            loss: loss_chart(run),
            others: other_charts(run),
            plan: run.plan.as_ref().ok().map(|_| plan_table(run)),
            no_plan: run.plan.as_ref().err().cloned(),
            scores: scores(run),
            chosen: evaluation.map(chosen),
            against_before: before.and_then(|all| differences(all.iter())),
            contamination: evaluation.and_then(contamination),
            data: run.report.as_ref().map(data_table),
            files: files_table(run),
            licence: licence.map(|one| LicenceView { name: one.name(), duties: one.duties() }),
            recipe: run.recipe.clone(),
        }
    }
}

/// Several runs, a line each.
pub(super) fn runs_table(runs: &[RunFacts]) -> Table {
    let mut table = Table::new([Cell::text("run")]);
    let heads = ["steps", "tokens", "last loss", "validation loss", "time", "peak memory"];
    table.head.extend(heads.map(Cell::number));
    for run in runs {
        let (last, report) = (run.steps.last(), run.report.as_ref());
        let tokens: u64 = run.steps.iter().map(|step| step.tokens).sum();
        let numbers = [
            last.map_or(0, |step| step.step).to_string(),
            tokens.to_string(),
            loss(last.map(|step| step.loss)),
            loss(report.and_then(|report| report.final_validation_loss)),
            report.map_or(NONE.to_owned(), |report| seconds(report.seconds)),
            gibibytes(last.map(|step| step.peak_memory_bytes)),
        ];
        let numbers = numbers.into_iter().map(Cell::number);
        table.rows.push([Cell::text(run.name.as_str())].into_iter().chain(numbers).collect());
    }
    table
}

fn state(run: &RunFacts) -> String {
    let Some(report) = &run.report else {
        let step = run.steps.last().map_or(0, |step| step.step);
        return format!("Not finished: {step} steps are done.");
    };
    let early = report.planned_steps.filter(|planned| *planned > report.steps);
    let early = early.map_or(String::new(), |planned| format!(" of {planned} (ended early)"));
    let validation = report.final_validation_loss;
    let validation =
        validation.map_or(String::new(), |value| format!(", validation loss {value:.4}"));
    format!(
        "Finished after {} steps{early}, {} tokens of which {} carry loss; last loss {}{validation}. \
         On {}, tunesmith {}.",
        report.steps,
        report.tokens,
        report.trained_tokens,
        loss(report.final_loss),
        report.device,
        run.lock.program.version
    )
}

fn loss_chart(run: &RunFacts) -> Option<Chart> {
    let all = [
        run.smoothed_loss("training loss, smoothed"),
        run.series("validation loss", Look::Dots, |step| step.validation_loss),
        run.series("training loss", Look::Thin, |step| Some(step.loss)),
    ];
    let all: Vec<Series> = all.into_iter().filter(|one| !one.points.is_empty()).collect();
    chart("Loss per token, in nats", "step", &all)
}

fn other_charts(run: &RunFacts) -> Vec<Chart> {
    let rate = run.series("learning rate", Look::Line, |step| Some(step.learning_rate));
    let norm = run.series("gradient norm", Look::Line, |step| Some(step.gradient_norm));
    let speed = run.series("tokens a second", Look::Line, |step| Some(step.tokens_per_second));
    let all = [
        chart("Learning rate", "step", &[rate]),
        chart("Gradient norm before clipping", "step", &[norm]),
        chart("Input tokens a second", "step", &[speed]),
    ];
    all.into_iter().flatten().collect()
}

fn plan_table(run: &RunFacts) -> Table {
    let mut table = Table::new(["", "planned", "measured"].map(Cell::number));
    let Ok(plan) = &run.plan else { return table };
    let report = run.report.as_ref();
    let measured = |text: Option<String>| text.unwrap_or_else(|| NONE.to_owned());
    let peak = run.steps.last().map(|step| step.peak_memory_bytes);
    let peak = report.and_then(|report| report.peak_memory_bytes).or(peak);
    let first = report.and_then(|report| report.seconds_to_first_step);
    let rows = [
        ("steps", plan.steps.to_string(), measured(report.map(|one| one.steps.to_string()))),
        ("peak memory", gibibytes(Some(plan.peak_bytes)), gibibytes(peak)),
        ("time", seconds(plan.seconds), measured(report.map(|one| seconds(one.seconds)))),
        ("time to the first step", NONE.to_owned(), measured(first.map(seconds))),
        ("disk", gibibytes(Some(plan.disk_bytes)), NONE.to_owned()),
    ];
    for (name, planned, measured) in rows {
        table.rows.push(vec![Cell::text(name), Cell::number(planned), Cell::number(measured)]);
    }
    table
}

fn scores(run: &RunFacts) -> Vec<TaskView> {
    let mut tasks: Vec<&String> = run.scores.values().flat_map(Map::keys).collect();
    tasks.sort();
    tasks.dedup();
    let rows = |task: &str| {
        let row = |(step, tasks): (&u64, &Map<String, Value>)| {
            let figures = tasks.get(task)?.as_object()?.clone();
            Some((if *step == 0 { "before".to_owned() } else { step.to_string() }, figures))
        };
        run.scores.iter().filter_map(row).collect::<Vec<_>>()
    };
    let view = |task: &String| TaskView {
        task: task.clone(),
        figures: figures_table("step", &rows(task)),
        differences: None,
    };
    tasks.into_iter().map(view).collect()
}

fn chosen(evaluation: &RunEvaluation) -> String {
    let step = evaluation.chosen_step.map_or(NONE.to_owned(), |step| step.to_string());
    let best = evaluation.best.as_ref();
    let best = best.map_or(String::new(), |best| format!(", the best by {best}"));
    format!("The adapter has the weights of step {step}{best}.")
}

fn contamination(evaluation: &RunEvaluation) -> Option<Table> {
    let found = evaluation.contamination.as_ref()?.iter();
    let found: Vec<_> = found.map(|(task, counts)| (task.clone(), counts.clone())).collect();
    Some(figures_table("task", &found))
}

/// Columns of the table of data.
const DATA_COLUMNS: &[(&str, &str)] = &[
    ("rows", "rows"),
    ("examples", "examples"),
    ("tokens", "tokens"),
    ("trained_tokens", "carry loss"),
    ("median_length", "median length"),
    ("longest", "longest"),
];

/// What became of rows that are not in the table as they were.
const LOSSES: &[(&str, &str)] = &[
    ("held_back", "held back for validation"),
    ("empty", "empty, left out"),
    ("dropped_overlong", "too long, dropped"),
    ("truncated", "cut"),
    ("split", "split"),
    ("untrained", "without loss"),
    ("turns_without_end", "turns without an end token"),
    ("skipped_files", "unknown files skipped"),
];

fn data_table(report: &RunReport) -> Table {
    let mut table = Table::new(["file", "role", "format"].map(Cell::text));
    table.head.extend(DATA_COLUMNS.iter().map(|(_, name)| Cell::number(*name)));
    table.head.push(Cell::text("left out or changed"));
    for set in &report.data {
        let number = |key: &str| set.get(key).and_then(Value::as_u64);
        let text = |key: &str| set.get(key).and_then(Value::as_str).unwrap_or_default();
        let lost = LOSSES.iter().filter_map(|(key, what)| {
            let count = number(key).filter(|count| *count > 0)?;
            Some(format!("{count} {what}"))
        });
        let lost: Vec<String> = lost.collect();
        let mut row: Vec<Cell> =
            [last_part(text("path")), text("role"), text("format")].map(Cell::text).into();
        row.extend(DATA_COLUMNS.iter().map(|(key, _)| {
            Cell::number(number(key).map_or(NONE.to_owned(), |count| count.to_string()))
        }));
        row.push(Cell::text(if lost.is_empty() { "nothing".to_owned() } else { lost.join(", ") }));
        table.rows.push(row);
    }
    table
}

fn files_table(run: &RunFacts) -> Table {
    let heads =
        [Cell::text("what"), Cell::text("file"), Cell::number("bytes"), Cell::text("SHA-256")];
    let mut table = Table::new(heads);
    for file in &run.lock.file {
        table.rows.push(vec![
            Cell::text(file.role.label()),
            Cell::text(name_of(file.role, &file.path)),
            Cell::number(file.bytes.to_string()),
            Cell { text: file.sha256.clone(), class: "code" },
        ]);
    }
    for (name, value) in &run.lock.environment {
        table.rows.push(vec![Cell::text(name.as_str()), Cell::text(value.as_str())]);
    }
    table
}

fn name_of(role: Role, path: &str) -> &str {
    match role {
        // Below the run folder.
        Role::Recipe | Role::Result => path,
        _ => last_part(path),
    }
}

/// Folders of the author's machine stay out of a page that may be passed on.
fn last_part(path: &str) -> &str {
    path.trim_end_matches('/').rsplit('/').next().unwrap_or(path)
}

/// What is not known.
const NONE: &str = "–";

fn loss(value: Option<f64>) -> String {
    value.map_or(NONE.to_owned(), |value| format!("{value:.4}"))
}

fn gibibytes(bytes: Option<u64>) -> String {
    bytes.map_or(NONE.to_owned(), |bytes| format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)))
}

fn seconds(value: f64) -> String {
    if value < 120.0 { format!("{value:.1} s") } else { format!("{:.1} min", value / 60.0) }
}
