//! `[evaluate]` of a recipe: a run scored on its way, its best weights, an early end.
//!
//! Every score is a file, `evaluations/step-NNNNNN.json`, so an interrupted run knows what it had
//! found. It holds numbers alone, no prompt and no answer.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use trainer::base_model::Decoder;
use trainer::evaluate::statistics::{Better, compare};
use trainer::evaluate::{CodeRunner, Items, Metric};
use trainer::{Judge, JudgeError};

use crate::commands::evaluate::contamination;
use crate::commands::evaluate::measure::{self, Subject};
use crate::commands::evaluate::tasks::{self, NamedTask, TaskRequest};
use crate::diagnostics::{UserError, message_and_hint};
use crate::named::BaseParts;
use crate::printer::{Printer, write_atomically};
use crate::recipe::EvaluateConfig;
use crate::sandbox::Isolation;

/// What a run scored on one task after one step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Score {
    figures: Map<String, Value>,
    metrics: Vec<Metric>,
    identity: u64,
}

/// What a run scored after one step, by task.
type Scores = BTreeMap<String, Score>;

/// Scores a run as its recipe asks.
pub(super) struct Evaluation<'a> {
    config: &'a EvaluateConfig,
    tasks: Vec<(NamedTask, Items)>,
    base: &'a BaseParts,
    runner: Option<Box<dyn CodeRunner>>,
    folder: PathBuf,
    scores: BTreeMap<u64, Scores>,
}

/// The tasks that a recipe names.
pub(crate) fn tasks(config: &EvaluateConfig) -> anyhow::Result<Vec<NamedTask>> {
    let requests = config.task.iter().map(|task| TaskRequest {
        task: &task.name,
        data: task.data.as_deref(),
        few_shot_data: task.few_shot_data.as_deref(),
        few_shot: task.few_shot,
        limit: task.limit,
        chat: task.chat,
        sequence_length: task.sequence_length,
    });
    let tasks = tasks::read_all(requests)?;
    if let Some(best) = &config.best
        && !tasks.iter().any(|task| figure_of(best, &task.name).is_some())
    {
        let names: Vec<&str> = tasks.iter().map(|task| task.name.as_str()).collect();
        let message = format!("`evaluate.best` = `{best}` names no task of the recipe");
        let hint = format!("write one of {}, or `task.figure`", names.join(", "));
        return Err(UserError::new(message, hint).into());
    }
    Ok(tasks)
}

/// Reads the tasks and their first rows.
pub(crate) fn check(config: &EvaluateConfig) -> anyhow::Result<()> {
    for task in tasks(config)? {
        measure::items(&task)?;
    }
    Ok(())
}

/// The figure that `best` names if it is one of `task`: empty for the task's first.
fn figure_of<'a>(best: &'a str, task: &str) -> Option<&'a str> {
    let rest = best.strip_prefix(task)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('.') }
}

impl<'a> Evaluation<'a> {
    /// Reads the tasks and their rows; what is wrong with them is said before any training.
    pub(super) fn new(
        config: &'a EvaluateConfig,
        base: &'a BaseParts,
        run: &Path,
    ) -> anyhow::Result<Self> {
        let tasks = tasks(config)?;
        for (task, key) in tasks.iter().zip(&config.task) {
            if task.has_windows() {
                base.check_length("`sequence_length`", key.sequence_length.get())?;
            }
        }
        let runner = measure::runner(&tasks, Isolation::Sandbox)?;
        let with_items = tasks.into_iter().map(|task| {
            let items = measure::items(&task)?;
            Ok((task, items))
        });
        let tasks = with_items.collect::<anyhow::Result<_>>()?;
        let folder = run.join("evaluations");
        Ok(Self { config, tasks, base, runner, folder, scores: BTreeMap::new() })
    }

    fn path(&self, step: u64) -> PathBuf {
        self.folder.join(format!("step-{step:06}.json"))
    }

    fn measure(&self, decoder: &Decoder) -> anyhow::Result<Scores> {
        let subject = Subject {
            name: "the base model",
            base: self.base,
            chat_template: None,
            runner: self.runner.as_deref(),
        };
        let mut scores = Scores::new();
        for (task, items) in &self.tasks {
            let measured = measure::measure(task, items, &subject, decoder, &mut |_| {})?;
            let figures = measure::figures(&measured, task.seed());
            let (metrics, identity) = (measured.metrics, measured.identity);
            scores.insert(task.name.clone(), Score { figures, metrics, identity });
        }
        if let Some(best) = &self.config.best {
            chosen(best, &scores)?;
        }
        Ok(scores)
    }

    /// Steps that may be chosen, with their figure and what is better.
    fn candidates(&self) -> Vec<(u64, f64, Better)> {
        self.config.best.as_ref().map_or(Vec::new(), |best| candidates(best, &self.scores))
    }

