//! Opens an NVIDIA GPU, or says in one line why there is none to open.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::{DType, Device, Tensor};

/// A GPU that computed something right.
#[cfg(feature = "cuda")]
pub(crate) struct Opened {
    /// For tensors.
    pub(crate) device: Device,
    /// What compiles its kernels, and where that lies.
    pub(crate) compiler: String,
    /// Major and minor compute capability, where the driver tells.
    pub(crate) compute_capability: Option<(u32, u32)>,
}

/// Opens GPU `index` and has it multiply two matrices.
///
/// # Errors
/// In one line, what is missing or broken.
#[cfg(feature = "cuda")]
pub(crate) fn open(index: usize) -> Result<Opened, String> {
    match count()? {
        0 => return Err("no NVIDIA driver with a GPU was found".to_owned()),
        count if index >= count => {
            return Err(format!("this machine has {count} NVIDIA GPUs, numbered from 0"));
        }
        _ => {}
    }
    let compiler = crate::cuda_files::locate()?;
    let device = caught(|| {
        let device = Device::cuda(index);
        check_product(&device).map(|()| device)
    })??;
    let compute_capability = kernels::cuda::compute_capability(index);
    Ok(Opened { device, compiler, compute_capability })
}

/// What `tunesmith doctor` says of GPUs.
#[cfg(feature = "cuda")]
pub(crate) fn summary() -> String {
    let Some((major, minor)) = kernels::cuda::driver_version() else {
        return "no NVIDIA driver found; this build would use one".to_owned();
    };
    let models = models().join(", ");
    let state = match open(0) {
        Ok(opened) => format!("ready, kernels compiled by {}", opened.compiler),
        Err(reason) => format!("not usable: {reason}"),
    };
    let driver = format!("driver for CUDA {major}.{minor}");
    [models, driver, state].into_iter().filter(|s| !s.is_empty()).collect::<Vec<_>>().join("; ")
}

/// Counts without CUDA where there is no driver: the first call would panic in another thread.
#[cfg(feature = "cuda")]
fn count() -> Result<usize, String> {
    caught(|| Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec().len())
}

/// Names of the GPUs, where the driver tells without being asked through CUDA.
#[cfg(feature = "cuda")]
pub(crate) fn models() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc/driver/nvidia/gpus") else { return Vec::new() };
    let model = |entry: std::fs::DirEntry| {
        let text = std::fs::read_to_string(entry.path().join("information")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("Model:"))?;
        Some(line.trim().to_owned())
    };
    let mut models: Vec<_> = entries.flatten().filter_map(model).collect();
    models.sort_unstable();
    models
}

/// Compiles and runs kernels of the hot path on numbers whose products are exact.
fn check_product(device: &Device) -> Result<(), String> {
    const ROWS: usize = 48;
    const INNER: usize = 64;
    const COLUMNS: usize = 40;
    // Small integers: every sum is exact in any of the number formats in use.
    let values = |count: usize, factor: usize| -> Vec<f32> {
        (0..count).map(|i| (i * factor % 5) as f32 - 2.0).collect()
    };
    let (lhs, rhs) = (values(ROWS * INNER, 7), values(COLUMNS * INNER, 11));
    let product = |device: &Device| {
        let lhs = kernels::from_f32(lhs.clone(), [ROWS, INNER], DType::F32, device);
        let rhs: Tensor<2> = kernels::from_f32(rhs.clone(), [COLUMNS, INNER], DType::F32, device);
        kernels::to_f32(&kernels::linear(&lhs, &rhs))
    };
    if product(device) == product(&Device::flex()) {
        Ok(())
    } else {
        Err("its first matrix product was wrong; driver and CUDA files may not fit".to_owned())
    }
}

/// Runs `work`; a panic in it, or in a thread it waits for, becomes a line of text.
///
/// CubeCL reports a driver or compiler that fails by panicking.
pub(crate) fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let listener = Arc::clone(&heard);
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload_as_str().unwrap_or("no message").to_owned();
        listener.lock().unwrap_or_else(PoisonError::into_inner).push(message);
    }));
    let outcome = std::panic::catch_unwind(AssertUnwindSafe(work));
    std::panic::set_hook(usual);
    // The first panic is the cause: the caller's own says only that a thread is gone.
    outcome.map_err(|_| {
        let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.first().map_or_else(|| "no message".to_owned(), |message| one_line(message))
    })
}

/// The words of a message up to its backtrace, on one line of bounded length.
fn one_line(message: &str) -> String {
    const LONGEST: usize = 400;
    let words = message.split("Backtrace:").next().unwrap_or_default().split_whitespace();
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_holds_on_the_processor() {
        assert_eq!(check_product(&Device::flex()), Ok(()));
    }

    #[test]
    fn a_panic_becomes_the_cause_on_one_line() {
        let in_thread = || std::thread::spawn(|| panic!("no context:\n  error 999")).join();
        assert_eq!(caught(|| in_thread().unwrap()), Err("no context: error 999".to_owned()));
        assert_eq!(caught(|| 7), Ok(7));
    }

    #[test]
    fn long_messages_lose_their_backtrace_and_their_end() {
        assert_eq!(one_line("a\n  b\nBacktrace:\n 0: c"), "a b");
        assert_eq!(one_line(&"é".repeat(500)).chars().count(), 401);
    }
}
