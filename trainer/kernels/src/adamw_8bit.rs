//! AdamW with moments in 8 bits (Dettmers et al. 2021, arXiv 2110.02861).
//!
//! Moments are kept in blocks of 256 numbers: a block's largest absolute value, and for each number
//! the code of the nearest value of a dynamic map, signed for the first moment, unsigned for the
//! second. An update takes them out, updates as [`crate::adamw`] does, and puts them back; a
//! negative first moment never rounds to 0, as in bitsandbytes.

use std::sync::LazyLock;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::adamw::{AdamwStep, Factors};
use crate::host;
use crate::quantise::{dynamic_map, nearest};

/// Numbers that share a scale.
const BLOCK: usize = 256;

/// 256 signed values, then 256 unsigned ones.
static MAPS: LazyLock<[f32; 512]> = LazyLock::new(|| {
    let mut maps = [0.0; 512];
    maps[..256].copy_from_slice(&dynamic_map(1));
    maps[256..].copy_from_slice(&dynamic_map(0));
    maps
});

/// First and second moment of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct EightBitMoments {
    first: Vec<u8>,
    second: Vec<u8>,
    first_scales: Vec<f32>,
    second_scales: Vec<f32>,
}

/// What a checkpoint keeps of moments in 8 bits.
#[derive(Debug, Clone, Copy)]
pub struct EightBitParts<'a> {
    /// Codes of the first moment.
    pub first: &'a [u8],
    /// Codes of the second moment.
    pub second: &'a [u8],
    /// Largest absolute value of each block of the first moment.
    pub first_scales: &'a [f32],
    /// The same of the second.
    pub second_scales: &'a [f32],
}

impl EightBitMoments {
    /// Moments of zero.
    pub fn zeros(elements: usize) -> Self {
        let blocks = elements.div_ceil(BLOCK);
        Self {
            first: vec![0; elements],
            second: vec![0; elements],
            first_scales: vec![0.0; blocks],
            second_scales: vec![0.0; blocks],
        }
    }

    /// What a checkpoint keeps.
    pub fn parts(&self) -> EightBitParts<'_> {
        EightBitParts {
            first: &self.first,
            second: &self.second,
            first_scales: &self.first_scales,
            second_scales: &self.second_scales,
        }
    }

    /// Takes up what a checkpoint kept; `None` where the lengths do not fit together.
    pub fn from_parts(parts: EightBitParts<'_>) -> Option<Self> {
        let blocks = parts.first.len().div_ceil(BLOCK);
        let fits = parts.second.len() == parts.first.len()
            && parts.first_scales.len() == blocks
            && parts.second_scales.len() == blocks;
        fits.then(|| Self {
            first: parts.first.to_vec(),
            second: parts.second.to_vec(),
            first_scales: parts.first_scales.to_vec(),
            second_scales: parts.second_scales.to_vec(),
        })
    }

    /// Bytes that `elements` numbers take.
    pub fn bytes_for(elements: usize) -> usize {
        2 * elements + 8 * elements.div_ceil(BLOCK)
    }

    /// 256 signed values, then 256 unsigned ones.
    pub(crate) fn maps() -> &'static [f32; 512] {
        &MAPS
    }
}

/// Updates `weight` and its moments.
///
/// # Shapes
/// - `weight`, `gradient`: alike, f32; `moments`: of as many numbers
pub fn adamw_8bit(
    weight: Tensor<2>,
    moments: &mut EightBitMoments,
    gradient: &Tensor<2>,
    step: &AdamwStep,
) -> Tensor<2> {
    let factors = Factors::new(step);
    let (dims, dtype, device) = (weight.dims(), weight.dtype(), weight.device());
    assert_eq!(weight.shape().num_elements(), moments.first.len(), "moments of this tensor");
    match (host::take_f32(weight), host::host_f32(gradient)) {
        (Ok(mut weight), Some(gradient)) => {
            update(host::write(&mut weight), moments, host::read(&gradient), &factors);
            host::give(weight)
        }
        (weight, _) => {
            let weight = weight.map_or_else(|weight| weight, host::give);
            let mut values = host::to_f32(&weight);
            update(&mut values, moments, &host::to_f32(gradient), &factors);
            host::from_f32(values, dims, dtype, &device)
        }
    }
}

