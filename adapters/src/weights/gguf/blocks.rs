//! Decoders of the stored number formats, one function per format.
//!
//! A quantised block is a few 16-bit floats (scale `d`, sometimes a minimum) and packed integers.
//! The order of the operations is the format's reference order, so results are equal bit for bit.

use half::{bf16, f16};

use crate::weights::StoredDtype;

/// Decodes `bytes`, whole blocks of `dtype`, into `out`, as many numbers as the blocks hold.
pub(in crate::weights) fn decode(dtype: StoredDtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        StoredDtype::F32 => each(bytes, out, |block, out: &mut [f32; 1]| {
            out[0] = f32::from_le_bytes(*block);
        }),
        StoredDtype::F16 => each(bytes, out, |block, out: &mut [f32; 1]| {
            out[0] = f16::from_le_bytes(*block).to_f32();
        }),
        StoredDtype::Bf16 => each(bytes, out, |block, out: &mut [f32; 1]| {
            out[0] = bf16::from_le_bytes(*block).to_f32();
        }),
        StoredDtype::Q4_0 => each(bytes, out, q4_0),
        StoredDtype::Q4_1 => each(bytes, out, q4_1),
        StoredDtype::Q5_0 => each(bytes, out, q5_0),
        StoredDtype::Q5_1 => each(bytes, out, q5_1),
        StoredDtype::Q8_0 => each(bytes, out, q8_0),
        StoredDtype::Q4K => each(bytes, out, q4_k),
        StoredDtype::Q5K => each(bytes, out, q5_k),
        StoredDtype::Q6K => each(bytes, out, q6_k),
    }
}

fn each<const BYTES: usize, const ELEMENTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; ELEMENTS]),
) {
    for (block, out) in bytes.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        decode(block, out);
    }
}

fn half_at<const BYTES: usize>(block: &[u8; BYTES], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..16 {
        let packed = block[2 + j];
        out[j] = d * (f32::from(packed & 0x0F) - 8.0);
        out[j + 16] = d * (f32::from(packed >> 4) - 8.0);
    }
}

fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, minimum) = (half_at(block, 0), half_at(block, 2));
    for j in 0..16 {
        let packed = block[4 + j];
        out[j] = d * f32::from(packed & 0x0F) + minimum;
        out[j + 16] = d * f32::from(packed >> 4) + minimum;
    }
}

/// The two 5-bit integers of byte `j`: low nibbles first, fifth bits in `high`.
fn five_bits(packed: u8, high: u32, j: usize) -> (f32, f32) {
    let low_fifth = ((high >> j) & 1) as u8;
    let high_fifth = ((high >> (j + 16)) & 1) as u8;
    (f32::from((packed & 0x0F) | (low_fifth << 4)), f32::from((packed >> 4) | (high_fifth << 4)))
}

fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let high = u32::from_le_bytes([block[2], block[3], block[4], block[5]]);
    for j in 0..16 {
        let (first, second) = five_bits(block[6 + j], high, j);
        out[j] = d * (first - 16.0);
        out[j + 16] = d * (second - 16.0);
    }
}

fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, minimum) = (half_at(block, 0), half_at(block, 2));
    let high = u32::from_le_bytes([block[4], block[5], block[6], block[7]]);
    for j in 0..16 {
        let (first, second) = five_bits(block[8 + j], high, j);
        out[j] = d * first + minimum;
        out[j + 16] = d * second + minimum;
    }
}

fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for j in 0..32 {
        out[j] = d * f32::from(block[2 + j].cast_signed());
    }
}

/// Scale and minimum of the 8 sub-blocks of `Q4_K` and `Q5_K`: 6 bits each, packed into 12 bytes.
fn k_scales(packed: &[u8]) -> [(f32, f32); 8] {
    std::array::from_fn(|j| {
        let (scale, minimum) = if j < 4 {
            (packed[j] & 0x3F, packed[j + 4] & 0x3F)
        } else {
            (
                (packed[j + 4] & 0x0F) | ((packed[j - 4] >> 6) << 4),
                (packed[j + 4] >> 4) | ((packed[j] >> 6) << 4),
            )
        };
        (f32::from(scale), f32::from(minimum))
    })
}

fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, d_minimum) = (half_at(block, 0), half_at(block, 2));
    let scales = k_scales(&block[4..16]);
    for (pair, out) in out.chunks_exact_mut(64).enumerate() {
        let packed = &block[16 + pair * 32..48 + pair * 32];
        let (low, high) = (scales[pair * 2], scales[pair * 2 + 1]);
        let (d_low, m_low) = (d * low.0, d_minimum * low.1);
        let (d_high, m_high) = (d * high.0, d_minimum * high.1);
        for l in 0..32 {
            out[l] = d_low * f32::from(packed[l] & 0x0F) - m_low;
            out[l + 32] = d_high * f32::from(packed[l] >> 4) - m_high;
        }
    }
}

fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, d_minimum) = (half_at(block, 0), half_at(block, 2));
    let scales = k_scales(&block[4..16]);
    let fifths = &block[16..48];
    for (pair, out) in out.chunks_exact_mut(64).enumerate() {
        let packed = &block[48 + pair * 32..80 + pair * 32];
        let (low, high) = (scales[pair * 2], scales[pair * 2 + 1]);
        let (d_low, m_low) = (d * low.0, d_minimum * low.1);
        let (d_high, m_high) = (d * high.0, d_minimum * high.1);
        for l in 0..32 {
            let low_fifth = (fifths[l] >> (pair * 2)) & 1;
            let high_fifth = (fifths[l] >> (pair * 2 + 1)) & 1;
            out[l] = d_low * f32::from((packed[l] & 0x0F) | (low_fifth << 4)) - m_low;
            out[l + 32] = d_high * f32::from((packed[l] >> 4) | (high_fifth << 4)) - m_high;
        }
    }
}

fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    for (part, out) in out.chunks_exact_mut(128).enumerate() {
        let low = &block[part * 64..part * 64 + 64];
        let high = &block[128 + part * 32..160 + part * 32];
        let scales = &block[192 + part * 8..200 + part * 8];
        let scale = |index: usize| d * f32::from(scales[index].cast_signed());
        for l in 0..32 {
            let sub = l / 16;
            let six = |nibble: u8, shift: u32| {
                f32::from((nibble | (((high[l] >> shift) & 3) << 4)).cast_signed() - 32)
            };
            out[l] = scale(sub) * six(low[l] & 0x0F, 0);
            out[l + 32] = scale(sub + 2) * six(low[l + 32] & 0x0F, 2);
            out[l + 64] = scale(sub + 4) * six(low[l] >> 4, 4);
            out[l + 96] = scale(sub + 6) * six(low[l + 32] >> 4, 6);
        }
    }
}
