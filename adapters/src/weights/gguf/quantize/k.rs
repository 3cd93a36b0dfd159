//! Blocks of 256 values in sub-blocks, whose own scales are small integers.
//!
//! Each sub-block is fitted alone: a handful of scales around the one that just covers the range
//! give codes, weighted least squares gives the best scale (and minimum) for those codes, and the
//! fit of smallest weighted error stays. Large values weigh more: they take part in large products.
//! The scales are then rounded to the block's common unit, and codes chosen anew for what is
//! stored.

use std::ops::RangeInclusive;

use super::k_lines::StoredLines;
use super::legacy::{range, signed_largest};
use super::{code, inverse, put_half};

/// Largest 6-bit scale.
pub(super) const LARGEST_SCALE: f32 = 63.0;

/// How the scales around the range are tried: `largest_code + first + i·step` in place of the
/// largest code, for `i` up to `steps`.
struct Search {
    largest_code: f32,
    first: f32,
    step: f32,
    steps: u8,
    /// Whether a line may begin above 0.
    minimum: Minimum,
}

/// What a format can store as the value of code 0.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Minimum {
    /// 0 or less.
    NotAboveZero,
    Any,
}

const FOUR_BITS: Search = Search {
    largest_code: 15.0,
    first: -1.0,
    step: 0.1,
    steps: 20,
    minimum: Minimum::NotAboveZero,
};
const FIVE_BITS: Search = Search { largest_code: 31.0, first: -0.5, steps: 15, ..FOUR_BITS };
/// Where columns matter more or less, a range that leaves out what matters little can be best.
const WIDE: Search = Search { first: -0.9, step: 0.05, steps: 100, ..FOUR_BITS };

/// The same search among more ranges.
fn widened(search: &Search) -> Search {
    Search { largest_code: search.largest_code, minimum: search.minimum, ..WIDE }
}

pub(super) fn q4_k(values: &[f32; 256], importance: Option<&[f32; 256]>, block: &mut [u8; 144]) {
    let codes = put_lines(values, importance, block, &FOUR_BITS);
    for (pair, out) in block[16..].chunks_exact_mut(32).enumerate() {
        for (l, out) in out.iter_mut().enumerate() {
            *out = codes[pair * 64 + l] | codes[pair * 64 + 32 + l] << 4;
        }
    }
}

pub(super) fn q5_k(values: &[f32; 256], importance: Option<&[f32; 256]>, block: &mut [u8; 176]) {
    let codes = put_lines(values, importance, block, &FIVE_BITS);
    let (fifths, nibbles) = block[16..].split_at_mut(32);
    for (pair, out) in nibbles.chunks_exact_mut(32).enumerate() {
        for (l, out) in out.iter_mut().enumerate() {
            let (low, high) = (codes[pair * 64 + l], codes[pair * 64 + 32 + l]);
            *out = (low & 0x0F) | (high & 0x0F) << 4;
            fifths[l] |= (low >> 4) << (2 * pair) | (high >> 4) << (2 * pair + 1);
        }
    }
}

/// Writes unit, scales and minima of the 8 sub-blocks, and gives the codes.
fn put_lines<const BYTES: usize>(
    values: &[f32; 256],
    importance: Option<&[f32; 256]>,
    block: &mut [u8; BYTES],
    search: &Search,
) -> [u8; 256] {
    let sub_blocks = values.as_chunks::<32>().0;
    let mut lines = [Line::default(); 8];
    for (place, (line, values)) in lines.iter_mut().zip(sub_blocks).enumerate() {
        *line = match importance.map(|all| &all.as_chunks::<32>().0[place]) {
            Some(importance) => Line::fit(values, importance, &widened(search)),
            None => Line::fit(values, &weights(values), search),
        };
    }
    let mut stored = StoredLines::rounded(&lines);
    if let Some(importance) = importance {
        stored = stored.refined(sub_blocks, importance.as_chunks().0, search.largest_code);
    }
    let StoredLines { unit, minimum_unit, packed } = stored;
    put_half(block, 0, unit);
    put_half(block, 2, minimum_unit);
    pack_scales(&packed, &mut block[4..16]);
    let mut codes = [0; 256];
    let codes_of = codes.as_chunks_mut::<32>().0.iter_mut();
    for ((out, values), (scale, minimum)) in codes_of.zip(sub_blocks).zip(packed) {
        let inverse = inverse(unit * f32::from(scale));
        let minimum = minimum_unit * f32::from(minimum);
        *out =
            values.map(|value| code((value + minimum) * inverse, 0.0, search.largest_code) as u8);
    }
    codes
}

