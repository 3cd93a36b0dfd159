//! Causal attention over the examples of a micro-batch, and its gradient.
//!
//! Each segment sees itself alone. Scores exist for a tile of queries at a time, never for a
//! whole sequence (the idea of Dao et al. 2022, arXiv 2205.14135); the backward pass rebuilds
//! them from `log_sum_exp`, one number a query and head.
//!
//! With `p = softmax(scale * q kᵀ)`: `dv = pᵀ do`, `ds = p * (do vᵀ - sum(do * o))`,
//! `dq = scale * ds k`, `dk = scale * dsᵀ q`. A soft cap `c` puts `t = c * tanh(s / c)` in the
//! place of the scores `s`; then `ds` is multiplied by `1 - (t / c)²`.

mod reference;

use std::ops::Range;

use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::embedding::gather_rows;
use crate::host::{self, Shared};
use crate::launch::{self, Operation};
use crate::math::{exp, max, sum_by, tanh, vectorised};
use crate::matmul::{Operand, Output, Sizes, Strides, Threads, multiply, multiply_raw};

pub use reference::{reference, reference_gradient};

/// Queries whose scores exist at once.
const TILE: usize = 64;

/// Which keys the queries of each segment see.
///
/// In training a segment sees itself. While generating, a segment has more keys than queries: its
/// queries are the last positions. Segments of one text may share the keys of a common beginning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    spans: Vec<Span>,
    /// Rows of keys and values that the spans count in, where they are not the rows themselves.
    key_rows: Option<Vec<usize>>,
}

impl Segments {
    /// Segments that see themselves: starts of each, and at last the number of tokens.
    pub fn of_tokens(starts: &[usize]) -> Self {
        let span = |pair: &[usize]| {
            let length = pair[1] - pair[0];
            Span { query: pair[0], queries: length, key: pair[0], keys: length }
        };
        Self { spans: starts.windows(2).map(span).collect(), key_rows: None }
    }

    /// One segment whose last `queries` positions ask all `keys` positions.
    pub fn cached(queries: usize, keys: usize) -> Self {
        Self::over(&[(queries, 0..keys)])
    }

    /// Segments of some queries, end to end, whose keys stand anywhere; the queries are the last
    /// of their keys.
    pub fn over(segments: &[(usize, Range<usize>)]) -> Self {
        let mut query = 0;
        let spans = segments.iter().map(|(queries, keys)| {
            assert!(*queries <= keys.len(), "a query sees at least itself");
            query += queries;
            Span { query: query - queries, queries: *queries, key: keys.start, keys: keys.len() }
        });
        Self { spans: spans.collect(), key_rows: None }
    }

    /// Segments of some queries, end to end, each with the rows of its keys; the queries are the
    /// last of their keys. Rows may serve several segments.
    pub fn sharing(segments: &[(usize, Vec<usize>)]) -> Self {
        let mut key = 0;
        let ranges: Vec<(usize, Range<usize>)> = segments
            .iter()
            .map(|(queries, rows)| {
                key += rows.len();
                (*queries, key - rows.len()..key)
            })
            .collect();
        let rows = segments.iter().flat_map(|(_, rows)| rows).copied().collect();
        Self { key_rows: Some(rows), ..Self::over(&ranges) }
    }

    pub(crate) fn spans(&self) -> impl Iterator<Item = Span> + '_ {
        self.spans.iter().copied()
    }

    fn queries(&self) -> usize {
        self.spans.last().map_or(0, |span| span.query + span.queries)
    }

    pub(crate) fn keys(&self) -> usize {
        self.spans.iter().map(|span| span.key + span.keys).max().unwrap_or(0)
    }
}

/// One segment: its first query and key, and how many there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) query: usize,
    pub(crate) queries: usize,
    pub(crate) key: usize,
    pub(crate) keys: usize,
}

/// Heads of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Factor of the scores, usually `1 / sqrt(head_dim)`.
    pub scale: f64,
    /// How far back a query sees.
    pub sight: Sight,
    /// Bound `c` of the scores, `c * tanh(score / c)`.
    pub soft_cap: Option<f64>,
}

/// How far back a query sees in its segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sight {
    /// To the segment's beginning.
    Whole,
    /// This many positions, its own among them (sliding window).
    Window(usize),
}

impl Sight {
    /// The first position that `position` sees.
    fn first(self, position: usize) -> usize {
        match self {
            Self::Whole => 0,
            Self::Window(positions) => (position + 1).saturating_sub(positions),
        }
    }
}

/// What the forward pass gives.
#[derive(Debug, Clone)]
pub struct AttentionOutput {
    /// `[tokens, heads * head_dim]`
    pub output: Tensor<2>,
    /// Log of the sum of exponentials of the scores: `[heads, tokens]`; f32.
    pub log_sum_exp: Tensor<2>,
}

