//! Questions with several answers: the most probable one is the model's choice.

use datasets::SourceRow;
use serde::Deserialize;
use serde_json::{Value, json};

use super::definition::read;
use super::encode::Encoder;
use super::error::EvaluateError;
use super::likelihood::{LogLikelihood, Request, log_likelihoods};
use super::prompt::FewShot;
use super::prompted::{Asking, example_answer, index_of, space};
use super::template::{Template, Texts, failed};
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "multiple_choice", read: read::<MultipleChoice> };

/// Figures of the kind, named as lm-eval names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Figure {
    /// The most probable choice is right.
    Acc,
    /// The same, log-likelihoods divided by the characters of the choice.
    AccNorm,
    /// The same, divided by its bytes.
    AccBytes,
    /// Share of probability on right choices (MC2 of `TruthfulQA`).
    ProbabilityMass,
}

impl Figure {
    fn name(self) -> &'static str {
        match self {
            Self::Acc => "acc",
            Self::AccNorm => "acc_norm",
            Self::AccBytes => "acc_bytes",
            Self::ProbabilityMass => "probability_mass",
        }
    }
}

fn default_figures() -> Vec<Figure> {
    vec![Figure::Acc, Figure::AccNorm]
}

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct MultipleChoice {
    description: Option<Template>,
    /// The question, before the choices.
    prompt: Option<Template>,
    /// The choices, each scored after the question.
    choices: Option<Texts>,
    /// In place of `prompt` and `choices`: one question a choice.
    prompts: Option<Texts>,
    /// What is scored after each of `prompts`.
    continuation: Option<Template>,
    /// Number of the right choice from 0, the choice itself, or a list of either.
    answer: Option<Template>,
    /// In place of `answer`: 1 or true for each right choice.
    labels: Option<Template>,
    #[serde(default = "space")]
    target_delimiter: String,
    few_shot: Option<FewShot>,
    #[serde(default = "default_figures")]
    metrics: Vec<Figure>,
}

/// One question, ready to be scored.
struct Question {
    /// Context and continuation of each choice.
    pairs: Vec<(String, String)>,
    choices: Vec<String>,
    right: Vec<usize>,
}

impl MultipleChoice {
    fn question(&self, row: &SourceRow) -> Result<String, EvaluateError> {
        match (&self.prompt, &self.prompts) {
            (Some(prompt), _) => prompt.text(row),
            (None, Some(prompts)) => {
                let right = self.right(row, &prompts.texts(row)?)?;
                Ok(prompts.texts(row)?[right[0]].clone())
            }
            (None, None) => Err(EvaluateError::definition("prompt", "is missing")),
        }
    }

    fn example(&self, row: &SourceRow) -> Result<(String, String), EvaluateError> {
        let answer = match (&self.continuation, &self.choices, &self.answer) {
            (Some(continuation), None, _) => continuation.text(row)?,
            (None, Some(choices), Some(answer)) => example_answer(answer, Some(choices), row)?,
            (None, Some(choices), None) => {
                let choices = choices.texts(row)?;
                choices[self.right(row, &choices)?[0]].clone()
            }
            _ => return Err(self.check().err().unwrap_or_else(|| failed(row, "has no answer"))),
        };
        Ok((self.question(row)?, answer))
    }

    fn right(&self, row: &SourceRow, choices: &[String]) -> Result<Vec<usize>, EvaluateError> {
        if let Some(answer) = &self.answer {
            return index_of(answer, row, choices);
        }
        let labels = self.labels.as_ref().map(|labels| labels.value(row)).transpose()?;
        let labels = labels.as_ref().and_then(Value::as_array);
        let is_right = |label: &Value| label == &json!(1) || label == &json!(true);
        let right: Option<Vec<usize>> = labels
            .filter(|labels| labels.len() == choices.len())
            .map(|labels| (0..labels.len()).filter(|&index| is_right(&labels[index])).collect());
        right.filter(|right| !right.is_empty()).ok_or_else(|| {
            failed(row, "`labels` is no list of 0 and 1, one a choice and at least one of them 1")
        })
    }

    fn check(&self) -> Result<(), EvaluateError> {
        let wrong = |key, problem: &str| Err(EvaluateError::definition(key, problem));
        match (&self.prompt, &self.choices, &self.prompts, &self.continuation) {
            (Some(_), Some(_), None, None) | (None, None, Some(_), Some(_)) => {}
            _ => {
                return wrong(
                    "prompt",
                    "and `choices` are needed, or `prompts` and `continuation`",
                );
            }
        }
        if self.answer.is_some() == self.labels.is_some() {
            return wrong("answer", "or `labels` is needed, one of them");
        }
        if self.metrics.is_empty() {
            return wrong("metrics", "is empty");
        }
        Ok(())
    }

