//! What is free on an NVIDIA GPU, by the driver's management library: asking opens nothing there.

use std::ffi::{CStr, c_char, c_int, c_void};

use libloading::os::unix::Library;

/// Memory of a GPU in bytes, all programs together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// All there is.
    pub total: u64,
    /// What nobody has.
    pub free: u64,
}

/// `nvmlMemory_t`
#[repr(C)]
#[derive(Default)]
struct Answer {
    total: u64,
    free: u64,
    used: u64,
}

/// Asks for the GPU at a place of the PCI bus; `None` where the library does not tell.
pub(crate) fn gpu_memory(management: &Library, bus: &CStr) -> Option<GpuMemory> {
    type Init = unsafe extern "C" fn() -> c_int;
    type Find = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> c_int;
    type Ask = unsafe extern "C" fn(*mut c_void, *mut Answer) -> c_int;
    let (mut gpu, mut answer) = (std::ptr::null_mut(), Answer::default());
    // SAFETY: the functions have these signatures; the first may be called any number of times and
    // comes first; `bus` ends with a nul; the others write one handle and one struct that outlive
    // the calls.
    let told = unsafe {
        let init = management.get::<Init>(c"nvmlInit_v2").ok()?;
        let find = management.get::<Find>(c"nvmlDeviceGetHandleByPciBusId_v2").ok()?;
        let ask = management.get::<Ask>(c"nvmlDeviceGetMemoryInfo").ok()?;
        init() == 0 && find(bus.as_ptr(), &raw mut gpu) == 0 && ask(gpu, &raw mut answer) == 0
    };
    let Answer { total, free, .. } = answer;
    (told && total > 0 && free <= total).then_some(GpuMemory { total, free })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use libloading::os::unix::{RTLD_LOCAL, RTLD_NOW};

    use super::*;

    /// Stands in for NVIDIA's library: it knows one GPU, and counts what it was asked.
    const STAND_IN: &str = r#"
        #include <string.h>
        typedef struct { unsigned long long total, free, used; } Memory;
        static int ready = 0, gpu = 7;
        int nvmlInit_v2(void) { ready = 1; return 0; }
        int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, void **device) {
            if (!ready) return 1;
            if (strcmp(bus, "0000:65:00.0") != 0) return 6;
            *device = &gpu;
            return 0;
        }
        int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
            if (device != &gpu) return 2;
            memory->total = 80ull << 30;
            memory->free = 79ull << 30;
            memory->used = 1ull << 30;
            return 0;
        }
    "#;

    #[test]
    fn the_driver_tells_what_is_free() {
        let folder = std::env::temp_dir().join(format!("gpu-memory-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (source, library) = (folder.join("nvml.c"), folder.join("nvml.so"));
        std::fs::write(&source, STAND_IN).unwrap();
        let compiler = std::env::var_os("CC").unwrap_or_else(|| "cc".into());
        let mut command = Command::new(compiler);
        let done = command.args(["-shared", "-fPIC", "-o"]).args([&library, &source]).status();
        assert!(done.unwrap().success());
        // SAFETY: the library was made above; it has no initialisers.
        let library = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_LOCAL).unwrap() };
        let found = gpu_memory(&library, c"0000:65:00.0");
        assert_eq!(found, Some(GpuMemory { total: 80 << 30, free: 79 << 30 }));
        assert_eq!(gpu_memory(&library, c"0000:01:00.0"), None);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
