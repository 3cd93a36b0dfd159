//! Scalar functions that the compiler turns into SIMD, and sums in a fixed order.
//!
//! Loops run under [`vectorised`], which picks the widest instruction set of the machine. They
//! use no fused multiply-add and sum over [`LANES`] lanes, so every instruction set gives the
//! same bits.

use std::sync::LazyLock;

/// Lanes of every sum, whatever the instruction set.
pub(crate) const LANES: usize = 16;

/// An instruction set that the loops of this crate are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InstructionSet {
    /// AVX-512 (x86-64-v4).
    Avx512,
    /// AVX2 and FMA (x86-64-v3).
    Avx2,
    /// NEON.
    Neon,
    /// What every processor of the architecture has.
    None,
}

impl InstructionSet {
    /// Its name in `TUNESMITH_SIMD`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avx512 => "avx512",
            Self::Avx2 => "avx2",
            Self::Neon => "neon",
            Self::None => "none",
        }
    }

    /// Those of this processor, the widest first.
    pub fn available() -> Vec<Self> {
        let all = [Self::Avx512, Self::Avx2, Self::Neon, Self::None];
        all.into_iter().filter(|set| set.arch().is_some()).collect()
    }

    #[cfg(target_arch = "x86_64")]
    fn arch(self) -> Option<pulp::Arch> {
        match self {
            Self::Avx512 => pulp::x86::V4::try_new().map(pulp::Arch::V4),
            Self::Avx2 => pulp::x86::V3::try_new().map(pulp::Arch::V3),
            Self::Neon => None,
            Self::None => Some(pulp::Arch::Scalar),
        }
    }

    #[cfg(target_arch = "aarch64")]
    fn arch(self) -> Option<pulp::Arch> {
        match self {
            Self::Neon => pulp::aarch64::Neon::try_new().map(pulp::Arch::Neon),
            Self::None => Some(pulp::Arch::Scalar),
            Self::Avx512 | Self::Avx2 => None,
        }
    }

    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    fn arch(self) -> Option<pulp::Arch> {
        (self == Self::None).then_some(pulp::Arch::Scalar)
    }
}

/// The instruction set in use: `TUNESMITH_SIMD` where it names one, else the widest.
pub fn instruction_set() -> InstructionSet {
    static IN_USE: LazyLock<InstructionSet> = LazyLock::new(|| {
        let forced = std::env::var("TUNESMITH_SIMD").unwrap_or_default();
        let mut available = InstructionSet::available().into_iter();
        let widest = available.clone().next().unwrap_or(InstructionSet::None);
        available.find(|set| set.name() == forced).unwrap_or(widest)
    });
    *IN_USE
}

static ARCH: LazyLock<pulp::Arch> =
    LazyLock::new(|| instruction_set().arch().unwrap_or(pulp::Arch::Scalar));

/// Runs `work` compiled for the best instruction set of the machine.
///
/// What `work` calls must be `#[inline(always)]` to be compiled along with it.
#[inline(always)]
pub(crate) fn vectorised<R>(work: impl FnOnce() -> R) -> R {
    ARCH.dispatch(work)
}

/// `e^x` to 2 units in the last place, 0 below -87.3 and clamped above 88.3.
///
/// Cody–Waite reduction to `[-ln2/2, ln2/2]` and a polynomial of degree 6.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x_clamped = x.clamp(-87.3, 88.3);
    let shifted = x_clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = x_clamped - n * LN2_HIGH - n * LN2_LOW;
    let p = 1.388_889_5e-3_f32;
    let p = p * r + 8.333_361e-3;
    let p = p * r + 4.166_664e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 0.5;
    let p = p * r * r + r + 1.0;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    if x < -87.3 { 0.0 } else { p * power }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `tanh(x)` to 4 units in the last place: a polynomial near 0, where `1 - 2 / (e^2x + 1)` cancels.
