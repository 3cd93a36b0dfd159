//! Methods that work on the factors A and B element by element.
//!
//! With f = weight · scale, A is weighted by sign(f)·√|f| and B by √|f|, so that a single
//! adapter's product is its own update.

use sha2::{Digest, Sha256};

use super::elements::drawn_mask;
use super::{CombineRequest, Part};
use crate::peft::LoraFactors;

const DOMAIN: &[u8] = b"tunesmith/dare/v1\0";

/// One of the two factors.
#[derive(Clone, Copy)]
pub(super) enum Letter {
    A,
    B,
    /// `B·A`, where methods work on that.
    Dense,
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
        let size = |part: &Part| part.factor().abs().sqrt();
        let signed = |part: &Part| size(part).copysign(part.factor());
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
        let elements = self.request.elements();
        let values: Vec<(&[f32], f32)> =
            parts.iter().map(|&(_, values, weight)| (values.as_slice(), weight)).collect();
        elements.merge(&values, &|place| {
            let (part, values, _) = parts[place];
            self.mask(letter, part.adapter, values.len(), elements.density)
        })
    }

    /// Which elements stay: drawn by counter, so that another program can repeat them.
    ///
    /// Key: SHA-256 of the domain `tunesmith/dare/v1` and a zero byte, seed and place of the
    /// adapter as 8 bytes little-endian each, the letter (D: the dense update), and the module's
    /// name; then [`drawn_mask`].
    pub(super) fn mask(
        &self,
        letter: Letter,
        adapter: usize,
        count: usize,
        density: f64,
    ) -> Vec<bool> {
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
            Letter::Dense => b"D",
        });
        hash.update(self.module.as_bytes());
        drawn_mask(hash.finalize().into(), count, density)
    }
}
