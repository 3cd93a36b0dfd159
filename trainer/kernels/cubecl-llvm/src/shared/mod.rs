//! The compiler's interface.

use cubecl_core::Compiler;
#[cfg(feature = "nvptx")]
use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_runtime::compiler::CompilationError;
use cubecl_runtime::kernel::BufferIOAttr;

use crate::LlvmTarget;
#[cfg(feature = "nvptx")]
use crate::nvptx::ptx_version::PtxVersion;

pub mod lowered_features;

/// A compiler that refuses every kernel.
#[derive(Clone, Debug, Default)]
pub struct PlironCompiler {
    /// What it would compile for.
    pub target: LlvmTarget,
}

/// Options that the callers set.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Architecture of an AMD GPU: never one.
    pub arch: Option<core::convert::Infallible>,
    /// Architecture of an NVIDIA GPU.
    #[cfg(feature = "nvptx")]
    pub sm_arch: Option<SmArch>,
    /// Version of PTX.
    #[cfg(feature = "nvptx")]
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars are passed in the block of kernel parameters.
    pub grid_constants: bool,
    /// Place of the options that this crate leaves out.
    pub rest: (),
}

/// A compiled kernel. There is never one.
#[cfg(feature = "nvptx")]
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX, ended by a zero.
    pub ptx: Vec<core::ffi::c_char>,
    /// Name of the kernel's function.
    pub entrypoint: String,
    /// Text for logs.
    pub ir: String,
    /// Shared memory of a launch, in bytes.
    pub shared_memory_size: usize,
    /// What the kernel does with each of its buffers.
    pub io: Vec<BufferIOAttr>,
}

/// What compilation would give.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// For an NVIDIA GPU.
    #[cfg(feature = "nvptx")]
    NvptxCode(NvptxModule),
    /// Nothing.
    Empty,
}

impl core::fmt::Display for PlironArtifact {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            #[cfg(feature = "nvptx")]
            Self::NvptxCode(module) => formatter.write_str(&module.ir),
            Self::Empty => Ok(()),
        }
    }
}

impl Compiler for PlironCompiler {
    type CompilationOptions = PlironOptions;
    type Representation = PlironArtifact;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &Self::CompilationOptions,
    ) -> Result<Self::Representation, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this program has no LLVM: kernels are compiled by NVRTC".to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "llvm"
    }
}
