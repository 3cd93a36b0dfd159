//! Perplexity of texts: `exp` of the mean negative log-likelihood a token, word or byte.
//!
//! Two counts stand side by side. **Windows** ([`perplexity`]): the text is one stream of tokens
//! without special ones, cut into windows; in each window every token but the first is predicted.
//! A last window of at least 2 tokens counts. **Rolling** ([`text_perplexity`]), as lm-eval counts:
//! every token is predicted, the first from the prefix token, in windows as long as the model
//! takes; the sum is divided by the words or bytes of the text, so that models with different
//! tokenizers compare.

use datasets::{IGNORED, MicroBatch};
use serde::Deserialize;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::definition::read;
use super::encode::{Encoder, is_space};
use super::error::EvaluateError;
use super::likelihood::{log_likelihoods, rolling_requests};
use super::statistics::{Aggregate, Better};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};
use crate::base_model::Decoder;

/// Tokens that go through the model at once.
const TOKENS_PER_PASS: usize = 2048;

pub(super) const KIND: Kind = Kind { name: "perplexity", read: read::<Texts> };

/// Definition of a task over rows of texts.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Texts {
    /// What is scored.
    text: Template,
    /// What words and bytes are counted of, where that is not the text itself (wikitext).
    counted: Option<Template>,
}

impl Task for Texts {
    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        let texts: Vec<String> =
            items.rows.iter().map(|row| self.text.text(row)).collect::<Result<_, _>>()?;
        let counted: Vec<String> = match &self.counted {
            None => texts.clone(),
            Some(counted) => {
                items.rows.iter().map(|row| counted.text(row)).collect::<Result<_, _>>()?
            }
        };
        let scores = text_perplexity(model, &texts, done)?;
        Ok(measured(&scores, &counted))
    }
}

/// Sum of the negative log-likelihoods of one text, every token predicted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TextPerplexity {
    /// In nats.
    pub nll: f64,
    /// Predicted tokens.
    pub tokens: usize,
}

/// Scores texts in lm-eval's rolling windows; `done` is told the texts that are finished.
pub fn text_perplexity(
    model: &Model,
    texts: &[String],
    done: &mut dyn FnMut(u64),
) -> Result<Vec<TextPerplexity>, EvaluateError> {
    let encoder = Encoder::new(model.tokenizer, model.decoder)?;
    let (mut requests, mut counts) = (Vec::new(), Vec::new());
    for text in texts {
        let ids = encoder.encode(text)?;
        let windows = rolling_requests(&ids, encoder.prefix(), model.max_length());
        counts.push(windows.len());
        requests.extend(windows);
    }
    let (all, total) = (requests.len() as u64, texts.len() as u64);
    let scores = log_likelihoods(model.decoder, &requests, model.max_length(), &mut |scored| {
        done(scored * total / all.max(1));
    })?;
    let mut scores = scores.into_iter();
    let sum = |count| {
        let windows = scores.by_ref().take(count);
        windows.fold(TextPerplexity { nll: 0.0, tokens: 0 }, |sum, window| TextPerplexity {
            nll: sum.nll - window.sum,
            tokens: sum.tokens + window.tokens,
        })
    };
    Ok(counts.into_iter().map(sum).collect())
}

