//! Puts the weighted outputs of an expert back onto the rows it was given.
//!
//! `y[indices[i]] += factors[i] * rows[i]`, in the order of `i`. The gradient of `rows[i]` is
//! `factors[i] * dy[indices[i]]`, and that of `factors[i]` is `dy[indices[i]] · rows[i]`.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};

use crate::host;

/// Adds weighted rows to some rows of `y`; an index may occur several times.
///
/// # Shapes
/// - `y`: `[tokens, d]`, `rows`: `[indices.len(), d]`, returns `[tokens, d]`
pub fn add_rows(y: Tensor<2>, rows: &Tensor<2>, indices: &[usize], factors: &[f32]) -> Tensor<2> {
    let [_, width] = y.dims();
    let Some(rows_host) = host::host_f32(rows) else {
        return reference(y, rows, indices, factors);
    };
    let mut y = match host::take_f32(y) {
        Ok(y) => y,
        Err(y) => return reference(y, rows, indices, factors),
    };
    let target = host::write(&mut y);
    let rows = host::read(&rows_host).chunks_exact(width);
    for ((row, &index), &factor) in rows.zip(indices).zip(factors) {
        let target = &mut target[index * width..(index + 1) * width];
        for (target, value) in target.iter_mut().zip(row) {
            *target += factor * value;
        }
    }
    host::give(y)
}

/// Rows `indices` of `x`, each times its factor: the gradient of the rows that were added.
///
/// # Shapes
/// - `x`: `[tokens, d]`, returns `[indices.len(), d]`
pub fn weighted_rows(x: &Tensor<2>, indices: &[usize], factors: &[f32]) -> Tensor<2> {
    let rows = crate::gather_rows(x, indices);
    let column = Tensor::<2>::from_data(
        TensorData::new(factors.to_vec(), [factors.len(), 1]),
        (&x.device(), DType::F32),
    );
    rows.clone() * column.cast(rows.dtype())
}

/// [`add_rows`] in plain tensor operations.
pub fn reference(y: Tensor<2>, rows: &Tensor<2>, indices: &[usize], factors: &[f32]) -> Tensor<2> {
    let (device, count) = (y.device(), indices.len());
    let column = TensorData::new(factors.to_vec(), [count, 1]);
    let column = Tensor::<2>::from_data(column, (&device, DType::F32)).cast(y.dtype());
    let places: Vec<i64> = indices.iter().map(|&index| index as i64).collect();
    let places = Tensor::<1, Int>::from_data(TensorData::new(places, [count]), &device);
    let rows = rows.clone().cast(y.dtype()) * column;
    y.select_assign(0, places, rows, IndexingUpdateOp::Add)
}
