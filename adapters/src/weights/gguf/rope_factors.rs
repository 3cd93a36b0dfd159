//! Recovers Llama 3's rotary scaling from the factors that a GGUF stores in its place.
//!
//! For a frequency of wavelength λ, with `original` the context of the first training:
//! the divisor is 1 where λ < original / high, `factor` where λ > original / low, and between them
//! `1 / ((1 - s) / factor + s)` with `s = (original / λ - low) / (high - low)`.

use std::f64::consts::TAU;

use serde_json::{Value, json};

const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: f64 = 8192.0;

/// The HF `rope_scaling` whose divisors are `factors`, one for each rotary pair.
pub(super) fn llama3_scaling(factors: &[f32], theta: f64) -> Option<Value> {
    let factor: f64 = factors.last()?.to_string().parse().ok()?;
    if !(factor.is_finite() && factor >= 1.0) {
        return None;
    }
    let expected = llama3_factors(factors.len(), theta, factor);
    let same = factors
        .iter()
        .zip(&expected)
        .all(|(&found, expected)| (f64::from(found) - expected).abs() <= 1e-4 * expected);
    same.then(|| {
        json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": LOW,
            "high_freq_factor": HIGH,
            "original_max_position_embeddings": ORIGINAL as u64,
        })
    })
}

fn llama3_factors(pairs: usize, theta: f64, factor: f64) -> Vec<f64> {
    Llama3Scaling { factor, low: LOW, high: HIGH, original: ORIGINAL }.factors(pairs, theta)
}

/// The scaling's parameters.
pub(super) struct Llama3Scaling {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Llama3Scaling {
    /// The divisor of each rotary pair.
    pub(super) fn factors(&self, pairs: usize, theta: f64) -> Vec<f64> {
        let Self { factor, low, high, original } = *self;
        let divisor = |pair: usize| {
            let wavelength = TAU * theta.powf(pair as f64 / pairs as f64);
            if wavelength < original / high {
                1.0
            } else if wavelength > original / low {
                factor
            } else {
                let smooth = (original / wavelength - low) / (high - low);
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..pairs).map(divisor).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scaling_of_llama_3_1_is_recovered() {
        let factors: Vec<f32> =
            llama3_factors(64, 500_000.0, 8.0).iter().map(|&x| x as f32).collect();
        let scaling = llama3_scaling(&factors, 500_000.0).unwrap();
        assert_eq!(scaling["factor"], json!(8.0));
        assert_eq!(scaling["rope_type"], json!("llama3"));
    }

    #[test]
    fn other_factors_are_not_taken_for_it() {
        let mut factors: Vec<f32> =
            llama3_factors(32, 500_000.0, 32.0).iter().map(|&x| x as f32).collect();
        factors[20] *= 1.01;
        assert_eq!(llama3_scaling(&factors, 500_000.0), None);
        assert_eq!(llama3_scaling(&[], 500_000.0), None);
        assert_eq!(llama3_scaling(&[f32::NAN; 4], 500_000.0), None);
    }
}
