//! First values of an adapter, a pure function of (seed, module name).
//!
//! A is Kaiming-uniform with a = √5, which is uniform in ±1/√`d_in`; B is zero, so that training
//! starts from the base model. Another program can repeat the values of A:
//!
//! 1. key = SHA-256 of the bytes `tunesmith/lora-a/v1`, one zero byte, the seed as 8 bytes
//!    little-endian, and the module name in UTF-8 (`model.layers.0.self_attn.q_proj`).
//! 2. `ChaCha` with 8 rounds, that key, stream 0, block counter from 0, gives 32-bit words.
//! 3. Word n (from 0) makes element n of A in row-major order of `[rank, d_in]`:
//!    u = (word >> 8) · 2⁻²⁴ in [0, 1), value = bound · (2u − 1), where bound is 1/√`d_in`
//!    computed in f64 and rounded to f32. 2u − 1 is exact in f32, so the product is the only
//!    rounding.
//!
//! Adding a module or changing its rank leaves the values of the others as they are.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use super::random::key;
use crate::peft::LoraFactors;
use crate::target::Target;

const DOMAIN: &str = "tunesmith/lora-a/v1";

/// A Kaiming-uniform, B zero.
pub(super) fn factors(target: &Target, seed: u64) -> LoraFactors {
    LoraFactors {
        a: kaiming_uniform(target, seed),
        b: vec![0.0; target.d_out * target.rank],
        rank: target.rank,
        d_in: target.d_in,
        d_out: target.d_out,
    }
}

/// # Shapes
/// - returns `[rank, d_in]`
fn kaiming_uniform(target: &Target, seed: u64) -> Vec<f32> {
    let mut words = ChaCha8Rng::from_seed(key(DOMAIN, seed, &target.name));
    let bound = (1.0 / (target.d_in as f64).sqrt()) as f32;
    (0..target.rank * target.d_in).map(|_| bound * symmetric_unit(words.next_u32())).collect()
}

/// The top 24 bits of `word` as a number in [-1, 1).
fn symmetric_unit(word: u32) -> f32 {
    let unit = (word >> 8) as f32 / 16_777_216.0;
    2.0 * unit - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(name: &str, rank: usize, d_in: usize) -> Target {
        Target { name: name.to_owned(), d_in, d_out: 3, rank, alpha: 32.0, scale: 2.0 }
    }

    fn a_of(name: &str, rank: usize, d_in: usize, seed: u64) -> Vec<f32> {
        factors(&target(name, rank, d_in), seed).a
    }

    #[test]
    fn b_is_zero_and_shapes_are_those_of_the_target() {
        let factors = factors(&target("x.q_proj", 4, 64), 42);
        assert_eq!((factors.rank, factors.d_in, factors.d_out), (4, 64, 3));
        assert_eq!(factors.b, vec![0.0; 12]);
        assert_eq!(factors.a.len(), 256);
    }

    #[test]
    fn a_is_uniform_within_its_bound() {
        let a = a_of("x.q_proj", 64, 400, 7);
        assert!(a.iter().all(|x| x.abs() <= 0.05));
        let mean: f64 = a.iter().map(|&x| f64::from(x)).sum::<f64>() / a.len() as f64;
        let variance: f64 = a.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / a.len() as f64;
        assert!(mean.abs() < 1e-3, "{mean}");
        // The variance of a uniform distribution in ±b is b²/3.
        assert!((variance / (0.05_f64.powi(2) / 3.0) - 1.0).abs() < 0.02, "{variance}");
    }

    /// Computed by another program, in Python from the description above.
    #[test]
    fn values_are_those_of_the_written_description() {
        let a = a_of("model.layers.0.self_attn.q_proj", 16, 576, 42);
        for (place, bits) in [
            (0, 0x3ce7_14eb),
            (1, 0x3c35_f40b),
            (2, 0x3bbd_c080),
            (3, 0x3bbe_62c0),
            (16, 0x3c27_0bf6),
            (64, 0x3bc0_85b6),
            (9215, 0xbaa1_fad6),
        ] {
            assert_eq!(a[place].to_bits(), bits, "element {place}: {}", a[place]);
        }
    }

    #[test]
    fn values_depend_on_seed_and_name_only() {
        let a = a_of("x.q_proj", 2, 8, 42);
        assert_ne!(a, a_of("x.k_proj", 2, 8, 42));
        assert_ne!(a, a_of("x.q_proj", 2, 8, 43));
        assert_eq!(a, a_of("x.q_proj", 4, 8, 42)[..16]);
    }

    #[test]
    fn the_word_maps_to_both_ends_of_the_interval() {
        assert!((symmetric_unit(0) + 1.0).abs() < f32::EPSILON);
        assert!((symmetric_unit(u32::MAX) - (1.0 - 2.0_f32.powi(-23))).abs() < 1e-9);
        assert!(symmetric_unit(1 << 31).abs() < f32::EPSILON);
    }
}
