//! Where a model runs: the GPU where one works, else the processor, and why.

use burn::tensor::{DType, Device};
use trainer::Precision;

use crate::cli::DeviceChoice;
use crate::diagnostics::UserError;

/// A device and the reason it was taken, in one line.
pub struct Chosen {
    /// For tensors.
    pub device: Device,
    /// `cpu: no NVIDIA driver was found`, ...
    pub reason: String,
    /// What it is.
    pub kind: DeviceKind,
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
        DeviceChoice::Cpu => Ok(cpu("asked for")),
        DeviceChoice::Cuda(index) => match cuda(index) {
            Ok(chosen) => Ok(chosen),
            Err(reason) => Err(UserError::new(
                format!("`--device cuda:{index}` cannot be used: {reason}"),
                "use `--device cpu`, or see `tunesmith doctor`",
            )
            .into()),
        },
        DeviceChoice::Auto => Ok(cuda(0).unwrap_or_else(|reason| cpu(&reason))),
    }
}

fn cpu(reason: &str) -> Chosen {
    let library = kernels::backend_name();
    let reason = format!("device: cpu ({reason}), matrix products by {library}");
    Chosen { device: Device::flex(), reason, kind: DeviceKind::Cpu }
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Chosen, String> {
    use burn::tensor::DeviceType;
    // Asked before any CUDA call: the first call without a driver would panic in a thread.
    let count = Device::enumerate(DeviceType::Cuda).into_vec().len();
    if count == 0 {
        return Err("no NVIDIA driver with a GPU was found".to_owned());
    }
    if index >= count {
        return Err(format!("this machine has {count} NVIDIA GPUs, numbered from 0"));
    }
    crate::cuda_files::locate()?;
    let reason = format!("device: cuda:{index}");
    Ok(Chosen { device: Device::cuda(index), reason, kind: DeviceKind::Cuda })
}

#[cfg(not(feature = "cuda"))]
fn cuda(_index: usize) -> Result<Chosen, String> {
    Err("this program was built without CUDA".to_owned())
}

impl Chosen {
    /// Number format of the weights on this device.
    pub fn dtype(&self, precision: Precision) -> DType {
        match (precision, self.kind) {
            (Precision::Bf16, _) | (Precision::Auto, DeviceKind::Cuda) => DType::BF16,
            _ => DType::F32,
        }
    }
}