/// 6-bit scales and minima in 12 bytes: the first four of each in the low bits of a byte, the last
/// four cut into nibbles and the two spare bits of the first.
fn pack_scales(pairs: &[(u8, u8); 8], out: &mut [u8]) {
    for (j, &(scale, minimum)) in pairs.iter().enumerate() {
        if j < 4 {
            out[j] |= scale;
            out[j + 4] |= minimum;
        } else {
            out[j + 4] = (scale & 0x0F) | (minimum & 0x0F) << 4;
            out[j - 4] |= (scale >> 4) << 6;
            out[j] |= (minimum >> 4) << 6;
        }
    }
}

/// Root mean square of the sub-block plus the value's own size.
fn weights(values: &[f32; 32]) -> [f32; 32] {
    let square_sum: f32 = values.iter().map(|value| value * value).sum();
    let root_mean_square = (square_sum / 32.0).sqrt();
    values.map(|value| root_mean_square + value.abs())
}

/// Scale and value of code 0 of the 32 values of a `_1` format.
pub(super) fn weighted_line(
    values: &[f32; 32],
    importance: &[f32; 32],
    largest_code: f32,
) -> (f32, f32) {
    let search = Search { largest_code, minimum: Minimum::Any, ..WIDE };
    let Line { scale, minimum } = Line::fit(values, importance, &search);
    (scale, -minimum)
}

/// `value ≈ scale·code − minimum`; the scale is not negative.
#[derive(Clone, Copy, Default)]
pub(super) struct Line {
    pub(super) scale: f32,
    pub(super) minimum: f32,
}

impl Line {
    fn fit(values: &[f32; 32], weights: &[f32; 32], search: &Search) -> Self {
        let (low, high) = range(values);
        let low = if search.minimum == Minimum::Any { low } else { low.min(0.0) };
        // Also where a value is not a number: that is found when the block is decoded.
        if high.partial_cmp(&low) != Some(std::cmp::Ordering::Greater) {
            return Self { scale: 0.0, minimum: -low };
        }
        let covering = Self { scale: (high - low) / search.largest_code, minimum: -low };
        let mut best = covering;
        let mut least_error = covering.error(values, weights, search.largest_code);
        for step in 0..=search.steps {
            let codes = search.largest_code + search.first + search.step * f32::from(step);
            let tried = Self { scale: (high - low) / codes, minimum: -low };
            let fitted = tried.refit(values, weights, search);
            let Some(fitted) = fitted else { continue };
            let error = fitted.error(values, weights, search.largest_code);
            if error < least_error {
                (best, least_error) = (fitted, error);
            }
        }
        best
    }

    pub(super) fn codes(self, values: &[f32; 32], largest_code: f32) -> [f32; 32] {
        let inverse = inverse(self.scale);
        values.map(|value| code((value + self.minimum) * inverse, 0.0, largest_code))
    }

    /// Weighted sum of squared distances with the best codes for this line.
    pub(super) fn error(self, values: &[f32; 32], weights: &[f32; 32], largest_code: f32) -> f32 {
        let codes = self.codes(values, largest_code);
        let terms = values.iter().zip(weights).zip(&codes);
        terms.fold(0.0, |sum, ((value, weight), code)| {
            let difference = self.scale * code - self.minimum - value;
            sum + weight * difference * difference
        })
    }

