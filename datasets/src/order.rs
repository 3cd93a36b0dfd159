//! Draws orders that another program could repeat.
//!
//! A draw is named by a purpose, the recipe's seed, the epoch and a dataset. Its key is SHA-256 of
//! `"tunesmith/order/v1\0"`, the purpose, a zero byte, and seed, epoch and dataset as 64-bit
//! little-endian integers. The key seeds `ChaCha` with 8 rounds (block counter and nonce 0), whose
//! output is read as little-endian 64-bit words. A number below `n` is the next word `w` with
//! `w < u64::MAX - u64::MAX % n`, taken modulo `n`. A shuffle is Fisher–Yates from the end: for `i`
//! from the last place down to 1, swap places `i` and `below(i + 1)`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

const DOMAIN: &[u8] = b"tunesmith/order/v1\0";

/// What a draw is for; each has numbers of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The order of the examples of an epoch.
    Examples,
    /// The order of the packed rows of an epoch.
    Rows,
    /// Which examples a fractional weight takes.
    Subset,
}

impl Purpose {
    fn name(self) -> &'static [u8] {
        match self {
            Self::Examples => b"examples\0",
            Self::Rows => b"rows\0",
            Self::Subset => b"subset\0",
        }
    }
}

/// A sequence of draws.
pub(crate) struct Order(ChaCha8Rng);

impl Order {
    pub(crate) fn new(purpose: Purpose, seed: u64, epoch: u64, dataset: u64) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(DOMAIN);
        hasher.update(purpose.name());
        for number in [seed, epoch, dataset] {
            hasher.update(number.to_le_bytes());
        }
        Self(ChaCha8Rng::from_seed(hasher.finalize().into()))
    }

    /// A number in `0..n`, all equally likely; `n` is not 0.
    fn below(&mut self, n: u64) -> u64 {
        let limit = u64::MAX - u64::MAX % n;
        loop {
            let word = self.0.next_u64();
            if word < limit {
                return word % n;
            }
        }
    }

    /// Puts the items in a random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shuffled(purpose: Purpose, seed: u64, epoch: u64) -> Vec<u32> {
        let mut items: Vec<_> = (0..100).collect();
        Order::new(purpose, seed, epoch, 0).shuffle(&mut items);
        items
    }

    #[test]
    fn a_shuffle_is_a_permutation_that_depends_on_everything_it_is_named_by() {
        let order = shuffled(Purpose::Examples, 1, 0);
        assert_eq!(order, shuffled(Purpose::Examples, 1, 0));
        let mut sorted = order.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..100).collect::<Vec<_>>());
        for other in [
            shuffled(Purpose::Examples, 2, 0),
            shuffled(Purpose::Examples, 1, 1),
            shuffled(Purpose::Rows, 1, 0),
        ] {
            assert_ne!(order, other);
        }
    }

    #[test]
    fn every_place_is_equally_likely() {
        let mut counts = [[0_u32; 4]; 4];
        for seed in 0..4000 {
            let mut items = [0, 1, 2, 3];
            Order::new(Purpose::Examples, seed, 0, 0).shuffle(&mut items);
            for (place, item) in items.into_iter().enumerate() {
                counts[place][item as usize] += 1;
            }
        }
        // 1000 expected, standard deviation 27.
        assert!(counts.iter().flatten().all(|&count| (860..1140).contains(&count)), "{counts:?}");
    }
}
