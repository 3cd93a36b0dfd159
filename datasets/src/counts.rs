//! Counts what became of the rows of a dataset: whatever is dropped, cut or masked is told.

use serde::{Deserialize, Serialize};

use crate::config::FormatName;

/// What the rows of a dataset are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DatasetRole {
    /// A `[[dataset]]`.
    Training,
    /// The `path` of `[validation]`.
    Validation,
}

/// What became of the rows of one dataset. Lengths are those of rows before they are cut.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatasetCounts {
    /// As written in the recipe.
    pub path: String,
    /// What its rows are for.
    pub role: DatasetRole,
    /// Format that its rows were read as.
    pub format: FormatName,
    /// Files read.
    pub files: u64,
    /// Files of a folder or glob that no reader knows.
    pub skipped_files: u64,
    /// Rows read.
    pub rows: u64,
    /// Rows whose text is empty; left out.
    pub empty: u64,
    /// Rows longer than `sequence_length`, left out by `on_overlong = "drop"`.
    pub dropped_overlong: u64,
    /// Rows cut by `on_overlong = "truncate"`.
    pub truncated: u64,
    /// Rows cut into several examples by `on_overlong = "split"`.
    pub split: u64,
    /// Rows in which no token carries loss, kept by `allow_untrained_rows`.
    pub untrained: u64,
    /// Rows held back by `[validation] fraction`.
    pub held_back: u64,
    /// Rows that became examples, those held back included.
    pub kept: u64,
    /// Examples that those rows became: more than rows where rows were split.
    pub examples: u64,
    /// Tokens of those examples.
    pub tokens: u64,
    /// Predicted tokens of those examples that carry loss.
    pub trained_tokens: u64,
    /// Tokens of those examples that carry none.
    pub masked_tokens: u64,
    /// Tokens of kept rows that no example holds: cut off, or a part without loss.
    pub cut_tokens: u64,
    /// Turns that carry loss and end in no token of the template.
    pub turns_without_end: u64,
    /// Tokens of the longest row.
    pub longest: u64,
    /// Half of the rows have at most this many tokens.
    pub median_length: u64,
    /// 95 % of the rows have at most this many tokens.
    pub p95_length: u64,
}

impl DatasetCounts {
    pub(crate) fn new(path: &str, role: DatasetRole, format: FormatName) -> Self {
        Self {
            path: path.to_owned(),
            role,
            format,
            files: 0,
            skipped_files: 0,
            rows: 0,
            empty: 0,
            dropped_overlong: 0,
            truncated: 0,
            split: 0,
            untrained: 0,
            held_back: 0,
            kept: 0,
            examples: 0,
            tokens: 0,
            trained_tokens: 0,
            masked_tokens: 0,
            cut_tokens: 0,
            turns_without_end: 0,
            longest: 0,
            median_length: 0,
            p95_length: 0,
        }
    }

    /// Sets the figures about lengths from those of all rows.
    pub(crate) fn set_lengths(&mut self, lengths: &mut [u32]) {
        lengths.sort_unstable();
        let quantile = |percent: usize| {
            let place = (lengths.len() * percent).div_ceil(100).saturating_sub(1);
            lengths.get(place).copied().map_or(0, u64::from)
        };
        self.median_length = quantile(50);
        self.p95_length = quantile(95);
        self.longest = quantile(100);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_lengths_that_occur() {
        let mut counts = DatasetCounts::new("x", DatasetRole::Training, FormatName::Text);
        counts.set_lengths(&mut []);
        assert_eq!((counts.median_length, counts.p95_length, counts.longest), (0, 0, 0));
        counts.set_lengths(&mut (1..=100).rev().collect::<Vec<_>>());
        assert_eq!((counts.median_length, counts.p95_length, counts.longest), (50, 95, 100));
        counts.set_lengths(&mut [7]);
        assert_eq!((counts.median_length, counts.p95_length, counts.longest), (7, 7, 7));
    }
}
