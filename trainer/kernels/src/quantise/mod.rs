//! Frozen matrices in 8 and 4 bits, with the codes and scales of bitsandbytes.
//!
//! A matrix is quantised from a reader of rows, a chunk at a time, so its wide copy never exists.

mod int8;
mod nf4;

use std::ops::Range;

pub use int8::Int8Matrix;
pub use nf4::Nf4Matrix;

/// Numbers read at once while a matrix is quantised.
const CHUNK: usize = 1 << 22;

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
