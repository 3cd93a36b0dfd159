//! Draws as Python's `random.Random(seed).sample` makes them, because lm-eval draws its few-shot
//! examples that way: the same seed gives the same prompts.

use std::collections::BTreeSet;

use rand_mt::Mt;

/// A generator in the state of `random.Random(seed)`.
#[derive(Debug, Clone)]
pub(super) struct PythonRandom(Mt);

impl PythonRandom {
    /// Seeded with a whole number.
    pub(super) fn new(seed: u64) -> Self {
        let key = match (seed as u32, (seed >> 32) as u32) {
            (low, 0) => vec![low],
            (low, high) => vec![low, high],
        };
        Self(Mt::new_with_key(key))
    }

    /// A number below `n`.
    fn below(&mut self, n: usize) -> usize {
        let bits = usize::BITS - n.leading_zeros();
        loop {
            let drawn = (self.0.next_u32() >> (32 - bits.clamp(1, 32))) as usize;
            if drawn < n {
                return drawn;
            }
        }
    }

    /// `count` different numbers below `n`, in the order they were drawn.
    pub(super) fn sample(&mut self, n: usize, count: usize) -> Vec<usize> {
        let count = count.min(n);
        let power = || 4_usize.pow(((count as f64 * 3.0).ln() / 4_f64.ln()).ceil() as u32);
        let pool_limit = 21 + if count > 5 { power() } else { 0 };
        if n <= pool_limit {
            let mut pool: Vec<usize> = (0..n).collect();
            return (0..count)
                .map(|drawn| {
                    let place = self.below(n - drawn);
                    let picked = pool[place];
                    pool[place] = pool[n - drawn - 1];
                    picked
                })
                .collect();
        }
        let mut seen = BTreeSet::new();
        let mut draw = || loop {
            let drawn = self.below(n);
            if seen.insert(drawn) {
                return drawn;
            }
        };
        (0..count).map(|_| draw()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `[random.Random(1234).sample(range(n), k) for ...]`, one generator for all draws.
    #[test]
    fn draws_are_pythons() {
        let mut random = PythonRandom::new(1234);
        let drawn = [(10, 3), (10, 3), (100, 5), (1000, 8), (7473, 5), (22, 5)]
            .map(|(n, count)| random.sample(n, count));
        let expected: [Vec<usize>; 6] = [
            vec![7, 1, 0],
            vec![1, 0, 9],
            vec![12, 98, 45, 30, 2],
            vec![31, 807, 16, 354, 663, 638, 495, 630],
            vec![3797, 1216, 747, 1499, 5844],
            vec![3, 0, 16, 15, 7],
        ];
        assert_eq!(drawn, expected);
    }
}
