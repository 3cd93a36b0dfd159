//! Finds NVRTC and the CUDA headers, with which CubeCL compiles its kernels when the program runs.
//!
//! A CUDA toolkit, the pip packages that PyTorch installs, or a folder given will do. CubeCL ends
//! in a panic without them, so the search comes first, and a machine that lacks them gets the one
//! command that fetches them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::machine;

/// Major and minor version of CUDA.
type CudaVersion = (u32, u32);

/// Headers that CubeCL's kernels include. PyTorch's packages lack the ones in `crt`.
const HEADERS: [&str; 4] = ["cuda_runtime.h", "cuda_fp16.h", "cuda_bf16.h", "crt/mma.h"];

/// Folders below a root in which toolkits and packages keep libraries.
const LIBRARY_FOLDERS: [&str; 4] =
    ["lib64", "lib", "targets/x86_64-linux/lib", "targets/sbsa-linux/lib"];

/// Oldest CUDA whose NVRTC knows the GPUs and the language that CubeCL writes.
const OLDEST: CudaVersion = (12, 0);

/// What [`FETCH`]'s packages need of the driver.
const PACKAGES_NEED: CudaVersion = (13, 0);

/// Packages with everything needed, in one set of versions.
const FETCH: &str = "nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-runtime==13.0.96 \
                     nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85";

/// A complete set of files.
#[derive(Debug, Clone, PartialEq, Eq)]
struct CudaFiles {
    /// Folder that holds `include`.
    root: PathBuf,
    nvrtc: PathBuf,
    /// What NVRTC opens by name when it first compiles.
    builtins: PathBuf,
    version: CudaVersion,
}

/// Finds headers and libraries and makes them known to CubeCL; says what they are.
///
/// # Errors
/// In one sentence, what was missing and the command that fetches it.
#[cfg(feature = "cuda")]
pub(crate) fn locate() -> Result<String, String> {
    let driver = kernels::cuda::driver_version();
    let roots = Surroundings::of_this_process().roots();
    let files = search(&roots, driver)?;
    kernels::cuda::preload(&[&files.builtins, &files.nvrtc])?;
    kernels::cuda::set_headers(&files.root);
    let (major, minor) = files.version;
    // Where none of the folders has it, the system's loader may know one.
    let products = match blas_library(&roots, driver) {
        Some(library) if kernels::cuda::preload(&[&library]).is_ok() => {
            library.display().to_string()
        }
        _ => "cuBLASLt where the system has it (else `pip install nvidia-cublas` makes products \
              faster)"
            .to_owned(),
    };
    Ok(format!("NVRTC {major}.{minor} in {}, products by {products}", files.root.display()))
}

/// Where this process may look.
#[derive(Debug, Clone, Default)]
struct Surroundings {
    /// `/`, or a test's folder in its place.
    file_system: PathBuf,
    /// `TUNESMITH_CUDA` and `CUDA_PATH`: folders the user names.
    named: Vec<PathBuf>,
    /// `VIRTUAL_ENV` and `CONDA_PREFIX`.
    python_prefixes: Vec<PathBuf>,
    /// Folders of `PATH`.
    search_path: Vec<PathBuf>,
    home: Option<PathBuf>,
    cache: Option<PathBuf>,
}

impl Surroundings {
    #[cfg(feature = "cuda")]
    fn of_this_process() -> Self {
        let set = |name: &&str| std::env::var_os(name).filter(|value| !value.is_empty());
        let folders = |names: &[&str]| names.iter().filter_map(set).map(PathBuf::from).collect();
        Self {
            file_system: PathBuf::from("/"),
            named: folders(&["TUNESMITH_CUDA", "CUDA_PATH"]),
            python_prefixes: folders(&["VIRTUAL_ENV", "CONDA_PREFIX"]),
            search_path: set(&"PATH")
                .map(|path| std::env::split_paths(&path).collect())
                .unwrap_or_default(),
            home: std::env::home_dir(),
            cache: machine::cache_dir(),
        }
    }

