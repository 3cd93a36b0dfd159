//! Figures over the items of a task: values, standard errors, paired differences.
//!
//! Every metric is a function of the sums of some numbers an item, so that one bootstrap serves
//! means, perplexities and corpus scores alike.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde::{Deserialize, Serialize};

use super::{bleu, chrf};

/// Samples with replacement that an interval rests on.
pub const RESAMPLES: usize = 2000;

/// How the sums over items become a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Aggregate {
    /// The mean of one number.
    Mean,
    /// The first sum over the second.
    Ratio,
    /// `exp` of the first sum over the second.
    ExpRatio,
    /// The first sum over the second, in bits.
    BitsRatio,
    /// BLEU of summed n-gram counts.
    Bleu,
    /// chrF of summed n-gram counts.
    Chrf,
    /// Unweighted mean of the labels' F1: counts of right, predicted and true ones a label.
    MacroF1,
}

impl Aggregate {
    fn value(self, sums: &[f64], items: f64) -> f64 {
        match self {
            Self::Mean => sums[0] / items,
            Self::Ratio => sums[0] / sums[1],
            Self::ExpRatio => (sums[0] / sums[1]).exp(),
            Self::BitsRatio => sums[0] / sums[1] / std::f64::consts::LN_2,
            Self::Bleu => bleu::score(sums),
            Self::Chrf => chrf::score(sums),
            Self::MacroF1 => macro_f1(sums),
        }
    }
}

fn macro_f1(sums: &[f64]) -> f64 {
    let f1 = |counts: &[f64]| {
        let (right, all) = (counts[0], counts[1] + counts[2]);
        if all > 0.0 { 2.0 * right / all } else { 0.0 }
    };
    let labels = sums.chunks_exact(3);
    let count = labels.len() as f64;
    labels.map(f1).sum::<f64>() / count
}

/// Which direction is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Better {
    /// More.
    Higher,
    /// Less.
    Lower,
}

/// One figure of a task and the numbers behind it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Metric {
    /// Its name in tables and JSON.
    pub name: String,
    /// How it comes from the items.
    pub aggregate: Aggregate,
    /// Which direction is better.
    pub better: Better,
    /// The numbers of each item.
    pub items: Vec<Vec<f64>>,
}

impl Metric {
    /// A mean over items, more is better.
    pub fn mean(name: &str, items: impl IntoIterator<Item = f64>) -> Self {
        Self {
            name: name.to_owned(),
            aggregate: Aggregate::Mean,
            better: Better::Higher,
            items: items.into_iter().map(|value| vec![value]).collect(),
        }
    }

    /// The figure.
    pub fn value(&self) -> f64 {
        let mut sums = vec![0.0; self.items.first().map_or(0, Vec::len)];
        for item in &self.items {
            add(&mut sums, item);
        }
        self.aggregate.value(&sums, self.items.len() as f64)
    }

    /// Its standard error; `None` below two items. Of a mean, the deviation of the items over the
    /// root of their number; else the deviation of the figure over [`RESAMPLES`] of the items.
    pub fn standard_error(&self, seed: u64) -> Option<f64> {
        let count = self.items.len() as f64;
        if self.items.len() < 2 {
            return None;
        }
        if self.aggregate == Aggregate::Mean {
            let values: Vec<f64> = self.items.iter().map(|item| item[0]).collect();
            return Some(deviation(&values) / count.sqrt());
        }
        let mut values = Vec::with_capacity(RESAMPLES);
        resample(self.items.len(), seed, |picked| values.push(self.value_of(picked)));
        Some(deviation(&values))
    }

    fn value_of(&self, picked: &[usize]) -> f64 {
        let mut sums = vec![0.0; self.items.first().map_or(0, Vec::len)];
        for &item in picked {
            add(&mut sums, &self.items[item]);
        }
        self.aggregate.value(&sums, picked.len() as f64)
    }
}

fn add(sums: &mut [f64], item: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(item) {
        *sum += value;
    }
}

/// Sample standard deviation.
fn deviation(values: &[f64]) -> f64 {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (squares / (count - 1.0)).sqrt()
}

/// Draws [`RESAMPLES`] times as many items as there are, with replacement.
///
/// Draws come from `ChaCha8` under the seed, 64 bits an item, scaled down by a multiplication.
fn resample(items: usize, seed: u64, mut take: impl FnMut(&[usize])) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut picked = vec![0; items];
    for _ in 0..RESAMPLES {
        for place in &mut picked {
            *place = ((u128::from(random.next_u64()) * items as u128) >> 64) as usize;
        }
        take(&picked);
    }
}

