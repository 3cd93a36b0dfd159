//! Each operation's faster way against its reference, on small shapes: what a program asks of a GPU
//! before it trusts a kernel there. The reference runs on the processor, in f32.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::{Activation, EightBitState, Element, Kind, Machine, Operation};
use crate::adamw::Factors;
use crate::quantise::device::upload;
use crate::{
    AdamwStep, AttentionShape, Direction, DropoutKey, EightBitMoments, Gelu, Int8Matrix, Nf4Matrix,
    QuantisedMatrix, RotaryHead, RotaryPairs, Segments, Sight, reference,
};

/// How an operation's faster way compares with its reference.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Checked {
    /// Which.
    pub operation: Operation,
    /// Largest error of any number, over the largest expected one, over what is allowed there.
    pub error: f64,
}

impl Checked {
    /// Whether the faster way may be taken.
    pub fn is_good(&self) -> bool {
        self.error <= 1.0
    }
}

/// How much a check does: the emulator of the tests is slow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    #[cfg(test)]
    Emulator,
    Gpu,
}

/// Compares; `None` where the machine does not take the operation's tensors.
pub(crate) fn check<M: Machine>(
    machine: &M,
    device: &Device,
    operation: Operation,
    extent: Extent,
) -> Option<Checked> {
    let bench = Bench { machine, device, extent };
    let mut error = 0.0_f64;
    for dtype in [DType::F32, DType::BF16] {
        let found = match operation {
            Operation::RmsNorm => bench.rms_norm(dtype),
            Operation::LayerNorm => bench.layer_norm(dtype),
            Operation::Gate => bench.gate(dtype),
            Operation::Rope => bench.rope(dtype),
            Operation::Dropout => bench.dropout(dtype),
            Operation::CrossEntropy => bench.cross_entropy(dtype),
            Operation::Adamw => bench.adamw(),
            Operation::Expand => bench.expand(dtype),
            Operation::Attention(head_dim) => bench.attention(dtype, head_dim),
            Operation::Product => bench.product(dtype),
        };
        error = error.max(found?);
    }
    Some(Checked { operation, error })
}

struct Bench<'a, M> {
    machine: &'a M,
    device: &'a Device,
    extent: Extent,
}

/// A tensor on the machine, and its values in f32 on the processor.
struct Pair<const D: usize> {
    there: Tensor<D>,
    here: Tensor<D>,
}

/// A rounding to the format, of the largest number; f32 has room for another order of sums.
fn rounding(dtype: DType) -> f64 {
    if dtype == DType::BF16 { 8e-3 } else { 1e-5 }
}

/// Error over `tolerance`; infinite where a number is none.
fn compared<const D: usize>(actual: Tensor<D>, expected: &Tensor<D>, tolerance: f64) -> f64 {
    let (actual, expected) = (crate::values(actual), crate::values(expected.clone()));
    if actual.len() != expected.len() {
        return f64::INFINITY;
    }
    let largest = expected.iter().fold(1e-6_f64, |largest, &v| largest.max(f64::from(v).abs()));
    let error = |(a, e): (&f32, &f32)| (f64::from(*a) - f64::from(*e)).abs();
    let worst = actual.iter().zip(&expected).map(error).fold(0.0, |worst: f64, error| {
        if error.is_nan() { f64::INFINITY } else { worst.max(error) }
    });
    worst / largest / tolerance
}

fn step(count: u64) -> AdamwStep {
    AdamwStep {
        learning_rate: 1e-2,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.01,
        count,
        gradient_factor: 0.7,
    }
}

