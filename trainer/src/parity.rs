//! How far a merged model's logits stand from base + adapter, with one block of weights in memory.

use adapters::weights::ModelFiles;
use adapters::{AdapterWeights, PeftConfig};
use burn::tensor::{DType, Device};
use serde::Serialize;

use crate::base_model::{ModelLoader, StreamedDecoder};
use crate::error::LoadError;

/// Most positions that are compared: two `[positions, vocab]` blocks of logits are held.
pub const MAX_POSITIONS: usize = 256;

/// Distance between two models' next-token distributions on the same text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LogitsParity {
    /// Positions compared.
    pub positions: usize,
    /// Largest difference of two logits.
    pub max_absolute_error: f64,
    /// Mean Kullback–Leibler divergence from base + adapter to merged, in nats.
    pub mean_kl: f64,
    /// Share of positions where both have the same best token.
    pub top_1_agreement: f64,
}

/// Bounds of [`LogitsParity`] by the merged model's number format.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ParityBound {
    /// Written in f32.
    Absolute {
        /// Largest difference of two logits.
        max_absolute_error: f64,
    },
    /// Written in 16 bit.
    Distribution {
        /// Largest mean divergence.
        mean_kl: f64,
        /// Smallest agreement.
        top_1_agreement: f64,
    },
}

impl ParityBound {
    /// For weights written in f32.
    pub const F32: Self = Self::Absolute { max_absolute_error: 1e-3 };
    /// For weights written in f16 or bf16.
    pub const SIXTEEN_BIT: Self = Self::Distribution { mean_kl: 1e-3, top_1_agreement: 0.99 };

    /// Whether a measured distance lies within; a figure that is not finite does not.
    pub fn holds(&self, parity: &LogitsParity) -> bool {
        match *self {
            Self::Absolute { max_absolute_error } => {
                parity.max_absolute_error <= max_absolute_error
            }
            Self::Distribution { mean_kl, top_1_agreement } => {
                parity.mean_kl <= mean_kl && parity.top_1_agreement >= top_1_agreement
            }
        }
    }
}

/// Compares base + adapter with merged on one stretch of text, in f32 on `device`.
pub fn compare_logits(
    (base, peft, weights): (&ModelFiles, &PeftConfig, &AdapterWeights),
    merged: &ModelFiles,
    token_ids: &[u32],
    device: &Device,
) -> Result<LogitsParity, LoadError> {
    let base = ModelLoader::new(base, device, DType::F32)?;
    let expected = TextLogits::of(&base, Some((peft, weights)), token_ids)?;
    let merged = ModelLoader::new(merged, device, DType::F32)?;
    Ok(expected.distance(&TextLogits::of(&merged, None, token_ids)?))
}

/// The logits of a model at every position of a text.
pub struct TextLogits<'a> {
    /// `[positions, vocab]`
    values: Vec<f32>,
    token_ids: &'a [u32],
}

impl<'a> TextLogits<'a> {
    /// Runs the model over the text, at most [`MAX_POSITIONS`] of it, with one block of weights in
    /// memory at a time.
    pub fn of(
        loader: &ModelLoader,
        adapter: Option<(&PeftConfig, &AdapterWeights)>,
        token_ids: &'a [u32],
    ) -> Result<Self, LoadError> {
        let limit = loader.config().position_limit().unwrap_or(MAX_POSITIONS);
        let token_ids = &token_ids[..token_ids.len().min(MAX_POSITIONS).min(limit)];
        let decoder = StreamedDecoder::run(loader, adapter, token_ids, &[0, token_ids.len()])?;
        let rows: Vec<usize> = (0..token_ids.len()).collect();
        Ok(Self { values: kernels::values(decoder.logits(&rows)), token_ids })
    }

    /// How far `actual`, of the same text, stands from these logits.
    pub fn distance(&self, actual: &Self) -> LogitsParity {
        distance(&self.values, &actual.values, self.token_ids.len())
    }

    /// Perplexity of the text: every token but the first is predicted.
    pub fn perplexity(&self) -> f64 {
        let vocab = (self.values.len() / self.token_ids.len().max(1)).max(1);
        let next = self.token_ids.iter().skip(1);
        let losses = self.values.chunks(vocab).zip(next).map(|(row, &token)| {
            let logit = row.get(token as usize).copied().unwrap_or(f32::NAN);
            log_sum_exp(row) - f64::from(logit)
        });
        let predicted = self.token_ids.len().saturating_sub(1).max(1);
        (losses.sum::<f64>() / predicted as f64).exp()
    }
}

fn distance(expected: &[f32], actual: &[f32], positions: usize) -> LogitsParity {
    let vocab = expected.len() / positions.max(1);
    let (mut largest, mut kl_sum, mut agreed) = (0.0_f64, 0.0, 0);
    for (expected, actual) in expected.chunks(vocab.max(1)).zip(actual.chunks(vocab.max(1))) {
        let (lse_expected, lse_actual) = (log_sum_exp(expected), log_sum_exp(actual));
        for (&e, &a) in expected.iter().zip(actual) {
            let (e, a) = (f64::from(e), f64::from(a));
            // `f64::max` would drop a NaN; here it stays once it is found.
            let error = (e - a).abs();
            if error.is_nan() || error > largest {
                largest = error;
            }
            let log_probability = e - lse_expected;
            kl_sum += log_probability.exp() * (log_probability - (a - lse_actual));
        }
        agreed += usize::from(crate::generate::best(expected) == crate::generate::best(actual));
    }
    LogitsParity {
        positions,
        max_absolute_error: largest,
        mean_kl: kl_sum / positions.max(1) as f64,
        top_1_agreement: agreed as f64 / positions.max(1) as f64,
    }
}

fn log_sum_exp(row: &[f32]) -> f64 {
    let largest = f64::from(row.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    row.iter().map(|&v| (f64::from(v) - largest).exp()).sum::<f64>().ln() + largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn perplexity_of_even_odds_is_the_size_of_the_vocabulary() {
        let even = TextLogits { values: vec![0.5; 12], token_ids: &[3, 0, 2] };
        assert!((even.perplexity() - 4.0).abs() < 1e-12);
        let sure = TextLogits { values: vec![0.0, 90.0, 90.0, 0.0], token_ids: &[0, 1] };
        assert!((sure.perplexity() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn equal_logits_have_no_distance() {
        let logits = [1.0, 2.0, -1.0, 0.5];
        let parity = distance(&logits, &logits, 2);
        assert_eq!(parity.max_absolute_error, 0.0);
        assert_eq!(parity.top_1_agreement, 1.0);
        assert!(parity.mean_kl.abs() < 1e-15);
        assert!(ParityBound::F32.holds(&parity) && ParityBound::SIXTEEN_BIT.holds(&parity));
    }

    #[test]
    fn a_broken_merge_is_out_of_bounds() {
        let parity = distance(&[0.0, 3.0], &[f32::NAN, 3.0], 1);
        assert!(!ParityBound::F32.holds(&parity) && !ParityBound::SIXTEEN_BIT.holds(&parity));
        let swapped = distance(&[0.0, 3.0], &[3.0, 0.0], 1);
        assert_eq!(swapped.top_1_agreement, 0.0);
        assert!(!ParityBound::SIXTEEN_BIT.holds(&swapped));
    }
}
