//! Shows rows as training sees them: which tokens, which of them carry loss, where examples meet.

use serde::Serialize;

use crate::error::{DatasetError, Place};
use crate::example::{IGNORED, TokenizedExample};
use crate::load::Dataset;
use crate::sampler::EpochPlan;
use crate::tokenizer::{SpecialTokens, Tokenizer};

/// One row of a micro-batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreviewRow {
    /// The examples that were packed into it, or the only one.
    pub segments: Vec<PreviewSegment>,
}

/// One example of a row: sees itself alone, and its positions count from 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreviewSegment {
    /// File and line, as `file:line`.
    pub place: String,
    /// Which part of a row that was split, counting from 0.
    pub part: u32,
    /// Its tokens.
    pub tokens: Vec<PreviewToken>,
}

/// One token of a row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PreviewToken {
    /// Its id.
    pub id: u32,
    /// Its entry in the vocabulary.
    pub token: String,
    /// The text it completes; empty where it ends inside a character.
    pub text: String,
    /// Whether the model is trained to predict it.
    pub trained: bool,
}

impl PreviewRow {
    /// Tokens of all its segments.
    pub fn tokens(&self) -> usize {
        self.segments.iter().map(|segment| segment.tokens.len()).sum()
    }
}

/// The first `rows` rows of an epoch, as training sees them.
pub fn preview(
    dataset: &Dataset,
    plan: &EpochPlan,
    tokenizer: &Tokenizer,
    rows: usize,
) -> Result<Vec<PreviewRow>, DatasetError> {
    let segment = |index: &u32| match dataset.train.get(*index as usize) {
        Some(example) => {
            preview_segment(example, &dataset.place(example.origin), tokenizer).map(Some)
        }
        None => Ok(None),
    };
    let row = |row: &Vec<u32>| {
        let segments = row.iter().filter_map(|index| segment(index).transpose());
        Ok(PreviewRow { segments: segments.collect::<Result<_, _>>()? })
    };
    plan.rows().iter().take(rows).map(row).collect()
}

fn preview_segment(
    example: &TokenizedExample,
    place: &Place,
    tokenizer: &Tokenizer,
) -> Result<PreviewSegment, DatasetError> {
    let mut stream = tokenizer.stream(SpecialTokens::Keep);
    let mut tokens = Vec::with_capacity(example.token_ids.len());
    for (position, (&id, &label)) in example.token_ids.iter().zip(&example.labels).enumerate() {
        tokens.push(PreviewToken {
            id,
            token: tokenizer.token_text(id).unwrap_or_default(),
            text: stream.push(id)?,
            // Nothing stands before the first token that could predict it.
            trained: position > 0 && label != IGNORED,
        });
    }
    if let Some(last) = tokens.last_mut() {
        last.text.push_str(&stream.finish()?);
    }
    Ok(PreviewSegment { place: place.to_string(), part: example.origin.part, tokens })
}