    fn questions(&self, model: &Model, items: &Items) -> Result<Vec<Question>, EvaluateError> {
        let asking = Asking {
            description: self.description.as_ref(),
            few_shot: self.few_shot.as_ref(),
            target_delimiter: &self.target_delimiter,
            example: &|row| self.example(row),
        };
        // The template's own turn borders stand between question and answer.
        let delimiter = if model.chat.is_some() { "" } else { &self.target_delimiter };
        let mut questions = Vec::with_capacity(items.rows.len());
        for (index, row) in items.rows.iter().enumerate() {
            let mut prompt = asking.prompt(items, index)?;
            let (choices, pairs) =
                if let (Some(prompts), Some(continuation)) = (&self.prompts, &self.continuation) {
                    let texts = prompts.texts(row)?;
                    let continuation = format!("{delimiter}{}", continuation.text(row)?);
                    let mut pairs = Vec::with_capacity(texts.len());
                    for text in &texts {
                        prompt.question.clone_from(text);
                        pairs.push((prompt.text(model.chat)?, continuation.clone()));
                    }
                    (texts, pairs)
                } else {
                    prompt.question = self.question(row)?;
                    let context = prompt.text(model.chat)?;
                    let choices =
                        self.choices.as_ref().map(|choices| choices.texts(row)).transpose()?;
                    let choices = choices.unwrap_or_default();
                    let pair = |choice: &String| (context.clone(), format!("{delimiter}{choice}"));
                    let pairs = choices.iter().map(pair).collect();
                    (choices, pairs)
                };
            let right = self.right(row, &choices)?;
            questions.push(Question { pairs, choices, right });
        }
        Ok(questions)
    }
}

impl Task for MultipleChoice {
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
        self.check()?;
        let questions = self.questions(model, items)?;
        let scores =
            score_choices(model, items, questions.iter().map(|q| q.pairs.as_slice()), done)?;
        let mut values: Vec<Vec<f64>> = vec![Vec::new(); self.metrics.len()];
        let mut samples = Vec::new();
        for (index, (question, scores)) in questions.iter().zip(&scores).enumerate() {
            let mut sample = json!({
                "item": index,
                "prompts": question.pairs.iter().map(|pair| &pair.0).collect::<Vec<_>>(),
                "continuations": question.pairs.iter().map(|pair| &pair.1).collect::<Vec<_>>(),
                "log_likelihoods": scores.iter().map(|score| score.sum).collect::<Vec<_>>(),
                "answer": question.right,
            });
            for (figure, values) in self.metrics.iter().zip(&mut values) {
                let value = figure.of(question, scores);
                sample[figure.name()] = json!(value);
                values.push(value);
            }
            samples.push(sample);
        }
        let metrics =
            self.metrics.iter().zip(values).map(|(f, values)| Metric::mean(f.name(), values));
        Ok(Measured { metrics: metrics.collect(), samples, ..Measured::default() })
    }
}

impl Figure {
    fn of(self, question: &Question, scores: &[LogLikelihood]) -> f64 {
        let divided = |length: &dyn Fn(&str) -> usize| {
            let values = scores.iter().zip(&question.choices);
            best(values.map(|(score, choice)| score.sum / length(choice) as f64))
        };
        let chosen = match self {
            Self::Acc => best(scores.iter().map(|score| score.sum)),
            Self::AccNorm => divided(&|choice| choice.chars().count()),
            Self::AccBytes => divided(&str::len),
            Self::ProbabilityMass => {
                let all: f64 = scores.iter().map(|score| score.sum.exp()).sum();
                let right = question.right.iter().map(|&right| scores[right].sum.exp());
                return right.sum::<f64>() / all;
            }
        };
        f64::from(u8::from(question.right.contains(&chosen)))
    }
}

/// Index of the largest value, the first of equals.
pub(super) fn best(values: impl Iterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Log-likelihood of every continuation after its context, item by item.
pub(super) fn score_choices<'a>(
    model: &Model,
    items: &Items,
    questions: impl Iterator<Item = &'a [(String, String)]>,
    done: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<LogLikelihood>>, EvaluateError> {
    let encoder = Encoder::new(model.tokenizer, model.decoder)?;
    let (mut requests, mut counts) = (Vec::new(), Vec::new());
    for (index, pairs) in questions.enumerate() {
        counts.push(pairs.len());
        for (context, continuation) in pairs {
            let request: Request = encoder.pair(context, continuation)?;
            if request.continuation.is_empty() {
                let problem = "a choice has no token of its own after the prompt";
                return Err(failed(&items.rows[index], problem));
            }
            requests.push(request);
        }
    }
    let (all, total) = (requests.len() as u64, counts.len() as u64);
    let scores = log_likelihoods(model.decoder, &requests, model.max_length(), &mut |scored| {
        done(scored * total / all.max(1));
    })?;
    let mut scores = scores.into_iter();
    Ok(counts.into_iter().map(|count| scores.by_ref().take(count).collect()).collect())
}
