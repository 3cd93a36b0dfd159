//! Four bits a number: NF4 with double quantisation (Dettmers et al. 2023, arXiv 2305.14314).
//!
//! Numbers are taken row by row in blocks of 64. A block keeps its largest absolute value and a
//! code a number, the nearest of 16 quantiles of a normal distribution. The blocks' absolute
//! values, less their mean, are themselves kept as 8-bit codes of a dynamic map in blocks of 256.

use std::fmt;
use std::ops::Range;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::{dynamic_map, for_chunks, nearest};
use crate::math::vectorised;
use crate::weight::{QuantisedMatrix, Stored};

/// Numbers with one scale.
const BLOCK: usize = 64;

/// Scales with one second-level scale.
const SCALES: usize = 256;

/// The 16 values of NF4: the paper's appendix E.
const VALUES: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The dynamic map of the blocks' scales.
static DYNAMIC_MAP: LazyLock<[f32; 256]> = LazyLock::new(|| dynamic_map(1));

/// A matrix of 4-bit codes.
pub struct Nf4Matrix {
    dims: [usize; 2],
    /// Two numbers a byte, the first in the high half.
    codes: Vec<u8>,
    /// A dynamic-map code for every block.
    scale_codes: Vec<u8>,
    /// A factor for every 256 blocks.
    scale_scales: Vec<f32>,
    /// Mean of the blocks' scales.
    offset: f32,
}

impl fmt::Debug for Nf4Matrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Nf4Matrix({}x{})", self.dims[0], self.dims[1])
    }
}

impl Nf4Matrix {
    /// Quantises a matrix of the given `[rows, columns]`, read in ranges of rows.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn quantise<E>(
        dims: [usize; 2],
        read: impl FnMut(Range<usize>) -> Result<Vec<f32>, E>,
    ) -> Result<Self, E> {
        let [rows, columns] = dims;
        let mut codes = vec![0_u8; (rows * columns).div_ceil(2)];
        let mut scales = vec![0.0_f32; (rows * columns).div_ceil(BLOCK)];
        for_chunks(dims, read, |first, values| {
            let start = first * columns;
            codes[start / 2..]
                .par_chunks_mut(BLOCK / 2)
                .zip(values.par_chunks(BLOCK))
                .zip(&mut scales[start / BLOCK..])
                .for_each(|((codes, values), scale)| *scale = quantise_block(values, codes));
        })?;
        let offset =
            (scales.iter().map(|&s| f64::from(s)).sum::<f64>() / scales.len().max(1) as f64) as f32;
        let (scale_codes, scale_scales) = quantise_scales(&scales, offset);
        Ok(Self { dims, codes, scale_codes, scale_scales, offset })
    }

    /// Packed codes, the codes of the blocks' scales, their factors, and the scales' mean.
    pub fn parts(&self) -> (&[u8], &[u8], &[f32], f32) {
        (&self.codes, &self.scale_codes, &self.scale_scales, self.offset)
    }

    /// What codes stand for: the 16 values of NF4, then the 256 of the scales' map.
    pub(crate) fn tables() -> [f32; 272] {
        let mut tables = [0.0; 272];
        tables[..16].copy_from_slice(&VALUES);
        tables[16..].copy_from_slice(DYNAMIC_MAP.as_slice());
        tables
    }

    fn scale(&self, block: usize) -> f32 {
        let value = DYNAMIC_MAP[usize::from(self.scale_codes[block])];
        value * self.scale_scales[block / SCALES] + self.offset
    }
}

fn quantise_block(values: &[f32], codes: &mut [u8]) -> f32 {
    let scale = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    let factor = 1.0 / scale.max(1e-38);
    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
        let code = |value: &f32| nearest(&VALUES, (value * factor).clamp(-1.0, 1.0));
        *byte = code(&pair[0]) << 4 | pair.get(1).map_or(7, code);
    }
    scale
}

