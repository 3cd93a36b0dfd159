//! `{"text"}`, or the text of a plain file: all of it is learned.

use super::columns::Columns;
use super::{DatasetFormat, Needs, Sample};
use crate::config::{FormatName, LossOn};
use crate::error::RowProblem;

/// A text.
pub(super) struct Text;

impl DatasetFormat for Text {
    fn name(&self) -> FormatName {
        FormatName::Text
    }

    fn required(&self) -> &'static [&'static str] {
        &["text"]
    }

    fn needs(&self) -> Needs {
        Needs::EndOfSequence
    }

    fn loss_on(&self) -> &'static [LossOn] {
        &[LossOn::Assistant, LossOn::All]
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        Ok(Sample::Text(row.text("text")?.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn the_text_is_kept_as_it_is() {
        assert_eq!(sample(&Text, &json!({"text": " a\n"})).unwrap(), Sample::Text(" a\n".into()));
        assert!(sample(&Text, &json!({"text": null})).unwrap_err().contains("missing"));
    }
}
