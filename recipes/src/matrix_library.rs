//! Which library computes products of matrices on the CPU.
//!
//! `TUNESMITH_MATMUL` names one. Without it the libraries of the system are measured once against
//! the built-in one, and the choice is kept in the cache, so that every later run on this machine
//! takes the same and repeats to the bit.

use std::path::Path;

use kernels::{MatrixLibrary, Threads};
use serde::{Deserialize, Serialize};

use crate::diagnostics::UserError;
use crate::machine;
use crate::printer::write_atomically;

/// How much faster than the built-in library another must be to be taken: more than the noise of
/// a short measurement, so that the choice does not change from day to day.
/// On thin products, which are not measured, the built-in one is ahead (BENCHMARKS.md).
const MARGIN: f64 = 1.25;

/// Products timed for each library; the best counts.
const ROUNDS: usize = 12;

/// The choice as the cache keeps it.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Choice {
    /// What it was made for: another program, processor or set of libraries is measured anew.
    program: String,
    processor: String,
    found: Vec<String>,
    library: String,
}

/// Takes the library that `TUNESMITH_MATMUL` names, or the fastest; to be called before the first
/// product.
pub(crate) fn choose() -> anyhow::Result<MatrixLibrary> {
    let library = match forced()? {
        Some(library) => library,
        None => fastest(),
    };
    kernels::use_matrix_library(library).map_err(|why| refused(library, &why))?;
    Ok(library)
}

fn forced() -> anyhow::Result<Option<MatrixLibrary>> {
    let name = match std::env::var_os("TUNESMITH_MATMUL") {
        Some(name) if !name.is_empty() && name != "auto" => name,
        _ => return Ok(None),
    };
    let known = MatrixLibrary::ALL.into_iter().find(|library| name == *library.name());
    known.map(Some).ok_or_else(|| {
        let message = format!("`TUNESMITH_MATMUL={}` is not known", name.to_string_lossy());
        let names = MatrixLibrary::ALL.map(MatrixLibrary::name).join(", ");
        UserError::new(message, format!("set it to auto, {names}, or unset it")).into()
    })
}

fn refused(library: MatrixLibrary, why: &str) -> anyhow::Error {
    let message = format!("`TUNESMITH_MATMUL={}` cannot be used: {why}", library.name());
    let package = match library {
        MatrixLibrary::OpenBlas => "install it, on Debian: apt-get install libopenblas0-pthread; ",
        MatrixLibrary::Blis => "install it, on Debian: apt-get install libblis4-pthread; ",
        MatrixLibrary::Mkl => "put the folder of `libmkl_rt.so` in LD_LIBRARY_PATH; ",
        MatrixLibrary::Builtin => "",
    };
    UserError::new(message, format!("{package}or unset TUNESMITH_MATMUL")).into()
}

/// The built-in library, or one of the system that is clearly faster.
fn fastest() -> MatrixLibrary {
    let found: Vec<MatrixLibrary> =
        MatrixLibrary::ALL.into_iter().filter(|library| library.open().is_ok()).collect();
    if found == [MatrixLibrary::Builtin] {
        return MatrixLibrary::Builtin;
    }
    let path = machine::cache_dir().map(|cache| cache.join("matrix-library-3.json"));
    if let Some(library) = path.as_ref().and_then(|path| kept(path, &found)) {
        return library;
    }
    let library = measured(&found);
    if let Some(path) = path {
        keep(&path, &found, library);
    }
    library
}

/// One product of each library in turn, so that a busy moment does not fall on one of them.
fn measured(found: &[MatrixLibrary]) -> MatrixLibrary {
    let mut rates = vec![0.0_f64; found.len()];
    for _ in 0..ROUNDS {
        for (&library, best) in found.iter().zip(&mut rates) {
            let rate = kernels::measure_matrix_library(library, Threads::One, 1);
            *best = best.max(rate.unwrap_or(0.0));
        }
    }
    let builtin = found.iter().position(|&library| library == MatrixLibrary::Builtin);
    let mut best = (MatrixLibrary::Builtin, builtin.map_or(0.0, |at| rates[at]) * MARGIN);
    for (&library, &rate) in found.iter().zip(&rates) {
        if library != MatrixLibrary::Builtin && rate > best.1 {
            best = (library, rate);
        }
    }
    best.0
}

fn choice_of(found: &[MatrixLibrary], library: MatrixLibrary) -> Choice {
    Choice {
        program: env!("CARGO_PKG_VERSION").to_owned(),
        processor: machine::processor_name().unwrap_or_default(),
        found: found.iter().map(|library| library.name().to_owned()).collect(),
        library: library.name().to_owned(),
    }
}

fn kept(path: &Path, found: &[MatrixLibrary]) -> Option<MatrixLibrary> {
    let kept: Choice = serde_json::from_slice(&std::fs::read(path).ok()?).ok()?;
    found.iter().copied().find(|&library| choice_of(found, library) == kept)
}

/// A cache that cannot be written costs the next run a measurement, nothing else.
fn keep(path: &Path, found: &[MatrixLibrary], library: MatrixLibrary) {
    if let Some(folder) = path.parent() {
        let _ = std::fs::create_dir_all(folder);
    }
    if let Ok(text) = serde_json::to_vec_pretty(&choice_of(found, library)) {
        let _ = write_atomically(path, &text);
    }
}

/// A library of matrix products on this machine.
#[derive(Debug, Clone, Serialize)]
pub struct LibraryFacts {
    /// Its name in `TUNESMITH_MATMUL`.
    pub name: &'static str,
    /// Whether this program takes it.
    pub in_use: bool,
    /// Measured on f32 products with all threads.
    pub gflops_per_second: Option<f64>,
    /// Why it cannot be used.
    pub missing: Option<String>,
}

/// Measures every library that can be opened.
pub(crate) fn look() -> Vec<LibraryFacts> {
    let facts = |library: MatrixLibrary| {
        let rate = kernels::measure_matrix_library(library, Threads::All, ROUNDS);
        LibraryFacts {
            name: library.name(),
            in_use: kernels::matrix_library() == library,
            gflops_per_second: rate.as_ref().ok().map(|rate| (rate / 1e8).round() / 10.0),
            missing: rate.err(),
        }
    };
    MatrixLibrary::ALL.into_iter().map(facts).collect()
}
