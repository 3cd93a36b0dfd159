//! The one rounding of a merge: f32 to the output type, to nearest, ties to even.

use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::weights::StoredDtype;

/// Elements that one thread converts at a time.
const CHUNK: usize = 1 << 14;

/// A type that merged weights can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OutputDtype {
    F32,
    F16,
    Bf16,
}

impl OutputDtype {
    /// The type that keeps `stored` as it is; f16 for quantised blocks.
    pub(super) fn keeping(stored: StoredDtype) -> Self {
        match stored {
            StoredDtype::F32 => Self::F32,
            StoredDtype::Bf16 => Self::Bf16,
            _ => Self::F16,
        }
    }

    pub(super) fn stored(self) -> StoredDtype {
        match self {
            Self::F32 => StoredDtype::F32,
            Self::F16 => StoredDtype::F16,
            Self::Bf16 => StoredDtype::Bf16,
        }
    }

    /// Its name in safetensors headers.
    pub(super) fn name(self) -> &'static str {
        self.stored().name()
    }

    /// Its name in `config.json`.
    pub(super) fn config_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::F16 => "float16",
            Self::Bf16 => "bfloat16",
        }
    }

    pub(super) fn in_header(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Replaces `out` by `values` in this type, little-endian. Gives the place of the first value
    /// that is not finite once rounded.
    pub(super) fn encode(self, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
        out.resize(values.len() * self.bytes(), 0);
        let first_bad = values
            .par_chunks(CHUNK)
            .zip(out.par_chunks_mut(CHUNK * self.bytes()))
            .enumerate()
            .filter_map(|(n, (values, out))| Some(n * CHUNK + self.encode_chunk(values, out)?))
            .min();
        first_bad.map_or(Ok(()), Err)
    }

    /// The place of the first value that is not finite, if there is one.
    fn encode_chunk(self, values: &[f32], out: &mut [u8]) -> Option<usize> {
        let mut bad = false;
        match self {
            Self::F32 => {
                for (value, out) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                    bad |= !value.is_finite();
                    *out = value.to_le_bytes();
                }
            }
            Self::F16 => {
                for (&value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                    let rounded = f16::from_f32(value);
                    bad |= !rounded.is_finite();
                    *out = rounded.to_le_bytes();
                }
            }
            Self::Bf16 => {
                for (&value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                    let rounded = bf16::from_f32(value);
                    bad |= !rounded.is_finite();
                    *out = rounded.to_le_bytes();
                }
            }
        }
        if bad { values.iter().position(|&value| !self.holds(value)) } else { None }
    }

    fn holds(self, value: f32) -> bool {
        match self {
            Self::F32 => value.is_finite(),
            Self::F16 => f16::from_f32(value).is_finite(),
            Self::Bf16 => bf16::from_f32(value).is_finite(),
        }
    }
}

/// Elements of `width` bytes that differ.
pub(super) fn differing(before: &[u8], after: &[u8], width: usize) -> u64 {
    let pairs = before.par_chunks(CHUNK * width).zip(after.par_chunks(CHUNK * width));
    pairs
        .map(|(before, after)| {
            let elements = before.chunks_exact(width).zip(after.chunks_exact(width));
            elements.filter(|(before, after)| before != after).count() as u64
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(dtype: OutputDtype, values: &[f32]) -> Result<Vec<u8>, usize> {
        let mut out = Vec::new();
        dtype.encode(values, &mut out).map(|()| out)
    }

    #[test]
    fn ties_go_to_even_and_the_rest_to_the_nearest() {
        // bf16 has 8 bits of significand: 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷.
        let values = [1.0 + 2.0_f32.powi(-8), 1.0 + 3.0 * 2.0_f32.powi(-8), 1.004];
        assert_eq!(
            encoded(OutputDtype::Bf16, &values).unwrap(),
            [0x80, 0x3f, 0x82, 0x3f, 0x81, 0x3f]
        );
        // f16 has 11: 2049 lies between 2048 and 2050, 2051 between 2050 and 2052.
        let bytes = encoded(OutputDtype::F16, &[2049.0, 2051.0]).unwrap();
        assert_eq!(bytes, [0x00, 0x68, 0x02, 0x68]);
        assert_eq!(encoded(OutputDtype::F32, &[-0.0]).unwrap(), [0, 0, 0, 0x80]);
    }

    #[test]
    fn the_first_value_too_large_is_found_across_chunks() {
        let mut values = vec![1.0_f32; 3 * CHUNK];
        assert!(encoded(OutputDtype::F16, &values).is_ok());
        values[2 * CHUNK + 5] = 65520.0;
        values[CHUNK + 7] = 1e5;
        assert_eq!(encoded(OutputDtype::F16, &values), Err(CHUNK + 7));
        assert!(encoded(OutputDtype::Bf16, &values).is_ok());
        assert!(encoded(OutputDtype::F16, &[65519.0]).is_ok());
        assert_eq!(encoded(OutputDtype::Bf16, &[f32::MAX]), Err(0));
        assert_eq!(encoded(OutputDtype::F32, &[0.0, f32::NAN]), Err(1));
    }

    #[test]
    fn differing_elements_are_counted_not_bytes() {
        assert_eq!(differing(&[1, 2, 3, 4], &[9, 9, 3, 4], 2), 1);
    }
}
