//! Eight bits a number: `code = round(127 * w / absmax)`, one `absmax` a row (Dettmers et al. 2022,
//! arXiv 2208.07339, without its treatment of outliers: activations stay wide).
//!
//! As bitsandbytes does, weights are rounded to f16 first.

use std::fmt;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use super::for_chunks;
use crate::math::vectorised;
use crate::weight::{QuantisedMatrix, Stored};

/// A matrix of signed bytes with a scale for each row.
pub struct Int8Matrix {
    columns: usize,
    /// `[rows, columns]`
    codes: Vec<i8>,
    /// Largest absolute value of each row.
    absmax: Vec<f32>,
}

impl fmt::Debug for Int8Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Int8Matrix({}x{})", self.absmax.len(), self.columns)
    }
}

impl Int8Matrix {
    /// Quantises a matrix of the given `[rows, columns]`, read in ranges of rows.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn quantise<E>(
        dims: [usize; 2],
        read: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let [rows, columns] = dims;
        let mut codes = vec![0_i8; rows * columns];
        let mut absmax = vec![0.0_f32; rows];
        for_chunks(dims, read, |first, values| {
            let count = values.len() / columns.max(1);
            let codes = &mut codes[first * columns..first * columns + values.len()];
            codes
                .par_chunks_mut(columns.max(1))
                .zip(values.par_chunks(columns.max(1)))
                .zip(&mut absmax[first..first + count])
                .for_each(|((codes, values), absmax)| *absmax = quantise_row(values, codes));
        })?;
        Ok(Self { columns, codes, absmax })
    }

    /// All codes, row by row, and the largest absolute value of each row.
    pub fn parts(&self) -> (&[i8], &[f32]) {
        (&self.codes, &self.absmax)
    }

    /// Codes of a row, and the largest absolute value they stand for.
    pub fn row(&self, row: usize) -> (&[i8], f32) {
        (&self.codes[row * self.columns..(row + 1) * self.columns], self.absmax[row])
    }
}

fn quantise_row(values: &[f32], codes: &mut [i8]) -> f32 {
    let narrow = |value: f32| f16::from_f32(value).to_f32();
    let absmax = values.iter().fold(0.0_f32, |largest, &value| largest.max(narrow(value).abs()));
    // PyTorch divides a number by a tensor in these two steps, which decides ties.
    let factor = if absmax > 0.0 { (1.0 / absmax) * 127.0 } else { 0.0 };
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = (narrow(value) * factor).round_ties_even() as i8;
    }
    absmax
}

impl QuantisedMatrix for Int8Matrix {
    fn dims(&self) -> [usize; 2] {
        [self.absmax.len(), self.columns]
    }

    fn bytes(&self) -> usize {
        self.codes.len() + 4 * self.absmax.len()
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored::Int8 { codes: &self.codes, absmax: &self.absmax })
    }

    fn expand(&self, rows: Range<usize>, output: &mut [f32]) {
        for (row, output) in rows.zip(output.chunks_exact_mut(self.columns.max(1))) {
            let (codes, absmax) = self.row(row);
            let scale = absmax / 127.0;
            vectorised(
                #[inline(always)]
                || {
                    for (value, &code) in output.iter_mut().zip(codes) {
                        *value = f32::from(code) * scale;
                    }
                },
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_within_half_a_step_of_their_row() {
        let (rows, columns) = (70, 33);
        let value = |i: usize| f16::from_f32((i as f32 * 0.37).sin() * (1 + i / columns) as f32);
        let values: Vec<f32> = (0..rows * columns).map(|i| value(i).to_f32()).collect();
        let read = |range: Range<usize>| {
            Ok::<_, ()>(values[range.start * columns..range.end * columns].to_vec())
        };
        let matrix = Int8Matrix::quantise([rows, columns], read).unwrap();
        let mut back = vec![0.0; 3 * columns];
        matrix.expand(4..7, &mut back);
        for (i, back) in back.iter().enumerate() {
            let absmax = matrix.row(4 + i / columns).1;
            assert!((back - values[4 * columns + i]).abs() <= absmax / 127.0 * 0.5001);
        }
    }

    #[test]
    fn a_row_of_zeros_stays_zero() {
        let matrix = Int8Matrix::quantise([1, 4], |_| Ok::<_, ()>(vec![0.0; 4])).unwrap();
        let mut back = vec![1.0; 4];
        matrix.expand(0..1, &mut back);
        assert_eq!(back, [0.0; 4]);
    }
}
