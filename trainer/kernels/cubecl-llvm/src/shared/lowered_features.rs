//! What a compiled kernel may use.

use cubecl_core::ir::DeviceProperties;

/// What kernels would be compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GpuTarget {
    /// An NVIDIA GPU.
    #[cfg(feature = "nvptx")]
    Nvptx,
}

/// Would take away what the LLVM compiler cannot do. NVRTC can, so nothing is taken away.
pub const fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
