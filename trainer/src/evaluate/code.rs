//! Programs that a model writes, judged by running their tests: pass@k.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use datasets::SourceRow;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::definition::read;
use super::error::EvaluateError;
use super::extract::Extraction;
use super::generation::{Ended, Generated};
use super::prompt::FewShot;
use super::prompted::{Answering, Asking, answer_tokens, ask};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "code", read: read::<Code> };

/// Runs programs apart from everything else.
pub trait CodeRunner: std::fmt::Debug + Sync {
    /// The toolchain of a language, with its version: what figures depend on.
    fn describe(&self, language: &str) -> Result<String, EvaluateError>;

    /// Runs a program to its end, or to a limit.
    fn run(&self, program: &Program) -> Result<ProgramOutcome, EvaluateError>;
}

/// A program with its tests.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Program<'a> {
    /// Language, by its name in task definitions.
    pub language: &'a str,
    /// Its whole text.
    pub source: &'a str,
    /// Time on the clock.
    pub timeout_seconds: f64,
    /// Memory of all its processes.
    pub memory_bytes: u64,
}

/// How a program ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ProgramEnd {
    /// Ran to its end without an error.
    Passed,
    /// An error, or an end before its end.
    Failed,
    /// The compiler refused it.
    NotCompiled,
    /// Took too long.
    TimedOut,
    /// Took too much memory.
    OutOfMemory,
    /// Printed too much.
    OutputTooLong,
    /// Wrote too much.
    DiskFull,
    /// Could not be run: a fault of this machine, counted as not passed.
    SandboxFailed,
}

impl ProgramEnd {
    /// As figures call it.
    fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::NotCompiled => "not_compiled",
            Self::TimedOut => "timed_out",
            Self::OutOfMemory => "out_of_memory",
            Self::OutputTooLong => "output_too_long",
            Self::DiskFull => "disk_full",
            Self::SandboxFailed => "sandbox_failed",
        }
    }
}

/// What running a program gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramOutcome {
    /// How it ended.
    pub end: ProgramEnd,
    /// The last of what it complained about.
    pub detail: String,
}

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Code {
    description: Option<Template>,
    prompt: Template,
    /// A right answer, for examples.
    answer: Option<Template>,
    #[serde(default)]
    target_delimiter: String,
    few_shot: Option<FewShot>,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f64,
    language: Template,
    /// The whole program, with what was generated as the column `completion`.
    program: Template,
    /// How the code is found in the text; the whole text without.
    extract: Option<Extraction>,
    /// Judged in place of what the model would write.
    completion: Option<Template>,
    #[serde(default = "one")]
    samples: usize,
    #[serde(default = "just_one")]
    k: Vec<usize>,
    #[serde(default = "three_seconds")]
    timeout_seconds: f64,
    #[serde(default = "memory")]
    memory_mebibytes: u64,
}

fn one() -> usize {
    1
}

fn just_one() -> Vec<usize> {
    vec![1]
}

/// As the reference implementation of pass@k waits.
fn three_seconds() -> f64 {
    3.0
}

fn memory() -> u64 {
    1024
}

/// A program to run, and what its text came from.
struct Attempt {
    item: usize,
    prompt: String,
    generated: String,
    source: Option<String>,
    language: String,
}

impl Code {
    fn check(&self) -> Result<(), EvaluateError> {
        let wrong = |key: &str, problem: &str| Err(EvaluateError::definition(key, problem));
        if self.k.is_empty() || self.k.contains(&0) {
            return wrong("k", "must be numbers of at least 1");
        }
        if self.samples < self.k.iter().copied().max().unwrap_or(1) {
            return wrong("samples", "must be at least the largest `k`");
        }
        if self.samples > 1 && self.temperature == 0.0 && self.completion.is_none() {
            return wrong("temperature", "must be above 0: several samples would be equal");
        }
        if self.few_shot.as_ref().is_some_and(|few| few.count > 0) && self.answer.is_none() {
            return wrong("answer", "is missing: examples need it");
        }
        if !(0.1..=3600.0).contains(&self.timeout_seconds) {
            return wrong("timeout_seconds", "must lie between 0.1 and 3600");
        }
        if !(16..=1 << 20).contains(&self.memory_mebibytes) {
            return wrong("memory_mebibytes", "must lie between 16 and 1048576");
        }
        Ok(())
    }

