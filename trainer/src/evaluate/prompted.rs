//! What kinds with prompts share: texts of a row and its examples, answers, generation.

use datasets::SourceRow;
use serde_json::Value;

use super::encode::Encoder;
use super::error::EvaluateError;
use super::generation::{Generated, GenerationRequest, Limits, generate_all};
use super::prompt::{FewShot, Prompt};
use super::template::{Template, Texts, failed};
use super::{Items, Model};
use crate::generate::Sampling;

/// Default between question and answer.
pub(super) fn space() -> String {
    " ".to_owned()
}

/// Default of the texts that end an answer.
pub(super) fn blank_line() -> Vec<String> {
    vec!["\n\n".to_owned()]
}

/// Default of the tokens of an answer; lm-eval's.
pub(super) fn answer_tokens() -> usize {
    256
}

/// Question and answer.
type Example = (String, String);

/// The templates of a prompt.
pub(super) struct Asking<'a> {
    pub(super) description: Option<&'a Template>,
    pub(super) few_shot: Option<&'a FewShot>,
    pub(super) target_delimiter: &'a str,
    /// Question and answer of an example.
    pub(super) example: &'a dyn Fn(&SourceRow) -> Result<Example, EvaluateError>,
}

impl Asking<'_> {
    /// The prompt of a row, with `question` still to be set.
    pub(super) fn prompt(&self, items: &Items, index: usize) -> Result<Prompt, EvaluateError> {
        let row = &items.rows[index];
        let description = self.description.map(|template| template.text(row)).transpose()?;
        let examples = items.examples.get(index).map(Vec::as_slice).unwrap_or_default();
        Ok(Prompt {
            description: description.unwrap_or_default(),
            examples: examples.iter().map(self.example).collect::<Result<_, _>>()?,
            target_delimiter: self.target_delimiter.to_owned(),
            example_delimiter: self.few_shot.map_or(String::new(), |few| few.delimiter.clone()),
            question: String::new(),
        })
    }
}

/// How answers are generated.
pub(super) struct Answering<'a> {
    pub(super) max_tokens: usize,
    pub(super) stop: &'a [String],
    /// 0 takes the best token each time.
    pub(super) temperature: f64,
}

/// The prompt of every row, and what the model says to it.
pub(super) fn ask(
    model: &Model,
    items: &Items,
    (asking, question): (&Asking, &Template),
    answering: &Answering,
    done: &mut dyn FnMut(u64),
) -> Result<(Vec<String>, Vec<Generated>), EvaluateError> {
    check_max_tokens(answering.max_tokens)?;
    let mut prompts = Vec::with_capacity(items.rows.len());
    for (index, row) in items.rows.iter().enumerate() {
        let mut prompt = asking.prompt(items, index)?;
        prompt.question = question.text(row)?;
        prompts.push(prompt.text(model.chat)?);
    }
    let limits = limits(model, answering.max_tokens, answering.stop);
    let drawing = (answering.temperature, items.seed, items.first);
    let generated = answers(model, &prompts, drawing, &limits, done)?;
    Ok((prompts, generated))
}

/// Which of some choices is right: a number, or the choice itself.
pub(super) fn index_of(
    template: &Template,
    row: &SourceRow,
    choices: &[String],
) -> Result<Vec<usize>, EvaluateError> {
    let value = template.value(row)?;
    let is_column = template.is_column(row);
    let one = |value: &Value| -> Option<usize> {
        let by_text = |text: &str| choices.iter().position(|choice| choice == text);
        let by_number = |text: &str| text.parse().ok().filter(|index| *index < choices.len());
        match value {
            Value::Number(number) => {
                number.as_u64().map(|index| index as usize).filter(|index| *index < choices.len())
            }
            Value::Bool(value) => Some(usize::from(*value)),
            // A column is compared as it is, what a template gives may be a number first.
            Value::String(text) if is_column => by_text(text).or_else(|| by_number(text)),
            Value::String(text) => by_number(text).or_else(|| by_text(text)),
            _ => None,
        }
    };
    let found: Option<Vec<usize>> = match &value {
        Value::Array(values) => values.iter().map(one).collect(),
        value => one(value).map(|index| vec![index]),
    };
    found.filter(|found| !found.is_empty()).ok_or_else(|| {
        let count = choices.len();
        failed(row, format!("`answer` is neither one of the {count} choices nor the number of one"))
    })
}

/// Text of an example's answer: the choice where it has choices.
pub(super) fn example_answer(
    answer: &Template,
    choices: Option<&Texts>,
    row: &SourceRow,
) -> Result<String, EvaluateError> {
    let Some(choices) = choices else {
        let value = answer.value(row)?;
        return match value {
            Value::Array(values) => Ok(first_text(&values)),
            _ => answer.text(row),
        };
    };
    let choices = choices.texts(row)?;
    let right = index_of(answer, row, &choices)?;
    Ok(choices[right[0]].clone())
}

fn first_text(values: &[Value]) -> String {
    match values.first() {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => String::new(),
    }
}

/// Generates after each prompt; each item draws under a seed of its own.
fn answers(
    model: &Model,
    prompts: &[String],
    (temperature, seed, first): (f64, u64, usize),
    limits: &Limits,
    done: &mut dyn FnMut(u64),
) -> Result<Vec<Generated>, EvaluateError> {
    let encoder = Encoder::new(model.tokenizer, model.decoder)?;
    let mut requests = Vec::with_capacity(prompts.len());
    for (index, prompt) in prompts.iter().enumerate() {
        let mut ids = encoder.encode(prompt)?;
        if ids.is_empty() {
            ids.push(encoder.prefix());
        }
        let seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add((first + index) as u64);
        let sampling = Sampling { temperature, top_p: 1.0, top_k: 0, seed };
        requests.push(GenerationRequest { prompt: ids, sampling });
    }
    generate_all(model.decoder, model.tokenizer, &requests, limits, done)
}

/// The limits of a definition for a model.
fn limits(model: &Model, max_tokens: usize, stop: &[String]) -> Limits {
    Limits { max_tokens, stop: stop.to_vec(), stop_ids: model.tokenizer.stop_ids() }
}

/// Keys that must be positive.
pub(super) fn check_max_tokens(max_tokens: usize) -> Result<(), EvaluateError> {
    match max_tokens {
        0 => Err(EvaluateError::definition("max_tokens", "must be above 0")),
        _ => Ok(()),
    }
}
