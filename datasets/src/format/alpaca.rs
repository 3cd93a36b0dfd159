//! `{"instruction", "input", "output", "system"}`: one question and its answer.
//!
//! Rendered as a conversation through the chat template: the user says the instruction, then,
//! after an empty line, the input where there is one; the assistant says the output.

use super::columns::Columns;
use super::{DatasetFormat, Needs, Sample};
use crate::config::FormatName;
use crate::conversation::{Conversation, Message};
use crate::error::RowProblem;

/// Single-turn instructions.
pub(super) struct Alpaca;

impl DatasetFormat for Alpaca {
    fn name(&self) -> FormatName {
        FormatName::Alpaca
    }

    fn required(&self) -> &'static [&'static str] {
        &["instruction", "output"]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["input", "system"]
    }

    fn needs(&self) -> Needs {
        Needs::ChatTemplate
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        let instruction = row.text("instruction")?;
        let input = row.optional_text("input")?.filter(|input| !input.trim().is_empty());
        let system = row.optional_text("system")?.filter(|system| !system.is_empty());
        let question = match input {
            Some(input) => format!("{instruction}\n\n{input}"),
            None => instruction.to_owned(),
        };
        let mut messages: Vec<_> =
            system.map(|system| Message::new("system", system)).into_iter().collect();
        messages.push(Message::new("user", question));
        messages.push(Message::new("assistant", row.text("output")?));
        Ok(Sample::Conversation(Conversation::new(messages)))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn input_follows_the_instruction_after_an_empty_line() {
        let turns = |question: &str| {
            Sample::Conversation(Conversation::new(vec![
                Message::new("user", question),
                Message::new("assistant", "o"),
            ]))
        };
        for (row, question) in [
            (json!({"instruction": "i", "input": "x", "output": "o"}), "i\n\nx"),
            (json!({"instruction": "i", "input": "", "output": "o"}), "i"),
            (json!({"instruction": "i", "output": "o", "system": null}), "i"),
        ] {
            assert_eq!(sample(&Alpaca, &row).unwrap(), turns(question));
        }
    }

    #[test]
    fn a_missing_output_is_named() {
        let error = sample(&Alpaca, &json!({"instruction": "secret", "input": ""})).unwrap_err();
        assert_eq!(
            error,
            "field `output` is missing, expected a string; the row has `instruction`, `input`"
        );
    }
}
