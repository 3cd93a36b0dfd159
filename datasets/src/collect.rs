//! Gathers what became of the rows of a dataset: examples, counts, and what must be reported.

use std::path::Path;

use crate::config::OnOverlong;
use crate::counts::DatasetCounts;
use crate::error::{DatasetError, Place, SHOWN_ERRORS};
use crate::example::{Origin, TokenizedExample};
use crate::overlong::{Fitted, Kept};

/// Places that one message shows.
const SHOWN_PLACES: usize = 5;

/// What became of one row that could be read and tokenized.
pub(crate) enum Outcome {
    /// Without text.
    Empty,
    Row {
        line: u64,
        length: usize,
        turns_without_end: usize,
        fitted: Fitted,
    },
}

/// Rows with one fault.
#[derive(Debug, Default)]
struct Faulty {
    rows: u64,
    first: Vec<Place>,
}

impl Faulty {
    fn add(&mut self, path: &Path, line: u64) {
        self.rows += 1;
        if self.first.len() < SHOWN_PLACES {
            self.first.push(Place { path: path.to_path_buf(), line });
        }
    }
}

/// The rows of one dataset so far.
pub(crate) struct Collector {
    pub(crate) counts: DatasetCounts,
    examples: Vec<TokenizedExample>,
    /// Tokens of every row before it was cut.
    lengths: Vec<u32>,
    errors: Vec<DatasetError>,
    error_count: usize,
    overlong: Faulty,
    untrained: Faulty,
}

impl Collector {
    pub(crate) fn new(counts: DatasetCounts) -> Self {
        Self {
            counts,
            examples: Vec::new(),
            lengths: Vec::new(),
            errors: Vec::new(),
            error_count: 0,
            overlong: Faulty::default(),
            untrained: Faulty::default(),
        }
    }

    /// Rows that could not be read or understood.
    pub(crate) fn errors(&self) -> usize {
        self.error_count
    }

    /// Takes the next row of `path`, which is file number `file` of the dataset.
    pub(crate) fn add(&mut self, path: &Path, file: u32, outcome: Result<Outcome, DatasetError>) {
        self.counts.rows += 1;
        match outcome {
            Err(error) => {
                self.error_count += 1;
                if self.errors.len() < SHOWN_ERRORS {
                    self.errors.push(error);
                }
            }
            Ok(Outcome::Empty) => self.counts.empty += 1,
            Ok(Outcome::Row { line, length, turns_without_end, fitted }) => {
                self.lengths.push(u32::try_from(length).unwrap_or(u32::MAX));
                self.counts.turns_without_end += turns_without_end as u64;
                match fitted {
                    Fitted::Dropped => self.counts.dropped_overlong += 1,
                    Fitted::TooLong => self.overlong.add(path, line),
                    Fitted::Untrained => self.untrained.add(path, line),
                    Fitted::Kept(kept) => self.keep(file, line, kept),
                }
            }
        }
    }

    fn keep(&mut self, file: u32, line: u64, kept: Kept) {
        self.counts.kept += 1;
        self.counts.untrained += kept.untrained;
        self.counts.cut_tokens += kept.cut_tokens as u64;
        // Parts beyond the first, or parts left out, come from `split`; one first part that lost
        // its end comes from `truncate`.
        let split = kept.parts.len() > 1 || kept.parts.first().is_some_and(|(part, ..)| *part > 0);
        self.counts.split += u64::from(split);
        self.counts.truncated += u64::from(!split && kept.cut_tokens > 0);
        for (part, token_ids, labels) in kept.parts {
            let origin = Origin { file, line, part };
            let example = TokenizedExample { token_ids, labels, dataset: 0, origin };
            let trained = example.trained_tokens() as u64;
            let tokens = example.token_ids.len() as u64;
            self.counts.examples += 1;
            self.counts.tokens += tokens;
            self.counts.trained_tokens += trained;
            self.counts.masked_tokens += tokens - trained;
            self.examples.push(example);
        }
    }

    /// The examples and counts, or everything that is wrong with the rows.
    pub(crate) fn finish(
        mut self,
        sequence_length: usize,
        on_overlong: OnOverlong,
    ) -> Result<(Vec<TokenizedExample>, DatasetCounts), DatasetError> {
        self.counts.set_lengths(&mut self.lengths);
        let pattern = self.counts.path.clone();
        let mut errors = std::mem::take(&mut self.errors);
        let mut total = self.error_count;
        if self.overlong.rows > 0 {
            total += 1;
            errors.push(DatasetError::Overlong {
                pattern: pattern.clone(),
                rows: self.overlong.rows,
                all: self.counts.rows,
                sequence_length,
                longest: self.counts.longest as usize,
                first: self.overlong.first,
            });
        }
        if self.untrained.rows > 0 {
            total += 1;
            errors.push(DatasetError::Untrained {
                pattern: pattern.clone(),
                rows: self.untrained.rows,
                all: self.counts.rows,
                cause: match on_overlong {
                    OnOverlong::Truncate => " within `sequence_length`",
                    OnOverlong::Error | OnOverlong::Drop | OnOverlong::Split => "",
                },
                first: self.untrained.first,
            });
        }
        if let Some(error) = DatasetError::from_many(errors, total) {
            return Err(error);
        }
        if self.counts.rows == 0 {
            return Err(DatasetError::NoRows { pattern });
        }
        if self.examples.is_empty() {
            let DatasetCounts { rows, empty, dropped_overlong, .. } = self.counts;
            let reason =
                format!("of {rows} rows, {empty} are empty and {dropped_overlong} are too long");
            return Err(DatasetError::NothingLeft { pattern, reason });
        }
        Ok((self.examples, self.counts))
    }
}
