//! Dropout whose mask is a function of where it stands, not of a generator's state.
//!
//! Element `i` of a module's input in micro-batch `m` of step `s` is kept when the Philox4x32-10
//! output (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") of counter
//! `(i / 4 low, i / 4 high, m, s)` under the module's key, word `i % 4`, is at least
//! `probability * 2^32`. The same call gives the same mask, so the backward pass rebuilds it, and a
//! resumed run draws what the interrupted one would have drawn.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};

/// What a mask is drawn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DropoutKey {
    /// Key of the run and module.
    pub module: [u32; 2],
    /// Optimizer step.
    pub step: u32,
    /// Micro-batch within the step.
    pub micro_batch: u32,
}

/// Elements that one task handles; a multiple of 4.
const CHUNK: usize = 1 << 14;

/// Zeroes elements with `probability` and scales the rest by `1 / (1 - probability)`.
///
/// # Shapes
/// - any `[tokens, d]`; the gradient is the same function of the gradient
pub fn dropout(x: &Tensor<2>, probability: f64, key: DropoutKey) -> Tensor<2> {
    if probability == 0.0 {
        return x.clone();
    }
    let threshold = (probability * 4_294_967_296.0) as u64;
    let keep = (1.0 / (1.0 - probability)) as f32;
    let values = match host::host_f32(x) {
        Some(host) => masked(host::read(&host), threshold, keep, key),
        None => {
            let faster = launch::gpu(Operation::Dropout)
                .and_then(|gpu| launch::dropout(&gpu, x, (threshold, keep), key));
            if let Some(y) = faster {
                return y;
            }
            let ones = vec![1.0; x.shape().num_elements()];
            let mask = masked(&ones, threshold, keep, key);
            return x.clone() * host::from_f32(mask, x.dims(), x.dtype(), &x.device());
        }
    };
    debug_assert_eq!(x.dtype(), DType::F32);
    host::wrap(values, x.dims())
}

fn masked(x: &[f32], threshold: u64, keep: f32, key: DropoutKey) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(chunk, (y, x))| {
        let first = (chunk * CHUNK / 4) as u64;
        for (group, (y, x)) in y.chunks_mut(4).zip(x.chunks(4)).enumerate() {
            let place = first + group as u64;
            let counter = [place as u32, (place >> 32) as u32, key.micro_batch, key.step];
            let random = philox4x32(counter, key.module);
            for ((y, &x), random) in y.iter_mut().zip(x).zip(random) {
                *y = if u64::from(random) >= threshold { x * keep } else { 0.0 };
            }
        }
    });
    y
}

/// Philox4x32-10: four random words for a counter under a key.
fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let low = u64::from(counter[0]) * 0xD251_1F53;
        let high = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_gives_the_published_test_vectors() {
        // Known answers of the Random123 distribution.
        assert_eq!(
            philox4x32([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
    }

    #[test]
    fn dropout_keeps_the_asked_share_and_its_mean() {
        let key = DropoutKey { module: [1, 2], step: 3, micro_batch: 0 };
        let x = host::wrap(vec![1.0; 100_003], [1, 100_003]);
        let y = host::to_f32(&dropout(&x, 0.25, key));
        let kept = y.iter().filter(|&&v| v != 0.0).count();
        assert!((kept as f64 / 100_003.0 - 0.75).abs() < 0.01);
        assert!(y.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
        assert_eq!(y, host::to_f32(&dropout(&x, 0.25, key)));
        let other = DropoutKey { micro_batch: 1, ..key };
        assert_ne!(y, host::to_f32(&dropout(&x, 0.25, other)));
    }
}
