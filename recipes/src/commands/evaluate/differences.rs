//! What the differences between the first target and the others say.

use serde::Serialize;
use trainer::evaluate::statistics::{Difference, compare};

use super::Scored;
use super::tasks::NamedTask;

/// A difference with what it is about.
#[derive(Debug, Serialize)]
pub(super) struct TaskDifference {
    pub(super) task: String,
    pub(super) metric: String,
    pub(super) baseline: String,
    pub(super) target: String,
    #[serde(flatten)]
    pub(super) difference: Difference,
}

/// Every figure of every target but the first, against the first.
pub(super) fn all(scored: &[Scored], tasks: &[NamedTask]) -> Vec<TaskDifference> {
    let Some((baseline, others)) = scored.split_first() else { return Vec::new() };
    let mut differences = Vec::new();
    for (index, task) in tasks.iter().enumerate() {
        for other in others {
            let (from, to) = (&baseline.tasks[index], &other.tasks[index]);
            if from.identity != to.identity {
                continue;
            }
            for (from, to) in from.metrics.iter().zip(&to.metrics) {
                let Some(difference) = compare(from, to, task.seed()) else { continue };
                differences.push(TaskDifference {
                    task: task.name.clone(),
                    metric: from.name.clone(),
                    baseline: baseline.target.clone(),
                    target: other.target.clone(),
                    difference,
                });
            }
        }
    }
    differences
}
