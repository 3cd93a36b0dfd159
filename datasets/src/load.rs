//! Loads the datasets of a recipe: found, hashed, read, tokenized, checked and counted.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::{BatchConfig, DatasetConfig, LossOn, ValidationConfig};
use crate::counts::{DatasetCounts, DatasetRole};
use crate::error::{DatasetError, Place};
use crate::example::{Origin, TokenizedExample};
use crate::format::{self, Needs};
use crate::prepare::{Job, Prepared, prepare};
use crate::tokenizer::Tokenizer;
use crate::{holdout, sampler};

/// Largest `weight` of a dataset: each copy is an entry in the order of an epoch.
const MOST_COPIES: f64 = 1000.0;

/// What to load, and what it must fit.
#[derive(Debug, Clone)]
pub struct LoadRequest<'a> {
    /// Each `[[dataset]]`.
    pub datasets: &'a [DatasetConfig],
    /// The `[validation]` table.
    pub validation: Option<&'a ValidationConfig>,
    /// The `[batch]` table.
    pub batch: &'a BatchConfig,
    /// Chooses the rows that a validation fraction holds back.
    pub seed: u64,
    /// The base model's.
    pub tokenizer: &'a Tokenizer,
    /// Tokens that the model knows; ids at or above are errors.
    pub vocab_size: usize,
    /// Folder that keeps tokenized datasets; nothing is kept where it is `None`.
    pub cache_dir: Option<&'a Path>,
    /// Reads at most this many rows of each dataset, for a preview.
    pub row_limit: Option<usize>,
}

/// Everything that training and validation see.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Dataset {
    /// Training examples: by dataset, then in the order of the files.
    pub train: Vec<TokenizedExample>,
    /// Validation examples, in the order of the files.
    pub validation: Vec<TokenizedExample>,
    /// Every file that was read.
    pub files: Vec<DataFile>,
    /// What became of the rows: one entry for each `[[dataset]]`, and a last one for `[validation] path`.
    pub counts: Vec<DatasetCounts>,
    /// What went wrong without changing a result, such as a cache that could not be written.
    pub warnings: Vec<String>,
}

/// A file that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataFile {
    /// As found from the recipe's path.
    pub path: PathBuf,
    /// Hash of the bytes on disk, in hexadecimal digits.
    pub sha256: String,
    /// Bytes on disk.
    pub bytes: u64,
    /// Rows read from it.
    pub rows: u64,
}

impl Dataset {
    /// Where an example came from.
    pub fn place(&self, origin: Origin) -> Place {
        let path = self.files.get(origin.file as usize).map(|file| file.path.clone());
        Place { path: path.unwrap_or_default(), line: origin.line }
    }

    /// Takes over one dataset; its file numbers move behind those that are here already.
    fn add(&mut self, job: &Job, prepared: Prepared) {
        let first_file = self.files.len() as u32;
        let moved = prepared.examples.into_iter().map(|mut example| {
            example.dataset = job.index;
            example.origin.file += first_file;
            example
        });
        match job.role {
            DatasetRole::Training => self.train.extend(moved),
            DatasetRole::Validation => self.validation.extend(moved),
        }
        self.files.extend(prepared.files);
        self.counts.push(prepared.counts);
        self.warnings.extend(prepared.warnings);
    }
}

/// Loads all datasets of a recipe; the error holds what is wrong with any of them.
pub fn load(request: &LoadRequest) -> Result<Dataset, DatasetError> {
    let jobs = jobs(request)?;
    let mut dataset = Dataset::default();
    let mut errors = Vec::new();
    let mut total = 0;
    for job in &jobs {
        match prepare(job, request) {
            Ok(prepared) => dataset.add(job, prepared),
            Err(DatasetError::Several { errors: several, total: count }) => {
                total += count;
                errors.extend(several);
            }
            Err(error) => {
                total += 1;
                errors.push(error);
            }
        }
    }
    if let Some(error) = DatasetError::from_many(errors, total) {
        return Err(error);
    }
    if let Some(fraction) = request.validation.and_then(|validation| validation.fraction) {
        holdout::hold_back(&mut dataset, fraction, request.seed)?;
    }
    check_shares(&dataset, request.datasets)?;
    Ok(dataset)
}

