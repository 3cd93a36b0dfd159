//! Kernels of NVIDIA GPUs on the emulator, against the references in plain tensor operations.

use std::borrow::Cow;
use std::convert::Infallible;
use std::ops::Range;

use burn::tensor::{DType, Device, Tensor, TensorData};

use super::emulated::Emulator;
use super::{Activation, EightBitState, Element, Extent, Kind, Machine, Operation};
use crate::adamw::Factors;
use crate::quantise::device::upload;
use crate::weight::Stored;
use crate::{
    AdamwStep, AttentionShape, Direction, DropoutKey, Gelu, Int8Matrix, Nf4Matrix, QuantisedMatrix,
    RotaryHead, RotaryPairs, Segments, Sight, reference,
};

/// Orders in which the emulator lets threads run.
const ORDERS: [Emulator; 3] = [Emulator { order: 0 }, Emulator { order: 1 }, Emulator { order: 7 }];

/// Numbers in [-1, 1) that look random.
fn random(shape: [usize; 2], seed: u64, dtype: DType) -> Tensor<2> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / 8_388_608.0) - 1.0
    };
    let values: Vec<f32> = (0..shape[0] * shape[1]).map(|_| next()).collect();
    let wide: Tensor<2> = Tensor::from_data(TensorData::new(values, shape), &Device::flex());
    wide.cast(dtype)
}

fn vector(length: usize, seed: u64) -> Tensor<1> {
    random([1, length], seed, DType::F32).reshape([length])
}

/// Both as f32, against the largest expected number.
fn assert_close<const D: usize>(actual: &Tensor<D>, expected: &Tensor<D>, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims());
    let actual = crate::to_f32(&actual.clone().cast(DType::F32));
    let expected = crate::to_f32(&expected.clone().cast(DType::F32));
    let largest = expected.iter().fold(1e-6_f32, |largest, v| largest.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() <= tolerance * largest, "element {i}: {a} is not {e}");
    }
}

/// A rounding to the format, of the largest number.
fn rounding(dtype: DType) -> f32 {
    if dtype == DType::BF16 { 8e-3 } else { 2e-6 }
}

#[test]
fn norms() {
    for (machine, dtype) in ORDERS.iter().zip([DType::F32, DType::BF16, DType::BF16]) {
        for (rows, width) in [(3, 8), (2, 576), (2, 2056)] {
            let (x, dy) = (random([rows, width], 1, dtype), random([rows, width], 2, dtype));
            let (weight, bias) = (vector(width, 3), vector(width, 4));
            let tolerance = rounding(dtype);
            let y = super::rms_norm(machine, &x, &weight, 1e-5).unwrap();
            assert_close(&y, &reference::rms_norm(&x, &weight, 1e-5), tolerance);
            let dx = super::rms_norm_gradient(machine, None, (&dy, &x), &weight, 1e-5).unwrap();
            let expected = reference::rms_norm_gradient(&dy, &x, &weight, 1e-5);
            assert_close(&dx, &expected, tolerance);
            let sum = super::rms_norm_gradient(machine, Some(&x), (&dy, &x), &weight, 1e-5);
            assert_close(&sum.unwrap(), &(expected + x.clone()), tolerance);
            let y = super::layer_norm(machine, &x, &weight, Some(&bias), 1e-5).unwrap();
            assert_close(&y, &reference::layer_norm(&x, &weight, Some(&bias), 1e-5), tolerance);
            let dx = super::layer_norm_gradient(machine, None, (&dy, &x), &weight, 1e-5).unwrap();
            assert_close(&dx, &reference::layer_norm_gradient(&dy, &x, &weight, 1e-5), tolerance);
        }
        // Rows that take the parts of a weight in turn.
        let (x, weight) = (random([6, 16], 5, dtype), vector(48, 6));
        let y = super::layer_norm(machine, &x, &weight, None, 1e-5).unwrap();
        assert_close(&y, &reference::layer_norm(&x, &weight, None, 1e-5), rounding(dtype));
    }
}

