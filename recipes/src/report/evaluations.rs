//! What `tunesmith evaluate` wrote: figures of targets, their differences, prompts and answers.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::table::{Cell, Table};
use crate::diagnostics::UserError;

/// A file of `tunesmith evaluate --json`.
#[derive(Debug, Deserialize)]
pub(crate) struct EvaluationFile {
    #[serde(skip)]
    name: String,
    targets: Vec<ScoredTarget>,
    #[serde(default)]
    comparisons: Vec<Comparison>,
}

#[derive(Debug, Deserialize)]
struct ScoredTarget {
    target: String,
    tasks: Map<String, Value>,
}

/// A difference and what it says.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Comparison {
    task: String,
    metric: String,
    #[serde(default)]
    baseline: String,
    #[serde(default)]
    target: String,
    /// Absent where it is no number.
    difference: Option<f64>,
    interval: [Option<f64>; 2],
    verdict: String,
    items: Option<u64>,
}

impl EvaluationFile {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let hint = "give a file that `tunesmith evaluate --json FILE` wrote";
        let failed = |reason: String| {
            UserError::new(format!("`{}` is no evaluation: {reason}", path.display()), hint)
        };
        let bytes = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let file: Self =
            serde_json::from_slice(&bytes).map_err(|error| failed(error.to_string()))?;
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, ..file })
    }

    /// Tables of its tasks.
    pub(super) fn view(&self) -> EvaluationView {
        let mut tasks: Vec<&String> = Vec::new();
        for task in self.targets.iter().flat_map(|target| target.tasks.keys()) {
            if !tasks.contains(&task) {
                tasks.push(task);
            }
        }
        let view = |task: &String| TaskView {
            task: task.clone(),
            figures: figures_table("target", &self.rows(task)),
            differences: differences(self.comparisons.iter().filter(|one| one.task == *task)),
        };
        EvaluationView { name: self.name.clone(), tasks: tasks.into_iter().map(view).collect() }
    }

    fn rows(&self, task: &str) -> Vec<(String, Map<String, Value>)> {
        let figures = |target: &ScoredTarget| target.tasks.get(task)?.as_object().cloned();
        self.targets
            .iter()
            .filter_map(|target| Some((target.target.clone(), figures(target)?)))
            .collect()
    }
}

/// A file of figures, for the template.
#[derive(Debug, Serialize)]
pub(super) struct EvaluationView {
    name: String,
    tasks: Vec<TaskView>,
}

/// A task's figures.
#[derive(Debug, Serialize)]
pub(super) struct TaskView {
    pub(super) task: String,
    pub(super) figures: Table,
    pub(super) differences: Option<Table>,
}

/// A line a row, a column a figure: values with their errors, then counts.
pub(super) fn figures_table(head: &str, rows: &[(String, Map<String, Value>)]) -> Table {
    let mut names: Vec<&String> = Vec::new();
    for name in rows.iter().flat_map(|(_, figures)| figures.keys()) {
        if !name.ends_with(ERROR) && !names.contains(&name) {
            names.push(name);
        }
    }
    // Counts behind figures; `items` at the very end.
    let is_count =
        |name: &&String| rows.iter().all(|row| row.1.get(*name).is_none_or(Value::is_u64));
    let (mut counts, mut ordered): (Vec<_>, Vec<_>) = names.into_iter().partition(is_count);
    counts.sort_by_key(|name| name.as_str() == "items");
    ordered.extend(counts);
    let mut table = Table::new([Cell::text(head)]);
    table.head.extend(ordered.iter().map(|name| Cell::number(name.as_str())));
    for (label, figures) in rows {
        let values = ordered.iter().map(|name| Cell::number(cell(figures, name)));
        table.rows.push([Cell::text(label.as_str())].into_iter().chain(values).collect());
    }
    table
}

const ERROR: &str = "_standard_error";

