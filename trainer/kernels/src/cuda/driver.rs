//! What CubeCL needs from the process before it is asked for an NVIDIA GPU.
//!
//! CubeCL opens NVRTC by its bare name and takes the headers' place from `CUDA_PATH`. Where both
//! lie elsewhere, as in Python packages, the libraries are opened here by their full path first: a
//! later request for the same name then gets them.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::path::Path;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};

use crate::gpu_memory::{GpuMemory, gpu_memory};

/// Major and minor version of CUDA.
pub type CudaVersion = (u32, u32);

/// Newest CUDA that the installed driver runs; `None` without a driver.
///
/// The driver refuses what a newer NVRTC wrote.
pub fn driver_version() -> Option<CudaVersion> {
    let mut version: c_int = 0;
    // SAFETY: opening NVIDIA's driver library runs its initialisers, which have no preconditions;
    // `cuDriverGetVersion` has this signature, may be called before `cuInit`, and writes one
    // integer that outlives the call.
    let status = unsafe {
        let library = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let function =
            library.get::<unsafe extern "C" fn(*mut c_int) -> c_int>(c"cuDriverGetVersion").ok()?;
        function(&raw mut version)
    };
    let version = u32::try_from(version).ok().filter(|_| status == 0)?;
    (version > 0).then_some((version / 1000, version % 1000 / 10))
}

/// Major and minor compute capability of a GPU; `None` where the driver does not tell.
pub fn compute_capability(index: usize) -> Option<(u32, u32)> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Attribute = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let (mut device, mut major, mut minor) = (0, 0, 0);
    let index = c_int::try_from(index).ok()?;
    // SAFETY: opening NVIDIA's driver library runs its initialisers, which have no preconditions;
    // the functions have these signatures, `cuInit` may be called any number of times and comes
    // first, and each of the others writes one integer that outlives the call.
    let is_known = unsafe {
        let library = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let init = library.get::<Init>(c"cuInit").ok()?;
        let get = library.get::<Get>(c"cuDeviceGet").ok()?;
        let attribute = library.get::<Attribute>(c"cuDeviceGetAttribute").ok()?;
        init(0) == 0
            && get(&raw mut device, index) == 0
            && attribute(&raw mut major, MAJOR, device) == 0
            && attribute(&raw mut minor, MINOR, device) == 0
    };
    let number = |value: c_int| u32::try_from(value).ok().filter(|_| is_known);
    Some((number(major)?, number(minor)?))
}

/// Memory of a GPU; all of it counts as free where only the total is known, and `None` is where the
/// driver tells nothing. Opens nothing on the GPU.
pub fn memory(index: usize) -> Option<GpuMemory> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int) -> c_int;
    type Total = unsafe extern "C" fn(*mut usize, c_int) -> c_int;
    type Bus = unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int;
    let (mut device, mut total, mut bus) = (0, 0_usize, [0_u8; 32]);
    let index = c_int::try_from(index).ok()?;
    // SAFETY: as in `compute_capability`; the third writes one `size_t`, the last a string of at
    // most as many bytes as it is told.
    let (is_known, has_place) = unsafe {
        let library = Library::open(Some("libcuda.so.1"), RTLD_NOW).ok()?;
        let init = library.get::<Init>(c"cuInit").ok()?;
        let get = library.get::<Get>(c"cuDeviceGet").ok()?;
        let ask_total = library.get::<Total>(c"cuDeviceTotalMem_v2").ok()?;
        let place = library.get::<Bus>(c"cuDeviceGetPCIBusId").ok()?;
        let is_known = init(0) == 0
            && get(&raw mut device, index) == 0
            && ask_total(&raw mut total, device) == 0;
        let length = bus.len() as c_int;
        (is_known, is_known && place(bus.as_mut_ptr().cast(), length, device) == 0)
    };
    let told = CStr::from_bytes_until_nul(&bus).ok().filter(|_| has_place).and_then(|bus| {
        // SAFETY: NVIDIA's library; its initialisers have no preconditions.
        let management = unsafe { Library::open(Some("libnvidia-ml.so.1"), RTLD_NOW) }.ok()?;
        gpu_memory(&management, bus)
    });
    let total = total as u64;
    told.or_else(|| is_known.then_some(GpuMemory { total, free: total }))
}

/// Opens libraries, in this order, for the rest of the process.
///
/// # Errors
/// The loader's own words, where a library cannot be opened.
pub fn preload(libraries: &[&Path]) -> Result<(), String> {
    for &path in libraries {
        // SAFETY: the file is NVIDIA's library at the place where the search found it; its
        // initialisers have no preconditions.
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }
            .map_err(|error| format!("cannot open {}: {error}", path.display()))?;
        std::mem::forget(library);
    }
    Ok(())
}

/// Sets `CUDA_PATH`, below which CubeCL looks for `include`.
pub fn set_headers(root: &Path) {
    if std::env::var_os("CUDA_PATH").is_some_and(|path| path == root) {
        return;
    }
    // SAFETY: std guards every access of Rust code to the environment. C code that reads it
    // without that guard would be the GPU driver's, whose threads start with the first device, and
    // that comes after this call.
    unsafe { std::env::set_var("CUDA_PATH", root) };
}
