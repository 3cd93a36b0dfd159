//! What the folder of a run says.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::Context;
use serde::Deserialize;
use serde_json::{Map, Value};
use trainer::StepMetrics;

use super::curve::{Look, Series};
use super::evaluations::Comparison;
use crate::commands::plan::Planned;
use crate::provenance::{LicenceDuties, Lock, recipe_without_folders};

/// Facts of one run.
pub(crate) struct RunFacts {
    /// Last part of its path.
    pub(crate) name: String,
    /// The recipe as run, without folders of this machine.
    pub(super) recipe: String,
    pub(super) lock: Lock,
    pub(super) steps: Vec<StepMetrics>,
    /// Lines of `metrics.jsonl` that could not be read.
    pub(super) broken_lines: usize,
    /// Absent while the run is not finished.
    pub(super) report: Option<RunReport>,
    /// Scores by step.
    pub(super) scores: BTreeMap<u64, Map<String, Value>>,
    /// Absent while there is no finished adapter.
    pub(super) licence: Option<LicenceDuties>,
    /// What `tunesmith plan` says of the recipe, or why it says nothing.
    pub(super) plan: Result<Planned, String>,
}

/// `report.json`.
#[derive(Debug, Deserialize)]
pub(crate) struct RunReport {
    pub(super) steps: u64,
    pub(super) planned_steps: Option<u64>,
    pub(super) tokens: u64,
    pub(super) trained_tokens: u64,
    pub(super) final_loss: Option<f64>,
    pub(super) final_validation_loss: Option<f64>,
    pub(super) seconds: f64,
    pub(super) seconds_to_first_step: Option<f64>,
    pub(super) peak_memory_bytes: Option<u64>,
    pub(crate) device: String,
    #[serde(default)]
    pub(super) data: Vec<Map<String, Value>>,
    #[serde(default)]
    pub(super) evaluation: Option<RunEvaluation>,
}

/// What `[evaluate]` found.
#[derive(Debug, Deserialize)]
pub(crate) struct RunEvaluation {
    pub(super) best: Option<String>,
    pub(super) chosen_step: Option<u64>,
    #[serde(default)]
    scores: Vec<Scored>,
    #[serde(default)]
    pub(super) against_before_training: Option<Vec<Comparison>>,
    #[serde(default)]
    pub(super) contamination: Option<BTreeMap<String, Map<String, Value>>>,
}

#[derive(Debug, Deserialize)]
struct Scored {
    step: u64,
    tasks: Map<String, Value>,
}

impl RunFacts {
    /// Reads a run folder; `plan` is asked for the recipe and the device it ran on.
    pub(crate) fn read(
        folder: &Path,
        plan: impl FnOnce(&str, Option<&str>) -> Result<Planned, String>,
    ) -> anyhow::Result<Self> {
        let lock = Lock::read(folder)?;
        let path = folder.join("recipe.toml");
        let recipe = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read `{}`", path.display()))?;
        let (steps, broken_lines) = read_steps(&folder.join("metrics.jsonl"))?;
        let report = read_report(&folder.join("report.json"))?;
        let scores = match report.as_ref().and_then(|report| report.evaluation.as_ref()) {
            Some(evaluation) => {
                evaluation.scores.iter().map(|one| (one.step, one.tasks.clone())).collect()
            }
            None => scores_on_the_way(&folder.join("evaluations")),
        };
        let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
        Ok(Self {
            name: whole.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            plan: plan(&recipe, report.as_ref().map(|report| report.device.as_str())),
            recipe: recipe_without_folders(&recipe),
            lock,
            steps,
            broken_lines,
            report,
            scores,
            licence: licence(&folder.join("adapter")),
        })
    }

    /// The training loss as a moving mean.
    pub(super) fn smoothed_loss(&self, name: &str) -> Series {
        let share = 2.0 / (self.steps.len() as f64 / 20.0 + 1.0).max(2.0);
        let mut mean: Option<f64> = None;
        let points = self.steps.iter().filter(|step| step.loss.is_finite()).map(|step| {
            let next = mean.map_or(step.loss, |old| old + share * (step.loss - old));
            mean = Some(next);
            (step.step as f64, next)
        });
        Series { name: name.to_owned(), points: points.collect(), look: Look::Line }
    }

    /// A figure of every step.
    pub(super) fn series(
        &self,
        name: &str,
        look: Look,
        of: impl Fn(&StepMetrics) -> Option<f64>,
    ) -> Series {
        let point = |step: &StepMetrics| Some((step.step as f64, of(step)?));
        Series {
            name: name.to_owned(),
            points: self.steps.iter().filter_map(point).collect(),
            look,
        }
    }
}

/// The lines of a file that a run writes; the last may be half written while it runs.
fn read_steps(path: &Path) -> anyhow::Result<(Vec<StepMetrics>, usize)> {
    let Ok(file) = std::fs::File::open(path) else { return Ok((Vec::new(), 0)) };
    let (mut steps, mut broken) = (Vec::new(), 0);
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(|| format!("cannot read `{}`", path.display()))?;
        match serde_json::from_slice(&line) {
            Ok(step) => steps.push(step),
            Err(_) if line.is_empty() => {}
            Err(_) => broken += 1,
        }
    }
    Ok((steps, broken))
}

fn read_report(path: &Path) -> anyhow::Result<Option<RunReport>> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
    let report = serde_json::from_slice(&bytes)
        .with_context(|| format!("`{}` is no report of a run", path.display()))?;
    Ok(Some(report))
}

/// Scores of a run that is not finished; a file that is being written is passed over.
fn scores_on_the_way(folder: &Path) -> BTreeMap<u64, Map<String, Value>> {
    let Ok(entries) = std::fs::read_dir(folder) else { return BTreeMap::new() };
    let read = |path: &Path| {
        let file: Value = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
        let tasks = file["tasks"].as_object()?.iter();
        let tasks = tasks.map(|(task, score)| (task.clone(), score["figures"].clone()));
        Some((file["step"].as_u64()?, tasks.collect()))
    };
    entries.flatten().filter_map(|entry| read(&entry.path())).collect()
}

fn licence(adapter: &Path) -> Option<LicenceDuties> {
    let entries = std::fs::read_dir(adapter).ok()?;
    let mut files = BTreeMap::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_small = path.metadata().is_ok_and(|metadata| metadata.len() < 1 << 20);
        if is_small && let Ok(bytes) = std::fs::read(&path) {
            files.insert(name, bytes);
        }
    }
    Some(LicenceDuties::of_files(files))
}