    /// Folders that may hold `include` and libraries, the most deliberate first.
    fn roots(&self) -> Vec<PathBuf> {
        let mut roots = self.named.clone();
        for named in &self.named {
            roots.extend(package_roots(named));
        }
        roots.extend(self.cache.iter().flat_map(|cache| package_roots(&cache.join("cuda"))));
        let fixed = ["usr/local/cuda", "opt/cuda"];
        roots.extend(fixed.iter().map(|folder| self.file_system.join(folder)));
        roots.extend(children(&self.file_system.join("usr/local"), "cuda-"));
        for site in self.site_packages() {
            roots.extend(package_roots(&site));
        }
        // Conda's packages.
        roots.extend(self.python_prefixes.iter().map(|prefix| prefix.join("targets/x86_64-linux")));
        roots.push(self.file_system.join("usr"));
        let mut seen = BTreeSet::new();
        roots.retain(|root| root.is_dir() && seen.insert(root.clone()));
        roots
    }

    /// Folders in which Pythons keep packages.
    fn site_packages(&self) -> Vec<PathBuf> {
        let mut prefixes = self.python_prefixes.clone();
        for folder in &self.search_path {
            let python = folder.join("python3");
            if python.is_file() {
                prefixes.extend(folder.parent().map(Path::to_owned));
                let real = python.canonicalize().ok();
                prefixes.extend(real.and_then(|path| Some(path.parent()?.parent()?.to_owned())));
            }
        }
        if let Some(home) = &self.home {
            prefixes.push(home.join(".local"));
            prefixes.extend(children(&home.join(".pyenv/versions"), ""));
        }
        for folder in ["usr/local", "usr", "opt/conda", "opt/venv"] {
            prefixes.push(self.file_system.join(folder));
        }
        let mut sites = Vec::new();
        for prefix in prefixes {
            for library in children(&prefix.join("lib"), "python3") {
                sites.push(library.join("site-packages"));
                sites.push(library.join("dist-packages"));
            }
        }
        sites
    }
}

/// Roots in a folder of Python packages: CUDA 13 has one, earlier releases one a package.
fn package_roots(site: &Path) -> Vec<PathBuf> {
    let nvidia = site.join("nvidia");
    let mut roots = children(&nvidia, "cu1");
    roots.push(nvidia.join("cuda_runtime"));
    roots
}

/// Folders in `folder` whose names start so, the highest first.
fn children(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.starts_with(start)) && path.is_dir()
    };
    let mut found: Vec<_> = entries.flatten().map(|entry| entry.path()).filter(named).collect();
    found.sort_unstable_by(|a, b| b.cmp(a));
    found
}

/// The first root that has everything, in a version that the driver can run.
fn search(roots: &[PathBuf], driver: Option<CudaVersion>) -> Result<CudaFiles, String> {
    let mut lacking = Vec::new();
    for root in roots {
        match inspect(root, driver) {
            Ok(Some(files)) => return Ok(files),
            Ok(None) => {}
            Err(reason) => lacking.push(reason),
        }
    }
    Err(missing_message(&lacking, driver))
}

fn missing_message(lacking: &[String], driver: Option<CudaVersion>) -> String {
    let found = match lacking.first() {
        Some(reason) => format!("NVRTC or CUDA headers are missing: {reason}"),
        None => "NVRTC and the CUDA headers were not found".to_owned(),
    };
    if let Some((major, minor)) = driver.filter(|&driver| driver < PACKAGES_NEED) {
        return format!(
            "{found}; the driver runs CUDA {major}.{minor}: install the CUDA {major}.{minor} \
             toolkit and name its folder in `TUNESMITH_CUDA`, or update the driver to 580 or newer"
        );
    }
    let target = machine::cache_dir().map_or_else(
        || format!("FOLDER {FETCH}, with FOLDER named in `TUNESMITH_CUDA`"),
        |cache| format!("{} {FETCH}", cache.join("cuda").display()),
    );
    format!("{found}; fetch them with: python3 -m pip install --no-deps --target {target}")
}

