//! Turns stored rows into `f32`, in parallel.

use std::ops::Range;

use rayon::prelude::*;

use super::{StoredDtype, gguf::blocks};

/// Where the stored row of a model's row lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RowOrder {
    /// Row for row.
    AsStored,
    /// Rotary pairs lie side by side in the file and half a head apart in the model.
    Interleaved {
        /// Rows of one attention head; even.
        head_dim: usize,
    },
    /// The model has query, key and value of a head together; the file all queries, then all keys,
    /// then all values.
    ByHead {
        /// Attention heads.
        heads: usize,
        /// Rows of one attention head.
        head_dim: usize,
    },
}

impl RowOrder {
    /// The row of the file that holds row `row` of the model.
    pub(crate) fn stored_row(self, row: usize) -> usize {
        match self {
            Self::AsStored => row,
            Self::Interleaved { head_dim } => {
                let half = head_dim / 2;
                let within = row % head_dim;
                row - within + (within % half) * 2 + within / half
            }
            Self::ByHead { heads, head_dim } => {
                let (head, within) = (row / (3 * head_dim), row % (3 * head_dim));
                within / head_dim * heads * head_dim + head * head_dim + within % head_dim
            }
        }
    }
}

impl RowOrder {
    /// Rows of the model, from the beginning of a head on, in the file's order.
    pub(crate) fn to_stored(self, values: &[f32], columns: usize) -> Vec<f32> {
        let mut out = vec![0.0; values.len()];
        for (row, values) in values.chunks_exact(columns).enumerate() {
            let place = self.stored_row(row) * columns;
            out[place..place + columns].copy_from_slice(values);
        }
        out
    }

    /// The inverse of [`Self::to_stored`].
    pub(crate) fn of_stored(self, stored: &[f32], columns: usize) -> Vec<f32> {
        let rows = 0..stored.len() / columns.max(1);
        let places = rows.map(|row| self.stored_row(row) * columns);
        places.flat_map(|place| stored[place..place + columns].iter().copied()).collect()
    }
}

/// A tensor's bytes as rows of equal length.
#[derive(Clone, Copy)]
pub(super) struct StoredRows<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) dtype: StoredDtype,
    pub(super) columns: usize,
    pub(super) order: RowOrder,
}

/// Elements one task decodes: large enough to hide the cost of a task.
const ELEMENTS_PER_TASK: usize = 1 << 15;

impl StoredRows<'_> {
    fn row_bytes(&self) -> usize {
        self.columns / self.dtype.block_elements() * self.dtype.block_bytes()
    }

    /// The bytes of all rows in the model's order.
    pub(super) fn in_order(&self, rows: usize) -> Option<Vec<u8>> {
        let length = self.row_bytes();
        let mut bytes = Vec::with_capacity(rows * length);
        for row in 0..rows {
            let start = self.order.stored_row(row) * length;
            bytes.extend_from_slice(self.bytes.get(start..start + length)?);
        }
        Some(bytes)
    }

    /// The rows in the model's order. `rows` must lie inside the tensor.
    pub(super) fn decode(&self, rows: Range<usize>) -> Vec<f32> {
        let mut out = vec![0.0_f32; rows.len() * self.columns];
        if out.is_empty() {
            return out;
        }
        let rows_per_task = (ELEMENTS_PER_TASK / self.columns).max(1);
        out.par_chunks_mut(rows_per_task * self.columns).enumerate().for_each(|(task, out)| {
            self.decode_into(rows.start + task * rows_per_task, out);
        });
        out
    }

    /// Rows from `first` on in the model's order, on the calling thread.
    pub(super) fn decode_into(&self, first: usize, out: &mut [f32]) {
        match self.order {
            RowOrder::AsStored => self.decode_run(first, out),
            RowOrder::Interleaved { .. } | RowOrder::ByHead { .. } => {
                for (i, out) in out.chunks_exact_mut(self.columns).enumerate() {
                    self.decode_run(self.order.stored_row(first + i), out);
                }
            }
        }
    }

    /// Consecutive stored rows from `first` on.
    fn decode_run(&self, first: usize, out: &mut [f32]) {
        let start = first * self.row_bytes();
        let length = out.len() / self.columns * self.row_bytes();
        blocks::decode(self.dtype, &self.bytes[start..start + length], out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_come_out_half_split() {
        let order = RowOrder::Interleaved { head_dim: 4 };
        // The file holds pairs (0, 2), (1, 3) of each head side by side.
        let stored: Vec<usize> = (0..8).map(|row| order.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 1, 3, 4, 6, 5, 7]);
    }

    #[test]
    fn heads_that_lie_apart_come_together() {
        let order = RowOrder::ByHead { heads: 2, head_dim: 1 };
        let stored: Vec<usize> = (0..6).map(|row| order.stored_row(row)).collect();
        assert_eq!(stored, [0, 2, 4, 1, 3, 5]);
    }

    #[test]
    fn row_ranges_equal_slices_of_the_whole() {
        let values: Vec<f32> = (0..64 * 3).map(|i| i as f32).collect();
        for order in [RowOrder::AsStored, RowOrder::Interleaved { head_dim: 8 }] {
            let bytes = bytemuck::cast_slice(&values);
            let rows = StoredRows { bytes, dtype: StoredDtype::F32, columns: 3, order };
            let whole = rows.decode(0..64);
            assert_eq!(rows.decode(5..23), whole[15..69]);
        }
    }
}