impl<M: Machine> Bench<'_, M> {
    /// A number for the emulator, and one for a GPU.
    fn size(&self, emulator: usize, gpu: usize) -> usize {
        if self.extent == Extent::Gpu { gpu } else { emulator }
    }

    /// Numbers in [-1, 1) that look random, rounded to the format in both places.
    fn random(&self, shape: [usize; 2], seed: u64, dtype: DType) -> Pair<2> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0) - 1.0
        };
        let values = (0..shape[0] * shape[1]).map(|_| next()).collect();
        self.pair(values, shape, dtype)
    }

    fn pair<const D: usize>(&self, values: Vec<f32>, shape: [usize; D], dtype: DType) -> Pair<D> {
        let data = TensorData::new(values, shape).convert_dtype(dtype);
        let there = Tensor::from_data(data.clone(), (self.device, dtype));
        let here = data.convert_dtype(DType::F32);
        Pair { there, here: Tensor::from_data(here, (&Device::flex(), DType::F32)) }
    }

    fn vector(&self, length: usize, seed: u64) -> Pair<1> {
        let Pair { there, here } = self.random([1, length], seed, DType::F32);
        Pair { there: there.reshape([length]), here: here.reshape([length]) }
    }

    fn rms_norm(&self, dtype: DType) -> Option<f64> {
        let width = self.size(48, 2048);
        let shape = [self.size(3, 77), width];
        let (x, dy) = (self.random(shape, 1, dtype), self.random(shape, 2, dtype));
        let weight = self.vector(width, 3);
        let y = super::rms_norm(self.machine, &x.there, &weight.there, 1e-5)?;
        let gradient = (&dy.there, &x.there);
        let dx =
            super::rms_norm_gradient(self.machine, Some(&x.there), gradient, &weight.there, 1e-5)?;
        let expected =
            reference::rms_norm_gradient(&dy.here, &x.here, &weight.here, 1e-5) + x.here.clone();
        let forward = reference::rms_norm(&x.here, &weight.here, 1e-5);
        let tolerance = rounding(dtype);
        Some(compared(y, &forward, tolerance).max(compared(dx, &expected, tolerance)))
    }

    fn layer_norm(&self, dtype: DType) -> Option<f64> {
        let width = self.size(48, 1024);
        let shape = [self.size(4, 78), width];
        let (x, dy) = (self.random(shape, 1, dtype), self.random(shape, 2, dtype));
        // Two rows of weights, which rows of x take in turn.
        let (weight, bias) = (self.vector(2 * width, 3), self.vector(2 * width, 4));
        let y = super::layer_norm(self.machine, &x.there, &weight.there, Some(&bias.there), 1e-5)?;
        let gradient = (&dy.there, &x.there);
        let dx = super::layer_norm_gradient(self.machine, None, gradient, &weight.there, 1e-5)?;
        let forward = reference::layer_norm(&x.here, &weight.here, Some(&bias.here), 1e-5);
        let expected = reference::layer_norm_gradient(&dy.here, &x.here, &weight.here, 1e-5);
        let tolerance = rounding(dtype);
        Some(compared(y, &forward, tolerance).max(compared(dx, &expected, tolerance)))
    }

    fn gate(&self, dtype: DType) -> Option<f64> {
        let shape = [self.size(3, 65), self.size(72, 1000)];
        let gates = self.random(shape, 1, dtype);
        let (up, dy) = (self.random(shape, 2, dtype), self.random(shape, 3, dtype));
        let (mut worst, tolerance) = (0.0_f64, rounding(dtype));
        let forms = [Activation::Silu, Activation::Gelu(Gelu::Exact), Activation::Gelu(Gelu::Tanh)];
        for form in forms {
            let y = super::gate(self.machine, &gates.there, &up.there, form)?;
            let (dg, du) =
                super::gate_gradient(self.machine, &dy.there, &gates.there, &up.there, form)?;
            let (forward, (expected_g, expected_u)) = match form {
                Activation::Silu => (
                    reference::swiglu(&gates.here, &up.here),
                    reference::swiglu_gradient(&dy.here, &gates.here, &up.here),
                ),
                Activation::Gelu(form) => (
                    reference::geglu(&gates.here, &up.here, form),
                    reference::geglu_gradient(&dy.here, &gates.here, &up.here, form),
                ),
            };
            worst = worst
                .max(compared(y, &forward, tolerance))
                .max(compared(dg, &expected_g, tolerance))
                .max(compared(du, &expected_u, tolerance));
            if let Activation::Gelu(gelu) = form {
                let y = super::activate(self.machine, &gates.there, form)?;
                let dx = super::activate_gradient(self.machine, &dy.there, &gates.there, form)?;
                let slope = reference::gelu_gradient(&dy.here, &gates.here, gelu);
                worst = worst
                    .max(compared(y, &reference::gelu(&gates.here, gelu), tolerance))
                    .max(compared(dx, &slope, tolerance));
            }
        }
        Some(worst)
    }

    fn rope(&self, dtype: DType) -> Option<f64> {
        let tokens = self.size(3, 130);
        let mut worst = 0.0_f64;
        for pairs in [RotaryPairs::HalfSplit, RotaryPairs::Interleaved] {
            let head = RotaryHead { head_dim: 64, pairs };
            let x = self.random([tokens, 3 * 64], 1, dtype);
            let cos = self.random([tokens, 24], 2, DType::F32);
            let sin = self.random([tokens, 24], 3, DType::F32);
            for direction in [Direction::Forward, Direction::Backward] {
                let y =
                    super::rope(self.machine, &x.there, (&cos.there, &sin.there), head, direction)?;
                let expected =
                    reference::rope(x.here.clone(), (&cos.here, &sin.here), head, direction);
                worst = worst.max(compared(y, &expected, rounding(dtype)));
            }
        }
        Some(worst)
    }

    fn dropout(&self, dtype: DType) -> Option<f64> {
        let key = DropoutKey { module: [7, 0x9000_0001], step: 3, micro_batch: 2 };
        let x = self.random([self.size(5, 301), 41], 1, dtype);
        let threshold = (0.3 * 4_294_967_296.0) as u64;
        let y = super::dropout(self.machine, &x.there, (threshold, (1.0 / 0.7) as f32), key)?;
        Some(compared(y, &crate::dropout(&x.here, 0.3, key), rounding(dtype)))
    }

    fn cross_entropy(&self, dtype: DType) -> Option<f64> {
        let vocab = self.size(515, 32003);
        let logits = self.random([3, vocab], 1, dtype);
        let targets = [0, vocab as u32 - 1, vocab as u32 / 2];
        let (losses, gradient) =
            super::cross_entropy(self.machine, &logits.there, &targets, Some(2.0))?;
        let loss: f64 = crate::values(losses).iter().map(|&loss| f64::from(loss)).sum();
        let (expected, slopes) = reference::cross_entropy_gradient(&logits.here, &targets, 2.0);
        let loss_error = (loss / expected.loss_sum - 1.0).abs() / 1e-5;
        Some(compared(gradient?, &slopes, rounding(dtype)).max(loss_error))
    }

    fn adamw(&self) -> Option<f64> {
        let shape = [self.size(9, 129), 67];
        let random = |seed| self.random(shape, seed, DType::F32);
        let (weight, gradient, first) = (random(1), random(2), random(3));
        let second = self.pair(crate::values(random(4).here.square()), shape, DType::F32);
        let factors = Factors::new(&step(3));
        let there = (weight.there.clone(), first.there, second.there);
        let actual = super::adamw(self.machine, there, &gradient.there, &factors).ok()?;
        let here = (weight.here.clone(), first.here, second.here);
        let expected = crate::adamw(here, &gradient.here, &step(3));
        let worst = compared(actual.0, &expected.0, 1e-6)
            .max(compared(actual.1, &expected.1, 1e-6))
            .max(compared(actual.2, &expected.2, 1e-6));
        Some(worst.max(self.adamw_8bit(&weight, &gradient)?))
    }

    /// Rounded moments may fall to the neighbouring code: the weights stay close.
    fn adamw_8bit(&self, weight: &Pair<2>, gradient: &Pair<2>) -> Option<f64> {
        let elements = weight.here.shape().num_elements();
        let mut moments = EightBitMoments::zeros(elements);
        let anchor = self.machine.read(&gradient.there)?;
        let state = EightBitState::upload(self.machine, &anchor, &moments.parts());
        let (mut here, mut there) = (weight.here.clone(), weight.there.clone());
        for count in 1..4 {
            here = crate::adamw_8bit(here, &mut moments, &gradient.here, &step(count));
            let factors = Factors::new(&step(count));
            let updated = super::adamw_8bit(self.machine, there, &state, &gradient.there, &factors);
            there = updated.ok()?;
        }
        Some(compared(there, &here, 1e-3))
    }

    fn expand(&self, dtype: DType) -> Option<f64> {
        let dims = [self.size(70, 200), 136];
        let values = crate::values(self.random(dims, 1, DType::F32).here);
        let read = |rows: Range<usize>| {
            Ok::<_, std::convert::Infallible>(values[rows.start * 136..rows.end * 136].to_vec())
        };
        let Ok(nf4) = Nf4Matrix::quantise(dims, read);
        let Ok(int8) = Int8Matrix::quantise(dims, read);
        Some(self.expanded(&nf4, dtype)?.max(self.expanded(&int8, dtype)?))
    }

    fn expanded(&self, matrix: &dyn QuantisedMatrix, dtype: DType) -> Option<f64> {
        let codes = upload(self.machine, &matrix.stored()?, self.device)?;
        let dims = matrix.dims();
        let mut values = vec![0.0; dims[0] * dims[1]];
        matrix.expand(0..dims[0], &mut values);
        let expected = crate::from_f32(values, dims, DType::F32, &Device::flex());
        let actual = super::expand(self.machine, &codes, dims, Element::of(dtype)?)?;
        Some(compared(actual, &expected, rounding(dtype)))
    }

    fn attention(&self, dtype: DType, head_dim: usize) -> Option<f64> {
        let lengths = if self.extent == Extent::Gpu { [1, 300, 77] } else { [1, 36, 7] };
        let plain = AttentionShape {
            heads: 4,
            kv_heads: 2,
            head_dim,
            scale: 1.0 / (head_dim as f64).sqrt(),
            sight: Sight::Whole,
            soft_cap: None,
        };
        let narrow =
            AttentionShape { sight: Sight::Window(20), soft_cap: Some(3.0), kv_heads: 4, ..plain };
        let worst = self.attention_of(dtype, plain, lengths)?;
        Some(worst.max(self.attention_of(dtype, narrow, lengths)?))
    }

    fn attention_of(
        &self,
        dtype: DType,
        shape: AttentionShape,
        [a, b, c]: [usize; 3],
    ) -> Option<f64> {
        let (tokens, segments) = (a + b + c, Segments::of_tokens(&[0, a, a + b, a + b + c]));
        let wide = [tokens, shape.heads * shape.head_dim];
        let narrow = [tokens, shape.kv_heads * shape.head_dim];
        let (q, dy) = (self.random(wide, 1, dtype), self.random(wide, 4, dtype));
        let (k, v) = (self.random(narrow, 2, dtype), self.random(narrow, 3, dtype));
        let there = (&q.there, &k.there, &v.there);
        let output = super::attention(self.machine, there, shape, &segments)?;
        let gradients =
            super::attention_gradient(self.machine, &dy.there, there, &output, shape, &segments)?;
        let expected = reference::attention(&q.here, &k.here, &v.here, shape, &segments);
        let here = (&q.here, &k.here, &v.here);
        let slopes = reference::attention_gradient(&dy.here, here, shape, &segments);
        let tolerance = if dtype == DType::BF16 { 2e-2 } else { 5e-5 };
        Some(
            compared(output.output, &expected.output, tolerance)
                .max(compared(output.log_sum_exp, &expected.log_sum_exp, 1e-4))
                .max(compared(gradients.0, &slopes.0, tolerance))
                .max(compared(gradients.1, &slopes.1, tolerance))
                .max(compared(gradients.2, &slopes.2, tolerance)),
        )
    }

    fn product(&self, dtype: DType) -> Option<f64> {
        let (tokens, d_in, d_out) = (self.size(16, 136), self.size(24, 520), self.size(40, 264));
        let (x, w) = (self.random([tokens, d_in], 1, dtype), self.random([d_out, d_in], 2, dtype));
        let dy = self.random([tokens, d_out], 3, dtype);
        let run = |kind, left: &Pair<2>, right: &Pair<2>, sum: Option<&Pair<2>>| {
            let sum = sum.map(|sum| &sum.there);
            super::product(self.machine, kind, (&left.there, &right.there), sum, 0.5)
        };
        let tolerance = rounding(dtype);
        let y = x.here.clone().matmul(w.here.clone().transpose()) * 0.5;
        let dx = dy.here.clone().matmul(w.here.clone()) * 0.5;
        let dw = dy.here.clone().transpose().matmul(x.here.clone()) * 0.5;
        let summed = y.clone() + dy.here.clone();
        let worst = compared(run(Kind::Forward, &x, &w, None)?, &y, tolerance)
            .max(compared(run(Kind::Forward, &x, &w, Some(&dy))?, &summed, tolerance))
            .max(compared(run(Kind::InputGradient, &dy, &w, None)?, &dx, tolerance))
            .max(compared(run(Kind::WeightGradient, &dy, &x, None)?, &dw, 1e-5));
        Some(worst.max(self.products_in_order(dtype)?))
    }

    /// Products and burn's own work in turns, large enough to overlap if nothing made them wait.
    /// The weight moves columns one place on, so every number is exact.
    fn products_in_order(&self, dtype: DType) -> Option<f64> {
        let (tokens, width) = (self.size(8, 4096), self.size(16, 1024));
        let turns = self.size(3, 64);
        let x = self.random([tokens, width], 5, dtype);
        let mut moves = vec![0.0; width * width];
        for row in 0..width {
            moves[row * width + (row + 1) % width] = 1.0;
        }
        let weight = self.pair(moves, [width, width], dtype);
        let mut there = x.there;
        for _ in 0..turns {
            let negative = there.neg();
            let moved =
                super::product(self.machine, Kind::Forward, (&negative, &weight.there), None, 1.0)?;
            there = moved.neg() * 1.0;
        }
        let values = crate::values(x.here);
        let expected = values
            .chunks_exact(width)
            .flat_map(|row| (0..width).map(move |column| row[(column + turns) % width]));
        let expected = self.pair(expected.collect(), [tokens, width], DType::F32).here;
        Some(compared(there, &expected, 1e-6))
    }
}
