//! Texts to label: the most probable label is the model's.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::error::EvaluateError;
use super::multiple_choice::{best, score_choices};
use super::prompt::FewShot;
use super::prompted::{Asking, index_of, space};
use super::statistics::{Aggregate, Better};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "classification", read: read::<Classification> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Classification {
    description: Option<Template>,
    prompt: Template,
    /// The labels as the model would write them.
    labels: Vec<String>,
    /// The right label, or its number from 0.
    answer: Template,
    #[serde(default = "space")]
    target_delimiter: String,
    few_shot: Option<FewShot>,
}

impl Classification {
    fn right(&self, row: &datasets::SourceRow) -> Result<usize, EvaluateError> {
        Ok(index_of(&self.answer, row, &self.labels)?[0])
    }

    fn measured(
        &self,
        right: &[usize],
        chosen: &[usize],
        samples: Vec<serde_json::Value>,
    ) -> Measured {
        let pairs = || right.iter().zip(chosen);
        let acc = Metric::mean(
            "acc",
            pairs().map(|(right, chosen)| f64::from(u8::from(right == chosen))),
        );
        let counts = |(&right, &chosen): (&usize, &usize)| {
            let mut counts = vec![0.0; 3 * self.labels.len()];
            counts[3 * right] += f64::from(u8::from(right == chosen));
            counts[3 * chosen + 1] += 1.0;
            counts[3 * right + 2] += 1.0;
            counts
        };
        let macro_f1 = Metric {
            name: "macro_f1".to_owned(),
            aggregate: Aggregate::MacroF1,
            better: Better::Higher,
            items: pairs().map(counts).collect(),
        };
        Measured { metrics: vec![acc, macro_f1], samples, ..Measured::default() }
    }
}

impl Task for Classification {
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
        if self.labels.len() < 2 {
            return Err(EvaluateError::definition("labels", "needs at least two labels"));
        }
        let asking = Asking {
            description: self.description.as_ref(),
            few_shot: self.few_shot.as_ref(),
            target_delimiter: &self.target_delimiter,
            example: &|row| Ok((self.prompt.text(row)?, self.labels[self.right(row)?].clone())),
        };
        let delimiter = if model.chat.is_some() { "" } else { &self.target_delimiter };
        let (mut questions, mut right) = (Vec::new(), Vec::new());
        for (index, row) in items.rows.iter().enumerate() {
            let mut prompt = asking.prompt(items, index)?;
            prompt.question = self.prompt.text(row)?;
            let context = prompt.text(model.chat)?;
            let pair = |label: &String| (context.clone(), format!("{delimiter}{label}"));
            questions.push(self.labels.iter().map(pair).collect::<Vec<_>>());
            right.push(self.right(row)?);
        }
        let scores = score_choices(model, items, questions.iter().map(Vec::as_slice), done)?;
        let (mut chosen, mut samples) = (Vec::new(), Vec::new());
        for (index, scores) in scores.iter().enumerate() {
            let label = best(scores.iter().map(|score| score.sum));
            samples.push(json!({
                "item": index, "prompt": questions[index][0].0, "label": self.labels[label],
                "log_likelihoods": scores.iter().map(|score| score.sum).collect::<Vec<_>>(),
                "answer": self.labels[right[index]],
            }));
            chosen.push(label);
        }
        Ok(self.measured(&right, &chosen, samples))
    }
}
