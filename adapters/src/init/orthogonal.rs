//! Random starts other than the usual one.
//!
//! Words come from `ChaCha` with 8 rounds under [`key`](super::random::key) and become normal
//! deviates two by two ([`normal`]). `gaussian`: element n of A, row-major, is deviate n over the
//! rank, B is zero. `orthogonal`: deviates fill X `[rank, rank]`, then G `[d_in, rank/2]`, then
//! H `[rank/2, d_out]`, each row by row; with `X = Q·R`, `A = (G·Q_odd)ᵀ/10`, `B = Hᵀ·Q_even/10`,
//! where `Q_odd` are the rows 0, 2, ... of Q and `Q_even` the rows 1, 3, ...: these are orthogonal
//! to each other, so `B·A = 0`.

use nalgebra::DMatrix;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::random::{key, normal};
use crate::error::TensorProblem;
use crate::peft::LoraFactors;
use crate::target::Target;

/// A normal with standard deviation 1/rank, B zero.
pub(super) fn gaussian(target: &Target, seed: u64) -> LoraFactors {
    let Target { rank, d_in, d_out, .. } = *target;
    let mut words = ChaCha8Rng::from_seed(key("tunesmith/lora-a-gaussian/v1", seed, &target.name));
    let a = (0..rank * d_in).map(|_| (normal(&mut words) / rank as f64) as f32).collect();
    LoraFactors { a, b: vec![0.0; d_out * rank], rank, d_in, d_out }
}

/// Both factors random, their product zero.
pub(super) fn factors(target: &Target, seed: u64) -> Result<LoraFactors, TensorProblem> {
    let Target { rank, d_in, d_out, .. } = *target;
    if !rank.is_multiple_of(2) {
        let reason = format!("has rank {rank}: `init = \"orthogonal\"` needs an even one");
        return Err(TensorProblem::new(&target.name, reason));
    }
    let mut words = ChaCha8Rng::from_seed(key("tunesmith/lora-orthogonal/v1", seed, &target.name));
    let mut drawn = |rows: usize, columns: usize| {
        let values: Vec<f64> = (0..rows * columns).map(|_| normal(&mut words)).collect();
        DMatrix::from_row_iterator(rows, columns, values)
    };
    let q = drawn(rank, rank).qr().q();
    let half =
        |first: usize| DMatrix::from_fn(rank / 2, rank, |row, column| q[(2 * row + first, column)]);
    let a = drawn(d_in, rank / 2) * half(0); // [d_in, rank]
    let b = drawn(rank / 2, d_out).transpose() * half(1); // [d_out, rank]
    Ok(LoraFactors {
        a: (0..rank * d_in).map(|n| (a[(n % d_in, n / d_in)] / 10.0) as f32).collect(),
        b: (0..d_out * rank).map(|n| (b[(n / rank, n % rank)] / 10.0) as f32).collect(),
        rank,
        d_in,
        d_out,
    })
}
