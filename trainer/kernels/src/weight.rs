//! Frozen matrices: dense, or kept in fewer bits and expanded a panel at a time.
//!
//! How a matrix is stored changes what it holds (quantisation rounds) and what it costs, never
//! how products are summed: a quantised matrix gives the bits of its expanded copy.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{DType, Device, Tensor, TensorData};

/// A frozen matrix `[d_out, d_in]` of a linear layer or an embedding.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "a few hundred live at once, mostly the large one")]
pub enum Weight {
    /// f32 or bf16 values on a device.
    Dense(Tensor<2>),
    /// Rows in fewer bits, in the memory of the host or of a GPU.
    Quantised(Arc<dyn QuantisedMatrix>),
}

/// Rows of a matrix in fewer bits.
pub trait QuantisedMatrix: fmt::Debug + Send + Sync {
    /// `[rows, columns]`
    fn dims(&self) -> [usize; 2];

    /// Bytes it takes, in memory or in the file it is mapped from.
    fn bytes(&self) -> usize;

    /// Writes the values of whole rows, `columns` apart, into `output`.
    fn expand(&self, rows: Range<usize>, output: &mut [f32]);

    /// The codes themselves, where a GPU can expand them.
    fn stored(&self) -> Option<Stored<'_>> {
        None
    }

    /// All of it on the GPU that holds it.
    fn on_device(&self, _dtype: DType) -> Option<Tensor<2>> {
        None
    }
}

/// Codes of a quantised matrix, rows in order.
pub enum Stored<'a> {
    /// See [`crate::Nf4Matrix::parts`].
    Nf4 {
        /// Two numbers a byte.
        codes: &'a [u8],
        /// Codes of the blocks' scales.
        scale_codes: &'a [u8],
        /// A factor for every 256 scales.
        scale_scales: &'a [f32],
        /// Mean of the scales.
        offset: f32,
    },
    /// See [`crate::Int8Matrix::parts`].
    Int8 {
        /// A number each.
        codes: &'a [i8],
        /// Largest absolute value of each row.
        absmax: &'a [f32],
    },
    /// Blocks of a GGUF file.
    Gguf {
        /// Whole rows of blocks.
        blocks: Cow<'a, [u8]>,
        /// The type's number in GGUF files.
        kind: u32,
    },
}

impl Weight {
    /// `[d_out, d_in]`
    pub fn dims(&self) -> [usize; 2] {
        WeightRef::from(self).dims()
    }

    /// Bytes it takes.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Dense(tensor) => {
                tensor.shape().num_elements() * if tensor.dtype() == DType::BF16 { 2 } else { 4 }
            }
            Self::Quantised(matrix) => matrix.bytes(),
        }
    }
}

impl From<Tensor<2>> for Weight {
    fn from(tensor: Tensor<2>) -> Self {
        Self::Dense(tensor)
    }
}

/// A borrowed [`Weight`], or a tensor that serves as one.
#[derive(Debug, Clone, Copy)]
pub enum WeightRef<'a> {
    /// See [`Weight::Dense`].
    Dense(&'a Tensor<2>),
    /// See [`Weight::Quantised`].
    Quantised(&'a dyn QuantisedMatrix),
}

impl WeightRef<'_> {
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Dense(tensor) => tensor.dims(),
            Self::Quantised(matrix) => matrix.dims(),
        }
    }

    /// All of it on a device, for the paths in plain tensor operations.
    pub(crate) fn dense(&self, dtype: DType, device: &Device) -> Tensor<2> {
        match self {
            Self::Dense(tensor) => (*tensor).clone().cast(dtype),
            Self::Quantised(matrix) => {
                if let Some(tensor) = matrix.on_device(dtype) {
                    return tensor;
                }
                let [rows, columns] = matrix.dims();
                let mut values = vec![0.0; rows * columns];
                matrix.expand(0..rows, &mut values);
                let data = TensorData::new(values, [rows, columns]).convert_dtype(dtype);
                Tensor::from_data(data, (device, dtype))
            }
        }
    }
}

impl<'a> From<&'a Weight> for WeightRef<'a> {
    fn from(weight: &'a Weight) -> Self {
        match weight {
            Weight::Dense(tensor) => Self::Dense(tensor),
            Weight::Quantised(matrix) => Self::Quantised(matrix.as_ref()),
        }
    }
}

impl<'a> From<&'a Tensor<2>> for WeightRef<'a> {
    fn from(tensor: &'a Tensor<2>) -> Self {
        Self::Dense(tensor)
    }
}
