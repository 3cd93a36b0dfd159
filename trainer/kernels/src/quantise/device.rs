//! Quantised matrices in the memory of a GPU, expanded there into a scratch matrix.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor};

use super::Nf4Matrix;
use crate::host;
use crate::launch::{self, Codes, Element, Gpu, Machine, Operation};
use crate::weight::{QuantisedMatrix, Stored};

/// A matrix whose codes lie on a GPU.
struct DeviceMatrix {
    dims: [usize; 2],
    bytes: usize,
    codes: Codes<<Gpu as Machine>::Buffer>,
}

impl fmt::Debug for DeviceMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMatrix({}x{})", self.dims[0], self.dims[1])
    }
}

/// Puts a matrix's codes on a GPU, where kernels that expand them may run; else gives it back.
pub fn to_device(matrix: Arc<dyn QuantisedMatrix>, device: &Device) -> Arc<dyn QuantisedMatrix> {
    let moved = launch::gpu(Operation::Expand).and_then(|gpu| {
        let codes = upload(&gpu, &matrix.stored()?, device)?;
        let [_, columns] = matrix.dims();
        let fits = columns.is_multiple_of(Element::Bf16.per_load());
        fits.then(|| DeviceMatrix { dims: matrix.dims(), bytes: matrix.bytes(), codes })
    });
    match moved {
        Some(moved) => Arc::new(moved),
        None => matrix,
    }
}

/// The codes beside the tensors of a device.
pub(crate) fn upload<M: Machine>(
    machine: &M,
    stored: &Stored<'_>,
    device: &Device,
) -> Option<Codes<M::Buffer>> {
    let anchor = machine.read(&Tensor::<1>::zeros([1], (device, DType::F32)))?;
    let bytes = |bytes: &[u8]| machine.upload(&anchor, bytes);
    let floats = |values: &[f32]| bytes(bytemuck::cast_slice(values));
    Some(match stored {
        Stored::Nf4 { codes, scale_codes, scale_scales, offset } => Codes::Nf4 {
            codes: bytes(codes),
            scale_codes: bytes(scale_codes),
            scale_scales: floats(scale_scales),
            tables: floats(&Nf4Matrix::tables()),
            offset: *offset,
        },
        Stored::Int8 { codes, absmax } => {
            Codes::Int8 { codes: bytes(bytemuck::cast_slice(codes)), absmax: floats(absmax) }
        }
        Stored::Gguf { blocks, kind } => Codes::Gguf { bytes: bytes(blocks), stored: *kind },
    })
}

impl QuantisedMatrix for DeviceMatrix {
    fn dims(&self) -> [usize; 2] {
        self.dims
    }

    fn bytes(&self) -> usize {
        self.bytes
    }

    fn expand(&self, rows: Range<usize>, output: &mut [f32]) {
        let wide = self.on_device(DType::F32).expect("an operation that is on stays on");
        let wide = wide.slice([rows.start..rows.end, 0..self.dims[1]]);
        output.copy_from_slice(&host::values(wide));
    }

    fn on_device(&self, dtype: DType) -> Option<Tensor<2>> {
        let gpu = launch::gpu(Operation::Expand)?;
        launch::expand(&gpu, &self.codes, self.dims, Element::of(dtype)?)
    }
}
