//! What this machine offers, and which of it can change the bits of a result.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::matrix_library::{self, LibraryFacts};

/// Facts about the machine.
#[derive(Debug, Clone, Serialize)]
pub struct Machine {
    /// Operating system and architecture of the program.
    pub platform: String,
    /// Name of the processor, where the system tells.
    pub processor: Option<String>,
    /// Threads that run at once.
    pub threads: usize,
    /// Instruction sets that matter here and that the processor has.
    pub instruction_sets: Vec<&'static str>,
    /// Instruction set that loops run with.
    pub simd: &'static str,
    /// Libraries that multiply matrices.
    pub matrix_libraries: Vec<LibraryFacts>,
    /// Memory of the machine.
    pub memory_bytes: u64,
    /// Memory that is free for a new program.
    pub free_memory_bytes: u64,
    /// Space left where the current folder is.
    pub free_disk_bytes: Option<u64>,
    /// What is known about GPUs.
    pub gpu: String,
    /// Which operations run by kernels of this program's own on the GPU.
    pub gpu_kernels: Vec<String>,
    /// Folder of this program's caches.
    pub cache: Option<PathBuf>,
    /// Folder of downloaded models.
    pub hub_cache: Option<PathBuf>,
    /// Variables that are set and that this program listens to.
    pub variables: BTreeMap<&'static str, String>,
}

/// Variables that this program listens to. Tokens are never shown.
const VARIABLES: &[&str] = &[
    "HF_HOME",
    "HF_HUB_CACHE",
    "HF_HUB_OFFLINE",
    "NO_COLOR",
    "RAYON_NUM_THREADS",
    "TUNESMITH_CACHE",
    "TUNESMITH_CUDA",
    "TUNESMITH_CUDA_KERNELS",
    "TUNESMITH_MATMUL",
    "TUNESMITH_SIMD",
    "XDG_CACHE_HOME",
];

impl Machine {
    /// Looks at the machine.
    pub fn look() -> Self {
        let mut system = sysinfo::System::new();
        system.refresh_memory();
        Self {
            platform: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
            processor: processor_name(),
            threads: rayon::current_num_threads(),
            instruction_sets: instruction_sets(),
            matrix_libraries: matrix_library::look(),
            simd: kernels::instruction_set().name(),
            memory_bytes: system.total_memory(),
            free_memory_bytes: system.available_memory(),
            free_disk_bytes: free_disk_bytes(Path::new(".")),
            gpu: crate::device::gpu_summary(),
            gpu_kernels: crate::device::gpu_kernels(),
            cache: cache_dir(),
            hub_cache: hub_cache_dir(),
            variables: variables(),
        }
    }
}

/// What can change the bits of a result on the same files: recorded in the lock of a run.
///
/// The number of threads is not among them: sums run over a fixed number of lanes.
pub fn environment_facts() -> BTreeMap<String, String> {
    BTreeMap::from([
        ("platform".to_owned(), format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("instruction_sets".to_owned(), instruction_sets().join(" ")),
        ("matrix_library".to_owned(), kernels::matrix_library().name().to_owned()),
    ])
}

/// Folder of this program's caches: `TUNESMITH_CACHE`, else `tunesmith` in the user's cache folder.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("TUNESMITH_CACHE").map(PathBuf::from).or_else(|| {
        let user = set("XDG_CACHE_HOME").map(PathBuf::from);
        let home = || std::env::home_dir().map(|home| home.join(".cache"));
        user.or_else(home).map(|folder| folder.join("tunesmith"))
    })
}

/// Folder of downloaded models, where `HF_HUB_CACHE` and `HF_HOME` say.
fn hub_cache_dir() -> Option<PathBuf> {
    let set =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
}

fn variables() -> BTreeMap<&'static str, String> {
    let value = |name: &&'static str| {
        let value = std::env::var_os(name)?;
        Some((*name, value.to_string_lossy().into_owned()))
    };
    VARIABLES.iter().filter_map(value).collect()
}

pub(crate) fn processor_name() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("model name"))?;
    line.split_once(':').map(|(_, name)| name.trim().to_owned())
}

#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<&'static str> {
    let mut found = Vec::new();
    if is_x86_feature_detected!("avx2") {
        found.push("avx2");
    }
    if is_x86_feature_detected!("fma") {
        found.push("fma");
    }
    if is_x86_feature_detected!("f16c") {
        found.push("f16c");
    }
    if is_x86_feature_detected!("avx512f") {
        found.push("avx512f");
    }
    if is_x86_feature_detected!("avx512bf16") {
        found.push("avx512bf16");
    }
    found
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<&'static str> {
    let mut found = vec!["neon"];
    if std::arch::is_aarch64_feature_detected!("bf16") {
        found.push("bf16");
    }
    if std::arch::is_aarch64_feature_detected!("sve") {
        found.push("sve");
    }
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<&'static str> {
    Vec::new()
}

/// Space left on the disk that holds `folder`.
fn free_disk_bytes(folder: &Path) -> Option<u64> {
    let folder = folder.canonicalize().ok()?;
    let disks = sysinfo::Disks::new_with_refreshed_list();
    let holds = |disk: &&sysinfo::Disk| folder.starts_with(disk.mount_point());
    let depth = |disk: &&sysinfo::Disk| disk.mount_point().components().count();
    disks.iter().filter(holds).max_by_key(depth).map(sysinfo::Disk::available_space)
}
