//! Cross-entropy of rows of logits, and its gradient written over the logits.
//!
//! `loss = log(sum(exp(logits))) - logits[target]`, in nats; gradient `softmax - one_hot`.
//! Callers pass a chunk of rows at a time, so `[tokens, vocab]` never exists.

use burn::tensor::{DType, Int, Tensor, TensorData, activation};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};
use crate::math::{exp, max, sum_of, vectorised};

/// What a chunk of rows costs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// Sum over the rows, in nats.
    pub loss_sum: f64,
}

/// Loss alone.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`, `targets`: `rows` token ids below `vocab`
pub fn cross_entropy(logits: &Tensor<2>, targets: &[u32]) -> CrossEntropy {
    let [rows, vocab] = logits.dims();
    assert_eq!(rows, targets.len(), "a target for each row of logits");
    let Some(host) = host::host_f32(logits) else {
        return launch::gpu(Operation::CrossEntropy)
            .and_then(|gpu| launch::cross_entropy(&gpu, logits, targets, None))
            .map_or_else(|| reference(logits, targets), |(losses, _)| total(losses));
    };
    let losses: Vec<f64> = host::read(&host)
        .par_chunks(vocab)
        .zip(targets)
        .map(|(row, &target)| {
            let log_sum_exp = vectorised(
                #[inline(always)]
                || log_sum_exp(row),
            );
            f64::from(log_sum_exp - row[target as usize])
        })
        .collect();
    CrossEntropy { loss_sum: losses.iter().sum() }
}

/// Loss, and `factor * (softmax - one_hot)` in the place of the logits.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`, returns the loss and `[rows, vocab]`
pub fn cross_entropy_gradient(
    logits: Tensor<2>,
    targets: &[u32],
    factor: f64,
) -> (CrossEntropy, Tensor<2>) {
    let [rows, vocab] = logits.dims();
    assert_eq!(rows, targets.len(), "a target for each row of logits");
    let mut logits = match host::take_f32(logits) {
        Ok(logits) => logits,
        Err(logits) => {
            return launch::gpu(Operation::CrossEntropy)
                .and_then(|gpu| launch::cross_entropy(&gpu, &logits, targets, Some(factor)))
                .and_then(|(losses, gradient)| Some((total(losses), gradient?)))
                .unwrap_or_else(|| reference_gradient(&logits, targets, factor));
        }
    };
    let losses: Vec<f64> = host::write(&mut logits)
        .par_chunks_mut(vocab)
        .zip(targets)
        .map(|(row, &target)| row_gradient(row, target as usize, factor as f32))
        .collect();
    (CrossEntropy { loss_sum: losses.iter().sum() }, host::give(logits))
}

/// The sum of losses that lie on a GPU.
fn total(losses: Tensor<1>) -> CrossEntropy {
    CrossEntropy { loss_sum: host::values(losses).iter().map(|&loss| f64::from(loss)).sum() }
}

/// How probable a model holds one token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenScore {
    /// Natural logarithm of its probability.
    pub log_probability: f64,
    /// Whether it is the most probable one, the first of equals.
    pub is_best: bool,
}

/// Scores of tokens, several at one row where that is wanted.
///
/// # Shapes
/// - `logits`: `[rows, vocab]`, `wanted`: rows and token ids
pub fn token_scores(logits: &Tensor<2>, wanted: &[(usize, u32)]) -> Vec<TokenScore> {
    let Some(host) = host::host_f32(logits) else {
        return reference_scores(logits, wanted);
    };
    let vocab = logits.dims()[1];
    let values = host::read(&host);
    let rows: Vec<(f32, usize)> = values
        .par_chunks(vocab)
        .map(|row| {
            let log_sum_exp = vectorised(
                #[inline(always)]
                || log_sum_exp(row),
            );
            (log_sum_exp, best(row))
        })
        .collect();
    let score = |&(row, token): &(usize, u32)| {
        let (log_sum_exp, best) = rows[row];
        let logit = values[row * vocab + token as usize];
        TokenScore {
            log_probability: f64::from(logit - log_sum_exp),
            is_best: best == token as usize,
        }
    };
    wanted.iter().map(score).collect()
}

fn best(row: &[f32]) -> usize {
    let largest = max(row);
    row.iter().position(|&logit| logit == largest).unwrap_or(0)
}

/// [`token_scores`] in plain tensor operations.
pub fn reference_scores(logits: &Tensor<2>, wanted: &[(usize, u32)]) -> Vec<TokenScore> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let (rows, tokens): (Vec<usize>, Vec<u32>) = wanted.iter().copied().unzip();
    let log_probabilities = activation::log_softmax(logits.clone().cast(DType::F32), 1);
    let best = log_probabilities.clone().argmax(1);
    let best: Vec<i64> = best.into_data().convert::<i64>().try_into_vec().expect("converted");
    let picked = crate::embedding::gather_rows(&log_probabilities, &rows);
    let picked = picked.clone().gather(1, target_column(&picked, &tokens));
    let score = |(&(row, token), &log_probability): (&(usize, u32), &f32)| TokenScore {
        log_probability: f64::from(log_probability),
        is_best: best[row] == i64::from(token),
    };
    wanted.iter().zip(&host::values(picked)).map(score).collect()
}

#[inline(always)]
fn log_sum_exp(row: &[f32]) -> f32 {
    let largest = max(row);
    let total = sum_of(
        row,
        #[inline(always)]
        |value| exp(value - largest),
    );
    largest + total.ln()
}

fn row_gradient(row: &mut [f32], target: usize, factor: f32) -> f64 {
    let at_target = row[target];
    let log_sum_exp = vectorised(
        #[inline(always)]
        || {
            let log_sum_exp = log_sum_exp(row);
            for value in row.iter_mut() {
                *value = exp(*value - log_sum_exp) * factor;
            }
            log_sum_exp
        },
    );
    row[target] -= factor;
    f64::from(log_sum_exp - at_target)
}

/// [`cross_entropy`] in plain tensor operations.
pub fn reference(logits: &Tensor<2>, targets: &[u32]) -> CrossEntropy {
    let rows = targets.len();
    let log_probabilities = activation::log_softmax(logits.clone().cast(DType::F32), 1);
    let picked = log_probabilities.gather(1, target_column(logits, targets));
    let losses = host::values(picked.reshape([rows]));
    CrossEntropy { loss_sum: losses.iter().map(|&loss| -f64::from(loss)).sum() }
}

/// [`cross_entropy_gradient`] in plain tensor operations.
pub fn reference_gradient(
    logits: &Tensor<2>,
    targets: &[u32],
    factor: f64,
) -> (CrossEntropy, Tensor<2>) {
    let [rows, vocab] = logits.dims();
    let loss = reference(logits, targets);
    let softmax = activation::softmax(logits.clone().cast(DType::F32), 1);
    let columns = Tensor::<1, Int>::arange(0..vocab as i64, &logits.device());
    let target = target_column(logits, targets).expand([rows, vocab]);
    let one_hot = columns.unsqueeze::<2>().expand([rows, vocab]).equal(target).float();
    (loss, ((softmax - one_hot.cast(DType::F32)) * factor).cast(logits.dtype()))
}

/// Targets as an integer column on the logits' device: `[rows, 1]`.
fn target_column(logits: &Tensor<2>, targets: &[u32]) -> Tensor<2, Int> {
    let values: Vec<i64> = targets.iter().map(|&target| i64::from(target)).collect();
    let rows = values.len();
    Tensor::from_data(TensorData::new(values, [rows, 1]), &logits.device())
}
