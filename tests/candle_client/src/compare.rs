//! Whether two programs chose the same tokens.

use std::fmt;

use serde::Deserialize;

use crate::model::Step;

/// Two logits this close may change places by rounding alone.
const TIE: f32 = 0.05;

/// What `tunesmith generate --json` writes.
#[derive(Deserialize)]
pub struct Expected {
    /// Tokens that were read.
    pub prompt_ids: Vec<u32>,
    ids: Vec<u32>,
    /// The token that ended the text; it is not among `ids`.
    stop_id: Option<u32>,
}

impl Expected {
    /// All choices that were made.
    pub fn choices(&self) -> Vec<u32> {
        self.ids.iter().copied().chain(self.stop_id).collect()
    }
}

/// The outcome of a comparison.
pub enum Verdict {
    /// All choices agree.
    Same { choices: usize, narrowest: f32 },
    /// They agree up to one between two tokens whose logits are nearly equal.
    Tie { choices: usize, gap: f32 },
    /// They do not.
    Different { choice: usize, gap: f32, expected: u32, found: u32 },
}

/// Compares choice by choice; after a tie the texts differ, and nothing more is to be learnt.
pub fn compare(expected: &[u32], steps: &[Step]) -> Verdict {
    for (choice, (&expected, step)) in expected.iter().zip(steps).enumerate() {
        let (found, gap) = (step.id, step.gap);
        if expected == found {
            continue;
        }
        return if gap < TIE {
            Verdict::Tie { choices: choice, gap }
        } else {
            Verdict::Different { choice, gap, expected, found }
        };
    }
    let narrowest = steps.iter().map(|step| step.gap).fold(f32::INFINITY, f32::min);
    Verdict::Same { choices: steps.len(), narrowest }
}

impl fmt::Display for Verdict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Same { choices, narrowest } => {
                write!(formatter, "same: {choices} choices, narrowest gap {narrowest:.4}")
            }
            Self::Tie { choices, gap } => {
                write!(formatter, "same: {choices} choices, then a tie (gap {gap:.4} < {TIE})")
            }
            Self::Different { choice, gap, expected, found } => {
                write!(
                    formatter,
                    "DIFFERENT at choice {choice}: expected {expected}, candle takes {found} \
                     (gap {gap:.4})"
                )
            }
        }
    }
}
