//! Texts whose generated translations are scored by n-grams: BLEU, chrF and chrF++.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::error::EvaluateError;
use super::generate_match::references;
use super::generation::Ended;
use super::prompt::FewShot;
use super::prompted::{Answering, Asking, answer_tokens, ask, blank_line, example_answer, space};
use super::statistics::{Aggregate, Better};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task, bleu, chrf};

pub(super) const KIND: Kind = Kind { name: "translation", read: read::<Translation> };

/// Figures of the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Figure {
    #[serde(rename = "bleu")]
    Bleu,
    #[serde(rename = "chrf")]
    Chrf,
    #[serde(rename = "chrf++")]
    ChrfWords,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Bleu => "bleu",
            Self::Chrf => "chrf",
            Self::ChrfWords => "chrf++",
        }
    }

    fn statistics(self, answer: &str, references: &[String]) -> Vec<f64> {
        match self {
            Self::Bleu => bleu::statistics(answer, references),
            Self::Chrf => chrf::statistics(answer, references, 0),
            Self::ChrfWords => chrf::statistics(answer, references, 2),
        }
    }

    fn metric(self, items: Vec<Vec<f64>>) -> Metric {
        let aggregate = if self == Self::Bleu { Aggregate::Bleu } else { Aggregate::Chrf };
        Metric { name: self.name().to_owned(), aggregate, better: Better::Higher, items }
    }
}

/// BLEU, chrF or chrF++ of some answers, each with its references; `None` for another name.
pub fn corpus_score(name: &str, rows: &[(String, Vec<String>)]) -> Option<f64> {
    let figures = [Figure::Bleu, Figure::Chrf, Figure::ChrfWords];
    let figure = figures.into_iter().find(|figure| figure.name() == name)?;
    let items = rows.iter().map(|(answer, references)| figure.statistics(answer, references));
    Some(figure.metric(items.collect()).value())
}

fn default_figures() -> Vec<Figure> {
    vec![Figure::Chrf, Figure::Bleu]
}

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Translation {
    description: Option<Template>,
    prompt: Template,
    /// The reference, or a list of them.
    answer: Template,
    #[serde(default = "space")]
    target_delimiter: String,
    few_shot: Option<FewShot>,
    #[serde(default = "blank_line")]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f64,
    #[serde(default = "default_figures")]
    metrics: Vec<Figure>,
}

impl Task for Translation {
    fn few_shot(&self) -> Option<&FewShot> {
        self.few_shot.as_ref()
    }

    fn can_chat(&self) -> bool {
        true
    }

    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        let asking = Asking {
            description: self.description.as_ref(),
            few_shot: self.few_shot.as_ref(),
            target_delimiter: &self.target_delimiter,
            example: &|row| Ok((self.prompt.text(row)?, example_answer(&self.answer, None, row)?)),
        };
        let (max_tokens, temperature) = (self.max_tokens, self.temperature);
        let answering = Answering { max_tokens, stop: &self.stop, temperature };
        let (prompts, generated) = ask(model, items, (&asking, &self.prompt), &answering, done)?;
        let mut measured = Measured::default();
        let mut numbers: Vec<Vec<Vec<f64>>> = vec![Vec::new(); self.metrics.len()];
        let mut cut = 0;
        for (index, generated) in generated.iter().enumerate() {
            let references = references(&self.answer, &items.rows[index])?;
            for (figure, numbers) in self.metrics.iter().zip(&mut numbers) {
                numbers.push(figure.statistics(&generated.text, &references));
            }
            cut += u64::from(generated.ending == Ended::Length);
            measured.samples.push(json!({
                "item": index, "prompt": prompts[index], "generated": generated.text,
                "answer": references,
            }));
        }
        measured.counts.insert("cut_at_max_tokens".to_owned(), cut);
        measured.metrics =
            self.metrics.iter().zip(numbers).map(|(figure, items)| figure.metric(items)).collect();
        Ok(measured)
    }
}