/// What a difference between two targets says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The whole interval is on the better side.
    #[serde(rename = "better")]
    Better,
    /// The whole interval is on the worse side.
    #[serde(rename = "worse")]
    Worse,
    /// The interval holds 0.
    #[serde(rename = "no difference seen")]
    NoDifferenceSeen,
}

impl Verdict {
    /// As tables show it.
    pub fn text(self) -> &'static str {
        match self {
            Self::Better => "better",
            Self::Worse => "worse",
            Self::NoDifferenceSeen => "no difference seen",
        }
    }
}

/// The difference of a figure between two targets on the same items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Difference {
    /// The target's figure less the baseline's.
    pub difference: f64,
    /// 95 % interval of the paired bootstrap.
    pub interval: [f64; 2],
    /// What it says.
    pub verdict: Verdict,
    /// Items of both.
    pub items: usize,
}

/// Compares two targets item by item; `None` where their items are not the same ones or too few.
pub fn compare(baseline: &Metric, target: &Metric, seed: u64) -> Option<Difference> {
    let items = baseline.items.len();
    if items != target.items.len() || items < 2 || baseline.aggregate != target.aggregate {
        return None;
    }
    let mut differences = Vec::with_capacity(RESAMPLES);
    resample(items, seed, |picked| {
        differences.push(target.value_of(picked) - baseline.value_of(picked));
    });
    differences.sort_by(f64::total_cmp);
    let interval = [quantile(&differences, 0.025), quantile(&differences, 0.975)];
    let (below, above) = (interval[1] < 0.0, interval[0] > 0.0);
    let verdict = match (baseline.better, below, above) {
        (Better::Higher, _, true) | (Better::Lower, true, _) => Verdict::Better,
        (Better::Higher, true, _) | (Better::Lower, _, true) => Verdict::Worse,
        _ => Verdict::NoDifferenceSeen,
    };
    Some(Difference { difference: target.value() - baseline.value(), interval, verdict, items })
}

/// Between the two nearest of sorted values.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (low, part) = (place.floor() as usize, place.fract());
    let high = (low + 1).min(sorted.len() - 1);
    sorted[low] + (sorted[high] - sorted[low]) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_standard_error_of_a_mean_is_lm_evals() {
        let metric = Metric::mean("acc", [1.0, 0.0, 1.0, 1.0]);
        assert_eq!(metric.value(), 0.75);
        assert!((metric.standard_error(0).unwrap() - 0.25).abs() < 1e-12);
        assert_eq!(Metric::mean("acc", [1.0]).standard_error(0), None);
    }

    #[test]
    fn a_bootstrap_agrees_with_the_formula() {
        let values: Vec<f64> = (0..200).map(|i| f64::from(i % 7)).collect();
        let mean = Metric::mean("x", values);
        let ratio = Metric {
            aggregate: Aggregate::Ratio,
            items: mean.items.iter().map(|item| vec![item[0], 1.0]).collect(),
            ..mean.clone()
        };
        let (formula, bootstrap) =
            (mean.standard_error(1).unwrap(), ratio.standard_error(1).unwrap());
        assert!((formula / bootstrap - 1.0).abs() < 0.06, "{formula} {bootstrap}");
        assert_eq!(ratio.standard_error(1), ratio.standard_error(1));
    }

    #[test]
    fn verdicts_follow_the_direction_that_is_better() {
        let base = Metric::mean("acc", (0..100).map(|i| f64::from(i % 2)));
        let good =
            Metric::mean("acc", (0..100).map(|i| f64::from(u8::from(i % 2 == 1 || i % 3 == 0))));
        let difference = compare(&base, &good, 0).unwrap();
        assert_eq!(difference.verdict, Verdict::Better);
        assert!(difference.interval[0] <= difference.difference);
        assert!(difference.difference <= difference.interval[1]);
        assert_eq!(compare(&good, &base, 0).unwrap().verdict, Verdict::Worse);
        assert_eq!(compare(&base, &base, 0).unwrap().verdict, Verdict::NoDifferenceSeen);
        let lower = |metric: &Metric| Metric { better: Better::Lower, ..metric.clone() };
        assert_eq!(compare(&lower(&base), &lower(&good), 0).unwrap().verdict, Verdict::Worse);
        assert_eq!(compare(&base, &Metric::mean("acc", [1.0, 0.0]), 0), None);
    }

    #[test]
    fn macro_f1_is_the_mean_over_labels() {
        // Label 0: 2 right, 3 predicted, 2 true; label 1: 1 right, 1 predicted, 2 true.
        let f1 = macro_f1(&[2.0, 3.0, 2.0, 1.0, 1.0, 2.0]);
        assert!((f1 - f64::midpoint(0.8, 2.0 / 3.0)).abs() < 1e-12);
    }
}