    /// The column that `language` names, else the name itself.
    fn language_of(&self, row: &SourceRow) -> String {
        self.language.text(row).unwrap_or_else(|_| self.language.to_string())
    }

    /// Prompts and texts, `samples` a row, one after the other.
    fn texts(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Vec<(String, Generated)>, EvaluateError> {
        if let Some(completion) = &self.completion {
            let given = |row| {
                let text = completion.text(row)?;
                let generated = Generated { text, token_ids: Vec::new(), ending: Ended::StopText };
                Ok((String::new(), generated))
            };
            let rows = items.rows.iter().flat_map(|row| std::iter::repeat_n(row, self.samples));
            return rows.map(given).collect();
        }
        let example = |row: &_| {
            let answer = self.answer.as_ref().map(|answer| answer.text(row)).transpose()?;
            Ok((self.prompt.text(row)?, answer.unwrap_or_default()))
        };
        let asking = Asking {
            description: self.description.as_ref(),
            few_shot: self.few_shot.as_ref(),
            target_delimiter: &self.target_delimiter,
            example: &example,
        };
        let answering = Answering {
            max_tokens: self.max_tokens,
            stop: &self.stop,
            temperature: self.temperature,
        };
        let repeated = items.repeated(self.samples);
        let samples = self.samples as u64;
        let mut whole = |generated: u64| done(generated / samples);
        let (prompts, generated) =
            ask(model, &repeated, (&asking, &self.prompt), &answering, &mut whole)?;
        Ok(prompts.into_iter().zip(generated).collect())
    }

    fn attempts(
        &self,
        items: &Items,
        texts: Vec<(String, Generated)>,
        counts: &mut BTreeMap<String, u64>,
    ) -> Result<Vec<Attempt>, EvaluateError> {
        let mut attempts = Vec::with_capacity(texts.len());
        for (place, (prompt, generated)) in texts.into_iter().enumerate() {
            let item = place / self.samples;
            *counts.entry("cut_at_max_tokens".to_owned()).or_insert(0) +=
                u64::from(generated.ending == Ended::Length);
            let found = match &self.extract {
                Some(extraction) => extraction.apply(&generated.text)?,
                None => Some(generated.text.clone()),
            };
            if self.extract.is_some() {
                *counts.entry("not_found".to_owned()).or_insert(0) += u64::from(found.is_none());
            }
            let mut row = items.rows[item].clone();
            let language = self.language_of(&row);
            let source = found.map(|text| {
                row.fields.insert("completion".to_owned(), Value::String(text));
                self.program.text(&row)
            });
            let source = source.transpose()?;
            attempts.push(Attempt { item, prompt, generated: generated.text, source, language });
        }
        Ok(attempts)
    }
}

/// Runs every program, some at once; results stand in the order of the programs.
fn run_all(
    code: &Code,
    attempts: &[Attempt],
    runner: &dyn CodeRunner,
) -> Result<Vec<Option<ProgramOutcome>>, EvaluateError> {
    let next = AtomicUsize::new(0);
    let results: Mutex<Vec<Option<ProgramOutcome>>> = Mutex::new(vec![None; attempts.len()]);
    let work = || -> Result<(), EvaluateError> {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            let Some(attempt) = attempts.get(place) else { return Ok(()) };
            let Some(source) = &attempt.source else { continue };
            let outcome = runner.run(&Program {
                language: &attempt.language,
                source,
                timeout_seconds: code.timeout_seconds,
                memory_bytes: code.memory_mebibytes << 20,
            })?;
            results.lock().unwrap_or_else(PoisonError::into_inner)[place] = Some(outcome);
        }
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..rayon::current_num_threads()).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(results.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Share of draws of `k` samples, out of `samples` of which `right` pass, with at least one that
/// passes: `1 - C(samples - right, k) / C(samples, k)`.
fn pass_at(k: usize, samples: usize, right: usize) -> f64 {
    if samples - right < k {
        return 1.0;
    }
    let none: f64 = (samples - right + 1..=samples).map(|n| 1.0 - k as f64 / n as f64).product();
    1.0 - none
}

impl Task for Code {
    fn few_shot(&self) -> Option<&FewShot> {
        self.few_shot.as_ref()
    }

    fn can_chat(&self) -> bool {
        true
    }

    fn runs_programs(&self) -> bool {
        true
    }

    fn toolchains(
        &self,
        items: &Items,
        runner: &dyn CodeRunner,
    ) -> Result<BTreeSet<String>, EvaluateError> {
        let languages: BTreeSet<String> =
            items.rows.iter().map(|row| self.language_of(row)).collect();
        let described = languages.iter().map(|language| runner.describe(language));
        described.collect()
    }

    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        self.check()?;
        let runner = model.runner.ok_or_else(|| {
            EvaluateError::Model("this program was not told how to run code".into())
        })?;
        // A toolchain that is missing is said before anything is generated.
        self.toolchains(items, runner)?;
        let mut measured = Measured::default();
        let texts = self.texts(model, items, done)?;
        let attempts = self.attempts(items, texts, &mut measured.counts)?;
        let outcomes = run_all(self, &attempts, runner)?;
        let mut right = vec![0; items.rows.len()];
        for (attempt, outcome) in attempts.iter().zip(&outcomes) {
            let end = outcome.as_ref().map(|outcome| outcome.end);
            right[attempt.item] += usize::from(end == Some(ProgramEnd::Passed));
            if let Some(end) = end {
                *measured.counts.entry(end.name().to_owned()).or_insert(0) += 1;
            }
            measured.samples.push(json!({
                "item": attempt.item, "prompt": attempt.prompt, "generated": attempt.generated,
                "program": attempt.source, "end": end,
                "detail": outcome.as_ref().map(|outcome| &outcome.detail),
            }));
        }
        measured.metrics = self
            .k
            .iter()
            .map(|&k| {
                let values = right.iter().map(|&right| pass_at(k, self.samples, right));
                Metric::mean(&format!("pass@{k}"), values)
            })
            .collect();
        if self.completion.is_some() {
            done(items.rows.len() as u64);
        }
        Ok(measured)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every draw of `k` out of the samples.
    fn counted(k: usize, samples: usize, right: usize) -> f64 {
        let draws = (0_u32..1 << samples).filter(|draw| draw.count_ones() as usize == k);
        let (mut all, mut with) = (0.0, 0.0);
        for draw in draws {
            all += 1.0;
            with += f64::from(u8::from(draw & ((1 << right) - 1) != 0));
        }
        with / all
    }

    #[test]
    fn pass_at_k_is_the_share_of_draws_with_a_right_one() {
        for samples in 1..9 {
            for right in 0..=samples {
                for k in 1..=samples {
                    let (formula, share) = (pass_at(k, samples, right), counted(k, samples, right));
                    assert!((formula - share).abs() < 1e-12, "{k} {samples} {right}");
                }
            }
        }
    }

    #[test]
    fn what_cannot_be_measured_is_refused() {
        let problem = |more: &str| {
            let text = format!("prompt = \"p\"\nlanguage = \"python\"\nprogram = \"c\"\n{more}");
            let code: Code = toml::from_str(&text).unwrap();
            code.check().map_err(|error| error.to_string()).err().unwrap_or_default()
        };
        assert_eq!(problem(""), "");
        assert!(problem("k = [1, 5]").contains("`samples`"));
        assert!(problem("k = [1, 5]\nsamples = 5").contains("`temperature`"));
        assert!(problem("k = []").contains("`k`"));
        assert!(problem("few_shot = { count = 1 }").contains("`answer`"));
        assert!(problem("timeout_seconds = 0").contains("`timeout_seconds`"));
        assert!(problem("memory_mebibytes = 0").contains("`memory_mebibytes`"));
    }
}