#[inline(always)]
pub(crate) fn tanh(x: f32) -> f32 {
    let square = x * x;
    let p = 2.186_948_8e-2_f32;
    let p = p * square - 5.396_825_4e-2;
    let p = p * square + 1.333_333_3e-1;
    let p = p * square - 3.333_333_3e-1;
    let near = x + x * square * p;
    let far = 1.0 - 2.0 / (exp(2.0 * x) + 1.0);
    if x.abs() < 0.3 { near } else { far }
}

/// `erf(x)` with an absolute error of 3e-7 (Abramowitz & Stegun 7.1.26).
#[inline(always)]
pub(crate) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / (1.0 + 0.327_591_1 * size);
    let p = 1.061_405_4_f32;
    let p = p * t - 1.453_152;
    let p = p * t + 1.421_413_7;
    let p = p * t - 0.284_496_74;
    let p = p * t + 0.254_829_6;
    let value = 1.0 - p * t * exp(-size * size);
    if x < 0.0 { -value } else { value }
}

/// Sum of `f(i)` for `i < n` over [`LANES`] lanes.
#[inline(always)]
pub(crate) fn sum_by(n: usize, f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let whole = n / LANES * LANES;
    let mut base = 0;
    while base < whole {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(base + lane);
        }
        base += LANES;
    }
    let mut total = 0.0;
    for sum in lanes {
        total += sum;
    }
    for i in whole..n {
        total += f(i);
    }
    total
}

/// Sum of `f(value)` over [`LANES`] lanes, in the order of [`sum_by`].
#[inline(always)]
pub(crate) fn sum_of(values: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0.0_f32; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, &value) in lanes.iter_mut().zip(chunk) {
            *sum += f(value);
        }
    }
    let mut total = 0.0;
    for sum in lanes {
        total += sum;
    }
    for &value in rest {
        total += f(value);
    }
    total
}

/// Largest value, NaN where one is NaN, so that a broken row is never hidden.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = values.chunks_exact(LANES);
    let rest = chunks.remainder();
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = if value > *lane || value.is_nan() { value } else { *lane };
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for &value in lanes.iter().chain(rest) {
        largest = if value > largest || value.is_nan() { value } else { largest };
    }
    largest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for step in -8700..8800 {
            let x = step as f32 * 0.01;
            let expected = f64::from(x).exp();
            let error = ((f64::from(exp(x)) - expected) / expected).abs();
            assert!(error < 2.4e-7, "exp({x}) is off by {error}");
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(-100.0), 0.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_and_erf_of_the_whole_line() {
        for step in -2000..2000 {
            let x = step as f32 * 0.006;
            let expected = f64::from(x).tanh();
            let error = (f64::from(tanh(x)) - expected).abs();
            assert!(error <= 4.8e-7 * expected.abs(), "tanh({x}) is off by {error}");
        }
        // Values of erf to ten places.
        for (x, expected) in [
            (0.0, 0.0),
            (0.1, 0.112_462_916_0),
            (0.5, 0.520_499_877_8),
            (1.0, 0.842_700_792_9),
            (2.0, 0.995_322_265_0),
            (4.0, 0.999_999_984_6),
        ] {
            for (x, expected) in [(x, expected), (-x, -expected)] {
                let error = (f64::from(erf(x)) - expected).abs();
                assert!(error < 3e-7, "erf({x}) is off by {error}");
            }
        }
        assert!(tanh(f32::NAN).is_nan() && erf(f32::NAN).is_nan());
        assert_eq!((tanh(100.0), tanh(-100.0)), (1.0, -1.0));
    }

    #[test]
    fn sums_and_maxima_of_every_length() {
        for n in 0..70 {
            let values: Vec<f32> = (0..n).map(|i| (i as f32 * 0.7).sin()).collect();
            let expected: f64 = values.iter().map(|&v| f64::from(v)).sum();
            assert!((f64::from(sum_by(n, |i| values[i])) - expected).abs() < 1e-5);
            let largest = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&values), largest);
        }
        assert!(max(&[1.0, f32::NAN, 2.0]).is_nan());
    }
}
