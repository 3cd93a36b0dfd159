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
    let usual = Llama3Scaling { factor, low: LOW, high: HIGH, original: ORIGINAL };
    // Llama 4 has no blend between the two kinds of frequencies.
    let step = Llama3Scaling { high: LOW, ..usual };
    let other_step = step_length(factors, theta, factor).map(|original| Llama3Scaling {
        high: LOW,
        original,
        ..usual
    });
    let known = [usual, step].into_iter().chain(other_step);
    let found = known.into_iter().find(|scaling| scaling.has_factors(factors, theta))?;
    Some(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": found.low,
        "high_freq_factor": found.high,
        "original_max_position_embeddings": found.original as u64,
    }))
}

/// A length between the last wavelength that is kept and the first that is divided.
fn step_length(factors: &[f32], theta: f64, factor: f64) -> Option<f64> {
    let first = factors.iter().position(|&found| f64::from(found) == factor)?;
    let wavelength = |pair: usize| TAU * theta.powf(pair as f64 / factors.len() as f64);
    let kept = first.checked_sub(1).map_or(1.0, wavelength);
    let length = (kept * wavelength(first)).sqrt().round();
    (length < 1e15).then_some(length)
}

/// The scaling's parameters.
#[derive(Clone, Copy)]
pub(super) struct Llama3Scaling {
    pub(super) factor: f64,
    pub(super) low: f64,
    pub(super) high: f64,
    pub(super) original: f64,
}

impl Llama3Scaling {
    fn has_factors(&self, factors: &[f32], theta: f64) -> bool {
        let expected = self.factors(factors.len(), theta);
        let is_close = |(&found, expected): (&f32, &f64)| {
            (f64::from(found) - expected).abs() <= 1e-4 * expected
        };
        factors.iter().zip(&expected).all(is_close)
    }

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

    fn factors_of(pairs: usize, factor: f64, high: f64, original: f64) -> Vec<f64> {
        Llama3Scaling { factor, low: LOW, high, original }.factors(pairs, 500_000.0)
    }

    #[test]
    fn a_step_in_place_of_a_blend_is_recovered() {
        for original in [8192.0, 300.0] {
            let expected = factors_of(64, 16.0, LOW, original);
            let factors: Vec<f32> = expected.iter().map(|&x| x as f32).collect();
            let scaling = llama3_scaling(&factors, 500_000.0).unwrap();
            let found = scaling["original_max_position_embeddings"].as_f64().unwrap();
            assert_eq!(factors_of(64, 16.0, LOW, found), expected);
            assert_eq!(scaling["high_freq_factor"], json!(1.0));
        }
    }

    #[test]
    fn scaling_of_llama_3_1_is_recovered() {
        let factors: Vec<f32> =
            factors_of(64, 8.0, HIGH, ORIGINAL).iter().map(|&x| x as f32).collect();
        let scaling = llama3_scaling(&factors, 500_000.0).unwrap();
        assert_eq!(scaling["factor"], json!(8.0));
        assert_eq!(scaling["rope_type"], json!("llama3"));
    }

    #[test]
    fn other_factors_are_not_taken_for_it() {
        let mut factors: Vec<f32> =
            factors_of(32, 32.0, HIGH, ORIGINAL).iter().map(|&x| x as f32).collect();
        factors[20] *= 1.01;
        assert_eq!(llama3_scaling(&factors, 500_000.0), None);
        assert_eq!(llama3_scaling(&[], 500_000.0), None);
        assert_eq!(llama3_scaling(&[f32::NAN; 4], 500_000.0), None);
    }
}
