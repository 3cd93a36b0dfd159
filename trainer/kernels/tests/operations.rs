//! Every operation against its reference in plain burn operations, and every gradient against
//! burn's autodiff, on random and odd shapes.

use burn::tensor::{DType, Device, Tensor, TensorData, activation};
use kernels::{
    AttentionShape, Direction, Gelu, RotaryHead, RotaryPairs, Segments, Sight, reference,
};
use proptest::prelude::*;

fn device() -> Device {
    Device::flex()
}

/// Numbers in [-1, 1) that look random.
fn random(shape: [usize; 2], seed: u64) -> Tensor<2> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) + 1;
    let values: Vec<f32> = (0..shape[0] * shape[1])
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / 8_388_608.0) - 1.0
        })
        .collect();
    Tensor::from_data(TensorData::new(values, shape), &device())
}

fn tracked(x: &Tensor<2>) -> Tensor<2> {
    x.clone().autodiff().require_grad()
}

fn assert_close<const D: usize>(actual: &Tensor<D>, expected: &Tensor<D>, tolerance: f32) {
    assert_eq!(actual.dims(), expected.dims());
    let (actual, expected) = (kernels::to_f32(actual), kernels::to_f32(expected));
    let largest = expected.iter().fold(1.0_f32, |largest, v| largest.max(v.abs()));
    for (i, (a, e)) in actual.iter().zip(&expected).enumerate() {
        assert!((a - e).abs() <= tolerance * largest, "element {i}: {a} is not {e}");
    }
}

