//! Methods that work on the factors A and B element by element.
//!
//! With f = weight · scale, A is weighted by sign(f)·√|f| and B by √|f|, so that a single
//! adapter's product is its own update.

use std::cmp::Ordering;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::{CombineMethod, CombineRequest, MajoritySign, Part};
use crate::peft::LoraFactors;

const DOMAIN: &[u8] = b"tunesmith/dare/v1\0";

/// One of the two factors.
#[derive(Clone, Copy)]
pub(super) enum Letter {
    A,
    B,
}

/// What is done to the factors of one module.
pub(super) struct Elementwise<'a> {
    pub(super) request: &'a CombineRequest<'a>,
    pub(super) module: &'a str,
    /// In place of drawn masks: what a test wants to be kept.
    #[cfg(test)]
    pub(super) masks: Option<&'a dyn Fn(Letter, usize) -> Vec<bool>>,
}

impl<'a> Elementwise<'a> {
    pub(super) fn new(request: &'a CombineRequest<'a>, module: &'a str) -> Self {
        Self {
            request,
            module,
            #[cfg(test)]
            masks: None,
        }
    }

    pub(super) fn combine(&self, parts: &[Part]) -> LoraFactors {
        let size = |part: &Part| part.factor.abs().sqrt();
        let signed = |part: &Part| size(part).copysign(part.factor);
        let a = parts.iter().map(|part| (part, &part.factors.a, signed(part) as f32));
        let b = parts.iter().map(|part| (part, &part.factors.b, size(part) as f32));
        let LoraFactors { rank, d_in, d_out, .. } = *parts[0].factors;
        LoraFactors {
            a: self.factor(Letter::A, &a.collect::<Vec<_>>()),
            b: self.factor(Letter::B, &b.collect::<Vec<_>>()),
            rank,
            d_in,
            d_out,
        }
    }

    fn factor(&self, letter: Letter, parts: &[(&Part, &Vec<f32>, f32)]) -> Vec<f32> {
        let density = self.request.density.unwrap_or(1.0);
        let pruned: Vec<(Vec<f32>, f32)> = parts
            .iter()
            .map(|&(part, values, weight)| {
                let kept = match self.request.method {
                    // Everything is kept, and nothing rescaled.
                    _ if density >= 1.0 => values.clone(),
                    CombineMethod::DareLinear | CombineMethod::DareTies => {
                        let mask = self.mask(letter, part.adapter, values.len(), density);
                        scaled_up(values, &mask, density)
                    }
                    _ => largest(values, density),
                };
                (kept, weight)
            })
            .collect();
        match self.request.method {
            CombineMethod::Ties | CombineMethod::DareTies => {
                agreeing(&pruned, self.request.majority_sign)
            }
            _ => sum(&pruned),
        }
    }

    /// Which elements stay: drawn by counter, so that another program can repeat them.
    ///
    /// Key: SHA-256 of the domain `tunesmith/dare/v1` and a zero byte, seed and place of the
    /// adapter as 8 bytes little-endian each, the letter, and the module's name. Element n stays
    /// where word n of `ChaCha8` lies below density · 2³².
    fn mask(&self, letter: Letter, adapter: usize, count: usize, density: f64) -> Vec<bool> {
        #[cfg(test)]
        if let Some(masks) = self.masks {
            return masks(letter, adapter);
        }
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(self.request.seed.to_le_bytes());
        hash.update((adapter as u64).to_le_bytes());
        hash.update(match letter {
            Letter::A => b"A",
            Letter::B => b"B",
        });
        hash.update(self.module.as_bytes());
        let mut words = ChaCha8Rng::from_seed(hash.finalize().into());
        let limit = density * 4_294_967_296.0;
        (0..count).map(|_| f64::from(words.next_u32()) < limit).collect()
    }
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
