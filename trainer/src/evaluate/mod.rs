//! Scores of a model: one file a kind of task, and what they share.
//!
//! A task is data ([`Definition`]): its kind, where its rows are, templates over the rows. Kinds
//! give each item's numbers ([`Metric`]), from which figures, standard errors and differences
//! between targets follow ([`statistics`]). What is asked and how it is scored follows lm-eval
//! (the evaluation harness), so that figures compare.

mod bleu;
mod chrf;
mod classification;
mod code;
mod contamination;
mod definition;
mod encode;
mod error;
mod extract;
mod fill_in_the_middle;
mod forgetting;
mod generate_match;
mod generation;
mod language;
mod likelihood;
mod memorisation;
mod multiple_choice;
mod perplexity;
mod prompt;
mod prompted;
mod python_random;
pub mod statistics;
mod stop_rate;
mod template;
mod translation;

use std::collections::{BTreeMap, BTreeSet};

use datasets::{ChatTemplate, SourceRow, Tokenizer};
use serde_json::Value;

pub use code::{CodeRunner, Program, ProgramEnd, ProgramOutcome};
pub use contamination::Contamination;
pub use definition::{Chat, Definition, has_prompts};
pub use encode::Encoder;
pub use error::EvaluateError;
pub use generation::{Ended, Generated, GenerationRequest, Limits, generate_all};
pub use likelihood::{LogLikelihood, Request, log_likelihoods, rolling_requests};
pub use perplexity::{
    TextPerplexity, identity, measured as text_figures, perplexity, segment_losses,
    text_perplexity, windows,
};
pub use statistics::Metric;
pub use translation::corpus_score;

use crate::base_model::Decoder;

/// A kind of task, by its name in task definitions.
#[derive(Debug)]
pub struct Kind {
    /// `kind` of a definition.
    pub name: &'static str,
    read: fn(Value) -> Result<Box<dyn Task>, serde_json::Error>,
}

/// Every kind.
///
/// To add one: write `evaluate/<kind>.rs` with its `KIND`, then list it here.
pub const KINDS: &[&Kind] = &[
    &perplexity::KIND,
    &multiple_choice::KIND,
    &classification::KIND,
    &generate_match::KIND,
    &translation::KIND,
    &fill_in_the_middle::KIND,
    &language::KIND,
    &stop_rate::KIND,
    &memorisation::KIND,
    &code::KIND,
    &forgetting::KIND,
];

/// What a kind of task does with its rows.
pub trait Task: std::fmt::Debug + Send + Sync {
    /// Examples that the prompts begin with, where the kind has prompts and the definition asks.
    fn few_shot(&self) -> Option<&prompt::FewShot> {
        None
    }

    /// Whether the kind's prompts may go through a chat template.
    fn can_chat(&self) -> bool {
        self.few_shot().is_some()
    }

    /// Whether it runs what the model wrote, for which [`Model::runner`] must be there.
    fn runs_programs(&self) -> bool {
        false
    }

    /// Toolchains that it runs programs with, and their versions: its figures depend on them.
    fn toolchains(
        &self,
        _items: &Items,
        _runner: &dyn CodeRunner,
    ) -> Result<BTreeSet<String>, EvaluateError> {
        Ok(BTreeSet::new())
    }

    /// Scores a model on some rows; `done` is told the items that are finished.
    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError>;
}

/// A model under test.
#[derive(Debug, Clone, Copy)]
pub struct Model<'a> {
    /// Its weights.
    pub decoder: &'a Decoder,
    /// Its tokenizer.
    pub tokenizer: &'a Tokenizer,
    /// The template that prompts go through; plain text without one.
    pub chat: Option<&'a ChatTemplate>,
    /// What runs programs that it writes.
    pub runner: Option<&'a dyn CodeRunner>,
}

impl Model<'_> {
    /// Tokens that the model was made for.
    pub fn max_length(&self) -> usize {
        self.decoder.config().max_positions
    }
}

/// The rows of a task.
#[derive(Debug, Clone, Default)]
pub struct Items {
    /// What is asked.
    pub rows: Vec<SourceRow>,
    /// The examples of each row.
    pub examples: Vec<Vec<SourceRow>>,
    /// Seed of everything that is drawn.
    pub seed: u64,
    /// Number of the first row among those of the task: a part of them draws as in the whole.
    pub first: usize,
}

impl Items {
    /// Parts of at most `count` rows, which give the same numbers as the whole.
    pub fn parts(&self, count: usize) -> Vec<Self> {
        let part = |start: usize| {
            let rows = start..(start + count).min(self.rows.len());
            Self {
                rows: self.rows[rows.clone()].to_vec(),
                examples: self.examples.get(rows).map(<[_]>::to_vec).unwrap_or_default(),
                seed: self.seed,
                first: self.first + start,
            }
        };
        (0..self.rows.len()).step_by(count.max(1)).map(part).collect()
    }

    /// Every row several times in a row.
    fn repeated(&self, times: usize) -> Self {
        let rows = self.rows.iter().flat_map(|row| std::iter::repeat_n(row.clone(), times));
        let examples =
            self.examples.iter().flat_map(|rows| std::iter::repeat_n(rows.clone(), times));
        Self {
            rows: rows.collect(),
            examples: examples.collect(),
            seed: self.seed,
            first: self.first * times,
        }
    }
}

/// What a model scored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Measured {
    /// Figures.
    pub metrics: Vec<Metric>,
    /// Other numbers that are shown with them: failures, tokens.
    pub counts: BTreeMap<String, u64>,
    /// Prompt, answer and score of each item.
    pub samples: Vec<Value>,
    /// What the items are, where they depend on the tokenizer: only equal ones compare.
    pub identity: u64,
}

impl Measured {
    /// Adds what the next rows of the same task scored.
    pub fn extend(&mut self, more: Self) {
        let before = self.metrics.first().map_or(0, |metric| metric.items.len()) as u64;
        for metric in more.metrics {
            match self.metrics.iter_mut().find(|known| known.name == metric.name) {
                Some(known) => known.items.extend(metric.items),
                None => self.metrics.push(metric),
            }
        }
        for (name, count) in more.counts {
            *self.counts.entry(name).or_insert(0) += count;
        }
        self.samples.extend(more.samples.into_iter().map(|mut sample| {
            if let Some(item) = sample["item"].as_u64() {
                sample["item"] = Value::from(item + before);
            }
            sample
        }));
        self.identity = self.identity.rotate_left(1) ^ more.identity;
    }
}
