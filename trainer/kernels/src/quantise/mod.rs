//! Frozen matrices in 8 and 4 bits, with the codes and scales of bitsandbytes.
//!
//! A matrix is quantised from a reader of rows, a chunk at a time, so its wide copy never exists.

pub(crate) mod device;
mod int8;
mod nf4;

use std::ops::Range;

pub use device::to_device;
pub use int8::Int8Matrix;
pub use nf4::Nf4Matrix;

/// Numbers read at once while a matrix is quantised.
const CHUNK: usize = 1 << 22;

/// The 256 values of a dynamic map (Dettmers 2015, arXiv 1511.04561), ascending: an exponent of ten,
/// from 1e-6 to 1, and the middles of evenly spaced fractions from 0.1 to 1. With one sign bit every
/// value but 0 and 1 is there with both signs; without, there are twice as many fractions.
pub(crate) fn dynamic_map(sign_bits: u32) -> [f32; 256] {
    let mut values = vec![0.0_f32, 1.0];
    for exponent in 0..7 {
        let count = 2 >> sign_bits << exponent;
        let edge = |i: i32| 0.1 + 0.9 * f64::from(i) / f64::from(count);
        for i in 0..count {
            let middle = f64::midpoint(edge(i), edge(i + 1)) * 10_f64.powi(exponent - 6);
            values.push(middle as f32);
            if sign_bits == 1 {
                values.push(-middle as f32);
            }
        }
    }
    values.sort_by(f32::total_cmp);
    values.try_into().expect("as many values as codes")
}

/// Index of the nearest of ascending values; a tie goes to the lower one.
pub(crate) fn nearest(values: &[f32], value: f32) -> u8 {
    let middle_is_below = |pair: &[f32]| f32::midpoint(pair[0], pair[1]) < value;
    let (mut low, mut high) = (0, values.len() - 1);
    while low < high {
        let middle = usize::midpoint(low, high);
        if middle_is_below(&values[middle..]) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low as u8
}

/// Calls `work(first row, values)` for all rows, in chunks of a multiple of 64 rows: blocks of 64
/// numbers then end where chunks end, whatever the number of columns.
fn for_chunks<E>(
    [rows, columns]: [usize; 2],
    mut read: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    mut work: impl FnMut(usize, &[f32]),
) -> Result<(), E> {
    let step = (CHUNK / columns.max(1) / 64).max(1) * 64;
    for first in (0..rows).step_by(step) {
        work(first, &read(first..rows.min(first + step))?);
    }
    Ok(())
}
