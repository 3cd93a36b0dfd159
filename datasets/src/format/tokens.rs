//! `{"input_ids", "labels"}`: tokens as another program made them.

use serde_json::Value;

use super::columns::{Columns, wrong_type};
use super::{DatasetFormat, Needs, Sample};
use crate::config::{FormatName, LossOn};
use crate::error::RowProblem;
use crate::example::IGNORED;

/// Ids, and labels that stand at the token they name: the model shifts.
pub(super) struct Tokens;

const IDS: &str = "a list of token ids";
const LABELS: &str = "a list of token ids, -100 where no loss is wanted";

impl DatasetFormat for Tokens {
    fn name(&self) -> FormatName {
        FormatName::Tokens
    }

    fn required(&self) -> &'static [&'static str] {
        &["input_ids", "labels"]
    }

    fn needs(&self) -> Needs {
        Needs::Nothing
    }

    fn loss_on(&self) -> &'static [LossOn] {
        &[LossOn::Assistant]
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        let ids = row.list("input_ids", IDS)?;
        let labels = row.list("labels", LABELS)?;
        if ids.is_empty() {
            return Err(row.wrong_type("input_ids", &Value::Array(Vec::new()), IDS));
        }
        if ids.len() != labels.len() {
            return Err(RowProblem::UnequalLengths { ids: ids.len(), labels: labels.len() });
        }
        let token_ids = numbers(row.name_in_file("input_ids"), &ids, IDS, |id| {
            u32::try_from(id).ok().filter(|id| i32::try_from(*id).is_ok())
        })?;
        let labels = numbers(row.name_in_file("labels"), &labels, LABELS, |label| {
            i32::try_from(label).ok().filter(|&label| label >= 0 || label == IGNORED)
        })?;
        Ok(Sample::Tokens { token_ids, labels })
    }
}

fn numbers<T>(
    name: &str,
    values: &[Value],
    expected: &'static str,
    convert: impl Fn(i64) -> Option<T>,
) -> Result<Vec<T>, RowProblem> {
    let number = |(index, value): (usize, &Value)| {
        let field = || format!("{name}[{index}]");
        let Some(integer) = value.as_i64() else {
            return Err(match value {
                Value::Number(_) => out_of_range(field(), expected),
                other => wrong_type(&field(), other, expected),
            });
        };
        convert(integer).ok_or_else(|| out_of_range(field(), expected))
    };
    values.iter().enumerate().map(number).collect()
}

fn out_of_range(field: String, expected: &'static str) -> RowProblem {
    RowProblem::WrongType { field, found: "a number that is no token id".to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    #[test]
    fn ids_and_labels_are_kept_as_they_are() {
        let row = json!({"input_ids": [1, 2, 3], "labels": [-100, 2, 7]});
        let expected = Sample::Tokens { token_ids: vec![1, 2, 3], labels: vec![-100, 2, 7] };
        assert_eq!(sample(&Tokens, &row).unwrap(), expected);
        let text = json!({"input_ids": "[1, 2, 3]", "labels": "[-100, 2, 7]"});
        assert_eq!(sample(&Tokens, &text).unwrap(), expected);
    }

    #[test]
    fn what_is_no_token_is_named_with_its_place() {
        for (ids, labels, expected) in [
            (json!([1, -2]), json!([1, 2]), "`input_ids[1]` is a number that is no token id"),
            (json!([1, 2.5]), json!([1, 2]), "`input_ids[1]` is a number that is no token id"),
            (json!([1, 4_000_000_000_u64]), json!([1, 2]), "`input_ids[1]` is a number that is no"),
            (
                json!([1, "a"]),
                json!([1, 2]),
                "`input_ids[1]` is a string, expected a list of token",
            ),
            (json!([1, 2]), json!([1, -1]), "`labels[1]` is a number that is no token id"),
            (json!([1, 2]), json!([1]), "`input_ids` has 2 entries and `labels` has 1"),
            (json!([]), json!([]), "`input_ids` is a list of 0, expected a list of token ids"),
            (json!(3), json!([]), "`input_ids` is a number, expected a list of token ids"),
        ] {
            let error = sample(&Tokens, &json!({"input_ids": ids, "labels": labels})).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