/// Causal attention inside each segment.
///
/// # Shapes
/// - `q`: `[tokens, heads * head_dim]`, `k`, `v`: `[keys, kv_heads * head_dim]`
pub fn attention(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    shape: AttentionShape,
    segments: &Segments,
) -> AttentionOutput {
    if let Some(rows) = &segments.key_rows {
        let (k, v) = (gather_rows(k, rows), gather_rows(v, rows));
        let segments = Segments { key_rows: None, spans: segments.spans.clone() };
        return attention(q, &k, &v, shape, &segments);
    }
    let (Some(qh), Some(kh), Some(vh)) = (host::host_f32(q), host::host_f32(k), host::host_f32(v))
    else {
        return launch::gpu(Operation::Attention(shape.head_dim))
            .and_then(|gpu| launch::attention(&gpu, (q, k, v), shape, segments))
            .unwrap_or_else(|| reference(q, k, v, shape, segments));
    };
    let ([tokens, width], [keys, _]) = (q.dims(), k.dims());
    assert_eq!(segments.queries(), tokens, "segments cover the queries");
    assert!(segments.keys() <= keys, "segments ask keys that are there");
    let inputs = Inputs { q: host::read(&qh), k: host::read(&kh), v: host::read(&vh), shape };
    let mut output = host::buffer(tokens * width);
    let mut log_sum_exp = host::buffer(shape.heads * tokens);
    let (out, lse) = (Shared(output.as_mut_ptr()), Shared(log_sum_exp.as_mut_ptr()));
    tasks(segments, shape).into_par_iter().for_each_init(Vec::new, |scores, task| {
        // SAFETY: a task is one tile of queries of one head; no two tasks share output elements.
        unsafe { forward_tile(&inputs, &task, tokens, scores, &out, &lse) };
    });
    AttentionOutput {
        output: host::wrap(output, [tokens, width]),
        log_sum_exp: host::wrap(log_sum_exp, [shape.heads, tokens]),
    }
}

/// Gradients of [`attention`] where queries and keys are the same tokens: `(dq, dk, dv)`.
///
/// # Shapes
/// - `d_output`, `forward.output`: `[tokens, heads * head_dim]`; the rest as in [`attention`]
pub fn attention_gradient(
    d_output: &Tensor<2>,
    (q, k, v): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    forward: &AttentionOutput,
    shape: AttentionShape,
    segments: &Segments,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let hosts = (
        (host::host_f32(q), host::host_f32(k), host::host_f32(v)),
        (host::host_f32(d_output), host::host_f32(&forward.output)),
        host::host_f32(&forward.log_sum_exp),
    );
    let ((Some(qh), Some(kh), Some(vh)), (Some(dh), Some(oh)), Some(lh)) = hosts else {
        let faster = launch::gpu(Operation::Attention(shape.head_dim)).and_then(|gpu| {
            launch::attention_gradient(&gpu, d_output, (q, k, v), forward, shape, segments)
        });
        return faster.unwrap_or_else(|| reference_gradient(d_output, (q, k, v), shape, segments));
    };
    assert_eq!(segments.key_rows, None, "training shares no keys");
    let tokens = q.dims()[0];
    let inputs = Inputs { q: host::read(&qh), k: host::read(&kh), v: host::read(&vh), shape };
    let given = Given {
        d_output: host::read(&dh),
        output: host::read(&oh),
        log_sum_exp: host::read(&lh),
        tokens,
    };
    let mut gradients = (vec![0.0; q.shape().num_elements()], Vec::new(), Vec::new());
    gradients.1 = vec![0.0; k.shape().num_elements()];
    gradients.2 = vec![0.0; v.shape().num_elements()];
    let outputs = Outputs {
        dq: Shared(gradients.0.as_mut_ptr()),
        dk: Shared(gradients.1.as_mut_ptr()),
        dv: Shared(gradients.2.as_mut_ptr()),
    };
    let groups: Vec<(Span, usize)> = segments
        .spans()
        .flat_map(|span| (0..shape.kv_heads).map(move |head| (span, head)))
        .collect();
    groups.into_par_iter().for_each_init(Scratch::default, |scratch, (span, kv_head)| {
        let group = shape.heads / shape.kv_heads;
        for head in kv_head * group..(kv_head + 1) * group {
            for first in (0..span.queries).step_by(TILE) {
                let rows = TILE.min(span.queries - first);
                let task = Task { span, head, first, rows, sight: shape.sight };
                // SAFETY: a group owns its segment's rows of its key head and query heads.
                unsafe { backward_tile(&inputs, &given, &outputs, &task, scratch) };
            }
        }
    });
    (
        host::wrap(gradients.0, q.dims()),
        host::wrap(gradients.1, k.dims()),
        host::wrap(gradients.2, v.dims()),
    )
}

