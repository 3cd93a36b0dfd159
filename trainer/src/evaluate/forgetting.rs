//! What a tune may have cost: general texts and general questions, in one task.
//!
//! The change is the difference to the first target, or to the run before its first step, as with
//! every task; the kind only asks two things at once of rows of two sorts.

use datasets::SourceRow;
use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::error::EvaluateError;
use super::template::failed;
use super::{Items, Kind, Measured, Model, Task, multiple_choice, perplexity};

pub(super) const KIND: Kind = Kind { name: "forgetting", read: read::<Forgetting> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Forgetting {
    /// Template of a text.
    #[serde(default = "text")]
    text: String,
    /// Template of a question.
    #[serde(default = "prompt")]
    prompt: String,
    #[serde(default = "choices")]
    choices: String,
    #[serde(default = "answer")]
    answer: String,
}

fn text() -> String {
    "text".to_owned()
}

fn prompt() -> String {
    "Question: {{question}}\nAnswer:".to_owned()
}

fn choices() -> String {
    "choices".to_owned()
}

fn answer() -> String {
    "answer".to_owned()
}

/// Texts, and the other rows.
fn divided(items: &Items) -> [Items; 2] {
    let is_text = |row: &SourceRow| row.fields.contains_key("text");
    let (texts, questions) = items.rows.iter().cloned().partition(is_text);
    [texts, questions].map(|rows: Vec<SourceRow>| {
        let examples = vec![Vec::new(); rows.len()];
        Items { rows, examples, ..items.clone() }
    })
}

impl Task for Forgetting {
    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        let [texts, questions] = divided(items);
        if let Some(row) = questions.rows.iter().find(|row| !row.fields.contains_key("choices")) {
            return Err(failed(row, "is neither a text (`text`) nor a question (`choices`)"));
        }
        let wrong = |error: serde_json::Error| EvaluateError::Model(error.to_string());
        let scored = (perplexity::KIND.read)(json!({ "text": self.text })).map_err(wrong)?;
        let asked = json!({
            "prompt": self.prompt, "choices": self.choices, "answer": self.answer,
        });
        let asked = (multiple_choice::KIND.read)(asked).map_err(wrong)?;
        let mut measured = Measured::default();
        if !texts.rows.is_empty() {
            measured = scored.run(model, &texts, done)?;
        }
        if !questions.rows.is_empty() {
            let before = texts.rows.len() as u64;
            let more = asked.run(model, &questions, &mut |count| done(before + count))?;
            measured.metrics.extend(more.metrics);
            measured.counts.extend(more.counts);
            measured.samples.extend(more.samples);
        }
        measured.counts.insert("texts".to_owned(), texts.rows.len() as u64);
        measured.counts.insert("questions".to_owned(), questions.rows.len() as u64);
        Ok(measured)
    }
}
