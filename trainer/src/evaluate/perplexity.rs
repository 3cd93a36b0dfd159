//! Perplexity of a text: `exp` of the mean negative log-likelihood a token.
//!
//! The text is one stream of tokens without special ones, cut into windows; in each window every
//! token but the first is predicted. A last window of at least 2 tokens counts.

use datasets::{IGNORED, MicroBatch};
use serde::Serialize;

use crate::base_model::Decoder;

/// Tokens that go through the model at once.
const TOKENS_PER_PASS: usize = 2048;

/// Figures of one text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Perplexity {
    /// `exp(nll_per_token)`
    pub perplexity: f64,
    /// Mean over the predicted tokens, in nats.
    pub nll_per_token: f64,
    /// Predicted tokens.
    pub tokens: u64,
}

/// Perplexity of a stream of tokens; `None` where it is too short to predict anything.
///
/// `done` is told the predicted tokens so far after every pass.
pub fn perplexity(
    decoder: &Decoder,
    token_ids: &[u32],
    window: usize,
    done: &mut dyn FnMut(u64),
) -> Option<Perplexity> {
    let (mut nll, mut tokens) = (0.0, 0);
    for batch in windows(token_ids, window) {
        nll += decoder.loss_sum(&batch);
        tokens += batch.trained_tokens() as u64;
        done(tokens);
    }
    let nll_per_token = nll / tokens as f64;
    (tokens > 0).then(|| Perplexity { perplexity: nll_per_token.exp(), nll_per_token, tokens })
}

/// Windows as segments of micro-batches.
pub fn windows(token_ids: &[u32], window: usize) -> Vec<MicroBatch> {
    let per_pass = (TOKENS_PER_PASS / window.max(1)).max(1);
    let windows: Vec<&[u32]> =
        token_ids.chunks(window.max(2)).filter(|window| window.len() >= 2).collect();
    windows
        .chunks(per_pass)
        .map(|windows| {
            let mut batch = MicroBatch { segment_starts: vec![0], ..MicroBatch::default() };
            for window in windows {
                batch.token_ids.extend_from_slice(window);
                batch.targets.extend(window.iter().skip(1).map(|&id| id as i32));
                batch.targets.push(IGNORED);
                batch.segment_starts.push(batch.token_ids.len());
                batch.rows += 1;
            }
            batch
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_but_the_first_of_a_window_is_predicted() {
        let batches = windows(&[1, 2, 3, 4, 5, 6, 7], 3);
        assert_eq!(batches.len(), 1);
        assert_eq!(batches[0].token_ids, [1, 2, 3, 4, 5, 6]);
        assert_eq!(batches[0].targets, [2, 3, IGNORED, 5, 6, IGNORED]);
        assert_eq!(batches[0].segment_starts, [0, 3, 6]);
    }

    #[test]
    fn a_last_window_of_two_tokens_counts() {
        let tokens: usize =
            windows(&[1, 2, 3, 4, 5], 3).iter().map(MicroBatch::trained_tokens).sum();
        assert_eq!(tokens, 3);
        assert!(windows(&[1], 3).is_empty());
    }
}
