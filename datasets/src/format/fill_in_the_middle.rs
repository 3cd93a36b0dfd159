//! `{"prefix", "middle", "suffix"}`, or a text that is cut into them: code to be filled in.

use super::columns::Columns;
use super::{DatasetFormat, Needs, Sample};
use crate::config::{FormatName, LossOn};
use crate::error::RowProblem;

/// Parts of a text, or a text to be cut.
pub(super) struct FillInTheMiddle;

impl DatasetFormat for FillInTheMiddle {
    fn name(&self) -> FormatName {
        FormatName::FillInTheMiddle
    }

    fn required(&self) -> &'static [&'static str] {
        &["prefix", "middle", "suffix"]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["text"]
    }

    fn needs(&self) -> Needs {
        Needs::Sentinels
    }

    fn loss_on(&self) -> &'static [LossOn] {
        &[LossOn::Assistant, LossOn::All]
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        if let Some(text) = row.optional_text("text")? {
            return Ok(Sample::Source(text.to_owned()));
        }
        let part = |name| row.text(name).map(str::to_owned);
        Ok(Sample::FillInTheMiddle {
            prefix: part("prefix")?,
            middle: part("middle")?,
            suffix: part("suffix")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn parts_or_a_text() {
        let parts = json!({"prefix": "a", "middle": "b", "suffix": ""});
        let expected = Sample::FillInTheMiddle {
            prefix: "a".into(),
            middle: "b".into(),
            suffix: String::new(),
        };
        assert_eq!(sample(&FillInTheMiddle, &parts).unwrap(), expected);
        let text = json!({"text": "ab"});
        assert_eq!(sample(&FillInTheMiddle, &text).unwrap(), Sample::Source("ab".into()));
        assert!(sample(&FillInTheMiddle, &json!({"prefix": "a"})).unwrap_err().contains("middle"));
    }
}
