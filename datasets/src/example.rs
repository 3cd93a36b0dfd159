//! The values that leave this crate: tokenized examples and micro-batches.

/// Label of a token that carries no loss, as in `PyTorch` and `transformers`.
pub const IGNORED: i32 = -100;

/// One example after tokenization; `labels` stand at the token they name (not shifted).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenizedExample {
    /// Ids of the tokens.
    pub token_ids: Vec<u32>,
    /// The token's id where it carries loss, else [`IGNORED`]. Same length as `token_ids`.
    pub labels: Vec<i32>,
    /// Which `[[dataset]]` it came from, counting from 0.
    pub dataset: u32,
    /// Where it came from, for messages: never its content.
    pub origin: Origin,
}

impl TokenizedExample {
    /// Number of predicted tokens that carry loss: labels that are not ignored, the first left out
    /// because nothing predicts it.
    pub fn trained_tokens(&self) -> usize {
        self.labels.iter().skip(1).filter(|&&label| label != IGNORED).count()
    }
}

/// Place of a row on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    /// Index into [`crate::Dataset::files`].
    pub file: u32,
    /// Line of a text format, row of a table, counting from 1.
    pub line: u64,
    /// Part of a row that was split, counting from 0.
    pub part: u32,
}

/// What goes through the model at once: several rows, each of one or more segments, end to end
/// without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MicroBatch {
    /// Tokens of all segments, end to end: `[tokens]`.
    pub token_ids: Vec<u32>,
    /// The token each position predicts, [`IGNORED`] where there is none: `[tokens]`. Already
    /// shifted, and never across the border of two segments.
    pub targets: Vec<i32>,
    /// Where each segment starts, and at last the number of tokens: `[segments + 1]`. A segment
    /// sees itself alone and its positions count from 0.
    pub segment_starts: Vec<usize>,
    /// Rows (sequences) that it was made of.
    pub rows: usize,
}

impl MicroBatch {
    /// Adds one example as a segment of its own.
    pub fn push(&mut self, example: &TokenizedExample) {
        if self.segment_starts.is_empty() {
            self.segment_starts.push(0);
        }
        self.token_ids.extend_from_slice(&example.token_ids);
        self.targets.extend(example.labels.iter().skip(1));
        self.targets.push(IGNORED);
        self.segment_starts.push(self.token_ids.len());
    }

    /// Targets that carry loss.
    pub fn trained_tokens(&self) -> usize {
        self.targets.iter().filter(|&&target| target != IGNORED).count()
    }
}