struct Inputs<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    shape: AttentionShape,
}

impl Inputs<'_> {
    fn query_width(&self) -> usize {
        self.shape.heads * self.shape.head_dim
    }

    fn key_width(&self) -> usize {
        self.shape.kv_heads * self.shape.head_dim
    }

    fn query_offset(&self, task: &Task) -> usize {
        (task.span.query + task.first) * self.query_width() + task.head * self.shape.head_dim
    }

    fn key_offset(&self, task: &Task) -> usize {
        let kv_head = task.head / (self.shape.heads / self.shape.kv_heads);
        let first = task.span.key + task.visible_to_tile().start;
        first * self.key_width() + kv_head * self.shape.head_dim
    }

    fn query_tile(&self, task: &Task) -> Operand<'_> {
        let strides = Strides::rows(self.query_width());
        Operand { values: &self.q[self.query_offset(task)..], strides }
    }

    /// The keys that the tile sees.
    fn keys<'a>(&self, values: &'a [f32], task: &Task) -> Operand<'a> {
        let strides = Strides::rows(self.key_width());
        Operand { values: &values[self.key_offset(task)..], strides }
    }
}

struct Given<'a> {
    d_output: &'a [f32],
    output: &'a [f32],
    log_sum_exp: &'a [f32],
    tokens: usize,
}

struct Outputs {
    dq: Shared,
    dk: Shared,
    dv: Shared,
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    slopes: Vec<f32>,
}

/// Some queries of one head of one segment.
struct Task {
    span: Span,
    head: usize,
    first: usize,
    rows: usize,
    sight: Sight,
}

impl Task {
    /// Keys of the segment that query `row` of the tile sees.
    fn visible(&self, row: usize) -> Range<usize> {
        let position = self.span.keys - self.span.queries + self.first + row;
        self.sight.first(position)..position + 1
    }

    /// Keys that lie between the first and the last that some query of the tile sees.
    fn visible_to_tile(&self) -> Range<usize> {
        self.visible(0).start..self.visible(self.rows - 1).end
    }

    /// [`Task::visible`], counted from the first key of the tile.
    fn visible_in_tile(&self, row: usize) -> Range<usize> {
        let first = self.visible(0).start;
        let visible = self.visible(row);
        visible.start - first..visible.end - first
    }
}

fn tasks(segments: &Segments, shape: AttentionShape) -> Vec<Task> {
    let mut tasks = Vec::new();
    for span in segments.spans() {
        for first in (0..span.queries).step_by(TILE) {
            let rows = TILE.min(span.queries - first);
            let task = |head| Task { span, head, first, rows, sight: shape.sight };
            tasks.extend((0..shape.heads).map(task));
        }
    }
    tasks
}

/// Scores of the tile in `scores`, capped where the layer caps them: `[rows, visible_to_tile]`.
fn tile_scores(inputs: &Inputs, task: &Task, scores: &mut Vec<f32>) -> usize {
    let seen = task.visible_to_tile().len();
    scores.resize(task.rows * seen, 0.0);
    let sizes = Sizes { m: task.rows, k: inputs.shape.head_dim, n: seen };
    let operands = (inputs.query_tile(task), inputs.keys(inputs.k, task).transposed());
    let factor = inputs.shape.scale as f32;
    multiply(scores, seen, Output::Overwrite, operands, sizes, factor, Threads::One);
    if let Some(cap) = inputs.shape.soft_cap {
        cap_in_place(scores, cap as f32);
    }
    seen
}

fn cap_in_place(scores: &mut [f32], cap: f32) {
    let inverse = 1.0 / cap;
    vectorised(
        #[inline(always)]
        || {
            for score in scores.iter_mut() {
                *score = cap * tanh(*score * inverse);
            }
        },
    );
}

/// # Safety
/// No other thread may touch this task's part of `out` and `lse`.
unsafe fn forward_tile(
    inputs: &Inputs,
    task: &Task,
    tokens: usize,
    scores: &mut Vec<f32>,
    out: &Shared,
    lse: &Shared,
) {
    let seen = tile_scores(inputs, task, scores);
    for row in 0..task.rows {
        let row_scores = &mut scores[row * seen..(row + 1) * seen];
        let values = hide_others(row_scores, task.visible_in_tile(row));
        let row_lse = vectorised(
            #[inline(always)]
            || softmax_in_place(values),
        );
        let place = task.head * tokens + task.span.query + task.first + row;
        // SAFETY: `place` lies in `[heads, tokens]` and belongs to this task.
        unsafe { lse.at(place).write(row_lse) };
    }
    let sizes = Sizes { m: task.rows, k: seen, n: inputs.shape.head_dim };
    let operands = (Operand::rows(scores, seen), inputs.keys(inputs.v, task));
    // SAFETY: the tile's rows of this head belong to this task; operands were checked by
    // `tile_scores`, which read the same extents.
    unsafe {
        let output = out.at(inputs.query_offset(task));
        let mode = Output::Overwrite;
        multiply_raw(output, inputs.query_width(), mode, operands, sizes, 1.0, Threads::One);
    }
}

