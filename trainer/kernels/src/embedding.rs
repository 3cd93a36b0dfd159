//! Picks rows of a matrix by index, and puts rows back.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use crate::host::{self, from_f32};
use crate::panel::Rows;
use crate::weight::WeightRef;

/// Rows of the embedding matrix, in the activations' number format.
///
/// # Shapes
/// - `weight`: `[vocab, hidden]`, returns `[token_ids.len(), hidden]`
pub fn embedding<'a>(
    weight: impl Into<WeightRef<'a>>,
    token_ids: &[u32],
    dtype: DType,
    device: &Device,
) -> Tensor<2> {
    let weight = weight.into();
    let [vocab, hidden] = weight.dims();
    assert!(token_ids.iter().all(|&id| (id as usize) < vocab), "token ids lie in the vocabulary");
    match (Rows::of(weight), weight) {
        (Some(rows), _) => {
            let mut values = host::buffer(token_ids.len() * hidden);
            for (&id, row) in token_ids.iter().zip(values.chunks_exact_mut(hidden.max(1))) {
                rows.expand(id as usize, hidden, row);
            }
            from_f32(values, [token_ids.len(), hidden], dtype, device)
        }
        (None, WeightRef::Dense(weight)) => {
            let indices: Vec<i64> = token_ids.iter().map(|&id| i64::from(id)).collect();
            weight.clone().select(0, index(indices, weight)).cast(dtype)
        }
        (None, WeightRef::Quantised(_)) => unreachable!("its rows are in the host's memory"),
    }
}

/// Rows `indices` of `x`.
///
/// # Shapes
/// - `x`: `[tokens, d]`, returns `[indices.len(), d]`
pub fn gather_rows(x: &Tensor<2>, indices: &[usize]) -> Tensor<2> {
    let [_, width] = x.dims();
    if let Some(host) = host::host_f32(x) {
        let values = host::read(&host);
        let mut rows = Vec::with_capacity(indices.len() * width);
        for &row in indices {
            rows.extend_from_slice(&values[row * width..(row + 1) * width]);
        }
        return host::wrap(rows, [indices.len(), width]);
    }
    let indices = indices.iter().map(|&i| i as i64).collect();
    x.clone().select(0, index(indices, x))
}

/// A matrix of zeros with `rows` at `indices`, each index once.
///
/// # Shapes
/// - `rows`: `[indices.len(), d]`, returns `[tokens, d]`
pub fn scatter_rows(rows: &Tensor<2>, indices: &[usize], tokens: usize) -> Tensor<2> {
    let [_, width] = rows.dims();
    if let Some(host) = host::host_f32(rows) {
        let mut output = vec![0.0; tokens * width];
        for (row, values) in indices.iter().zip(host::read(&host).chunks_exact(width)) {
            output[row * width..(row + 1) * width].copy_from_slice(values);
        }
        return host::wrap(output, [tokens, width]);
    }
    let zeros = Tensor::<2>::zeros([tokens, width], (&rows.device(), rows.dtype()));
    let indices: Vec<i64> = indices.iter().map(|&i| i as i64).collect();
    let indices = index(indices, rows);
    zeros.select_assign(0, indices, rows.clone(), burn::tensor::IndexingUpdateOp::Add)
}

/// Some rows that stand together, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RowSpan {
    /// First row in the source.
    pub from: usize,
    /// First row in the destination.
    pub to: usize,
    /// Rows.
    pub count: usize,
}

/// Writes spans of `rows` over rows of `store`; in place where nobody else holds `store`.
///
/// # Shapes
/// - `store`: `[places, d]`, `rows`: `[tokens, d]`
pub fn put_rows(store: Tensor<2>, rows: &Tensor<2>, spans: &[RowSpan]) -> Tensor<2> {
    let [places, width] = store.dims();
    assert!(spans.iter().all(|span| span.to + span.count <= places), "rows lie in the store");
    let (store, source) = match (host::host_f32(rows), host::take_f32(store)) {
        (Some(source), Ok(store)) => (store, source),
        (_, store) => {
            let store = store.map_or_else(|store| store, host::give);
            return spans.iter().fold(store, |store, span| {
                let part = rows.clone().slice([span.from..span.from + span.count, 0..width]);
                store.slice_assign([span.to..span.to + span.count, 0..width], part)
            });
        }
    };
    let mut store = store;
    let (values, source) = (host::write(&mut store), host::read(&source));
    for span in spans {
        let (from, to, length) = (span.from * width, span.to * width, span.count * width);
        values[to..to + length].copy_from_slice(&source[from..from + length]);
    }
    host::give(store)
}

fn index(indices: Vec<i64>, like: &Tensor<2>) -> Tensor<1, Int> {
    let count = indices.len();
    Tensor::from_data(TensorData::new(indices, [count]), &like.device())
}