#[test]
fn a_width_that_loads_do_not_divide_is_left_to_the_reference() {
    let (x, weight) = (random([3, 12], 1, DType::BF16), vector(12, 2));
    assert!(super::rms_norm(&ORDERS[0], &x, &weight, 1e-5).is_none());
    assert!(super::rms_norm(&ORDERS[0], &x.cast(DType::F32), &weight, 1e-5).is_some());
}

#[test]
fn gates() {
    for (machine, dtype) in ORDERS.iter().zip([DType::F32, DType::BF16, DType::F32]) {
        let shape = [5, 72];
        let gates = random(shape, 1, DType::F32) * 8.0;
        let gates = gates.cast(dtype);
        let (up, dy) = (random(shape, 2, dtype), random(shape, 3, dtype));
        let tolerance = rounding(dtype);
        let silu = Activation::Silu;
        let y = super::gate(machine, &gates, &up, silu).unwrap();
        assert_close(&y, &reference::swiglu(&gates, &up), tolerance);
        let (dg, du) = super::gate_gradient(machine, &dy, &gates, &up, silu).unwrap();
        let expected = reference::swiglu_gradient(&dy, &gates, &up);
        assert_close(&dg, &expected.0, tolerance);
        assert_close(&du, &expected.1, tolerance);
        for form in [Gelu::Exact, Gelu::Tanh] {
            let gelu = Activation::Gelu(form);
            let y = super::gate(machine, &gates, &up, gelu).unwrap();
            assert_close(&y, &reference::geglu(&gates, &up, form), tolerance);
            let (dg, du) = super::gate_gradient(machine, &dy, &gates, &up, gelu).unwrap();
            let expected = reference::geglu_gradient(&dy, &gates, &up, form);
            assert_close(&dg, &expected.0, tolerance);
            assert_close(&du, &expected.1, tolerance);
            let y = super::activate(machine, &gates, gelu).unwrap();
            assert_close(&y, &reference::gelu(&gates, form), tolerance);
            let dx = super::activate_gradient(machine, &dy, &gates, gelu).unwrap();
            assert_close(&dx, &reference::gelu_gradient(&dy, &gates, form), tolerance);
        }
    }
}

#[test]
fn rotary_embeddings() {
    for (machine, dtype) in ORDERS.iter().zip([DType::F32, DType::BF16, DType::F32]) {
        for pairs in [RotaryPairs::HalfSplit, RotaryPairs::Interleaved] {
            for (heads, head_dim, half) in [(3, 64, 32), (2, 24, 8)] {
                let x = random([7, heads * head_dim], 1, dtype);
                let angles = (random([7, half], 2, DType::F32), random([7, half], 3, DType::F32));
                let head = RotaryHead { head_dim, pairs };
                for direction in [Direction::Forward, Direction::Backward] {
                    let angles = (&angles.0, &angles.1);
                    let y = super::rope(machine, &x, angles, head, direction).unwrap();
                    let expected = reference::rope(x.clone(), angles, head, direction);
                    assert_close(&y, &expected, rounding(dtype));
                }
            }
        }
    }
}

#[test]
fn dropout_draws_the_masks_of_the_cpu() {
    let key = DropoutKey { module: [7, 0x9000_0001], step: 3, micro_batch: 2 };
    for shape in [[1, 1], [3, 7], [41, 129]] {
        let x = random(shape, 1, DType::F32);
        let threshold = (0.3 * 4_294_967_296.0) as u64;
        let y = super::dropout(&ORDERS[0], &x, (threshold, (1.0 / 0.7) as f32), key).unwrap();
        assert_eq!(crate::to_f32(&y), crate::to_f32(&crate::dropout(&x, 0.3, key)));
    }
}