    /// The line of least squares through the codes that this line gives.
    fn refit(self, values: &[f32; 32], weights: &[f32; 32], search: &Search) -> Option<Self> {
        let codes = self.codes(values, search.largest_code);
        let (mut w, mut x, mut c, mut cc, mut xc) = (0.0_f32, 0.0_f32, 0.0_f32, 0.0_f32, 0.0_f32);
        for ((value, weight), code) in values.iter().zip(weights).zip(&codes) {
            w += weight;
            x += weight * value;
            c += weight * code;
            cc += weight * code * code;
            xc += weight * code * value;
        }
        let determinant = w * cc - c * c;
        if determinant <= 0.0 {
            return None;
        }
        let scale = (w * xc - x * c) / determinant;
        let minimum = (c * xc - cc * x) / determinant;
        // A negative minimum cannot be stored: then the line goes through the origin.
        let line = if minimum < 0.0 && search.minimum == Minimum::NotAboveZero {
            Self { scale: xc / cc, minimum: 0.0 }
        } else {
            Self { scale, minimum }
        };
        (line.scale > 0.0).then_some(line)
    }
}

/// Largest size of an 8-bit scale of `Q6_K`.
const LARGEST_SIGNED_SCALE: f32 = 128.0;

pub(super) fn q6_k(values: &[f32; 256], importance: Option<&[f32; 256]>, block: &mut [u8; 210]) {
    let sub_blocks = values.as_chunks::<16>().0;
    let mut scales = [0.0_f32; 16];
    for (place, (scale, values)) in scales.iter_mut().zip(sub_blocks).enumerate() {
        *scale = match importance.map(|all| &all.as_chunks::<16>().0[place]) {
            Some(importance) => symmetric_scale(values, importance, 32.0, -9..=30),
            None => {
                let largest = signed_largest(values);
                let weights = values.map(|value| (value / largest) * (value / largest));
                symmetric_scale(values, &weights, 32.0, -9..=9)
            }
        };
    }
    let unit = put_half(block, 208, signed_largest(&scales) / -LARGEST_SIGNED_SCALE);
    let mut codes = [0_u8; 256];
    let codes_of = codes.as_chunks_mut::<16>().0.iter_mut();
    for (j, ((out, values), scale)) in codes_of.zip(sub_blocks).zip(scales).enumerate() {
        let scale = code(scale * inverse(unit), -LARGEST_SIGNED_SCALE, 127.0);
        block[192 + j] = (scale as i8).cast_unsigned();
        let inverse = inverse(unit * scale);
        *out = values.map(|value| code(value * inverse + 32.0, 0.0, 63.0) as u8);
    }
    for (part, codes) in codes.as_chunks::<128>().0.iter().enumerate() {
        for l in 0..32 {
            let [a, b, c, d] = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            block[part * 64 + l] = (a & 0x0F) | (c & 0x0F) << 4;
            block[part * 64 + 32 + l] = (b & 0x0F) | (d & 0x0F) << 4;
            block[128 + part * 32 + l] = a >> 4 | (b >> 4) << 2 | (c >> 4) << 4 | (d >> 4) << 6;
        }
    }
}

/// The scale of values with codes −`half` to `half` − 1, of either sign. `steps` are the tenths of a
/// code by which the largest value is tried beyond, or within, its code.
pub(super) fn symmetric_scale<const VALUES: usize>(
    values: &[f32; VALUES],
    weights: &[f32; VALUES],
    half: f32,
    steps: RangeInclusive<i8>,
) -> f32 {
    let largest = signed_largest(values);
    if largest.abs() < 1e-15 {
        return 0.0;
    }
    // Between −1 and 1: products of large values would overflow.
    let values = values.map(|value| value / largest);
    let heaviest = signed_largest(weights);
    let weights = weights.map(|weight| weight * inverse(heaviest));
    let mut best = 0.0;
    let mut best_score = 0.0;
    for step in steps {
        let inverse = -(half + 0.1 * f32::from(step));
        let (mut xc, mut cc) = (0.0_f32, 0.0_f32);
        for (&value, &weight) in values.iter().zip(&weights) {
            let code = code(value * inverse, -half, half - 1.0);
            xc += weight * value * code;
            cc += weight * code * code;
        }
        // The error of the best scale is a constant less this.
        let score = xc * xc / cc;
        if cc > 0.0 && score > best_score {
            (best, best_score) = (xc / cc, score);
        }
    }
    best * largest
}
