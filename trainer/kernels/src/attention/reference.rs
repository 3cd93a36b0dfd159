//! Attention and its gradient in plain tensor operations: the path of other devices, and the oracle
//! of the kernels.

use burn::tensor::{Bool, Device, Int, Tensor, activation};

use super::{AttentionOutput, AttentionShape, Segments, Sight, Span};
use crate::product::product;

/// [`super::attention`] in plain tensor operations, segment by segment.
pub fn reference(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    shape: AttentionShape,
    segments: &Segments,
) -> AttentionOutput {
    let (mut outputs, mut log_sum_exps) = (Vec::new(), Vec::new());
    for span in segments.spans() {
        let SpanScores { scores, value, .. } = span_scores(q, k, v, shape, span);
        let largest = scores.clone().max_dim(2);
        let total = (scores.clone() - largest.clone()).exp().sum_dim(2);
        log_sum_exps.push((largest + total.log()).squeeze_dim::<2>(2));
        let output = product(activation::softmax(scores, 2), value, q.dtype()); // [heads, queries, head_dim]
        outputs.push(merge_heads(output).cast(q.dtype()));
    }
    AttentionOutput { output: Tensor::cat(outputs, 0), log_sum_exp: Tensor::cat(log_sum_exps, 1) }
}

/// [`super::attention_gradient`] in plain tensor operations, segment by segment.
pub fn reference_gradient(
    d_output: &Tensor<2>,
    (q, k, v): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    shape: AttentionShape,
    segments: &Segments,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let (mut dqs, mut dks, mut dvs) = (Vec::new(), Vec::new(), Vec::new());
    for span in segments.spans() {
        let SpanScores { scores, capped_slope, value } = span_scores(q, k, v, shape, span);
        let p = activation::softmax(scores, 2);
        let d_output =
            split_heads(d_output, shape.heads, shape.head_dim, (span.query, span.queries));
        let dv = product(p.clone().swap_dims(1, 2), d_output.clone(), q.dtype());
        let dp = product(d_output, value.swap_dims(1, 2), q.dtype());
        let dot = (dp.clone() * p.clone()).sum_dim(2);
        let mut ds = p * (dp - dot) * shape.scale;
        if let Some(slope) = capped_slope {
            ds = ds * slope;
        }
        let query = split_heads(q, shape.heads, shape.head_dim, (span.query, span.queries));
        let key = shared_heads(k, shape, (span.key, span.keys));
        let dq = product(ds.clone(), key, q.dtype());
        let dk = product(ds.swap_dims(1, 2), query, q.dtype());
        dqs.push(merge_heads(dq).cast(q.dtype()));
        dks.push(sum_groups(dk, shape).cast(k.dtype()));
        dvs.push(sum_groups(dv, shape).cast(v.dtype()));
    }
    (Tensor::cat(dqs, 0), Tensor::cat(dks, 0), Tensor::cat(dvs, 0))
}

/// Scores of a segment, f32.
struct SpanScores {
    /// Capped and masked: `[heads, queries, keys]`.
    scores: Tensor<3>,
    /// Derivative of the cap, where there is one.
    capped_slope: Option<Tensor<3>>,
    /// `[heads, keys, head_dim]`
    value: Tensor<3>,
}

fn span_scores(
    q: &Tensor<2>,
    k: &Tensor<2>,
    v: &Tensor<2>,
    shape: AttentionShape,
    span: Span,
) -> SpanScores {
    let query = split_heads(q, shape.heads, shape.head_dim, (span.query, span.queries));
    let key = shared_heads(k, shape, (span.key, span.keys));
    let mut scores = product(query, key.swap_dims(1, 2), q.dtype()) * shape.scale;
    let mut capped_slope = None;
    if let Some(cap) = shape.soft_cap {
        let share = (scores / cap).tanh();
        capped_slope = Some(share.clone().square().neg() + 1.0);
        scores = share * cap;
    }
    let hidden = hidden_keys(shape, span, &q.device());
    let value = shared_heads(v, shape, (span.key, span.keys));
    SpanScores { scores: scores.mask_fill(hidden, f32::NEG_INFINITY), capped_slope, value }
}

/// The keys that each query does not see: `[heads, queries, keys]`.
fn hidden_keys(shape: AttentionShape, span: Span, device: &Device) -> Tensor<3, Bool> {
    let sizes = [span.queries, span.keys];
    let offset = (span.keys - span.queries) as i64;
    let rows = Tensor::<1, Int>::arange(0..span.queries as i64, device).add_scalar(offset);
    let rows = rows.reshape([span.queries, 1]).expand(sizes);
    let columns = Tensor::<1, Int>::arange(0..span.keys as i64, device);
    let columns = columns.unsqueeze::<2>().expand(sizes);
    let mut hidden = columns.clone().greater(rows.clone());
    if let Sight::Window(positions) = shape.sight {
        let too_old = columns.lower_equal(rows.sub_scalar(positions as i64));
        hidden = hidden.bool_or(too_old);
    }
    hidden.unsqueeze::<3>().expand([shape.heads, span.queries, span.keys])
}

/// `[tokens, heads * head_dim]` → `[heads, count, head_dim]`, f32.
fn split_heads(
    x: &Tensor<2>,
    heads: usize,
    head_dim: usize,
    (first, count): (usize, usize),
) -> Tensor<3> {
    let rows = x.clone().slice([first..first + count, 0..heads * head_dim]);
    rows.cast(burn::tensor::DType::F32).reshape([count, heads, head_dim]).swap_dims(0, 1)
}

/// Key or value heads repeated for the query heads they serve.
fn shared_heads(x: &Tensor<2>, shape: AttentionShape, range: (usize, usize)) -> Tensor<3> {
    let group = shape.heads / shape.kv_heads;
    let heads = split_heads(x, shape.kv_heads, shape.head_dim, range);
    let repeated = heads.unsqueeze_dim::<4>(1).repeat_dim(1, group);
    repeated.reshape([shape.heads, range.1, shape.head_dim])
}

/// `[heads, keys, head_dim]` → `[keys, kv_heads * head_dim]`, summed over each group.
fn sum_groups(x: Tensor<3>, shape: AttentionShape) -> Tensor<2> {
    let [_, keys, head_dim] = x.dims();
    let group = shape.heads / shape.kv_heads;
    let grouped: Tensor<4> = x.reshape([shape.kv_heads, group, keys, head_dim]);
    merge_heads(grouped.sum_dim(1).reshape([shape.kv_heads, keys, head_dim]))
}

/// `[heads, count, head_dim]` → `[count, heads * head_dim]`.
fn merge_heads(x: Tensor<3>) -> Tensor<2> {
    let [heads, count, head_dim] = x.dims();
    x.swap_dims(0, 1).reshape([count, heads * head_dim])
}