fn cell(figures: &Map<String, Value>, name: &str) -> String {
    match figures.get(name) {
        Some(value) if value.is_u64() => value.to_string(),
        Some(Value::Number(number)) => {
            let error = figures.get(&format!("{name}{ERROR}")).and_then(Value::as_f64);
            let error = error.map_or(String::new(), |error| format!(" ± {error:.4}"));
            format!("{:.4}{error}", number.as_f64().unwrap_or(f64::NAN))
        }
        _ => "–".to_owned(),
    }
}

/// Differences with intervals and verdicts.
pub(super) fn differences<'a>(all: impl Iterator<Item = &'a Comparison>) -> Option<Table> {
    let number =
        |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:+.4}"));
    let row = |one: &Comparison| {
        let [low, high] = one.interval.map(number);
        vec![
            Cell::text(compared(one)),
            Cell::text(one.metric.as_str()),
            Cell::number(number(one.difference)),
            Cell::number(format!("{low} to {high}")),
            Cell { class: class(&one.verdict), text: one.verdict.clone() },
            Cell::number(one.items.map_or("–".to_owned(), |items| items.to_string())),
        ]
    };
    let mut table = Table::new([
        Cell::text("compared"),
        Cell::text("figure"),
        Cell::number("difference"),
        Cell::number("95 % interval"),
        Cell::text("verdict"),
        Cell::number("items"),
    ]);
    table.rows = all.map(row).collect();
    Some(table).filter(|table| !table.rows.is_empty())
}

fn compared(one: &Comparison) -> String {
    if one.target.is_empty() {
        return format!("{} after training", one.task);
    }
    format!("{} against {}", one.target, one.baseline)
}

fn class(verdict: &str) -> &'static str {
    match verdict {
        "better" => "better",
        "worse" => "worse",
        _ => "",
    }
}

/// A file of `tunesmith evaluate --samples`.
#[derive(Debug)]
pub(crate) struct Samples {
    name: String,
    /// Those that are shown.
    rows: Vec<Map<String, Value>>,
    /// How many there are.
    all: usize,
}

/// Samples of a file that are shown.
const MOST_SAMPLES: usize = 50;

impl Samples {
    /// Reads a file.
    pub(crate) fn read(path: &Path) -> anyhow::Result<Self> {
        let hint = "give a file that `tunesmith evaluate --samples FILE` wrote";
        let failed = |reason: String| UserError::new(format!("`{}`{reason}", path.display()), hint);
        let text = std::fs::read_to_string(path)
            .map_err(|error| failed(format!(" cannot be read: {error}")))?;
        let mut rows = Vec::new();
        for (index, line) in text.lines().take(MOST_SAMPLES).enumerate() {
            let row = serde_json::from_str(line)
                .map_err(|error| failed(format!(":{}: is no sample: {error}", index + 1)))?;
            rows.push(row);
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, rows, all: text.lines().count() })
    }

    /// Prompts and answers.
    pub(super) fn view(&self) -> SamplesView {
        let text = |value: &Value| match value {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        let view = |row: &Map<String, Value>| {
            let parts = LABEL.map(|key| row.get(key).map(text).unwrap_or_default());
            let rest = row.iter().filter(|(key, _)| !LABEL.contains(&key.as_str()));
            SampleView {
                label: parts.join(" · "),
                fields: rest.map(|(key, value)| (key.clone(), text(value))).collect(),
            }
        };
        SamplesView {
            name: self.name.clone(),
            all: self.all,
            rows: self.rows.iter().map(view).collect(),
        }
    }
}

/// What a sample goes under.
const LABEL: [&str; 3] = ["target", "task", "item"];

/// Prompts and answers, for the template.
#[derive(Debug, Serialize)]
pub(super) struct SamplesView {
    name: String,
    all: usize,
    rows: Vec<SampleView>,
}

#[derive(Debug, Serialize)]
struct SampleView {
    label: String,
    fields: Vec<(String, String)>,
}