#[test]
fn losses_and_their_gradients() {
    for (machine, dtype) in ORDERS.iter().zip([DType::F32, DType::BF16, DType::F32]) {
        for vocab in [3, 512, 1511] {
            let logits = (random([3, vocab], 1, DType::F32) * 20.0).cast(dtype);
            let targets = [0, vocab as u32 - 1, vocab as u32 / 2];
            let (losses, gradient) =
                super::cross_entropy(machine, &logits, &targets, Some(0.5)).unwrap();
            let loss: f64 = crate::to_f32(&losses).iter().map(|&l| f64::from(l)).sum();
            let (expected, slopes) = reference::cross_entropy_gradient(&logits, &targets, 0.5);
            assert!((loss - expected.loss_sum).abs() < 1e-5 * expected.loss_sum.abs().max(1.0));
            assert_close(&gradient.unwrap(), &slopes, rounding(dtype));
            let (alone, none) = super::cross_entropy(machine, &logits, &targets, None).unwrap();
            assert_eq!(crate::to_f32(&alone), crate::to_f32(&losses));
            assert!(none.is_none());
        }
    }
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

#[test]
fn the_optimizer() {
    let (weight, gradient) = (random([9, 37], 1, DType::F32), random([9, 37], 2, DType::F32));
    let (first, second) = (random([9, 37], 3, DType::F32), random([9, 37], 4, DType::F32).square());
    let state = (weight.clone(), first.clone(), second.clone());
    let expected = crate::adamw(state, &gradient, &step(3));
    let factors = Factors::new(&step(3));
    let actual = super::adamw(&ORDERS[1], (weight, first, second), &gradient, &factors).unwrap();
    assert_close(&actual.0, &expected.0, 1e-6);
    assert_close(&actual.1, &expected.1, 1e-6);
    assert_close(&actual.2, &expected.2, 1e-6);
}

/// The matrix on the emulator and on the CPU.
fn assert_expands(matrix: &dyn QuantisedMatrix, machine: &Emulator) {
    let codes = &upload(machine, &matrix.stored().unwrap(), &Device::flex()).unwrap();
    let dims = matrix.dims();
    let mut values = vec![0.0; dims[0] * dims[1]];
    matrix.expand(0..dims[0], &mut values);
    let wide = super::expand(machine, codes, dims, Element::F32).unwrap();
    assert_eq!(crate::to_f32(&wide), values, "an f32 copy has the CPU's bits");
    let narrow = super::expand(machine, codes, dims, Element::Bf16).unwrap();
    let expected = crate::from_f32(values, dims, DType::BF16, &Device::flex());
    assert_eq!(crate::to_f32(&narrow.cast(DType::F32)), crate::to_f32(&expected.cast(DType::F32)));
}

#[test]
fn quantised_matrices() {
    let dims = [70, 136];
    let values = crate::to_f32(&random(dims, 1, DType::F32));
    let read =
        |rows: Range<usize>| Ok::<_, Infallible>(values[rows.start * 136..rows.end * 136].to_vec());
    for machine in &ORDERS {
        let Ok(nf4) = Nf4Matrix::quantise(dims, read);
        let Ok(int8) = Int8Matrix::quantise(dims, read);
        assert_expands(&nf4, machine);
        assert_expands(&int8, machine);
    }
}

/// Blocks as a GGUF file has them, and their values by the `gguf` package.
#[derive(Debug)]
struct Blocks {
    bytes: Vec<u8>,
    values: Vec<f32>,
    kind: u32,
}

impl QuantisedMatrix for Blocks {
    fn dims(&self) -> [usize; 2] {
        [1, self.values.len()]
    }

    fn bytes(&self) -> usize {
        self.bytes.len()
    }

    fn expand(&self, _: Range<usize>, output: &mut [f32]) {
        output.copy_from_slice(&self.values);
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored::Gguf { blocks: Cow::Borrowed(&self.bytes), kind: self.kind })
    }
}

#[test]
fn blocks_of_gguf_files() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/gguf/blocks.safetensors");
    let file = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&file).unwrap();
    let kinds = [
        ("Q4_0", 2),
        ("Q4_1", 3),
        ("Q5_0", 6),
        ("Q5_1", 7),
        ("Q8_0", 8),
        ("Q4_K", 12),
        ("Q5_K", 13),
        ("Q6_K", 14),
    ];
    for (name, kind) in kinds {
        let data = |part: &str| file.tensor(&format!("{name}.{part}")).unwrap().data();
        let values = data("values").as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b));
        let blocks = Blocks { bytes: data("bytes").to_vec(), values: values.collect(), kind };
        assert_expands(&blocks, &ORDERS[0]);
    }
}

