//! Several lists of values made one, element by element: what TIES, DARE and pruning do.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// What is done to elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ElementMethod {
    /// The weighted sum.
    Sum,
    /// Small ones dropped, signs elected, the agreeing ones averaged (arXiv 2306.01708).
    Ties,
    /// Random ones dropped and the rest scaled up, then summed (arXiv 2311.03099).
    DareLinear,
    /// Random ones dropped and the rest scaled up, then as TIES.
    DareTies,
    /// Small ones dropped, then summed.
    MagnitudePrune,
}

/// How the sign that most want is found, element by element.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MajoritySign {
    /// The sign of the sum.
    #[default]
    Total,
    /// The sign that more elements have.
    Frequency,
}

/// How lists of values become one.
#[derive(Debug, Clone, Copy)]
pub struct Elements {
    /// What is done.
    pub method: ElementMethod,
    /// Share of the elements that pruning keeps, above 0 and up to 1.
    pub density: f64,
    /// How TIES elects signs.
    pub majority_sign: MajoritySign,
}

impl Elements {
    /// Makes one list of `parts`, each with its weight. `mask` draws what random pruning keeps of
    /// the part of a place.
    pub fn merge(&self, parts: &[(&[f32], f32)], mask: &dyn Fn(usize) -> Vec<bool>) -> Vec<f32> {
        let Self { method, density, majority_sign } = *self;
        let prune = |(place, &(values, weight)): (usize, &(&[f32], f32))| {
            let kept = match method {
                // Everything is kept, and nothing rescaled.
                _ if density >= 1.0 => values.to_vec(),
                ElementMethod::Sum => values.to_vec(),
                ElementMethod::DareLinear | ElementMethod::DareTies => {
                    scaled_up(values, &mask(place), density)
                }
                ElementMethod::Ties | ElementMethod::MagnitudePrune => largest(values, density),
            };
            (kept, weight)
        };
        let pruned: Vec<_> = parts.iter().enumerate().map(prune).collect();
        match method {
            ElementMethod::Ties | ElementMethod::DareTies => agreeing(&pruned, majority_sign),
            _ => sum(&pruned),
        }
    }
}

/// Which of `count` elements stay under the key: element n where word n of `ChaCha8` lies below
/// density · 2³².
pub(super) fn drawn_mask(key: [u8; 32], count: usize, density: f64) -> Vec<bool> {
    let mut words = ChaCha8Rng::from_seed(key);
    let limit = density * 4_294_967_296.0;
    (0..count).map(|_| f64::from(words.next_u32()) < limit).collect()
}

fn scaled_up(values: &[f32], mask: &[bool], density: f64) -> Vec<f32> {
    let kept = |(&value, &stays): (&f32, &bool)| if stays { value / density as f32 } else { 0.0 };
    values.iter().zip(mask).map(kept).collect()
}

/// The elements of largest size, the others 0. Of equal ones the first stay.
fn largest(values: &[f32], density: f64) -> Vec<f32> {
    let count = (density * values.len() as f64) as usize;
    let by_size = |&x: &usize, &y: &usize| -> Ordering {
        values[y].abs().total_cmp(&values[x].abs()).then(x.cmp(&y))
    };
    let mut places: Vec<usize> = (0..values.len()).collect();
    let mut kept = vec![0.0; values.len()];
    if count > 0 {
        places.select_nth_unstable_by(count - 1, by_size);
        for &place in &places[..count] {
            kept[place] = values[place];
        }
    }
    kept
}

fn sum(parts: &[(Vec<f32>, f32)]) -> Vec<f32> {
    let mut out = vec![0.0; parts[0].0.len()];
    for (values, weight) in parts {
        out.iter_mut().zip(values).for_each(|(out, value)| *out += weight * value);
    }
    out
}

/// The mean of the weighted elements whose sign is the elected one.
fn agreeing(parts: &[(Vec<f32>, f32)], election: MajoritySign) -> Vec<f32> {
    let sign = |value: f32| if value == 0.0 { 0.0 } else { value.signum() };
    let elect = |place: usize| {
        let votes = parts.iter().map(|(values, _)| match election {
            MajoritySign::Total => values[place],
            MajoritySign::Frequency => sign(values[place]),
        });
        if votes.sum::<f32>() >= 0.0 { 1.0 } else { -1.0 }
    };
    let mean = |place: usize| {
        let elected = elect(place);
        let (mut total, mut count) = (0.0_f32, 0.0_f32);
        for (values, weight) in parts {
            if sign(values[place]) == elected {
                total += weight * values[place];
                count += 1.0;
            }
        }
        total / count.max(1.0)
    };
    (0..parts[0].0.len()).map(mean).collect()
}