/// lm-eval's figures of some texts.
pub fn measured(scores: &[TextPerplexity], counted: &[String]) -> Measured {
    let words: Vec<f64> = counted.iter().map(|text| words(text) as f64).collect();
    let bytes: Vec<f64> = counted.iter().map(|text| text.len() as f64).collect();
    let tokens: Vec<f64> = scores.iter().map(|score| score.tokens as f64).collect();
    let metric = |name: &str, aggregate, units: &[f64]| Metric {
        name: name.to_owned(),
        aggregate,
        better: Better::Lower,
        items: scores.iter().zip(units).map(|(score, &units)| vec![score.nll, units]).collect(),
    };
    let sample = |(index, score): (usize, &TextPerplexity)| {
        json!({"item": index, "nll": score.nll, "tokens": score.tokens,
            "words": words[index], "bytes": bytes[index]})
    };
    Measured {
        metrics: vec![
            metric("word_perplexity", Aggregate::ExpRatio, &words),
            metric("byte_perplexity", Aggregate::ExpRatio, &bytes),
            metric("bits_per_byte", Aggregate::BitsRatio, &bytes),
        ],
        counts: [
            ("words".to_owned(), words.iter().sum::<f64>() as u64),
            ("bytes".to_owned(), bytes.iter().sum::<f64>() as u64),
            ("tokens".to_owned(), tokens.iter().sum::<f64>() as u64),
        ]
        .into(),
        samples: scores.iter().enumerate().map(sample).collect(),
        identity: 0,
    }
}

/// Words as lm-eval counts them, `len(re.split(r"\s+", text))`: one more than there are stretches
/// of white space.
fn words(text: &str) -> usize {
    let (mut stretches, mut inside) = (0, false);
    for letter in text.chars() {
        let space = is_space(letter);
        stretches += usize::from(space && !inside);
        inside = space;
    }
    stretches + 1
}

/// Figures of a stream of tokens in windows; an error where it is too short to predict anything.
///
/// Items are windows. `done` is told the predicted tokens so far after every pass.
pub fn perplexity(
    decoder: &Decoder,
    token_ids: &[u32],
    window: usize,
    done: &mut dyn FnMut(u64),
) -> Result<Measured, EvaluateError> {
    let (mut items, mut tokens) = (Vec::new(), 0);
    for batch in windows(token_ids, window) {
        items.extend(segment_losses(decoder, &batch));
        tokens += batch.trained_tokens() as u64;
        done(tokens);
    }
    if tokens == 0 {
        return Err(EvaluateError::Model("the text has fewer than 2 tokens".into()));
    }
    let metric = |name: &str, aggregate| Metric {
        name: name.to_owned(),
        aggregate,
        better: Better::Lower,
        items: items.clone(),
    };
    Ok(Measured {
        metrics: vec![
            metric("perplexity", Aggregate::ExpRatio),
            metric("nll_per_token", Aggregate::Ratio),
        ],
        counts: [("tokens".to_owned(), tokens)].into(),
        samples: Vec::new(),
        identity: identity(token_ids.iter().copied()),
    })
}

/// Tells streams of tokens apart.
pub fn identity(token_ids: impl Iterator<Item = u32>) -> u64 {
    let mut hash = Sha256::new();
    for id in token_ids {
        hash.update(id.to_le_bytes());
    }
    hash.finalize()[..8].iter().fold(0, |sum, &byte| (sum << 8) | u64::from(byte))
}

/// Summed loss and number of the predicted tokens of each segment.
pub fn segment_losses(decoder: &Decoder, batch: &MicroBatch) -> Vec<Vec<f64>> {
    let hidden = decoder.hidden(&batch.token_ids, &batch.segment_starts);
    let is_wanted = |&(_, &target): &(usize, &i32)| target != IGNORED;
    let targets = batch.targets.iter().enumerate().filter(is_wanted);
    let wanted: Vec<(usize, u32)> = targets.map(|(row, &target)| (row, target as u32)).collect();
    let mut scores = decoder.token_scores(&hidden, &wanted).into_iter();
    let segments = batch.segment_starts.windows(2);
    let loss = |segment: &[usize]| {
        let targets = &batch.targets[segment[0]..segment[1]];
        let predicted = targets.iter().filter(|&&target| target != IGNORED).count();
        let nll = scores.by_ref().take(predicted).map(|score| -score.log_probability);
        vec![nll.sum(), predicted as f64]
    };
    segments.map(loss).collect()
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

    #[test]
    fn words_are_counted_as_lm_eval_counts_them() {
        for (text, count) in [("", 1), ("a", 1), ("a b", 2), (" a \n b ", 4)] {
            assert_eq!(words(text), count, "{text:?}");
        }
    }
}