/// Starts of segments with the given lengths.
fn segments(lengths: &[usize]) -> Segments {
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |sum, length| {
        *sum += length;
        Some(*sum)
    }));
    Segments::of_tokens(&starts)
}

/// Forward and backward against the reference in f32.
fn check_attention(shape: AttentionShape, lengths: &[usize], dtype: DType, machine: &Emulator) {
    let tokens = lengths.iter().sum();
    let segments = segments(lengths);
    let (query_width, key_width) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let q = random([tokens, query_width], 1, dtype);
    let (k, v) = (random([tokens, key_width], 2, dtype), random([tokens, key_width], 3, dtype));
    let dy = random([tokens, query_width], 4, dtype);
    let wide = |x: &Tensor<2>| x.clone().cast(DType::F32);
    let tolerance = if dtype == DType::BF16 { 2e-2 } else { 2e-5 };
    let actual = super::attention(machine, (&q, &k, &v), shape, &segments).unwrap();
    let expected = reference::attention(&wide(&q), &wide(&k), &wide(&v), shape, &segments);
    assert_close(&actual.log_sum_exp, &expected.log_sum_exp, 1e-5);
    assert_close(&actual.output, &expected.output, tolerance);
    let gradients =
        super::attention_gradient(machine, &dy, (&q, &k, &v), &actual, shape, &segments).unwrap();
    let wides = (&wide(&q), &wide(&k), &wide(&v));
    let expected = reference::attention_gradient(&wide(&dy), wides, shape, &segments);
    assert_close(&gradients.0, &expected.0, tolerance);
    assert_close(&gradients.1, &expected.1, tolerance);
    assert_close(&gradients.2, &expected.2, tolerance);
}

fn shape(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
    let scale = 1.0 / (head_dim as f64).sqrt();
    let sight = Sight::Whole;
    AttentionShape { heads, kv_heads, head_dim, scale, sight, soft_cap: None }
}

#[test]
fn attention_on_tensor_cores_of_packed_segments() {
    check_attention(shape(2, 1, 64), &[1, 70, 33], DType::BF16, &ORDERS[0]);
    check_attention(shape(2, 2, 128), &[65, 40], DType::BF16, &ORDERS[1]);
}

#[test]
fn attention_on_tensor_cores_of_odd_heads() {
    check_attention(shape(2, 1, 80), &[50, 20], DType::BF16, &ORDERS[2]);
    check_attention(shape(1, 1, 32), &[17, 66], DType::BF16, &ORDERS[0]);
}

#[test]
fn attention_on_tensor_cores_of_wide_heads() {
    check_attention(shape(1, 1, 192), &[40], DType::BF16, &ORDERS[1]);
    check_attention(shape(2, 1, 256), &[35, 33], DType::BF16, &ORDERS[0]);
}

#[test]
fn attention_on_tensor_cores_with_windows_and_caps() {
    let sight = Sight::Window(20);
    let capped = AttentionShape { sight, soft_cap: Some(3.0), ..shape(2, 1, 64) };
    check_attention(capped, &[100, 9], DType::BF16, &ORDERS[2]);
}

#[test]
fn attention_in_f32() {
    check_attention(shape(4, 2, 64), &[1, 37, 12], DType::F32, &ORDERS[0]);
    let sight = Sight::Window(7);
    let capped = AttentionShape { sight, soft_cap: Some(3.0), ..shape(2, 1, 160) };
    check_attention(capped, &[21, 9], DType::F32, &ORDERS[1]);
}

#[test]
fn attention_over_a_cache_of_keys() {
    for dtype in [DType::BF16, DType::F32] {
        let shape = shape(2, 1, 64);
        let segments = Segments::over(&[(3, 0..70), (1, 70..75), (9, 80..89)]);
        let q = random([13, 128], 1, dtype);
        let (k, v) = (random([90, 64], 2, dtype), random([90, 64], 3, dtype));
        let actual = super::attention(&ORDERS[0], (&q, &k, &v), shape, &segments).unwrap();
        let wide = |x: &Tensor<2>| x.clone().cast(DType::F32);
        let expected = reference::attention(&wide(&q), &wide(&k), &wide(&v), shape, &segments);
        assert_close(&actual.output, &expected.output, 2e-2);
    }
}

