//! Whether rows of a task stood in the data that a target was trained on.

use std::path::{Path, PathBuf};

use datasets::read_rows;
use trainer::evaluate::{Contamination, Items, Measured};

use super::EvaluateArgs;
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
    items: &Items,
    files: &[PathBuf],
    measured: &mut Measured,
    printer: &mut Printer,
) {
    if files.is_empty() {
        return;
    }
    let mut sought = Contamination::new(&items.rows);
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
    measured.counts.insert("in_training_13_words".to_owned(), sought.overlapping());
    measured.counts.insert("in_training_whole".to_owned(), sought.whole());
}
