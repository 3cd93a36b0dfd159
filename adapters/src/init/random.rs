//! Random numbers by counter, written down well enough that another program could repeat them.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore;
use sha2::{Digest, Sha256};

/// SHA-256 of the domain and a zero byte, the seed as 8 bytes little-endian, and the module's name.
pub(crate) fn key(domain: &str, seed: u64, module: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(domain.as_bytes());
    hash.update([0]);
    hash.update(seed.to_le_bytes());
    hash.update(module.as_bytes());
    hash.finalize().into()
}

/// The top 24 bits of a word as a number in [0, 1).
pub(crate) fn unit(word: u32) -> f64 {
    f64::from(word >> 8) / 16_777_216.0
}

/// A normal deviate from two words (Box and Muller): √(-2 ln(1 - u₁)) · cos(2π u₂).
pub(crate) fn normal(words: &mut ChaCha8Rng) -> f64 {
    let (first, second) = (unit(words.next_u32()), unit(words.next_u32()));
    (-2.0 * (1.0 - first).ln()).sqrt() * (std::f64::consts::TAU * second).cos()
}
