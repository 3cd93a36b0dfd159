//! Tables, as the template shows them.

use serde::Serialize;

/// A table.
#[derive(Debug, Serialize)]
pub(super) struct Table {
    pub(super) head: Vec<Cell>,
    pub(super) rows: Vec<Vec<Cell>>,
}

/// A cell and its class in the style sheet.
#[derive(Debug, Serialize)]
pub(super) struct Cell {
    pub(super) text: String,
    pub(super) class: &'static str,
}

impl Table {
    /// A table without rows.
    pub(super) fn new(head: impl IntoIterator<Item = Cell>) -> Self {
        Self { head: head.into_iter().collect(), rows: Vec::new() }
    }
}

impl Cell {
    /// Stands on the left.
    pub(super) fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "" }
    }

    /// Stands on the right.
    pub(super) fn number(text: impl Into<String>) -> Self {
        Self { text: text.into(), class: "n" }
    }
}
