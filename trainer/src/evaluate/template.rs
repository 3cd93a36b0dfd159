//! Templates of task definitions.

use std::fmt;

use datasets::{RowTemplate, SourceRow};
use serde::Deserialize;
use serde_json::Value;

use super::error::EvaluateError;

/// A template over a row: the name of a column, or Jinja.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Template(RowTemplate);

impl TryFrom<String> for Template {
    type Error = String;

    fn try_from(source: String) -> Result<Self, String> {
        RowTemplate::new(&source).map(Self).map_err(|error| error.0)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.0.source())
    }
}

impl Template {
    /// The text for a row.
    pub(super) fn text(&self, row: &SourceRow) -> Result<String, EvaluateError> {
        self.0.text(&row.fields).map_err(|error| failed(row, error.0))
    }

    /// The value for a row.
    pub(super) fn value(&self, row: &SourceRow) -> Result<Value, EvaluateError> {
        self.0.value(&row.fields).map_err(|error| failed(row, error.0))
    }

    /// Whether it is the name of a column of the row.
    pub(super) fn is_column(&self, row: &SourceRow) -> bool {
        self.0.is_column(&row.fields)
    }
}

/// An error at a row.
pub(crate) fn failed(row: &SourceRow, problem: impl Into<String>) -> EvaluateError {
    EvaluateError::Row { place: row.place.clone(), problem: problem.into() }
}

/// Several texts: one template that gives a list, or a list of templates.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub(super) enum Texts {
    /// Gives a list of texts.
    One(Template),
    /// Each gives a text.
    Each(Vec<Template>),
}

impl Texts {
    /// The texts for a row; at least one.
    pub(super) fn texts(&self, row: &SourceRow) -> Result<Vec<String>, EvaluateError> {
        let texts = match self {
            Self::Each(templates) => {
                templates.iter().map(|template| template.text(row)).collect::<Result<_, _>>()?
            }
            Self::One(template) => list(&template.value(row)?)
                .ok_or_else(|| failed(row, format!("`{template}` gives no list of texts")))?,
        };
        if texts.is_empty() {
            return Err(failed(row, "the list of texts is empty"));
        }
        Ok(texts)
    }
}

/// A text, or a list of texts, as a list.
pub(crate) fn one_or_more(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Array(_) => list(value),
        other => scalar(other).map(|text| vec![text]),
    }
}

fn list(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(scalar).collect()
}

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(value) => Some(if *value { "True" } else { "False" }.to_owned()),
        _ => None,
    }
}
