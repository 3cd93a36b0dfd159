//! Work for NVIDIA GPUs as plain data: which text, how many threads, which buffers and numbers.
//!
//! The kernels are CUDA C++ (`src/cuda/*.cu`), compiled by NVRTC when the program runs. What is here
//! needs no GPU and no CUDA: the tests run the same plans over the same texts, compiled for the
//! host (`src/cuda/emulator/`), and compare with the references.
//!
//! Every function gives `None` where its operation is off, or where the tensors are not what its
//! kernel takes; the caller then goes the way of plain tensor operations.

mod adamw;
mod attention;
mod check;
mod cross_entropy;
mod elementwise;
mod expand;
mod norms;
#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "nothing multiplies"))]
mod product;
#[cfg_attr(not(any(test, feature = "cuda")), expect(dead_code, reason = "nothing compiles"))]
mod program;

#[cfg(test)]
mod emulated;
#[cfg(test)]
mod nvrtc_tests;
#[cfg(test)]
mod tests;

use burn::tensor::{DType, Device, Tensor};

pub(crate) use adamw::{EightBitState, adamw, adamw_8bit};
pub(crate) use attention::{attention, attention_gradient, knows};
pub use check::Checked;
pub(crate) use check::{Extent, check};
pub(crate) use cross_entropy::cross_entropy;
pub(crate) use elementwise::{
    Activation, activate, activate_gradient, dropout, gate, gate_gradient, rope,
};
pub(crate) use expand::{Codes, expand};
pub(crate) use norms::{layer_norm, layer_norm_gradient, rms_norm, rms_norm_gradient};
pub(crate) use product::{Kind, Operands, Product, product};
#[cfg(feature = "cuda")]
pub(crate) use product::{Layout, Turn};
pub(crate) use program::{Element, File, Launch, Program, Scalars};

/// What has a faster way on a GPU, switched on and off by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Operation {
    /// RMS normalisation.
    RmsNorm,
    /// Layer normalisation.
    LayerNorm,
    /// `SwiGLU`, `GeGLU` and GELU.
    Gate,
    /// Rotary embedding.
    Rope,
    /// Dropout.
    Dropout,
    /// Loss of rows of logits.
    CrossEntropy,
    /// The optimizer, with moments in f32 or 8 bits.
    Adamw,
    /// Quantised weights into one scratch matrix.
    Expand,
    /// Attention, for heads of this width.
    Attention(usize),
    /// Dense products through cuBLASLt.
    Product,
}

impl Operation {
    /// All but attention, which is a matter of the heads' width.
    pub const WITHOUT_HEADS: [Self; 9] = [
        Self::RmsNorm,
        Self::LayerNorm,
        Self::Gate,
        Self::Rope,
        Self::Dropout,
        Self::CrossEntropy,
        Self::Adamw,
        Self::Expand,
        Self::Product,
    ];

    /// The operation of this name.
    pub fn of_name(name: &str) -> Option<Self> {
        if let Some(width) = name.strip_prefix("attention-") {
            return width.parse().ok().filter(|&width| knows(width)).map(Self::Attention);
        }
        Self::WITHOUT_HEADS.into_iter().find(|operation| operation.to_string() == name)
    }
}

impl std::fmt::Display for Operation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::RmsNorm => f.write_str("rms-norm"),
            Self::LayerNorm => f.write_str("layer-norm"),
            Self::Gate => f.write_str("gate"),
            Self::Rope => f.write_str("rope"),
            Self::Dropout => f.write_str("dropout"),
            Self::CrossEntropy => f.write_str("cross-entropy"),
            Self::Adamw => f.write_str("adamw"),
            Self::Expand => f.write_str("expand"),
            Self::Attention(head_dim) => write!(f, "attention-{head_dim}"),
            Self::Product => f.write_str("product"),
        }
    }
}

/// What a kernel does with a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
    Both,
}

/// A buffer and what the kernel does with it.
pub(crate) type Argument<'a, B> = (&'a B, Access);

/// What runs kernels: a GPU, or the emulator of the tests.
pub(crate) trait Machine {
    /// Memory of the machine.
    type Buffer;

