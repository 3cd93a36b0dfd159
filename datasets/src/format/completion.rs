//! `{"prompt", "completion"}`: a text to continue, and how it goes on.

use super::columns::Columns;
use super::{DatasetFormat, Needs, Sample};
use crate::config::{FormatName, LossOn};
use crate::error::RowProblem;

/// A prompt without loss and a completion with it.
pub(super) struct Completion;

impl DatasetFormat for Completion {
    fn name(&self) -> FormatName {
        FormatName::Completion
    }

    fn required(&self) -> &'static [&'static str] {
        &["prompt", "completion"]
    }

    fn needs(&self) -> Needs {
        Needs::EndOfSequence
    }

    fn loss_on(&self) -> &'static [LossOn] {
        &[LossOn::Assistant, LossOn::All]
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        Ok(Sample::Completion {
            prompt: row.text("prompt")?.to_owned(),
            completion: row.text("completion")?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn both_texts_are_kept_as_they_are() {
        let row = json!({"prompt": "a ", "completion": " b"});
        let expected = Sample::Completion { prompt: "a ".into(), completion: " b".into() };
        assert_eq!(sample(&Completion, &row).unwrap(), expected);
        let error = sample(&Completion, &json!({"prompt": 1, "completion": ""})).unwrap_err();
        assert_eq!(error, "field `prompt` is a number, expected a string");
    }
}