fn quantise_scales(scales: &[f32], offset: f32) -> (Vec<u8>, Vec<f32>) {
    let mut codes = Vec::with_capacity(scales.len());
    let mut factors = Vec::with_capacity(scales.len().div_ceil(SCALES));
    for group in scales.chunks(SCALES) {
        let largest = group.iter().fold(0.0_f32, |largest, s| largest.max((s - offset).abs()));
        let factor = 1.0 / largest.max(1e-38);
        let code =
            |s: &f32| nearest(DYNAMIC_MAP.as_slice(), ((s - offset) * factor).clamp(-1.0, 1.0));
        codes.extend(group.iter().map(code));
        factors.push(largest);
    }
    (codes, factors)
}

impl QuantisedMatrix for Nf4Matrix {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn bytes(&self) -> usize {
        self.codes.len() + self.scale_codes.len() + 4 * self.scale_scales.len()
    }

    fn stored(&self) -> Option<Stored<'_>> {
        let (codes, scale_codes, scale_scales, offset) = self.parts();
        Some(Stored::Nf4 { codes, scale_codes, scale_scales, offset })
    }

    fn expand(&self, rows: Range<usize>, output: &mut [f32]) {
        let start = rows.start * self.dims[1];
        let mut done = 0;
        while done < output.len() {
            let at = start + done;
            let block = at / BLOCK;
            let count = (BLOCK - at % BLOCK).min(output.len() - done);
            let output = &mut output[done..done + count];
            let scale = self.scale(block);
            if at.is_multiple_of(2) && count.is_multiple_of(2) {
                let codes = &self.codes[at / 2..at / 2 + count / 2];
                vectorised(
                    #[inline(always)]
                    || {
                        for (pair, code) in output.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
                            pair[0] = VALUES[usize::from(code >> 4)] * scale;
                            pair[1] = VALUES[usize::from(code & 15)] * scale;
                        }
                    },
                );
            } else {
                for (i, value) in (at..).zip(output) {
                    let byte = self.codes[i / 2];
                    let code = if i.is_multiple_of(2) { byte >> 4 } else { byte & 15 };
                    *value = VALUES[usize::from(code)] * scale;
                }
            }
            done += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dynamic_map_has_256_values_between_minus_one_and_one() {
        assert_eq!(DYNAMIC_MAP.len(), 256);
        assert!(DYNAMIC_MAP.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(DYNAMIC_MAP[255], 1.0);
        assert_eq!(DYNAMIC_MAP[127], 0.0);
        assert!((DYNAMIC_MAP[0] + 0.992_968_7).abs() < 1e-6);
    }

    #[test]
    fn codes_are_the_nearest_values() {
        for (code, &value) in VALUES.iter().enumerate() {
            assert_eq!(usize::from(nearest(&VALUES, value)), code);
            assert_eq!(usize::from(nearest(&VALUES, value + 1e-3)), code);
        }
        assert_eq!(nearest(&VALUES, -2.0), 0);
        assert_eq!(nearest(&VALUES, 2.0), 15);
    }

    #[test]
    fn rows_expand_alike_alone_and_together() {
        for (rows, columns) in [(3, 64), (70, 33), (5, 1), (130, 96)] {
            let values: Vec<f32> = (0..rows * columns).map(|i| (i as f32 * 0.7).sin()).collect();
            let read = |range: Range<usize>| {
                Ok::<_, ()>(values[range.start * columns..range.end * columns].to_vec())
            };
            let matrix = Nf4Matrix::quantise([rows, columns], read).unwrap();
            let mut whole = vec![0.0; rows * columns];
            matrix.expand(0..rows, &mut whole);
            for (&wide, &narrow) in values.iter().zip(&whole) {
                assert!((wide - narrow).abs() < 0.16, "{wide} became {narrow}");
            }
            let mut one = vec![0.0; columns];
            for row in 0..rows {
                matrix.expand(row..row + 1, &mut one);
                assert_eq!(one, whole[row * columns..(row + 1) * columns]);
            }
        }
    }
}
