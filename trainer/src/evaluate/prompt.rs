//! Prompts: description, few-shot examples, question; as plain text or as a conversation.

use datasets::{ChatTemplate, Conversation, GenerationPrompt, Message, SourceRow};
use serde::Deserialize;

use super::error::EvaluateError;
use super::python_random::PythonRandom;

/// Examples with their answers before the question.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// How many.
    pub count: usize,
    /// File, folder or glob of the rows they come from.
    pub data: Option<String>,
    /// The rows themselves.
    #[serde(default)]
    pub rows: Vec<serde_json::Map<String, serde_json::Value>>,
    /// Takes them from the task's own rows, less the one that is asked.
    #[serde(default)]
    pub from_task: bool,
    /// Rows at the beginning that are passed over.
    #[serde(default)]
    pub skip: usize,
    /// Which of the rows.
    #[serde(default)]
    pub order: Order,
    /// Between two examples.
    #[serde(default = "blank_line")]
    pub delimiter: String,
}

fn blank_line() -> String {
    "\n\n".to_owned()
}

/// Which rows become examples.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Drawn for each question, as lm-eval draws them under its seed.
    #[default]
    Random,
    /// The first ones, for every question.
    First,
}

/// Where examples come from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Pool<'a> {
    /// Rows of their own.
    Apart(&'a [SourceRow]),
    /// The rows that are asked.
    Asked(&'a [SourceRow]),
}

/// The examples of every row that is asked, as rows of the pool.
pub(super) fn draw_examples<'a>(
    few_shot: &FewShot,
    pool: Pool<'a>,
    asked: &[SourceRow],
    seed: u64,
) -> Result<Vec<Vec<&'a SourceRow>>, EvaluateError> {
    let (Pool::Apart(rows) | Pool::Asked(rows)) = pool;
    let rows = rows.get(few_shot.skip..).unwrap_or_default();
    let spare = usize::from(matches!(pool, Pool::Asked(_)));
    if few_shot.count + spare > rows.len() {
        let problem =
            format!("= {} is more than the {} rows there are", few_shot.count, rows.len());
        return Err(EvaluateError::definition("few_shot.count", problem));
    }
    let mut random = PythonRandom::new(seed);
    let mut draw = |row: &SourceRow| -> Vec<&'a SourceRow> {
        let other = |candidate: &&SourceRow| spare == 0 || candidate.fields != row.fields;
        match few_shot.order {
            Order::First => rows.iter().filter(other).take(few_shot.count).collect(),
            Order::Random => {
                let drawn = random.sample(rows.len(), few_shot.count + spare);
                let drawn = drawn.into_iter().map(|index| &rows[index]);
                let picked: Vec<_> = drawn.filter(other).take(few_shot.count).collect();
                if picked.len() == few_shot.count {
                    return picked;
                }
                // The row stands several times in the pool: draw again from the others.
                let others: Vec<_> = rows.iter().filter(other).collect();
                let drawn = random.sample(others.len(), few_shot.count);
                drawn.into_iter().map(|index| others[index]).collect()
            }
        }
    };
    Ok(asked.iter().map(&mut draw).collect())
}

/// A question with what stands before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Prompt {
    /// Before everything.
    pub(super) description: String,
    /// Questions and answers.
    pub(super) examples: Vec<(String, String)>,
    /// Between a question and its answer.
    pub(super) target_delimiter: String,
    /// After an example.
    pub(super) example_delimiter: String,
    /// What is asked.
    pub(super) question: String,
}

impl Prompt {
    /// The text that the model reads.
    pub(super) fn text(&self, chat: Option<&ChatTemplate>) -> Result<String, EvaluateError> {
        match chat {
            Some(template) => self.as_conversation(template),
            None => Ok(self.as_text()),
        }
    }

    fn as_text(&self) -> String {
        let mut text = self.description.clone();
        for (question, answer) in &self.examples {
            text.push_str(question);
            if !answer.is_empty() {
                text.push_str(&self.target_delimiter);
                text.push_str(answer);
                text.push_str(&self.example_delimiter);
            }
        }
        text + &self.question
    }

    /// Examples become turns, the description a system message.
    fn as_conversation(&self, template: &ChatTemplate) -> Result<String, EvaluateError> {
        let mut messages = Vec::new();
        if !self.description.is_empty() {
            messages.push(Message::new("system", &self.description));
        }
        for (question, answer) in &self.examples {
            messages.push(Message::new("user", question));
            messages.push(Message::new("assistant", answer));
        }
        messages.push(Message::new("user", &self.question));
        Ok(template.render(&Conversation::new(messages), GenerationPrompt::Add)?)
    }
}

#[cfg(test)]
mod tests {
    use datasets::Place;
    use serde_json::json;

    use super::*;

    fn rows(count: usize) -> Vec<SourceRow> {
        let row = |x: usize| SourceRow {
            place: Place { path: "a".into(), line: x as u64 + 1 },
            fields: json!({ "x": x }).as_object().unwrap().clone(),
        };
        (0..count).map(row).collect()
    }

    fn few_shot(count: usize, order: Order) -> FewShot {
        FewShot {
            count,
            data: None,
            rows: vec![],
            from_task: true,
            skip: 0,
            order,
            delimiter: blank_line(),
        }
    }

    #[test]
    fn a_row_is_never_its_own_example() {
        let rows = rows(6);
        for order in [Order::First, Order::Random] {
            let drawn =
                draw_examples(&few_shot(5, order), Pool::Asked(&rows), &rows, 1234).unwrap();
            for (row, examples) in rows.iter().zip(drawn) {
                assert_eq!(examples.len(), 5);
                assert!(!examples.contains(&row));
            }
        }
        assert!(draw_examples(&few_shot(6, Order::First), Pool::Asked(&rows), &rows, 0).is_err());
    }

    #[test]
    fn parts_stand_as_in_lm_eval() {
        let prompt = Prompt {
            description: "D\n".into(),
            examples: vec![("Q: 1\nA:".into(), "one".into())],
            target_delimiter: " ".into(),
            example_delimiter: "\n\n".into(),
            question: "Q: 2\nA:".into(),
        };
        assert_eq!(prompt.text(None).unwrap(), "D\nQ: 1\nA: one\n\nQ: 2\nA:");
    }
}