/// What a root has: everything, nothing of CUDA, or an incomplete set and what it lacks.
fn inspect(root: &Path, driver: Option<CudaVersion>) -> Result<Option<CudaFiles>, String> {
    let include = root.join("include");
    if !include.join(HEADERS[0]).is_file() {
        return Ok(None);
    }
    if let Some(header) = HEADERS.iter().find(|header| !include.join(header).is_file()) {
        return Err(format!("{} has no {header}", include.display()));
    }
    // Both places are searched by CubeCL.
    if !["nv/target", "cccl/nv/target"].iter().any(|file| include.join(file).is_file()) {
        return Err(format!("{} has no nv/target", include.display()));
    }
    let mut folders: Vec<_> = LIBRARY_FOLDERS.iter().map(|folder| root.join(folder)).collect();
    folders.push(root.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH)));
    folders.extend(root.parent().map(|packages| packages.join("cuda_nvrtc/lib")));
    let mut reason = format!("{} has no libnvrtc with its libnvrtc-builtins", root.display());
    for folder in folders {
        let Some((nvrtc, builtins, version)) = libraries(&folder) else { continue };
        let (major, minor) = version;
        if version < OLDEST {
            reason = format!("{} has CUDA {major}.{minor}, too old", root.display());
        } else if let Some((driver_major, driver_minor)) = driver.filter(|&driver| version > driver)
        {
            reason = format!(
                "{} has CUDA {major}.{minor}, newer than the driver, which runs what CUDA \
                 {driver_major}.{driver_minor} and older compile",
                root.display()
            );
        } else {
            return Ok(Some(CudaFiles { root: root.to_owned(), nvrtc, builtins, version }));
        }
    }
    Err(reason)
}

/// cuBLASLt of a CUDA that the driver can run, in the folders that NVRTC may lie in.
fn blas_library(roots: &[PathBuf], driver: Option<CudaVersion>) -> Option<PathBuf> {
    let newest = driver.map_or(13, |(major, _)| major);
    let folders = roots.iter().flat_map(|root| {
        let own = LIBRARY_FOLDERS.iter().map(|folder| root.join(folder));
        let system = root.join("lib").join(format!("{}-linux-gnu", std::env::consts::ARCH));
        let packages = root.parent().map(|packages| packages.join("cublas/lib"));
        own.chain([system]).chain(packages).collect::<Vec<_>>()
    });
    let named = |folder: PathBuf| {
        let majors = (12..=newest.min(13)).rev();
        majors
            .map(move |major| folder.join(format!("libcublasLt.so.{major}")))
            .find(|path| path.is_file())
    };
    folders.into_iter().find_map(named)
}

/// NVRTC, its built-ins and its version, which only the built-ins' file name tells in full.
fn libraries(folder: &Path) -> Option<(PathBuf, PathBuf, CudaVersion)> {
    let entries = std::fs::read_dir(folder).ok()?;
    let mut names: Vec<_> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort_unstable();
    let nvrtc = |major: u32| format!("libnvrtc.so.{major}");
    let complete = |name: &String| {
        let version = version_of(name.strip_prefix("libnvrtc-builtins.so.")?)?;
        let nvrtc = folder.join(nvrtc(version.0));
        nvrtc.exists().then(|| (nvrtc, folder.join(name), version))
    };
    names.iter().filter_map(complete).max_by_key(|(_, _, version)| *version)
}