#[test]
fn the_optimizer_in_8_bits() {
    let machine = &ORDERS[2];
    let weight = random([5, 130], 1, DType::F32);
    // Some are so small beside their block's largest that their code is the one beside 0.
    let small = |(i, value): (usize, f32)| if i % 3 == 0 { value * 1e-8 } else { value };
    let values = crate::values(random([5, 130], 2, DType::F32)).into_iter().enumerate().map(small);
    let gradient = crate::host::wrap(values.collect(), [5, 130]);
    let mut expected = crate::EightBitMoments::zeros(650);
    let like = machine.read(&weight).unwrap();
    let state = EightBitState::upload(machine, &like, &expected.parts());
    let (mut on_cpu, mut on_machine) = (weight.clone(), weight);
    for count in 1..4 {
        on_cpu = crate::adamw_8bit(on_cpu, &mut expected, &gradient, &step(count));
        let factors = Factors::new(&step(count));
        on_machine =
            super::adamw_8bit(machine, on_machine, &state, &gradient, &factors).expect("f32");
        assert_close(&on_machine, &on_cpu, 1e-6);
        let (actual, expected) = (state.download(machine), expected.parts());
        assert_eq!((&actual.first, &actual.second), (&expected.first, &expected.second));
        for (a, b) in actual.first_scales.iter().zip(expected.first_scales.iter()) {
            assert!((a - b).abs() <= 1e-6 * b, "{a} is not {b}");
        }
    }
    let half = random([5, 130], 1, DType::BF16);
    let factors = Factors::new(&step(1));
    let given_back = super::adamw_8bit(machine, half, &state, &gradient, &factors).unwrap_err();
    assert_eq!(given_back.dtype(), DType::BF16);
}

#[test]
fn products_as_column_major_plans() {
    for dtype in [DType::F32, DType::BF16] {
        let (x, w) = (random([16, 24], 1, dtype), random([40, 24], 2, dtype));
        let dy = random([16, 40], 3, dtype);
        let wide = |x: &Tensor<2>| x.clone().cast(DType::F32);
        let run = |kind, left: &Tensor<2>, right: &Tensor<2>, sum: Option<&Tensor<2>>| {
            super::product(&ORDERS[0], kind, (left, right), sum, 0.5).unwrap()
        };
        let y = wide(&x).matmul(wide(&w).transpose()) * 0.5;
        assert_close(&run(Kind::Forward, &x, &w, None), &y, rounding(dtype));
        assert_close(&run(Kind::Forward, &x, &w, Some(&dy)), &(y + wide(&dy)), rounding(dtype));
        let dx = wide(&dy).matmul(wide(&w)) * 0.5;
        assert_close(&run(Kind::InputGradient, &dy, &w, None), &dx, rounding(dtype));
        assert_close(
            &run(Kind::InputGradient, &dy, &w, Some(&x)),
            &(dx + wide(&x)),
            rounding(dtype),
        );
        let dw = wide(&dy).transpose().matmul(wide(&x)) * 0.5;
        let actual = run(Kind::WeightGradient, &dy, &x, None);
        assert_eq!(actual.dtype(), DType::F32);
        assert_close(&actual, &dw, 1e-5);
    }
    let odd = random([16, 21], 1, DType::BF16);
    assert!(super::product(&ORDERS[0], Kind::Forward, (&odd, &odd), None, 1.0).is_none());
}

#[test]
fn the_checks_that_a_gpu_must_pass_hold() {
    let machine = &Emulator { order: 3 };
    let operations = Operation::WITHOUT_HEADS.into_iter().chain([Operation::Attention(64)]);
    for operation in operations {
        let checked = super::check(machine, &Device::flex(), operation, Extent::Emulator).unwrap();
        assert!(checked.is_good(), "{checked:?}");
        assert_eq!(Operation::of_name(&operation.to_string()), Some(operation));
    }
    assert_eq!(Operation::of_name("attention-63"), None);
}
