//! Stands in for CubeCL's LLVM compiler: the types that `cubecl-cuda` names, and a compiler that
//! refuses every kernel. Kernels are compiled by NVRTC, so it is never asked. See README.md.

#[cfg(feature = "nvptx")]
pub mod nvptx;
pub mod shared;

#[cfg(feature = "nvptx")]
pub use shared::NvptxModule;
pub use shared::{PlironArtifact, PlironCompiler, PlironOptions};

/// What a kernel would be compiled for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LlvmTarget {
    /// An NVIDIA GPU.
    #[default]
    Nvptx,
}
