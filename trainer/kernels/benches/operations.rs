//! Time of each operation at the shapes of a training step of SmolLM2-135M, as a share of what
//! the machine can do.
//!
//!   cargo bench --workspace --bench operations
//!
//! The machine's rates are measured first: matrix products (2048 x 2048 x 2048) and copies
//! (256 MB). An `item` of the table is a microsecond of the machine at that rate, so
//! `0.8 Mitem/s` means 80 % of it: of the products for `dense` ones, of the copies for the rest.

use std::sync::LazyLock;
use std::time::Instant;

use burn::tensor::{DType, Device, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;
use kernels::{
    AdamwStep, AttentionShape, Direction, RotaryHead, RotaryPairs, Segments, Sight, Threads,
};

/// The program's allocator, which keeps freed pages in training.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay` of mimalloc 2 and 3, which its bindings do not name.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

const TOKENS: usize = 1024;
const HIDDEN: usize = 576;
const INNER: usize = 1536;
const VOCAB: usize = 49_152;
const RANK: usize = 16;
const SHAPE: AttentionShape = AttentionShape {
    heads: 9,
    kv_heads: 3,
    head_dim: 64,
    scale: 0.125,
    sight: Sight::Whole,
    soft_cap: None,
};

static OPERATIONS_PER_SECOND: LazyLock<f64> = LazyLock::new(|| {
    kernels::measure_matrix_library(kernels::matrix_library(), Threads::All, 12)
        .expect("the library in use is open")
});

static BYTES_PER_SECOND: LazyLock<f64> = LazyLock::new(|| {
    let from = vec![1_u8; 256 << 20];
    let mut to = vec![0_u8; from.len()];
    let seconds = (0..6).map(|_| {
        let start = Instant::now();
        let parts = to.len() / rayon::current_num_threads();
        rayon::scope(|scope| {
            for (to, from) in to.chunks_mut(parts).zip(from.chunks(parts)) {
                scope.spawn(move |_| to.copy_from_slice(from));
            }
        });
        start.elapsed().as_secs_f64()
    });
    2.0 * 256e6 * 1.048_576 / seconds.fold(f64::MAX, f64::min)
});

#[expect(clippy::print_stdout, unsafe_code, reason = "the head of the table; the allocator")]
fn main() {
    // SAFETY: sets one number in mimalloc's table of options; any value of the type is valid.
    unsafe { libmimalloc_sys::mi_option_set(PURGE_DELAY, -1) };
    println!(
        "products: {:.1} GFLOP/s by {}, copies: {:.1} GB/s, loops: {}",
        *OPERATIONS_PER_SECOND / 1e9,
        kernels::matrix_library().name(),
        *BYTES_PER_SECOND / 1e9,
        kernels::instruction_set().name(),
    );
    divan::main();
}

/// Work of a product `[m, k] x [k, n]`, in microseconds of the machine.
fn dense(m: usize, k: usize, n: usize) -> ItemsCount {
    ItemsCount::new((2.0e6 * m as f64 * k as f64 * n as f64 / *OPERATIONS_PER_SECOND) as u64)
}

/// Work of reading and writing so many numbers of 4 bytes, in microseconds of the machine.
fn moved(numbers: usize) -> ItemsCount {
    ItemsCount::new((4.0e6 * numbers as f64 / *BYTES_PER_SECOND) as u64)
}

fn random(rows: usize, columns: usize) -> Tensor<2> {
    let values = (0..rows * columns).map(|i| ((i * 7919) % 1009) as f32 / 1009.0 - 0.5).collect();
    kernels::from_f32(values, [rows, columns], DType::F32, &Device::flex())
}

fn row(columns: usize) -> Tensor<1> {
    random(1, columns).reshape([columns])
}

/// `[d_in, d_out]` of the layers of a block, and of the low-rank path.
const LAYERS: &[(usize, usize)] = &[
    (HIDDEN, HIDDEN),
    (HIDDEN, 192),
    (HIDDEN, INNER),
    (INNER, HIDDEN),
    (HIDDEN, RANK),
    (RANK, INNER),
];

#[divan::bench(args = LAYERS)]
fn dense_linear(bencher: Bencher, &(d_in, d_out): &(usize, usize)) {
    let (x, w) = (random(TOKENS, d_in), random(d_out, d_in));
    bencher.counter(dense(TOKENS, d_in, d_out)).bench_local(|| kernels::linear(&x, &w));
}

#[divan::bench(args = LAYERS)]
fn dense_linear_bf16(bencher: Bencher, &(d_in, d_out): &(usize, usize)) {
    let (x, w) = (random(TOKENS, d_in), random(d_out, d_in).cast(DType::BF16));
    bencher.counter(dense(TOKENS, d_in, d_out)).bench_local(|| kernels::linear(&x, &w));
}

#[divan::bench(args = LAYERS)]
fn dense_linear_input_gradient(bencher: Bencher, &(d_in, d_out): &(usize, usize)) {
    let (dy, w) = (random(TOKENS, d_out), random(d_out, d_in));
    bencher
        .counter(dense(TOKENS, d_in, d_out))
        .bench_local(|| kernels::linear_input_gradient(None, &dy, &w));
}

#[divan::bench(args = LAYERS)]
fn dense_linear_weight_gradient(bencher: Bencher, &(d_in, d_out): &(usize, usize)) {
    let (dy, x) = (random(TOKENS, d_out), random(TOKENS, d_in));
    bencher
        .counter(dense(TOKENS, d_in, d_out))
        .bench_local(|| kernels::linear_weight_gradient(&dy, &x, 1.0));
}

/// Rows of logits that exist at once.
const HEAD_ROWS: &[usize] = &[64, 147, 256, 512];

#[divan::bench(args = HEAD_ROWS)]
fn dense_head(bencher: Bencher, rows: usize) {
    let (x, w) = (random(rows, HIDDEN), random(VOCAB, HIDDEN));
    bencher.counter(dense(rows, HIDDEN, VOCAB)).bench_local(|| kernels::linear(&x, &w));
}

#[divan::bench(args = HEAD_ROWS)]
fn dense_head_gradient(bencher: Bencher, rows: usize) {
    let (dy, w) = (random(rows, VOCAB), random(VOCAB, HIDDEN));
    bencher
        .counter(dense(rows, HIDDEN, VOCAB))
        .bench_local(|| kernels::linear_input_gradient(None, &dy, &w));
}

/// A layer of a larger model, at few and at many rows.
#[divan::bench(args = [64, 128, 256, 512])]
fn dense_large_linear(bencher: Bencher, rows: usize) {
    let (x, w) = (random(rows, 2048), random(5632, 2048));
    bencher.counter(dense(rows, 2048, 5632)).bench_local(|| kernels::linear(&x, &w));
}

/// Tokens of an example; a micro-batch has as many as make [`TOKENS`], and at least one.
const LENGTHS: &[usize] = &[64, 256, 1024, 4096];

fn segments(length: usize) -> (usize, Segments) {
    let count = (TOKENS / length).max(1);
    (count * length, Segments::of_tokens(&(0..=count).map(|i| i * length).collect::<Vec<_>>()))
}

/// Products of causal attention over one example: half of `queries x keys`, `passes` times.
fn attention_work(length: usize, tokens: usize, passes: usize) -> ItemsCount {
    dense(tokens, length.div_ceil(2), SHAPE.heads * SHAPE.head_dim * passes)
}

#[divan::bench(args = LENGTHS)]
fn dense_attention(bencher: Bencher, length: usize) {
    let (tokens, segments) = segments(length);
    let (q, k, v) = (random(tokens, 576), random(tokens, 192), random(tokens, 192));
    bencher
        .counter(attention_work(length, tokens, 2))
        .bench_local(|| kernels::attention(&q, &k, &v, SHAPE, &segments));
}

#[divan::bench(args = LENGTHS)]
fn dense_attention_gradient(bencher: Bencher, length: usize) {
    let (tokens, segments) = segments(length);
    let (q, k, v) = (random(tokens, 576), random(tokens, 192), random(tokens, 192));
    let forward = kernels::attention(&q, &k, &v, SHAPE, &segments);
    let dy = random(tokens, 576);
    bencher
        .counter(attention_work(length, tokens, 5))
        .bench_local(|| kernels::attention_gradient(&dy, (&q, &k, &v), &forward, SHAPE, &segments));
}

#[divan::bench]
fn rms_norm(bencher: Bencher) {
    let (x, w) = (random(TOKENS, HIDDEN), row(HIDDEN));
    bencher.counter(moved(2 * TOKENS * HIDDEN)).bench_local(|| kernels::rms_norm(&x, &w, 1e-5));
}

#[divan::bench]
fn rms_norm_gradient(bencher: Bencher) {
    let (x, dy, w) = (random(TOKENS, HIDDEN), random(TOKENS, HIDDEN), row(HIDDEN));
    bencher
        .counter(moved(3 * TOKENS * HIDDEN))
        .bench_local(|| kernels::rms_norm_gradient(None, &dy, &x, &w, 1e-5));
}

#[divan::bench]
fn rope(bencher: Bencher) {
    let (cos, sin) = (random(TOKENS, 32), random(TOKENS, 32));
    let head = RotaryHead { head_dim: 64, pairs: RotaryPairs::HalfSplit };
    bencher
        .counter(moved(2 * TOKENS * HIDDEN))
        .with_inputs(|| random(TOKENS, HIDDEN))
        .bench_local_values(|x| kernels::rope(x, (&cos, &sin), head, Direction::Forward));
}

#[divan::bench]
fn swiglu(bencher: Bencher) {
    let (gate, up) = (random(TOKENS, INNER), random(TOKENS, INNER));
    bencher.counter(moved(3 * TOKENS * INNER)).bench_local(|| kernels::swiglu(&gate, &up));
}

#[divan::bench]
fn swiglu_gradient(bencher: Bencher) {
    let (dy, gate, up) = (random(TOKENS, INNER), random(TOKENS, INNER), random(TOKENS, INNER));
    bencher
        .counter(moved(5 * TOKENS * INNER))
        .bench_local(|| kernels::swiglu_gradient(&dy, &gate, &up));
}

#[divan::bench]
fn cross_entropy_gradient(bencher: Bencher) {
    let targets: Vec<u32> = (0..170).map(|i| i * 13).collect();
    bencher
        .counter(moved(2 * 170 * VOCAB))
        .with_inputs(|| random(170, VOCAB))
        .bench_local_values(|logits| kernels::cross_entropy_gradient(logits, &targets, 1e-3));
}

#[divan::bench]
fn adamw(bencher: Bencher) {
    let step = AdamwStep {
        learning_rate: 1e-4,
        betas: [0.9, 0.999],
        epsilon: 1e-8,
        weight_decay: 0.0,
        count: 10,
        gradient_factor: 1.0,
    };
    let gradient = random(2048, 1024);
    bencher
        .counter(moved(7 * 2048 * 1024))
        .with_inputs(|| (random(2048, 1024), random(2048, 1024), random(2048, 1024)))
        .bench_local_values(|state| kernels::adamw(state, &gradient, &step));
}
