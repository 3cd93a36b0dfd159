//! Blocks of 32 values with one scale, and in the `_1` formats a minimum.
//!
//! The scale follows from the largest value; where the importance of columns is known, from a search
//! for the smallest weighted error. Codes are then the nearest ones for the scale as it is stored, in
//! f16, which makes them the best for that scale.

use super::k::{symmetric_scale, weighted_line};
use super::{code, inverse, put_half};

pub(super) fn q8_0(values: &[f32; 32], block: &mut [u8; 34]) {
    let scale = put_half(block, 0, signed_largest(values).abs() / 127.0);
    let inverse = inverse(scale);
    for (out, &value) in block[2..].iter_mut().zip(values) {
        *out = (code(value * inverse, -127.0, 127.0) as i8).cast_unsigned();
    }
}

pub(super) fn q4_0(values: &[f32; 32], importance: Option<&[f32; 32]>, block: &mut [u8; 18]) {
    let scale = put_half(block, 0, symmetric(values, importance, 8.0));
    let inverse = inverse(scale);
    let codes = values.map(|value| code(value * inverse + 8.0, 0.0, 15.0) as u8);
    put_nibbles(&codes, &mut block[2..]);
}

pub(super) fn q5_0(values: &[f32; 32], importance: Option<&[f32; 32]>, block: &mut [u8; 22]) {
    let scale = put_half(block, 0, symmetric(values, importance, 16.0));
    let inverse = inverse(scale);
    let codes = values.map(|value| code(value * inverse + 16.0, 0.0, 31.0) as u8);
    block[2..6].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
    put_nibbles(&codes, &mut block[6..]);
}

pub(super) fn q4_1(values: &[f32; 32], importance: Option<&[f32; 32]>, block: &mut [u8; 20]) {
    let codes = put_line(values, importance, block, 15.0);
    put_nibbles(&codes, &mut block[4..]);
}

pub(super) fn q5_1(values: &[f32; 32], importance: Option<&[f32; 32]>, block: &mut [u8; 24]) {
    let codes = put_line(values, importance, block, 31.0);
    block[4..8].copy_from_slice(&fifth_bits(&codes).to_le_bytes());
    put_nibbles(&codes, &mut block[8..]);
}

/// Writes scale and minimum, and gives the codes.
fn put_line<const BYTES: usize>(
    values: &[f32; 32],
    importance: Option<&[f32; 32]>,
    block: &mut [u8; BYTES],
    largest_code: f32,
) -> [u8; 32] {
    let (scale, minimum) = match importance {
        Some(importance) => weighted_line(values, importance, largest_code),
        None => {
            let (low, high) = range(values);
            ((high - low) / largest_code, low)
        }
    };
    let scale = put_half(block, 0, scale);
    let minimum = put_half(block, 2, minimum);
    let inverse = inverse(scale);
    values.map(|value| code((value - minimum) * inverse, 0.0, largest_code) as u8)
}

/// The largest value gets the code -`half`, which has no positive counterpart, unless columns matter
/// more or less.
fn symmetric(values: &[f32; 32], importance: Option<&[f32; 32]>, half: f32) -> f32 {
    match importance {
        Some(importance) => symmetric_scale(values, importance, half, -9..=30),
        None => signed_largest(values) / -half,
    }
}

/// The value of largest size, with its sign.
pub(super) fn signed_largest(values: &[f32]) -> f32 {
    let larger = |best: f32, &value: &f32| if value.abs() > best.abs() { value } else { best };
    values.iter().fold(0.0, larger)
}

pub(super) fn range(values: &[f32]) -> (f32, f32) {
    let ends = |(low, high): (f32, f32), &value: &f32| (low.min(value), high.max(value));
    values.iter().fold((f32::INFINITY, f32::NEG_INFINITY), ends)
}

/// Value `j` in the low half of byte `j`, value `j + 16` in the high half.
fn put_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    let (low, high) = codes.split_at(16);
    for ((out, low), high) in out.iter_mut().zip(low).zip(high) {
        *out = (low & 0x0F) | (high & 0x0F) << 4;
    }
}

fn fifth_bits(codes: &[u8; 32]) -> u32 {
    codes.iter().enumerate().fold(0, |bits, (j, code)| bits | u32::from(code >> 4 & 1) << j)
}