fn update(weight: &mut [f32], moments: &mut EightBitMoments, gradient: &[f32], factors: &Factors) {
    let codes = moments.first.par_chunks_mut(BLOCK).zip(moments.second.par_chunks_mut(BLOCK));
    let scales = moments.first_scales.par_iter_mut().zip(&mut moments.second_scales);
    weight
        .par_chunks_mut(BLOCK)
        .zip(gradient.par_chunks(BLOCK))
        .zip(codes.zip(scales))
        .with_min_len(16)
        .for_each(|((weight, gradient), ((first, second), (first_scale, second_scale)))| {
            let (signed, unsigned) = MAPS.split_at(256);
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            let (m, v) = (&mut m[..weight.len()], &mut v[..weight.len()]);
            take_out(m, first, signed, *first_scale);
            take_out(v, second, unsigned, *second_scale);
            factors.update(weight, m, v, gradient);
            *first_scale = put_back(m, first, signed);
            *second_scale = put_back(v, second, unsigned);
        });
}

fn take_out(values: &mut [f32], codes: &[u8], map: &[f32], scale: f32) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = map[usize::from(code)] * scale;
    }
}

/// Codes of a block; gives its scale.
fn put_back(values: &[f32], codes: &mut [u8], map: &[f32]) -> f32 {
    let scale = values.iter().fold(0.0_f32, |largest, value| largest.max(value.abs()));
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = nearest(map, if scale > 0.0 { value / scale } else { 0.0 });
        if value < 0.0 && map[usize::from(*code)] >= 0.0 {
            *code -= 1;
        }
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_maps_ascend_and_reach_one() {
        for map in MAPS.chunks(256) {
            assert!(map.windows(2).all(|pair| pair[0] < pair[1]));
            assert_eq!(map[255], 1.0);
            assert!(map.contains(&0.0));
        }
        assert_eq!(MAPS[256], 0.0);
    }

    #[test]
    fn moments_come_back_within_a_step_of_the_map() {
        let values: Vec<f32> = (0..256).map(|i| (i as f32 * 0.7).sin() * 1e-3).collect();
        let (mut codes, mut back) = (vec![0; 256], vec![0.0; 256]);
        let scale = put_back(&values, &mut codes, &MAPS[..256]);
        take_out(&mut back, &codes, &MAPS[..256], scale);
        for (value, back) in values.iter().zip(&back) {
            assert!((value - back).abs() <= 0.01 * scale, "{value} became {back}");
            assert!(value * back >= 0.0, "{value} became {back}");
        }
    }

    #[test]
    fn parts_go_round() {
        let mut moments = EightBitMoments::zeros(300);
        let weight = host::wrap(vec![0.5; 300], [3, 100]);
        let gradient = host::wrap((0..300).map(|i| (i as f32).cos()).collect(), [3, 100]);
        let step = AdamwStep {
            learning_rate: 1e-2,
            betas: [0.9, 0.999],
            epsilon: 1e-8,
            weight_decay: 0.0,
            count: 1,
            gradient_factor: 1.0,
        };
        let moved = adamw_8bit(weight, &mut moments, &gradient, &step);
        // The first update is the sign of the gradient times the learning rate.
        for (i, weight) in host::to_f32(&moved).iter().enumerate() {
            assert!((weight - 0.5 + 1e-2 * (i as f32).cos().signum()).abs() < 1e-5);
        }
        assert_eq!(EightBitMoments::from_parts(moments.parts()).unwrap(), moments);
        let mut parts = moments.parts();
        parts.second = &parts.second[1..];
        assert!(EightBitMoments::from_parts(parts).is_none());
    }
}