/// Starts of segments with the given lengths.
fn starts(lengths: &[usize]) -> Vec<usize> {
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |sum, length| {
        *sum += length;
        Some(*sum)
    }));
    starts
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn linear_layers_equal_plain_products(
        tokens in 1_usize..40, d_in in 1_usize..50, d_out in 1_usize..60, seed in 0_u64..1000,
    ) {
        let (x, w) = (random([tokens, d_in], seed), random([d_out, d_in], seed + 1));
        let dy = random([tokens, d_out], seed + 2);
        let y = x.clone().matmul(w.clone().transpose());
        assert_close(&kernels::linear(&x, &w), &y, 1e-5);
        assert_close(&kernels::linear_add(dy.clone(), &x, &w, 0.5), &(dy.clone() + y.clone() * 0.5), 1e-5);
        let dx = dy.clone().matmul(w.clone());
        assert_close(&kernels::linear_input_gradient(None, &dy, &w), &dx, 1e-5);
        assert_close(&kernels::linear_input_gradient(Some(x.clone()), &dy, &w), &(dx + x.clone()), 1e-5);
        let dw = dy.clone().transpose().matmul(x.clone()) * 2.0;
        assert_close(&kernels::linear_weight_gradient(&dy, &x, 2.0), &dw, 1e-5);
    }

    #[test]
    fn bf16_weights_give_the_product_of_their_values(tokens in 1_usize..9, d_in in 1_usize..20) {
        let d_out = 2100; // more than two panels
        let (x, w) = (random([tokens, d_in], 1), random([d_out, d_in], 2).cast(DType::BF16));
        let wide = w.clone().cast(DType::F32);
        assert_close(&kernels::linear(&x, &w), &kernels::linear(&x, &wide), 1e-6);
        let dy = random([tokens, d_out], 3);
        let expected = kernels::linear_input_gradient(None, &dy, &wide);
        assert_close(&kernels::linear_input_gradient(None, &dy, &w), &expected, 1e-5);
    }

    #[test]
    fn rms_norm_and_its_gradient(tokens in 1_usize..70, hidden in 1_usize..70, seed in 0_u64..1000) {
        let (x, dy) = (random([tokens, hidden], seed), random([tokens, hidden], seed + 1));
        let weight = random([1, hidden], seed + 2).reshape([hidden]);
        assert_close(&kernels::rms_norm(&x, &weight, 1e-5), &reference::rms_norm(&x, &weight, 1e-5), 1e-5);
        let leaf = tracked(&x);
        let mut gradients = (reference::rms_norm(&leaf, &weight, 1e-5) * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        let actual = kernels::rms_norm_gradient(None, &dy, &x, &weight, 1e-5);
        let tolerance = if hidden < 4 { 1e-3 } else { 2e-5 };
        assert_close(&actual, &expected, tolerance);
        assert_close(&reference::rms_norm_gradient(&dy, &x, &weight, 1e-5), &expected, tolerance);
        let summed = kernels::rms_norm_gradient(Some(x.clone()), &dy, &x, &weight, 1e-5);
        assert_close(&summed, &(actual + x), 1e-5);
    }

    #[test]
    fn swiglu_and_its_gradient(tokens in 1_usize..40, d in 1_usize..90, seed in 0_u64..1000) {
        let gate = random([tokens, d], seed) * 8.0;
        let (up, dy) = (random([tokens, d], seed + 1), random([tokens, d], seed + 2));
        assert_close(&kernels::swiglu(&gate, &up), &reference::swiglu(&gate, &up), 1e-5);
        let (g, u) = (tracked(&gate), tracked(&up));
        let mut gradients =
            (activation::silu(g.clone()) * u.clone() * dy.clone()).sum().backward();
        let (dgate, dup) = kernels::swiglu_gradient(&dy, &gate, &up);
        let expected = (g.grad_remove(&mut gradients).unwrap(), u.grad_remove(&mut gradients).unwrap());
        assert_close(&dgate, &expected.0, 1e-5);
        assert_close(&dup, &expected.1, 1e-5);
        let by_reference = reference::swiglu_gradient(&dy, &gate, &up);
        assert_close(&by_reference.0, &expected.0, 1e-5);
        assert_close(&by_reference.1, &expected.1, 1e-5);
    }

    #[test]
    fn layer_norm_and_its_gradient(
        tokens in 1_usize..40, parts in 1_usize..4, width in 2_usize..70, seed in 0_u64..1000,
    ) {
        let rows = tokens * parts;
        let (x, dy) = (random([rows, width], seed) + 0.5, random([rows, width], seed + 1));
        let weight = random([1, parts * width], seed + 2).reshape([parts * width]);
        let bias = random([1, parts * width], seed + 3).reshape([parts * width]);
        let bias = (seed % 2 == 0).then_some(&bias);
        let expected = reference::layer_norm(&x, &weight, bias, 1e-5);
        assert_close(&kernels::layer_norm(&x, &weight, bias, 1e-5), &expected, 1e-5);
        let leaf = tracked(&x);
        let mut gradients =
            (reference::layer_norm(&leaf, &weight, bias, 1e-5) * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        let actual = kernels::layer_norm_gradient(None, &dy, &x, &weight, 1e-5);
        let tolerance = if width < 8 { 2e-2 } else { 2e-5 };
        assert_close(&actual, &expected, tolerance);
        assert_close(&reference::layer_norm_gradient(&dy, &x, &weight, 1e-5), &expected, tolerance);
        let summed = kernels::layer_norm_gradient(Some(x.clone()), &dy, &x, &weight, 1e-5);
        assert_close(&summed, &(actual + x), 1e-5);
    }

    #[test]
    fn gelu_geglu_and_their_gradients(tokens in 1_usize..40, d in 1_usize..90, seed in 0_u64..1000) {
        let form = if seed % 2 == 0 { Gelu::Exact } else { Gelu::Tanh };
        let gate = random([tokens, d], seed) * 6.0;
        let (up, dy) = (random([tokens, d], seed + 1), random([tokens, d], seed + 2));
        assert_close(&kernels::gelu(&gate, form), &reference::gelu(&gate, form), 1e-5);
        assert_close(&kernels::geglu(&gate, &up, form), &reference::geglu(&gate, &up, form), 1e-5);
        let leaf = tracked(&gate);
        let mut gradients = (reference::gelu(&leaf, form) * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        assert_close(&kernels::gelu_gradient(&dy, &gate, form), &expected, 1e-5);
        assert_close(&reference::gelu_gradient(&dy, &gate, form), &expected, 1e-5);
        let (g, u) = (tracked(&gate), tracked(&up));
        let mut gradients = (reference::geglu(&g, &u, form) * dy.clone()).sum().backward();
        let expected = (g.grad_remove(&mut gradients).unwrap(), u.grad_remove(&mut gradients).unwrap());
        for (dgate, dup) in [
            kernels::geglu_gradient(&dy, &gate, &up, form),
            reference::geglu_gradient(&dy, &gate, &up, form),
        ] {
            assert_close(&dgate, &expected.0, 1e-5);
            assert_close(&dup, &expected.1, 1e-5);
        }
    }

    #[test]
    fn soft_cap_and_its_gradient(rows in 1_usize..40, width in 1_usize..90, seed in 0_u64..1000) {
        let x = random([rows, width], seed) * 40.0;
        let dy = random([rows, width], seed + 1);
        let y = kernels::soft_cap(x.clone(), 30.0);
        assert_close(&y, &reference::soft_cap(&x, 30.0), 1e-6);
        let leaf = tracked(&x);
        let mut gradients = (reference::soft_cap(&leaf, 30.0) * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        assert_close(&kernels::soft_cap_gradient(dy.clone(), &y, 30.0), &expected, 1e-5);
        assert_close(&reference::soft_cap_gradient(&dy, &y, 30.0), &expected, 1e-5);
    }

    #[test]
    fn rope_turns_and_turns_back(
        tokens in 1_usize..40, heads in 1_usize..5, half in 1_usize..20, still in 0_usize..4,
        neighbours in prop::bool::ANY,
    ) {
        let pairs = if neighbours { RotaryPairs::Interleaved } else { RotaryPairs::HalfSplit };
        let head = RotaryHead { head_dim: half * 2 + still, pairs };
        let x = random([tokens, heads * head.head_dim], 1);
        let angles = random([tokens, half], 2) * 3.0;
        let (cos, sin) = (angles.clone().cos(), angles.sin());
        let (angles, forward) = ((&cos, &sin), Direction::Forward);
        let turned = kernels::rope(x.clone(), angles, head, forward);
        assert_close(&turned, &reference::rope(x.clone(), angles, head, forward), 1e-6);
        assert_close(&kernels::rope(turned, angles, head, Direction::Backward), &x, 1e-5);

        // The gradient, also where cosines and sines have a factor.
        let (cos, sin, dy) = (cos * 1.3, sin * 1.3, random([tokens, heads * head.head_dim], 3));
        let leaf = tracked(&x);
        let output = reference::rope(leaf.clone(), (&cos, &sin), head, forward);
        let mut gradients = (output * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        let actual = kernels::rope(dy, (&cos, &sin), head, Direction::Backward);
        assert_close(&actual, &expected, 1e-5);
    }

    #[test]
    fn attention_and_its_gradient(
        lengths in prop::collection::vec(1_usize..90, 1..4),
        group in 1_usize..4, kv_heads in 1_usize..3, head_dim in 1_usize..20, seed in 0_u64..1000,
        window in prop::option::of(1_usize..100), capped in prop::bool::ANY,
    ) {
        let starts = starts(&lengths);
        let tokens = *starts.last().unwrap();
        let shape = AttentionShape {
            heads: group * kv_heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f64).sqrt(),
            sight: window.map_or(Sight::Whole, Sight::Window), soft_cap: capped.then_some(2.5),
        };
        let segments = Segments::of_tokens(&starts);
        let q = random([tokens, shape.heads * head_dim], seed) * 3.0;
        let k = random([tokens, kv_heads * head_dim], seed + 1) * 3.0;
        let v = random([tokens, kv_heads * head_dim], seed + 2);
        let dy = random([tokens, shape.heads * head_dim], seed + 3);
        let forward = kernels::attention(&q, &k, &v, shape, &segments);
        let expected = reference::attention(&q, &k, &v, shape, &segments);
        assert_close(&forward.output, &expected.output, 1e-5);
        assert_close(&forward.log_sum_exp, &expected.log_sum_exp, 1e-5);

        let (qt, kt, vt) = (tracked(&q), tracked(&k), tracked(&v));
        let output = reference::attention(&qt, &kt, &vt, shape, &segments).output;
        let mut gradients = (output * dy.clone()).sum().backward();
        let expected = [qt, kt, vt].map(|t| t.grad_remove(&mut gradients).unwrap());
        let actual = kernels::attention_gradient(&dy, (&q, &k, &v), &forward, shape, &segments);
        let plain = reference::attention_gradient(&dy, (&q, &k, &v), shape, &segments);
        for (actual, expected) in [actual.0, actual.1, actual.2].iter().zip(&expected) {
            assert_close(actual, expected, 2e-5);
        }
        for (actual, expected) in [plain.0, plain.1, plain.2].iter().zip(&expected) {
            assert_close(actual, expected, 2e-5);
        }
    }

    #[test]
    fn a_cached_query_sees_what_the_whole_sequence_showed_it(
        keys in 2_usize..150, queries in 1_usize..80, window in prop::option::of(1_usize..100),
    ) {
        let queries = queries.min(keys);
        let sight = window.map_or(Sight::Whole, Sight::Window);
        let shape =
            AttentionShape { heads: 4, kv_heads: 2, head_dim: 6, scale: 0.4, sight, soft_cap: None };
        let (q, k, v) = (random([keys, 24], 1), random([keys, 12], 2), random([keys, 12], 3));
        let whole = kernels::attention(&q, &k, &v, shape, &Segments::of_tokens(&[0, keys])).output;
        let last = q.slice([keys - queries..keys, 0..24]);
        let segments = Segments::cached(queries, keys);
        let cached = kernels::attention(&last, &k, &v, shape, &segments).output;
        assert_close(&cached, &whole.slice([keys - queries..keys, 0..24]), 1e-5);
    }

    #[test]
    fn cross_entropy_and_its_gradient(rows in 1_usize..20, vocab in 2_usize..200, seed in 0_u64..1000) {
        let logits = random([rows, vocab], seed) * 20.0;
        let targets: Vec<u32> = (0..rows).map(|row| (row * 7 % vocab) as u32).collect();
        let expected = reference::cross_entropy(&logits, &targets).loss_sum;
        let alone = kernels::cross_entropy(&logits, &targets).loss_sum;
        let (loss, gradient) = kernels::cross_entropy_gradient(logits.clone(), &targets, 0.5);
        prop_assert!((loss.loss_sum - expected).abs() < 1e-4 * expected.abs().max(1.0));
        prop_assert_eq!(alone, loss.loss_sum);
        let (_, by_reference) = reference::cross_entropy_gradient(&logits, &targets, 0.5);
        assert_close(&gradient, &by_reference, 1e-5);
    }

    #[test]
    fn weighted_rows_are_added_in_place(
        tokens in 1_usize..20, width in 1_usize..30, rows in 1_usize..40, seed in 0_u64..1000,
    ) {
        let (y, added) = (random([tokens, width], seed), random([rows, width], seed + 1));
        let indices: Vec<usize> = (0..rows).map(|row| row * 7 % tokens).collect();
        let factors = kernels::to_f32(&random([rows, 1], seed + 2));
        let expected = reference::add_rows(y.clone(), &added, &indices, &factors);
        assert_close(&kernels::add_rows(y.clone(), &added, &indices, &factors), &expected, 1e-5);
        let leaf = tracked(&added);
        let dy = random([tokens, width], seed + 3);
        let output = reference::add_rows(y.autodiff(), &leaf, &indices, &factors);
        let mut gradients = (output * dy.clone()).sum().backward();
        let expected = leaf.grad_remove(&mut gradients).unwrap();
        assert_close(&kernels::weighted_rows(&dy, &indices, &factors), &expected, 1e-5);
    }

    #[test]
    fn rows_picked_and_put_back(tokens in 1_usize..30, width in 1_usize..10) {
        let x = random([tokens, width], 5);
        let indices: Vec<usize> = (0..tokens).step_by(2).collect();
        let picked = kernels::gather_rows(&x, &indices);
        let back = kernels::scatter_rows(&picked, &indices, tokens);
        let (x, back) = (kernels::to_f32(&x), kernels::to_f32(&back));
        for (i, (a, b)) in back.iter().zip(&x).enumerate() {
            prop_assert_eq!(*a, if (i / width) % 2 == 0 { *b } else { 0.0 });
        }
    }
}

#[test]
fn attention_does_not_depend_on_the_number_of_threads() {
    let shape = AttentionShape {
        heads: 6,
        kv_heads: 2,
        head_dim: 16,
        scale: 0.25,
        sight: Sight::Window(70),
        soft_cap: Some(3.0),
    };
    let segments = Segments::of_tokens(&[0, 100, 101, 300]);
    let (q, k, v) = (random([300, 96], 1), random([300, 32], 2), random([300, 32], 3));
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let forward = kernels::attention(&q, &k, &v, shape, &segments);
            let (dq, dk, dv) =
                kernels::attention_gradient(&q, (&q, &k, &v), &forward, shape, &segments);
            [forward.output, dq, dk, dv].map(|t| kernels::to_f32(&t))
        })
    };
    assert_eq!(run(1), run(4));
}

/// Runs the tests of this file again in processes that are forced onto another path.
#[test]
#[expect(clippy::print_stdout, reason = "says what this machine cannot test")]
fn every_operation_on_every_path() {
    let sets = kernels::InstructionSet::available();
    assert!(sets.contains(&kernels::InstructionSet::None));
    let mut paths: Vec<_> = sets.iter().map(|set| ("TUNESMITH_SIMD", set.name())).collect();
    for library in kernels::MatrixLibrary::ALL {
        match library.open() {
            Ok(()) => paths.push(("TUNESMITH_MATMUL", library.name())),
            Err(why) => println!("not tested: {}: {why}", library.name()),
        }
    }
    for (variable, value) in paths {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--skip", "every_operation_on_every_path"])
            .env(variable, value)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{variable}={value}: {text}");
        assert!(!text.contains("running 0 tests"), "{variable}={value}: {text}");
    }
}
