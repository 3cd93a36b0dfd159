//! Where a model runs: the GPU where one works, else the processor, and why.

use burn::tensor::{DType, Device};
use trainer::Precision;
use trainer::memory::FreeMemory;

use crate::cli::DeviceChoice;
use crate::diagnostics::UserError;
use crate::matrix_library;

/// A device and the reason it was taken, in one line.
pub struct Chosen {
    /// For tensors.
    pub device: Device,
    /// `cpu: no NVIDIA driver was found`, ...
    pub reason: String,
    /// What it is.
    pub kind: DeviceKind,
    /// Number format of weights where nothing else was asked for.
    auto_dtype: DType,
}

/// What a device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Takes the device that was asked for.
pub fn choose(choice: DeviceChoice) -> anyhow::Result<Chosen> {
    match choice {
        DeviceChoice::Cpu => cpu("asked for"),
        DeviceChoice::Cuda(index) => match cuda(index) {
            Ok(chosen) => Ok(chosen),
            Err(reason) => Err(UserError::new(
                format!("`--device cuda:{index}` cannot be used: {reason}"),
                "use `--device cpu`, or see `tunesmith doctor`",
            )
            .into()),
        },
        DeviceChoice::Auto => cuda(0).or_else(|reason| cpu(&reason)),
    }
}

fn cpu(reason: &str) -> anyhow::Result<Chosen> {
    let library = matrix_library::choose()?.name();
    let reason = format!("device: cpu ({reason}), matrix library: {library}");
    Ok(Chosen { device: Device::flex(), reason, kind: DeviceKind::Cpu, auto_dtype: DType::F32 })
}

/// Widths of heads whose kernels are checked before a model is known.
#[cfg(feature = "cuda")]
const COMMON_HEADS: [usize; 2] = [64, 128];

/// Lets kernels for heads of a width run on the GPU that was opened, once they are checked; gives a
/// warning for each that is off.
#[cfg(feature = "cuda")]
pub(crate) fn prepare_heads(head_dim: usize) -> anyhow::Result<Vec<String>> {
    let found = crate::cuda_kernels::prepare_for(head_dim).map_err(anyhow::Error::msg)?;
    let off = found.iter().filter(|checked| !checked.is_on());
    Ok(off.map(|checked| format!("{checked}, plain operations run in its place")).collect())
}

/// There is no GPU in this build.
#[cfg(not(feature = "cuda"))]
#[expect(clippy::unnecessary_wraps, reason = "as with CUDA")]
pub(crate) fn prepare_heads(_head_dim: usize) -> anyhow::Result<Vec<String>> {
    Ok(Vec::new())
}

/// Operations that run by kernels of this program's own on the GPU that was opened.
#[cfg(feature = "cuda")]
pub(crate) fn kernels_in_use() -> Option<String> {
    crate::cuda_kernels::in_use()
}

/// There is no GPU in this build.
#[cfg(not(feature = "cuda"))]
pub(crate) fn kernels_in_use() -> Option<String> {
    None
}

/// Bytes that other programs, and nobody, had of the GPU before it was opened.
#[cfg(feature = "cuda")]
static FREE_BEFORE: std::sync::OnceLock<u64> = std::sync::OnceLock::new();

/// Memory of the GPU that was opened as this program found it, where the driver tells.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_free_bytes() -> Option<u64> {
    FREE_BEFORE.get().copied()
}

/// There is no GPU in this build.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu_free_bytes() -> Option<u64> {
    None
}

/// The most that this program was seen to have of the GPU. Its pools give nothing back, so one look
/// after each step is enough.
#[cfg(feature = "cuda")]
fn gpu_peak_bytes() -> u64 {
    static PEAK: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let now = crate::cuda_kernels::opened().and_then(kernels::cuda::memory);
    let taken =
        gpu_free_bytes().zip(now).map_or(0, |(before, now)| before.saturating_sub(now.free));
    PEAK.fetch_max(taken, std::sync::atomic::Ordering::Relaxed).max(taken)
}

/// What the checks of a GPU's kernels found, for `tunesmith doctor`.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_kernels() -> Vec<String> {
    match crate::cuda_device::open(0).and_then(|_| crate::cuda_kernels::prepare(0, &COMMON_HEADS)) {
        Ok(found) if found.is_empty() => vec!["none: references only".to_owned()],
        Ok(found) => found.iter().map(ToString::to_string).collect(),
        Err(_) => Vec::new(),
    }
}

/// What the checks of a GPU's kernels found: nothing without CUDA.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu_kernels() -> Vec<String> {
    Vec::new()
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Chosen, String> {
    if let Some(memory) = kernels::cuda::memory(index) {
        FREE_BEFORE.get_or_init(|| memory.free);
    }
    let opened = crate::cuda_device::open(index)?;
    let mut reason = format!("device: cuda:{index}, kernels compiled by {}", opened.compiler);
    for checked in crate::cuda_kernels::prepare(index, &COMMON_HEADS)? {
        if !checked.is_on() {
            reason.push_str(&format!("; warning: {checked}, plain operations run in its place"));
        }
    }
    // Older GPUs have no arithmetic in bf16, and f16 would need its loss scaled.
    let has_bf16 = opened.compute_capability.is_some_and(|capability| capability >= (8, 0));
    if !has_bf16 {
        reason.push_str("; f32 by default, as bf16 needs compute capability 8.0");
    }
    let auto_dtype = if has_bf16 { DType::BF16 } else { DType::F32 };
    Ok(Chosen { device: opened.device, reason, kind: DeviceKind::Cuda, auto_dtype })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Chosen, String> {
    Err("this program was built without CUDA".to_owned())
}

impl Chosen {
    /// Memory that a run may fill here.
    pub(crate) fn free_memory(&self) -> FreeMemory {
        let host = trainer::available_memory_bytes();
        match self.kind {
            DeviceKind::Cpu => FreeMemory { device: host, parking: None },
            DeviceKind::Cuda => FreeMemory { device: gpu_free_bytes(), parking: host },
        }
    }

    /// What measures the peak of that memory.
    pub(crate) fn peak_memory(&self) -> fn() -> u64 {
        match self.kind {
            #[cfg(feature = "cuda")]
            DeviceKind::Cuda => gpu_peak_bytes,
            _ => trainer::peak_resident_bytes,
        }
    }

    /// Number format of the weights on this device.
    pub fn dtype(&self, precision: Precision) -> DType {
        match precision {
            Precision::Auto => self.auto_dtype,
            Precision::F32 => DType::F32,
            Precision::Bf16 => DType::BF16,
        }
    }
}

/// What `tunesmith doctor` says of GPUs.
#[cfg(feature = "cuda")]
pub(crate) fn gpu_summary() -> String {
    crate::cuda_device::summary()
}

/// What `tunesmith doctor` says of GPUs.
#[cfg(not(feature = "cuda"))]
pub(crate) fn gpu_summary() -> String {
    let driver = std::fs::read_to_string("/proc/driver/nvidia/version").ok();
    let version = driver.as_deref().and_then(|text| text.lines().next()).map(str::trim);
    match version {
        Some(version) => format!("this build computes on the CPU only; NVIDIA driver: {version}"),
        None => "this build computes on the CPU only; no NVIDIA driver found".to_owned(),
    }
}