    /// A tensor's memory, rows end to end; `None` for a tensor that is somewhere else.
    fn read<const D: usize>(&self, tensor: &Tensor<D>) -> Option<Self::Buffer>;

    /// A tensor's memory, given up by the caller to be written; copied where it is shared.
    fn own<const D: usize>(&self, tensor: Tensor<D>) -> Option<Self::Buffer>;

    /// Memory beside `like`, not written yet.
    fn empty(&self, like: &Self::Buffer, dtype: DType, elements: usize) -> Self::Buffer;

    /// Bytes put beside `like`.
    fn upload(&self, like: &Self::Buffer, bytes: &[u8]) -> Self::Buffer;

    /// Memory as a tensor.
    fn tensor<const D: usize>(&self, buffer: Self::Buffer, shape: [usize; D]) -> Tensor<D>;

    /// A buffer's bytes, once all earlier work is done.
    fn download(&self, buffer: &Self::Buffer) -> Vec<u8>;

    /// Puts work behind all earlier work.
    fn launch(&self, launch: &Launch, arguments: &[Argument<'_, Self::Buffer>]);

    /// Puts a dense product behind all earlier work; `false` where it cannot, and nothing is done.
    fn product(&self, product: &Product, operands: &Operands<'_, Self::Buffer>) -> bool;
}

#[cfg(feature = "cuda")]
pub(crate) use crate::cuda::{Gpu, any_gpu, gpu};

/// The GPU of a program without CUDA: there is none.
#[cfg(not(feature = "cuda"))]
#[derive(Debug, Clone, Copy)]
pub(crate) enum Gpu {}

/// The GPU, where `operation` is on.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu(_operation: Operation) -> Option<Gpu> {
    None
}

/// The GPU, whatever is on.
#[cfg(not(feature = "cuda"))]
fn any_gpu() -> Option<Gpu> {
    None
}

/// Compares an operation's faster way on a GPU with its reference on the processor; `None` where
/// there is no faster way here.
pub fn check_operation(device: &Device, operation: Operation) -> Option<Checked> {
    check(&any_gpu()?, device, operation, Extent::Gpu)
}

#[cfg(not(feature = "cuda"))]
impl Machine for Gpu {
    type Buffer = std::convert::Infallible;

    fn read<const D: usize>(&self, _: &Tensor<D>) -> Option<Self::Buffer> {
        match *self {}
    }

    fn own<const D: usize>(&self, _: Tensor<D>) -> Option<Self::Buffer> {
        match *self {}
    }

    fn empty(&self, like: &Self::Buffer, _: DType, _: usize) -> Self::Buffer {
        *like
    }

    fn upload(&self, like: &Self::Buffer, _: &[u8]) -> Self::Buffer {
        *like
    }

    fn tensor<const D: usize>(&self, buffer: Self::Buffer, _: [usize; D]) -> Tensor<D> {
        match buffer {}
    }

    fn download(&self, buffer: &Self::Buffer) -> Vec<u8> {
        match *buffer {}
    }

    fn launch(&self, _: &Launch, _: &[Argument<'_, Self::Buffer>]) {
        match *self {}
    }

    fn product(&self, _: &Product, _: &Operands<'_, Self::Buffer>) -> bool {
        match *self {}
    }
}

/// Threads of a block where nothing else is said.
const THREADS: u32 = 256;

/// Blocks of a kernel that walks over a long list: enough for every GPU, few enough to start fast.
const MOST_BLOCKS: u64 = 4096;

/// Blocks that take `items`, a thread each at a time.
fn blocks_for(items: u64) -> [u32; 3] {
    [items.div_ceil(u64::from(THREADS)).min(MOST_BLOCKS) as u32, 1, 1]
}

/// The kernels' number format of a tensor; rows must begin on 16 bytes.
fn element_of<const D: usize>(tensor: &Tensor<D>, width: usize) -> Option<Element> {
    let element = Element::of(tensor.dtype())?;
    (width > 0 && width.is_multiple_of(element.per_load())).then_some(element)
}
