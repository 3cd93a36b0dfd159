//! Looks up the columns of a row under the names that the file gives them.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::DatasetFormat;
use crate::error::RowProblem;
use crate::read::kind_of;

/// `columns` of a recipe: the format's name of a column to the file's.
#[derive(Debug, Clone)]
pub(crate) struct Mapping(BTreeMap<String, String>);

impl Mapping {
    pub(crate) fn new(columns: &BTreeMap<String, String>) -> Self {
        Self(columns.clone())
    }

    /// What the file calls a column of the format.
    pub(crate) fn name_in_file<'a>(&'a self, column: &'a str) -> &'a str {
        self.0.get(column).map_or(column, String::as_str)
    }

    /// A mapped column that the format does not have.
    pub(crate) fn unknown_in(&self, format: &dyn DatasetFormat) -> Option<&str> {
        let known = |name: &&String| {
            !format.required().contains(&name.as_str())
                && !format.optional().contains(&name.as_str())
        };
        self.0.keys().find(known).map(String::as_str)
    }
}

/// The columns of one row, under the names of the format.
pub(crate) struct Columns<'a> {
    row: &'a Map<String, Value>,
    mapping: &'a Mapping,
}

impl<'a> Columns<'a> {
    pub(crate) fn new(row: &'a Map<String, Value>, mapping: &'a Mapping) -> Self {
        Self { row, mapping }
    }

    /// What the file calls a column of the format.
    pub(crate) fn name_in_file(&self, column: &'a str) -> &str {
        self.mapping.name_in_file(column)
    }

    /// The value, unless it is absent or null.
    pub(super) fn get(&self, column: &'a str) -> Option<&'a Value> {
        self.row.get(self.mapping.name_in_file(column)).filter(|value| !value.is_null())
    }

    pub(super) fn missing(&self, column: &'a str, expected: &'static str) -> RowProblem {
        let names: Vec<_> = self.row.keys().map(String::as_str).collect();
        RowProblem::Missing {
            field: self.name_in_file(column).to_owned(),
            expected,
            present: if names.is_empty() { "no fields".to_owned() } else { quoted(&names) },
        }
    }

    pub(super) fn wrong_type(
        &self,
        column: &'a str,
        found: &Value,
        expected: &'static str,
    ) -> RowProblem {
        wrong_type(self.name_in_file(column), found, expected)
    }

    /// The text of a column, or `None` where it is absent or null.
    pub(super) fn optional_text(&self, column: &'a str) -> Result<Option<&'a str>, RowProblem> {
        match self.get(column) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(column, other, "a string")),
        }
    }

    /// The text of a column.
    pub(super) fn text(&self, column: &'a str) -> Result<&'a str, RowProblem> {
        self.optional_text(column)?.ok_or_else(|| self.missing(column, "a string"))
    }

    /// A list, or `None` where it is absent or null. CSV has no lists, and some exporters write
    /// them as text, so the JSON text of a list is one too.
    pub(super) fn optional_list(
        &self,
        column: &'a str,
        expected: &'static str,
    ) -> Result<Option<Cow<'a, [Value]>>, RowProblem> {
        match self.get(column) {
            None => Ok(None),
            Some(Value::Array(entries)) => Ok(Some(Cow::Borrowed(entries))),
            Some(Value::String(text)) => match serde_json::from_str(text) {
                Ok(Value::Array(entries)) => Ok(Some(Cow::Owned(entries))),
                _ => Err(RowProblem::WrongType {
                    field: self.name_in_file(column).to_owned(),
                    found: "a string that is not the JSON text of a list".to_owned(),
                    expected,
                }),
            },
            Some(other) => Err(self.wrong_type(column, other, expected)),
        }
    }

    /// A list.
    pub(super) fn list(
        &self,
        column: &'a str,
        expected: &'static str,
    ) -> Result<Cow<'a, [Value]>, RowProblem> {
        self.optional_list(column, expected)?.ok_or_else(|| self.missing(column, expected))
    }
}

/// A field of another type than it must have.
pub(super) fn wrong_type(field: &str, found: &Value, expected: &'static str) -> RowProblem {
    RowProblem::WrongType { field: field.to_owned(), found: kind_of(found), expected }
}

/// Names in backticks, with commas.
pub(crate) fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
