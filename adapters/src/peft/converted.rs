//! An adapter that began as a part of the base, as one that fits the whole base.
//!
//! It was trained over `W - s·B₀·A₀`, so over `W` it is `s·(B·A - B₀·A₀)`: a plain LoRA of twice the
//! rank. PEFT makes the same of it with `path_initial_model_for_weight_conversion`.

use std::borrow::Cow;

use super::config::{PeftConfig, Scaling};
use super::{AdapterWeights, LoraFactors};

/// The adapter as files hold it.
pub(super) fn for_whole_base<'a>(
    config: &'a PeftConfig,
    weights: &'a AdapterWeights,
) -> (Cow<'a, PeftConfig>, Cow<'a, AdapterWeights>) {
    if weights.starts.is_empty() {
        return (Cow::Borrowed(config), Cow::Borrowed(weights));
    }
    let difference = |(module, factors): (&String, &LoraFactors)| {
        let whole = match weights.starts.get(module) {
            Some(start) => factors.minus(start),
            None => factors.clone(),
        };
        (module.clone(), whole)
    };
    let converted = AdapterWeights {
        modules: weights.modules.iter().map(difference).collect(),
        magnitudes: weights.magnitudes.clone(),
        whole: weights.whole.clone(),
        ..AdapterWeights::default()
    };
    (Cow::Owned(config.of_twice_the_rank()), Cow::Owned(converted))
}

impl PeftConfig {
    /// Ranks doubled, scales as they are.
    fn of_twice_the_rank(&self) -> Self {
        let factor = match self.scaling {
            Scaling::ByRank => 2.0,
            Scaling::BySquareRootOfRank => std::f64::consts::SQRT_2,
        };
        Self {
            rank: 2 * self.rank,
            alpha: factor * self.alpha,
            rank_pattern: self.rank_pattern.map(|rank| 2 * rank),
            alpha_pattern: self.alpha_pattern.map(|alpha| factor * alpha),
            ..self.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_difference_has_twice_the_rank_and_splits_again() {
        let factors = |shift: f32| LoraFactors {
            a: (0..6).map(|n| n as f32 + shift).collect(),
            b: (0..8).map(|n| n as f32 - shift).collect(),
            rank: 2,
            d_in: 3,
            d_out: 4,
        };
        let whole = factors(0.5).minus(&factors(7.0));
        assert_eq!((whole.rank, whole.a.len(), whole.b.len()), (4, 12, 16));
        assert_eq!(whole.halves(), (factors(0.5), factors(7.0)));
        assert!(whole.fault().is_none());
    }
}
