//! Weights on their way into a product: panels of rows in f32.

use burn::tensor::DType;
use burn_flex::FlexTensor;
use half::bf16;
use rayon::prelude::*;

use crate::host::{self, Shared};
use crate::math::vectorised;
use crate::weight::{QuantisedMatrix, WeightRef};

/// Bytes of a panel: it stays in the last cache while a product reads it.
const PANEL_BYTES: usize = 8 << 20;

/// Rows of a panel are a multiple of this, so that tiles of a product fill.
const PANEL_STEP: usize = 128;

/// Rows that one task expands: a cache line of the transposed panel.
const BLOCK: usize = 16;

/// A weight's rows in the host's memory, however they are stored.
pub(crate) enum Rows<'a> {
    F32(FlexTensor),
    Bf16(FlexTensor),
    Quantised(&'a dyn QuantisedMatrix),
}

impl<'a> Rows<'a> {
    /// The rows of a weight that lies on the CPU.
    pub(crate) fn of(weight: WeightRef<'a>) -> Option<Self> {
        match weight {
            WeightRef::Quantised(matrix) => Some(Self::Quantised(matrix)),
            WeightRef::Dense(tensor) => {
                let tensor = host::host(tensor)?;
                match tensor.dtype() {
                    DType::F32 => Some(Self::F32(tensor)),
                    DType::BF16 => Some(Self::Bf16(tensor)),
                    _ => None,
                }
            }
        }
    }

    /// Rows `first..first + output.len() / columns` as f32.
    pub(crate) fn expand(&self, first: usize, columns: usize, output: &mut [f32]) {
        let start = first * columns;
        match self {
            Self::F32(tensor) => {
                output.copy_from_slice(&host::read(tensor)[start..start + output.len()]);
            }
            Self::Bf16(tensor) => {
                let stored = &host::read_bf16(tensor)[start..start + output.len()];
                vectorised(
                    #[inline(always)]
                    || widen(stored, output),
                );
            }
            Self::Quantised(matrix) => {
                matrix.expand(first..first + output.len() / columns.max(1), output);
            }
        }
    }
}

#[inline(always)]
fn widen(stored: &[bf16], output: &mut [f32]) {
    for (value, stored) in output.iter_mut().zip(stored) {
        *value = f32::from_bits(u32::from(stored.to_bits()) << 16);
    }
}

/// Rows of a panel of a matrix with so many columns.
pub(crate) fn panel_rows(columns: usize) -> usize {
    (PANEL_BYTES / 4 / columns.max(1) / PANEL_STEP).max(1) * PANEL_STEP
}

/// Rows `first..first + rows` as they stand: `[rows, columns]`.
pub(crate) fn straight(rows: &Rows, (first, count): (usize, usize), columns: usize) -> Vec<f32> {
    let mut panel = host::buffer(count * columns);
    panel.par_chunks_mut(BLOCK * columns).enumerate().for_each(|(block, output)| {
        rows.expand(first + block * BLOCK, columns, output);
    });
    panel
}

/// Rows `first..first + rows` turned over: `[columns, rows]`, which products read faster.
pub(crate) fn transposed(rows: &Rows, (first, count): (usize, usize), columns: usize) -> Vec<f32> {
    let mut panel = host::buffer(count * columns);
    let output = Shared(panel.as_mut_ptr());
    (0..count.div_ceil(BLOCK)).into_par_iter().for_each_init(Vec::new, |wide, block| {
        let start = block * BLOCK;
        let height = BLOCK.min(count - start);
        let source = match rows {
            Rows::F32(tensor) => {
                let at = (first + start) * columns;
                &host::read(tensor)[at..at + height * columns]
            }
            _ => {
                wide.resize(height * columns, 0.0);
                rows.expand(first + start, columns, wide);
                wide.as_slice()
            }
        };
        // SAFETY: a block writes columns `start..start + height` of every row of the panel, which
        // belong to it alone.
        unsafe { turn(source, columns, &output, (start, count)) };
    });
    panel
}

/// Writes `source` (`[height, columns]`) into columns `start..` of rows `count` wide.
///
/// # Safety
/// Those columns exist in `output` and nobody else touches them.
unsafe fn turn(source: &[f32], columns: usize, output: &Shared, place: (usize, usize)) {
    let height = source.len() / columns.max(1);
    // SAFETY: promised by the caller. A whole block has a constant height, so its loop unrolls.
    unsafe {
        if height == BLOCK {
            turn_rows(source, (BLOCK, columns), output, place);
        } else {
            turn_rows(source, (height, columns), output, place);
        }
    }
}

/// # Safety
/// As in [`turn`]; `source` holds `height * columns` values.
#[inline(always)]
unsafe fn turn_rows(
    source: &[f32],
    (height, columns): (usize, usize),
    output: &Shared,
    (start, count): (usize, usize),
) {
    for column in 0..columns {
        for row in 0..height {
            // SAFETY: promised by the caller.
            unsafe {
                let value = *source.get_unchecked(row * columns + column);
                output.at(column * count + start + row).write(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::from_f32;
    use burn::tensor::Device;

    #[test]
    fn panels_hold_the_rows_straight_and_turned() {
        for (height, columns) in [(1, 1), (16, 3), (17, 5), (50, 33)] {
            let values: Vec<f32> = (0..height * columns).map(|i| i as f32).collect();
            let tensor = from_f32(values.clone(), [height, columns], DType::F32, &Device::flex());
            let rows = Rows::of(WeightRef::from(&tensor)).unwrap();
            let count = height - height / 3;
            let first = height / 3;
            assert_eq!(straight(&rows, (first, count), columns), values[first * columns..]);
            let turned = transposed(&rows, (first, count), columns);
            for row in 0..count {
                for column in 0..columns {
                    assert_eq!(
                        turned[column * count + row],
                        values[(first + row) * columns + column]
                    );
                }
            }
        }
    }
}
