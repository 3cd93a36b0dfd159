//! Encoders of the stored number formats: what [`blocks`](super::blocks) decodes.
//!
//! A block is encoded from its own values alone, so the bytes do not depend on the number of
//! threads or on how a tensor is cut into pieces.

mod k;
mod k_lines;
mod legacy;
#[cfg(test)]
mod tests;

use half::{bf16, f16};
use rayon::prelude::*;

use super::blocks;
use crate::weights::StoredDtype;

/// Elements that one task encodes: whole blocks of every format.
const ELEMENTS_PER_TASK: usize = 1 << 14;

/// How far encoded values stand from the original ones.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct EncodingError {
    /// Sum of the squares of the originals.
    pub(crate) square_sum: f64,
    /// Sum of the squares of the differences.
    pub(crate) error_square_sum: f64,
}

impl EncodingError {
    pub(crate) fn add(&mut self, other: Self) {
        self.square_sum += other.square_sum;
        self.error_square_sum += other.error_square_sum;
    }

    /// Root mean square of the differences over that of the originals.
    pub(crate) fn relative(&self) -> f64 {
        if self.square_sum > 0.0 { (self.error_square_sum / self.square_sum).sqrt() } else { 0.0 }
    }
}

/// Replaces `out` by `values`, whole blocks of `dtype`, in that format.
///
/// `importance` has a weight for each column of the rows that `values` are; errors in heavy columns
/// count more. Gives the place of the first value that is not finite once it is decoded again.
pub(crate) fn encode(
    dtype: StoredDtype,
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut Vec<u8>,
) -> Result<EncodingError, usize> {
    let bytes_per_task = ELEMENTS_PER_TASK / dtype.block_elements() * dtype.block_bytes();
    out.clear();
    out.resize(values.len() / dtype.block_elements() * dtype.block_bytes(), 0);
    let tasks: Vec<Result<EncodingError, usize>> = values
        .par_chunks(ELEMENTS_PER_TASK)
        .zip(out.par_chunks_mut(bytes_per_task))
        .enumerate()
        .map_init(Vec::new, |decoded, (task, (values, out))| {
            let columns = Columns { importance, first: task * ELEMENTS_PER_TASK };
            encode_run(dtype, values, columns, out);
            decoded.resize(values.len(), 0.0);
            blocks::decode(dtype, out, decoded);
            distance(values, decoded)
        })
        .collect();
    // Summed in the order of the values: the same figure whatever the number of threads.
    let mut total = EncodingError::default();
    for (task, outcome) in tasks.into_iter().enumerate() {
        total.add(outcome.map_err(|place| task * ELEMENTS_PER_TASK + place)?);
    }
    Ok(total)
}

fn distance(values: &[f32], decoded: &[f32]) -> Result<EncodingError, usize> {
    let mut error = EncodingError::default();
    for (&value, &decoded) in values.iter().zip(decoded) {
        let (value, decoded) = (f64::from(value), f64::from(decoded));
        error.square_sum += value * value;
        error.error_square_sum += (value - decoded) * (value - decoded);
    }
    if error.square_sum.is_finite() && error.error_square_sum.is_finite() {
        return Ok(error);
    }
    let is_bad = |(value, decoded): (&f32, &f32)| !value.is_finite() || !decoded.is_finite();
    Err(values.iter().zip(decoded).position(is_bad).unwrap_or_default())
}

/// The weights of columns, from the place of the first value at hand on.
#[derive(Clone, Copy)]
struct Columns<'a> {
    importance: Option<&'a [f32]>,
    first: usize,
}

impl<'a> Columns<'a> {
    /// The weights of a block, which lies within one row. Nothing where none is above 0: then its
    /// columns are as good as each other.
    fn of_block<const ELEMENTS: usize>(self, block: usize) -> Option<&'a [f32; ELEMENTS]> {
        let importance = self.importance?;
        let start = (self.first + block * ELEMENTS) % importance.len();
        let weights = importance.get(start..)?.first_chunk()?;
        weights.iter().any(|weight| *weight > 0.0).then_some(weights)
    }
}

fn encode_run(dtype: StoredDtype, values: &[f32], columns: Columns, out: &mut [u8]) {
    match dtype {
        StoredDtype::F32 => each(values, columns, out, |&[value]: &[f32; 1], _, out| {
            *out = value.to_le_bytes();
        }),
        StoredDtype::F16 => each(values, columns, out, |&[value]: &[f32; 1], _, out| {
            *out = f16::from_f32(value).to_le_bytes();
        }),
        StoredDtype::Bf16 => each(values, columns, out, |&[value]: &[f32; 1], _, out| {
            *out = bf16::from_f32(value).to_le_bytes();
        }),
        StoredDtype::Q4_0 => each(values, columns, out, legacy::q4_0),
        StoredDtype::Q4_1 => each(values, columns, out, legacy::q4_1),
        StoredDtype::Q5_0 => each(values, columns, out, legacy::q5_0),
        StoredDtype::Q5_1 => each(values, columns, out, legacy::q5_1),
        StoredDtype::Q8_0 => each(values, columns, out, |values, _, out| legacy::q8_0(values, out)),
        StoredDtype::Q4K => each(values, columns, out, k::q4_k),
        StoredDtype::Q5K => each(values, columns, out, k::q5_k),
        StoredDtype::Q6K => each(values, columns, out, k::q6_k),
    }
}

fn each<const ELEMENTS: usize, const BYTES: usize>(
    values: &[f32],
    columns: Columns,
    out: &mut [u8],
    encode: impl Fn(&[f32; ELEMENTS], Option<&[f32; ELEMENTS]>, &mut [u8; BYTES]),
) {
    let blocks = values.as_chunks().0.iter().zip(out.as_chunks_mut().0);
    for (block, (values, out)) in blocks.enumerate() {
        encode(values, columns.of_block(block), out);
    }
}

/// Writes `value` as f16 and gives back what the reader will see.
fn put_half<const BYTES: usize>(block: &mut [u8; BYTES], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// `1 / scale`; 0 where every value is stored as 0.
fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// The nearest integer, ties to even, for values below 2²² in size.
///
/// Adding 1.5·2²³ leaves no bits for a fraction, and unlike `round_ties_even` it needs no
/// instruction beyond the baseline, so loops over it are vectorised.
fn nearest(value: f32) -> f32 {
    const SHIFT: f32 = 12_582_912.0;
    (value + SHIFT) - SHIFT
}

/// The nearest code of a value; what is not finite gives some code, and is found out later.
fn code(value: f32, least: f32, largest: f32) -> f32 {
    nearest(value.max(least).min(largest))
}
