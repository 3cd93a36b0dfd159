//! Whether rows of a task stood in the data that a target was trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use datasets::{Place, SourceRow, read_rows};
use serde_json::json;
use trainer::evaluate::{Contamination, Items, Measured};

use super::EvaluateArgs;
use super::tasks::{NamedTask, TaskSource};
use crate::printer::Printer;
use crate::provenance::Lock;

/// Files of rows that a target was trained on: those of its run, and those named by hand.
pub(super) fn training_files(target: &str, arguments: &EvaluateArgs) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = arguments.training_data.iter().map(PathBuf::from).collect();
    // A run, its `adapter/`, or one of its `checkpoints/step-...`.
    let folders = Path::new(target).ancestors().take(3);
    let run = folders.into_iter().find(|folder| folder.join("tunesmith.lock").is_file());
    if let Some((run, lock)) = run.and_then(|run| Some((run, Lock::read(run).ok()?))) {
        files.extend(lock.data_files(run));
    }
    files
}

/// Adds to a task's figures how many of its rows stand in the training data.
pub(super) fn check(
    task: &NamedTask,
    items: &Items,
    files: &[PathBuf],
    measured: &mut Measured,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    if !files.is_empty() {
        measured.counts.extend(counts(task, items, files, printer)?);
    }
    Ok(())
}

/// How many rows of a task stand in files of training data, in part and as a whole.
pub(crate) fn counts(
    task: &NamedTask,
    items: &Items,
    files: &[PathBuf],
    printer: &mut Printer,
) -> anyhow::Result<BTreeMap<String, u64>> {
    let mut sought = match &task.source {
        TaskSource::Definition(_) => Contamination::new(&items.rows),
        TaskSource::Loss(path, windows) => {
            let limit = windows.limit.map(std::num::NonZeroUsize::get);
            Contamination::new(&read_rows(&path.display().to_string(), limit)?)
        }
        TaskSource::Text(path, _) => Contamination::new(&lines(path)?),
    };
    for file in files {
        match read_rows(&file.display().to_string(), None) {
            Ok(rows) => rows.iter().for_each(|row| sought.look_through(&row.fields)),
            Err(error) => {
                let file = file.display();
                printer
                    .warning(&format!("`{file}` was not searched for rows of the task: {error}"));
            }
        }
    }
    let [overlapping, whole] = [sought.overlapping(), sought.whole()];
    Ok([("in_training_13_words", overlapping), ("in_training_whole", whole)]
        .map(|(name, count)| (name.to_owned(), count))
        .into())
}

/// The lines of a text as rows: what can be found of it in the training data.
fn lines(path: &Path) -> anyhow::Result<Vec<SourceRow>> {
    let text = super::text::read(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let row = |(number, line): (usize, &str)| SourceRow {
        place: Place { path: path.to_owned(), line: number as u64 + 1 },
        fields: json!({ "text": line }).as_object().cloned().unwrap_or_default(),
    };
    Ok(lines.map(row).collect())
}