    fn line(&self, scores: &Scores) -> String {
        let mut line = String::new();
        for (task, score) in scores {
            let Some(metric) = self.shown(task, score) else { continue };
            let separator = if line.is_empty() { "" } else { ", " };
            let _ = write!(line, "{separator}{task} {} {:.4}", metric.name, metric.value());
        }
        line
    }

    /// The figure of a task that is shown on the way: the one that chooses, else the first.
    fn shown<'s>(&self, task: &str, score: &'s Score) -> Option<&'s Metric> {
        let named = self.config.best.as_deref().and_then(|best| figure_of(best, task));
        let named = named.and_then(|name| score.metrics.iter().find(|one| one.name == name));
        named.or(score.metrics.first())
    }
}

/// Trained steps with the figure that `best` names, and what is better.
fn candidates(best: &str, scores: &BTreeMap<u64, Scores>) -> Vec<(u64, f64, Better)> {
    let trained = scores.iter().filter(|(step, _)| **step > 0);
    let values = trained.filter_map(|(step, scores)| {
        let metric = chosen(best, scores).ok()?;
        Some((*step, metric.value(), metric.better))
    });
    values.collect()
}

/// The metric that `best` names.
fn chosen<'s>(best: &str, scores: &'s Scores) -> anyhow::Result<&'s Metric> {
    let of_task = scores.iter().filter_map(|(task, score)| Some((figure_of(best, task)?, score)));
    let mut names = Vec::new();
    for (figure, score) in of_task {
        let found = score.metrics.iter().find(|one| figure.is_empty() || one.name == figure);
        if let Some(metric) = found {
            return Ok(metric);
        }
        names.extend(score.metrics.iter().map(|metric| metric.name.clone()));
    }
    let message = format!("`evaluate.best` = `{best}` is no figure of its task");
    Err(UserError::new(message, format!("figures are {}", names.join(", "))).into())
}

/// The best of some steps, the first of equal ones, and how many came after it.
fn best_of(candidates: &[(u64, f64, Better)]) -> Option<(u64, usize)> {
    let mut best: Option<(usize, f64)> = None;
    for (place, &(_, value, better)) in candidates.iter().enumerate() {
        let is_better = best.is_none_or(|(_, old)| match better {
            Better::Higher => value > old,
            Better::Lower => value < old,
        });
        // A figure that is no number is never the best.
        if is_better && !value.is_nan() {
            best = Some((place, value));
        }
    }
    let (place, _) = best?;
    Some((candidates[place].0, candidates.len() - 1 - place))
}

fn boxed(error: &anyhow::Error) -> JudgeError {
    let (message, hint) = message_and_hint(error);
    Box::new(UserError { message, hint })
}

impl Judge for Evaluation<'_> {
    fn resume(&mut self, step: u64) -> Result<(), JudgeError> {
        let kept = read(&self.folder, |found| step > 0 && found <= step);
        self.scores = kept.map_err(|error| boxed(&error))?;
        Ok(())
    }

    fn is_due(&self, step: u64, total: u64) -> bool {
        let on_its_way =
            self.config.every_steps.is_some_and(|every| step.is_multiple_of(every.get()));
        let due = match step {
            0 => self.config.before_training,
            _ => on_its_way || step == total,
        };
        due && !self.scores.contains_key(&step)
    }

    fn score(&mut self, decoder: &Decoder, step: u64) -> Result<String, JudgeError> {
        let scores = self.measure(decoder).map_err(|error| boxed(&error))?;
        let line = self.line(&scores);
        self.scores.insert(step, scores);
        Ok(line)
    }

    fn is_new_best(&self) -> bool {
        let last = self.scores.last_key_value().map(|(step, _)| *step);
        last.is_some() && self.best_step() == last
    }

    fn keep(&mut self, step: u64) -> Result<(), JudgeError> {
        let keep = || -> anyhow::Result<()> {
            std::fs::create_dir_all(&self.folder)?;
            let text =
                serde_json::to_string(&json!({ "step": step, "tasks": self.scores.get(&step) }))?;
            write_atomically(&self.path(step), format!("{text}\n").as_bytes())
        };
        keep().map_err(|error| boxed(&error))
    }

    fn best_step(&self) -> Option<u64> {
        best_of(&self.candidates()).map(|(step, _)| step)
    }

    fn is_over(&self) -> bool {
        let Some(patience) = self.config.patience else { return false };
        best_of(&self.candidates()).is_some_and(|(_, after)| after as u64 >= patience.get())
    }
}

