//! Questions whose generated answers are compared with the right ones.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::error::EvaluateError;
use super::extract::{Comparison, Extraction};
use super::generation::{Ended, Generated};
use super::prompt::FewShot;
use super::prompted::{Answering, Asking, answer_tokens, ask, blank_line, example_answer, space};
use super::template::{Template, failed, one_or_more};
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "generate_match", read: read::<GenerateMatch> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GenerateMatch {
    description: Option<Template>,
    prompt: Template,
    /// The right answer, or a list of right ones.
    answer: Template,
    #[serde(default = "space")]
    target_delimiter: String,
    few_shot: Option<FewShot>,
    #[serde(default = "blank_line")]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
    /// 0 takes the best token each time.
    #[serde(default)]
    temperature: f64,
    /// Ways to find the answer; the whole text without any.
    #[serde(default)]
    extract: Vec<Extraction>,
    /// What does not count.
    #[serde(default, rename = "match")]
    comparison: Comparison,
}

/// The right answers of a row.
pub(super) fn references(
    answer: &Template,
    row: &datasets::SourceRow,
) -> Result<Vec<String>, EvaluateError> {
    let value = answer.value(row)?;
    one_or_more(&value)
        .filter(|texts| !texts.is_empty())
        .ok_or_else(|| failed(row, "`answer` is neither a text nor a list of texts"))
}

impl GenerateMatch {
    /// Whether the answer is right under each extraction; `None` where none was found.
    fn judge(
        &self,
        generated: &Generated,
        right: &[String],
    ) -> Result<Vec<Option<bool>>, EvaluateError> {
        let right: Vec<String> =
            right.iter().map(|text| self.comparison.normalised(text)).collect();
        let equal = |text: &str| right.contains(&self.comparison.normalised(text));
        if self.extract.is_empty() {
            return Ok(vec![Some(equal(&generated.text))]);
        }
        let judged = self
            .extract
            .iter()
            .map(|extraction| Ok(extraction.apply(&generated.text)?.map(|found| equal(&found))));
        judged.collect()
    }

    fn names(&self) -> Vec<String> {
        match self.extract.as_slice() {
            [] => vec!["exact_match".to_owned()],
            all => all.iter().map(|one| format!("exact_match,{}", one.name)).collect(),
        }
    }
}

impl Task for GenerateMatch {
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
        let names = self.names();
        let mut measured = Measured::default();
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); names.len()];
        for (index, generated) in generated.iter().enumerate() {
            let right = references(&self.answer, &items.rows[index])?;
            let judged = self.judge(generated, &right)?;
            measured.samples.push(json!({
                "item": index, "prompt": prompts[index], "generated": generated.text,
                "answer": right, "right": judged,
            }));
            *measured.counts.entry("cut_at_max_tokens".to_owned()).or_insert(0) +=
                u64::from(generated.ending == Ended::Length);
            for ((judged, values), name) in judged.iter().zip(&mut values).zip(&names) {
                values.push(f64::from(u8::from(*judged == Some(true))));
                if !self.extract.is_empty() {
                    let key = name.replace("exact_match", "not_found");
                    *measured.counts.entry(key).or_insert(0) += u64::from(judged.is_none());
                }
            }
        }
        measured.metrics =
            names.iter().zip(values).map(|(name, values)| Metric::mean(name, values)).collect();
        Ok(measured)
    }
}