/// Of `13.0` or `13.0.88`.
fn version_of(text: &str) -> Option<CudaVersion> {
    let mut parts = text.split('.').map(str::parse::<u32>);
    Some((parts.next()?.ok()?, parts.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cublas_is_found_beside_other_packages_and_not_newer_than_the_driver() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("nvidia/cuda_runtime");
        let library = folder.path().join("nvidia/cublas/lib/libcublasLt.so.12");
        for path in [&root, &library.parent().unwrap().to_owned()] {
            std::fs::create_dir_all(path).unwrap();
        }
        let roots = [root];
        assert_eq!(blas_library(&roots, None), None);
        std::fs::write(&library, "").unwrap();
        assert_eq!(blas_library(&roots, Some((12, 8))), Some(library.clone()));
        let newer = library.with_file_name("libcublasLt.so.13");
        std::fs::write(&newer, "").unwrap();
        assert_eq!(blas_library(&roots, Some((12, 8))), Some(library));
        assert_eq!(blas_library(&roots, Some((13, 1))), Some(newer));
    }

    const DRIVER: Option<CudaVersion> = Some((13, 0));

    fn touch(folder: &Path, files: &[&str]) {
        for file in files {
            let path = folder.join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, []).unwrap();
        }
    }

    fn headers(root: &Path) {
        touch(&root.join("include"), &HEADERS);
        touch(&root.join("include/cccl/nv"), &["target"]);
    }

    fn toolkit(root: &Path, minor: u32) {
        headers(root);
        let builtins = format!("libnvrtc-builtins.so.13.{minor}");
        touch(&root.join("lib64"), &["libnvrtc.so.13", &builtins]);
    }

    fn surroundings(root: &Path) -> Surroundings {
        Surroundings { file_system: root.to_owned(), ..Surroundings::default() }
    }

    #[test]
    fn a_toolkit_is_found_with_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("usr/local/cuda");
        toolkit(&root, 0);
        let found = search(&surroundings(dir.path()).roots(), DRIVER).unwrap();
        let expected = CudaFiles {
            nvrtc: root.join("lib64/libnvrtc.so.13"),
            builtins: root.join("lib64/libnvrtc-builtins.so.13.0"),
            root,
            version: (13, 0),
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn packages_of_the_python_on_the_path_are_found() {
        let dir = tempfile::tempdir().unwrap();
        touch(dir.path(), &["venv/bin/python3"]);
        let root = dir.path().join("venv/lib/python3.12/site-packages/nvidia/cu13");
        headers(&root);
        touch(&root.join("lib"), &["libnvrtc.so.13", "libnvrtc-builtins.so.13.0"]);
        let with_path = Surroundings {
            search_path: vec![dir.path().join("venv/bin")],
            ..surroundings(&dir.path().join("empty"))
        };
        assert_eq!(search(&with_path.roots(), DRIVER).unwrap().root, root);
    }

    #[test]
    fn packages_of_cuda_12_lie_in_several_folders() {
        let dir = tempfile::tempdir().unwrap();
        let nvidia = dir.path().join("usr/lib/python3/dist-packages/nvidia");
        headers(&nvidia.join("cuda_runtime"));
        let libraries = ["libnvrtc.so.12", "libnvrtc-builtins.so.12.8"];
        touch(&nvidia.join("cuda_nvrtc/lib"), &libraries);
        let found = search(&surroundings(dir.path()).roots(), DRIVER).unwrap();
        assert_eq!((found.root, found.version), (nvidia.join("cuda_runtime"), (12, 8)));
    }

    #[test]
    fn what_the_driver_cannot_run_is_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let (new, fitting) = (dir.path().join("new"), dir.path().join("fitting"));
        toolkit(&new, 2);
        toolkit(&fitting, 0);
        let roots = [new.clone(), fitting.clone()];
        assert_eq!(search(&roots, DRIVER).unwrap().root, fitting);
        assert_eq!(search(&roots, None).unwrap().root, new);
        let message = search(&roots[..1], DRIVER).unwrap_err();
        assert!(message.contains("CUDA 13.2, newer than the driver"), "{message}");
    }

    #[test]
    fn a_missing_header_is_named_with_the_command_that_fetches_it() {
        let dir = tempfile::tempdir().unwrap();
        toolkit(dir.path(), 0);
        std::fs::remove_file(dir.path().join("include/crt/mma.h")).unwrap();
        let message = search(&[dir.path().to_owned()], DRIVER).unwrap_err();
        assert!(message.contains("has no crt/mma.h"), "{message}");
        assert!(message.contains("pip install --no-deps --target"), "{message}");
        assert!(message.contains("nvidia-cuda-crt==13.0.88"), "{message}");
    }

    #[test]
    fn an_older_driver_is_not_offered_packages_it_cannot_run() {
        let message = search(&[], Some((12, 8))).unwrap_err();
        assert!(message.contains("the driver runs CUDA 12.8"), "{message}");
        assert!(!message.contains("pip install"), "{message}");
    }

    #[test]
    fn a_named_folder_comes_first_and_may_hold_packages() {
        let dir = tempfile::tempdir().unwrap();
        toolkit(&dir.path().join("usr/local/cuda"), 0);
        let named = dir.path().join("named");
        toolkit(&named.join("nvidia/cu13"), 0);
        let given = Surroundings { named: vec![named.clone()], ..surroundings(dir.path()) };
        assert_eq!(search(&given.roots(), DRIVER).unwrap().root, named.join("nvidia/cu13"));
    }

    #[test]
    fn versions_come_from_file_names() {
        assert_eq!(version_of("13.0"), Some((13, 0)));
        assert_eq!(version_of("12.8.93"), Some((12, 8)));
        assert_eq!(version_of("alt"), None);
        assert_eq!(version_of("13"), None);
    }
}