/// Scores in a folder whose step is `wanted`; files of other steps are removed.
fn read(folder: &Path, wanted: impl Fn(u64) -> bool) -> anyhow::Result<BTreeMap<u64, Scores>> {
    #[derive(Deserialize)]
    struct File {
        step: u64,
        tasks: Scores,
    }
    let mut all = BTreeMap::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(all) };
    for path in entries.flatten().map(|entry| entry.path()) {
        // A kill in the middle of writing leaves a file of another name.
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(".tunesmith-") {
            std::fs::remove_file(&path)?;
            continue;
        }
        if path.extension().is_none_or(|ending| ending != "json") {
            continue;
        }
        let file =
            std::fs::read(&path).ok().and_then(|text| serde_json::from_slice::<File>(&text).ok());
        match file {
            Some(File { step, tasks }) if wanted(step) => {
                all.insert(step, tasks);
            }
            // Damaged, or of steps that are done again.
            _ => std::fs::remove_file(&path)?,
        }
    }
    Ok(all)
}

/// Items of every task that stand in the files of training data.
fn contamination(
    config: &EvaluateConfig,
    data: &[PathBuf],
    printer: &mut Printer,
) -> anyhow::Result<Map<String, Value>> {
    let mut found = Map::new();
    for task in tasks(config)? {
        let items = measure::items(&task)?;
        let counts = contamination::counts(&task, &items, data, printer)?;
        found.insert(task.name, json!(counts));
    }
    Ok(found)
}

/// What `report.json` says of the scores of a run on some files of rows.
pub(super) fn report(
    config: &EvaluateConfig,
    (run, data): (&Path, &[PathBuf]),
    printer: &mut Printer,
) -> anyhow::Result<Value> {
    let scores = read(&run.join("evaluations"), |_| true)?;
    let steps: Vec<Value> = scores
        .iter()
        .map(|(step, scores)| {
            let figures: Map<String, Value> =
                scores.iter().map(|(task, score)| (task.clone(), json!(score.figures))).collect();
            json!({ "step": step, "tasks": figures })
        })
        .collect();
    let chosen_step = chosen_step(config, &scores);
    let before = config.before_training.then(|| scores.get(&0)).flatten();
    let comparisons = before.zip(chosen_step.and_then(|step| scores.get(&step)));
    let comparisons = comparisons.map(|(before, after)| differences(before, after));
    Ok(json!({
        "best": config.best,
        "chosen_step": chosen_step,
        "scores": steps,
        "against_before_training": comparisons,
        "contamination": contamination(config, data, printer)?,
    }))
}

/// The step whose weights the adapter has.
fn chosen_step(config: &EvaluateConfig, scores: &BTreeMap<u64, Scores>) -> Option<u64> {
    let Some(best) = &config.best else { return scores.last_key_value().map(|(step, _)| *step) };
    best_of(&candidates(best, scores)).map(|(step, _)| step)
}

fn differences(before: &Scores, after: &Scores) -> Vec<Value> {
    let mut all = Vec::new();
    for (task, after) in after {
        let Some(before) = before.get(task).filter(|one| one.identity == after.identity) else {
            continue;
        };
        for (from, to) in before.metrics.iter().zip(&after.metrics) {
            let Some(difference) = compare(from, to, SEED) else { continue };
            let mut line = json!(difference);
            line["task"] = json!(task);
            line["metric"] = json!(to.name);
            all.push(line);
        }
    }
    all
}

/// Seed of the intervals; that of tasks that name none.
const SEED: u64 = 1234;

/// Lines about the verdicts of a report, for the terminal and the model card.
pub(super) fn verdicts(report: &Value) -> Vec<(String, String)> {
    let mut lines = Vec::new();
    for one in report["against_before_training"].as_array().into_iter().flatten() {
        let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let (low, high) = (number(&one["interval"][0]), number(&one["interval"][1]));
        lines.push((
            format!("{} {} against before training", text("task"), text("metric")),
            format!(
                "{:+.4}, 95 % interval {low:+.4} to {high:+.4}: {}",
                number(&one["difference"]),
                text("verdict")
            ),
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_scores_is_the_best_and_numbers_alone_count() {
        let lower = |values: &[f64]| -> Vec<(u64, f64, Better)> {
            let steps = values.iter().enumerate();
            steps.map(|(place, value)| (10 * (place as u64 + 1), *value, Better::Lower)).collect()
        };
        assert_eq!(best_of(&[]), None);
        assert_eq!(best_of(&lower(&[3.0, 2.0, 2.0, 4.0])), Some((20, 2)));
        assert_eq!(best_of(&lower(&[f64::NAN, 2.0])), Some((20, 0)));
        assert_eq!(best_of(&lower(&[f64::NAN])), None);
        assert_eq!(best_of(&[(1, 0.1, Better::Higher), (2, 0.3, Better::Higher)]), Some((2, 0)));
    }

    #[test]
    fn best_names_a_task_and_maybe_a_figure() {
        assert_eq!(figure_of("arc", "arc"), Some(""));
        assert_eq!(figure_of("arc.acc_norm", "arc"), Some("acc_norm"));
        assert_eq!(figure_of("arc_easy", "arc"), None);
        assert_eq!(
            figure_of("gsm8k.exact_match,strict-match", "gsm8k"),
            Some("exact_match,strict-match")
        );
    }
}
