//! Text from a model, one token at a time, over a cache of keys and values.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use crate::base_model::{Decoder, KeyValueCache};

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// 0 takes the best token; otherwise logits are divided by it.
    pub temperature: f64,
    /// Keeps the smallest set of tokens whose probabilities reach this sum; 1 keeps all.
    pub top_p: f64,
    /// Keeps this many best tokens; 0 keeps all.
    pub top_k: usize,
    /// Seed of the draws.
    pub seed: u64,
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The model gave this stop token.
    Stopped(u32),
    /// The asked number of tokens was reached, or the last position that the model has learned.
    Length,
    /// The caller's function said so.
    Interrupted,
}

/// Whether generation goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// It does.
    Continue,
    /// It ends here.
    Stop,
}

/// Chooses the tokens of one sequence.
#[derive(Debug, Clone)]
pub struct Choice {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Choice {
    /// Draws come from `ChaCha8` under SHA-256 of `tunesmith/generate/v1` and the seed (8 bytes,
    /// little-endian), 64 bits a token.
    pub fn new(sampling: Sampling) -> Self {
        let mut hash = Sha256::new();
        hash.update(b"tunesmith/generate/v1");
        hash.update(sampling.seed.to_le_bytes());
        let random = ChaCha8Rng::from_seed(hash.finalize().into());
        Self { sampling, random }
    }

    /// The next token after these logits.
    pub fn choose(&mut self, logits: &[f32]) -> u32 {
        if self.sampling.temperature <= 0.0 {
            return best(logits);
        }
        let draw = (self.random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64;
        sample(logits, &self.sampling, draw)
    }
}

/// A sequence in progress.
pub struct Generator<'a> {
    decoder: &'a Decoder,
    cache: KeyValueCache,
    choice: Choice,
}

impl<'a> Generator<'a> {
    /// Starts with nothing read.
    pub fn new(decoder: &'a Decoder, sampling: Sampling) -> Self {
        Self { decoder, cache: decoder.new_cache(), choice: Choice::new(sampling) }
    }

    /// Reads `prompt` and gives up to `max_tokens` tokens to `take`; stop tokens are not given.
    pub fn run(
        &mut self,
        prompt: &[u32],
        max_tokens: usize,
        stop_ids: &[u32],
        take: &mut dyn FnMut(u32) -> Next,
    ) -> Ending {
        let mut unread = prompt.to_vec();
        let limit = self.decoder.config().position_limit().unwrap_or(usize::MAX);
        for _ in 0..max_tokens {
            if self.cache.positions() + unread.len() > limit {
                return Ending::Length;
            }
            let logits = self.decoder.next_logits(&unread, &mut self.cache);
            let token = self.choice.choose(&logits);
            if stop_ids.contains(&token) {
                // Read along with the next turn's prompt, so that the cache holds the whole text.
                if self.cache.positions() < limit {
                    self.decoder.next_logits(&[token], &mut self.cache);
                }
                return Ending::Stopped(token);
            }
            if take(token) == Next::Stop {
                return Ending::Interrupted;
            }
            unread = vec![token];
        }
        Ending::Length
    }

    /// Positions read so far.
    pub fn positions(&self) -> usize {
        self.cache.positions()
    }
}

/// The token with the largest logit, the lowest id among equals.
pub fn best(logits: &[f32]) -> u32 {
    let mut best = 0;
    for (id, &logit) in logits.iter().enumerate() {
        if logit > logits[best] {
            best = id;
        }
    }
    best as u32
}

/// The token at `draw` in [0, 1) of the distribution that is left after `top_k` and `top_p`.
fn sample(logits: &[f32], sampling: &Sampling, draw: f64) -> u32 {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let largest = f64::from(logits[order[0] as usize]);
    let weight =
        |id: u32| ((f64::from(logits[id as usize]) - largest) / sampling.temperature).exp();
    let mut weights: Vec<f64> = order.iter().map(|&id| weight(id)).collect();
    let total: f64 = weights.iter().sum();
    let mut sum = 0.0;
    let kept = weights
        .iter()
        .position(|weight| {
            sum += weight;
            sum >= sampling.top_p * total
        })
        .map_or(weights.len(), |last| last + 1);
    weights.truncate(kept);
    let mut left = draw * weights.iter().sum::<f64>();
    for (id, weight) in order.iter().zip(&weights) {
        left -= weight;
        if left < 0.0 {
            return *id;
        }
    }
    order[kept - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f64, top_p: f64, top_k: usize) -> Sampling {
        Sampling { temperature, top_p, top_k, seed: 0 }
    }

    #[test]
    fn draws_follow_the_distribution() {
        // Probabilities 0.5, 0.25, 0.25 in the order of ids 1, 0, 2.
        let logits = [0.0, 2.0_f32.ln(), 0.0];
        let at = |draw| sample(&logits, &sampling(1.0, 1.0, 0), draw);
        assert_eq!([at(0.0), at(0.49), at(0.51), at(0.76)], [1, 1, 0, 2]);
    }

    #[test]
    fn top_p_and_top_k_cut_the_tail() {
        let logits = [0.0, 2.0_f32.ln(), 0.0];
        assert_eq!(sample(&logits, &sampling(1.0, 0.5, 0), 0.99), 1);
        assert_eq!(sample(&logits, &sampling(1.0, 1.0, 2), 0.99), 0);
        assert_eq!(sample(&logits, &sampling(1.0, 0.6, 0), 0.99), 0);
    }

    #[test]
    fn the_best_token_is_the_first_of_equals() {
        assert_eq!(best(&[0.5, 1.0, 1.0]), 1);
    }
}
