//! AdamW with moments in 8 bits (Dettmers et al. 2021, arXiv 2110.02861).
//!
//! Moments are kept in blocks of 256 numbers: a block's largest absolute value, and for each number
//! the code of the nearest value of a dynamic map, signed for the first moment, unsigned for the
//! second. An update takes them out, updates as [`crate::adamw`] does, and puts them back; a
//! negative first moment never rounds to 0, as in bitsandbytes.

use std::borrow::Cow;
use std::sync::LazyLock;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::adamw::{AdamwStep, Factors};
use crate::host;
use crate::launch::{self, EightBitState, Gpu, Machine, Operation};
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

/// First and second moment of a tensor, beside it: in the memory of the host or of a GPU.
#[derive(Debug, Clone)]
pub struct EightBitMoments {
    elements: usize,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Host(HostMoments),
    /// After the first update there.
    Gpu(Gpu, EightBitState<<Gpu as Machine>::Buffer>),
}

#[derive(Debug, Clone)]
struct HostMoments {
    first: Vec<u8>,
    second: Vec<u8>,
    first_scales: Vec<f32>,
    second_scales: Vec<f32>,
}

/// What a checkpoint keeps of moments in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct EightBitParts<'a> {
    /// Codes of the first moment.
    pub first: Cow<'a, [u8]>,
    /// Codes of the second moment.
    pub second: Cow<'a, [u8]>,
    /// Largest absolute value of each block of the first moment.
    pub first_scales: Cow<'a, [f32]>,
    /// The same of the second.
    pub second_scales: Cow<'a, [f32]>,
}

impl HostMoments {
    fn parts(&self) -> EightBitParts<'_> {
        EightBitParts {
            first: Cow::Borrowed(&self.first),
            second: Cow::Borrowed(&self.second),
            first_scales: Cow::Borrowed(&self.first_scales),
            second_scales: Cow::Borrowed(&self.second_scales),
        }
    }

    fn of(parts: EightBitParts<'_>) -> Self {
        Self {
            first: parts.first.into_owned(),
            second: parts.second.into_owned(),
            first_scales: parts.first_scales.into_owned(),
            second_scales: parts.second_scales.into_owned(),
        }
    }
}

impl EightBitMoments {
    /// Moments of zero.
    pub fn zeros(elements: usize) -> Self {
        let blocks = elements.div_ceil(BLOCK);
        let place = Place::Host(HostMoments {
            first: vec![0; elements],
            second: vec![0; elements],
            first_scales: vec![0.0; blocks],
            second_scales: vec![0.0; blocks],
        });
        Self { elements, place }
    }

    /// What a checkpoint keeps; copied out of a GPU.
    pub fn parts(&self) -> EightBitParts<'_> {
        match &self.place {
            Place::Host(moments) => moments.parts(),
            Place::Gpu(gpu, state) => state.download(gpu),
        }
    }

    /// Takes up what a checkpoint kept; `None` where the lengths do not fit together.
    pub fn from_parts(parts: EightBitParts<'_>) -> Option<Self> {
        let elements = parts.first.len();
        let blocks = elements.div_ceil(BLOCK);
        let fits = parts.second.len() == elements
            && parts.first_scales.len() == blocks
            && parts.second_scales.len() == blocks;
        fits.then(|| Self { elements, place: Place::Host(HostMoments::of(parts)) })
    }

    /// Bytes that `elements` numbers take.
    pub fn bytes_for(elements: usize) -> usize {
        2 * elements + 8 * elements.div_ceil(BLOCK)
    }

    /// 256 signed values, then 256 unsigned ones.
    pub(crate) fn maps() -> &'static [f32; 512] {
        &MAPS
    }

    /// The moments on the host, fetched where they are on a GPU.
    fn on_host(&mut self) -> &mut HostMoments {
        if let Place::Gpu(gpu, state) = &self.place {
            self.place = Place::Host(HostMoments::of(state.download(gpu)));
        }
        match &mut self.place {
            Place::Host(moments) => moments,
            Place::Gpu(..) => unreachable!("fetched above"),
        }
    }

    /// The moments on a GPU, beside a tensor that lies there.
    fn on_gpu(
        &mut self,
        gpu: Gpu,
        beside: &Tensor<2>,
    ) -> Option<&EightBitState<<Gpu as Machine>::Buffer>> {
        if let Place::Host(moments) = &self.place {
            let state = EightBitState::upload(&gpu, &gpu.read(beside)?, &moments.parts());
            self.place = Place::Gpu(gpu, state);
        }
        match &self.place {
            Place::Gpu(_, state) => Some(state),
            Place::Host(_) => None,
        }
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
    assert_eq!(weight.shape().num_elements(), moments.elements, "moments of this tensor");
    match (host::take_f32(weight), host::host_f32(gradient)) {
        (Ok(mut weight), Some(gradient)) => {
            let (values, moments) = (host::write(&mut weight), moments.on_host());
            update(values, moments, host::read(&gradient), &factors);
            host::give(weight)
        }
        (weight, _) => {
            let mut weight = weight.map_or_else(|weight| weight, host::give);
            if let Some(gpu) = launch::gpu(Operation::Adamw)
                && let Some(state) = moments.on_gpu(gpu, gradient)
            {
                match launch::adamw_8bit(&gpu, weight, state, gradient, &factors) {
                    Ok(updated) => return updated,
                    Err(given_back) => weight = given_back,
                }
            }
            let mut values = host::to_f32(&weight);
            update(&mut values, moments.on_host(), &host::to_f32(gradient), &factors);
            host::from_f32(values, dims, dtype, &device)
        }
    }
}

fn update(weight: &mut [f32], moments: &mut HostMoments, gradient: &[f32], factors: &Factors) {
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
        let back = EightBitMoments::from_parts(moments.parts()).unwrap();
        assert_eq!(back.parts(), moments.parts());
        let mut parts = moments.parts();
        parts.second = parts.second[1..].to_vec().into();
        assert!(EightBitMoments::from_parts(parts).is_none());
    }
}
