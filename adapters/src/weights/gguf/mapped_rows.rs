//! Quantised tensors that are expanded from the mapped file when a product needs them.

use std::{borrow::Cow, fmt, ops::Range, sync::Arc};

use kernels::{QuantisedMatrix, Stored};

use crate::weights::{
    StoredDtype,
    decode::{RowOrder, StoredRows},
    mapped_file::MappedFile,
};

/// A quantised tensor of the mapped file.
pub(super) struct MappedRows {
    pub(super) file: Arc<MappedFile>,
    pub(super) range: Range<usize>,
    pub(super) dims: [usize; 2],
    pub(super) dtype: StoredDtype,
    pub(super) order: RowOrder,
}

impl fmt::Debug for MappedRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MappedRows({}x{} {:?})", self.dims[0], self.dims[1], self.dtype)
    }
}

impl QuantisedMatrix for MappedRows {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn bytes(&self) -> usize {
        self.range.len()
    }

    fn stored(&self) -> Option<Stored<'_>> {
        let bytes = self.file.bytes().get(self.range.clone())?;
        let [rows, columns] = self.dims;
        let stored = StoredRows { bytes, dtype: self.dtype, columns, order: self.order };
        let blocks = match self.order {
            RowOrder::AsStored => Cow::Borrowed(bytes),
            _ => Cow::Owned(stored.in_order(rows)?),
        };
        Some(Stored::Gguf { blocks, kind: self.dtype.ggml_id() })
    }

    fn expand(&self, rows: Range<usize>, output: &mut [f32]) {
        let bytes = self.file.bytes().get(self.range.clone()).unwrap_or_default();
        let [_, columns] = self.dims;
        let stored = StoredRows { bytes, dtype: self.dtype, columns, order: self.order };
        stored.decode_into(rows.start, output);
    }
}