/// Sets everything outside of `visible` to 0 and gives what is inside.
fn hide_others(row: &mut [f32], visible: Range<usize>) -> &mut [f32] {
    row[..visible.start].fill(0.0);
    row[visible.end..].fill(0.0);
    &mut row[visible]
}

#[inline(always)]
fn softmax_in_place(values: &mut [f32]) -> f32 {
    let largest = max(values);
    for value in values.iter_mut() {
        *value = exp(*value - largest);
    }
    let total = sum_by(
        values.len(),
        #[inline(always)]
        |i| values[i],
    );
    let share = 1.0 / total;
    for value in values.iter_mut() {
        *value *= share;
    }
    largest + total.ln()
}

/// # Safety
/// No other thread may touch this segment's rows of this key head and its query heads.
unsafe fn backward_tile(
    inputs: &Inputs,
    given: &Given,
    outputs: &Outputs,
    task: &Task,
    scratch: &mut Scratch,
) {
    let seen = tile_scores(inputs, task, &mut scratch.scores);
    let head_dim = inputs.shape.head_dim;
    let width = Strides::rows(inputs.query_width());
    let d_output = Operand { values: &given.d_output[inputs.query_offset(task)..], strides: width };
    scratch.slopes.resize(task.rows * seen, 0.0);
    let sizes = Sizes { m: task.rows, k: head_dim, n: seen };
    let operands = (d_output, inputs.keys(inputs.v, task).transposed());
    let slopes = &mut scratch.slopes;
    multiply(slopes, seen, Output::Overwrite, operands, sizes, 1.0, Threads::One);
    for row in 0..task.rows {
        row_slopes(inputs, given, task, (row, seen), scratch);
    }
    let probabilities = Operand::rows(&scratch.scores, seen);
    let slopes = Operand::rows(&scratch.slopes, seen);
    let to_keys = Sizes { m: seen, k: task.rows, n: head_dim };
    let to_queries = Sizes { m: task.rows, k: seen, n: head_dim };
    let (key_width, factor) = (inputs.key_width(), inputs.shape.scale as f32);
    let (add, one) = (Output::Add, Threads::One);
    let (query, key) = (inputs.query_offset(task), inputs.key_offset(task));
    // SAFETY: the rows of this key head and of the tile's query head belong to this group, and
    // the extents are those `tile_scores` read.
    unsafe {
        let operands = (probabilities.transposed(), d_output);
        multiply_raw(outputs.dv.at(key), key_width, add, operands, to_keys, 1.0, one);
        let operands = (slopes.transposed(), inputs.query_tile(task));
        multiply_raw(outputs.dk.at(key), key_width, add, operands, to_keys, factor, one);
        let operands = (slopes, inputs.keys(inputs.k, task));
        let dq = outputs.dq.at(query);
        multiply_raw(dq, inputs.query_width(), add, operands, to_queries, factor, one);
    }
}

/// Turns a row of scores into probabilities and a row of `do vᵀ` into `ds`.
fn row_slopes(
    inputs: &Inputs,
    given: &Given,
    task: &Task,
    (row, seen): (usize, usize),
    scratch: &mut Scratch,
) {
    let query = task.span.query + task.first + row;
    let row_lse = given.log_sum_exp[task.head * given.tokens + query];
    let start = query * inputs.query_width() + task.head * inputs.shape.head_dim;
    let d_output = &given.d_output[start..start + inputs.shape.head_dim];
    let output = &given.output[start..start + inputs.shape.head_dim];
    let visible = task.visible_in_tile(row);
    let scores = hide_others(&mut scratch.scores[row * seen..(row + 1) * seen], visible.clone());
    let slopes = hide_others(&mut scratch.slopes[row * seen..(row + 1) * seen], visible);
    let inverse_cap = inputs.shape.soft_cap.map_or(0.0, |cap| 1.0 / cap as f32);
    vectorised(
        #[inline(always)]
        || {
            let dot = sum_by(
                output.len(),
                #[inline(always)]
                |i| output[i] * d_output[i],
            );
            for (score, slope) in scores.iter_mut().zip(slopes) {
                let share = *score * inverse_cap;
                *score = exp(*score - row_lse);
                *slope = *score * (*slope - dot) * (1.0 - share * share);
            }
        },
    );
}