/// A job for each `[[dataset]]` and the validation path, once the settings make sense.
fn jobs<'a>(request: &LoadRequest<'a>) -> Result<Vec<Job<'a>>, DatasetError> {
    let Some(first) = request.datasets.first() else {
        return Err(bad("dataset", "[]", "is empty; a recipe needs at least one `[[dataset]]`"));
    };
    let mut jobs = Vec::with_capacity(request.datasets.len() + 1);
    for (index, config) in request.datasets.iter().enumerate() {
        if !(config.weight > 0.0 && config.weight <= MOST_COPIES) {
            let key = format!("dataset[{index}].weight");
            let problem = format!("is not possible; it must be above 0 and at most {MOST_COPIES}");
            return Err(bad(&key, &config.weight.to_string(), &problem));
        }
        jobs.push(Job {
            config: Cow::Borrowed(config),
            role: DatasetRole::Training,
            index: index as u32,
        });
    }
    match request.validation.map(|validation| (&validation.path, validation.fraction, validation)) {
        None => {}
        Some((None, Some(fraction), _)) if fraction > 0.0 && fraction < 1.0 => {}
        Some((None, Some(fraction), _)) => {
            let problem = "is not possible; it must be above 0 and below 1";
            return Err(bad("validation.fraction", &fraction.to_string(), problem));
        }
        Some((Some(path), None, validation)) => {
            let config = validation_dataset(path, validation, first);
            let index = request.datasets.len() as u32;
            jobs.push(Job { config: Cow::Owned(config), role: DatasetRole::Validation, index });
        }
        Some(_) => {
            let problem = "needs exactly one of `path` and `fraction`";
            return Err(bad("validation", "{}", problem));
        }
    }
    Ok(jobs)
}

/// The validation path as a dataset: read as the first `[[dataset]]` is, its columns mapped alike
/// where the format is the same.
fn validation_dataset(
    path: &str,
    validation: &ValidationConfig,
    first: &DatasetConfig,
) -> DatasetConfig {
    let same_format = validation.format.is_none() || validation.format == first.format;
    let is_chat = validation
        .format
        .and_then(format::by_name)
        .is_some_and(|format| format.needs() == Needs::ChatTemplate);
    DatasetConfig {
        format: validation.format.or(first.format),
        loss_on: if same_format || is_chat { first.loss_on } else { LossOn::default() },
        columns: if same_format { first.columns.clone() } else { BTreeMap::new() },
        chat_template: first.chat_template.clone().filter(|_| same_format || is_chat),
        allow_untrained_rows: first.allow_untrained_rows,
        fill_in_the_middle: first.fill_in_the_middle.clone().filter(|_| same_format),
        ..DatasetConfig::new(path)
    }
}

fn check_shares(dataset: &Dataset, configs: &[DatasetConfig]) -> Result<(), DatasetError> {
    let mut total = 0_u64;
    for (share, config) in sampler::shares(&dataset.train, configs).iter().zip(configs) {
        if share.examples() == 0 {
            return Err(DatasetError::NothingLeft {
                pattern: config.path.clone(),
                reason: format!("`weight` = {} of its examples is less than one", config.weight),
            });
        }
        total += share.examples();
    }
    if u32::try_from(total).is_ok() {
        return Ok(());
    }
    let problem = format!("make an epoch of {total} examples; at most {} are possible", u32::MAX);
    Err(bad("dataset.weight", "...", &problem))
}

fn bad(key: &str, value: &str, problem: &str) -> DatasetError {
    DatasetError::BadSetting {
        key: key.to_owned(),
        value: value.to_owned(),
        problem: problem.to_owned(),
    }
}

#[cfg(test)]
mod tests;
