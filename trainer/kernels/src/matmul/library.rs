//! Matrix libraries of the system, opened while the program runs and called through CBLAS.
//!
//! Each is told to compute on the calling thread alone: work is divided among threads by
//! [`super::multiply`], along borders that follow from shapes, so results do not depend on the
//! number of threads.

use std::ffi::{CStr, c_char, c_int};
use std::sync::OnceLock;

use super::{Operand, Output, Sizes};

/// Who computes products of matrices on the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum MatrixLibrary {
    /// The `gemm` crate, which is part of the program.
    Builtin,
    /// `OpenBLAS`.
    OpenBlas,
    /// BLIS, AMD's build of it included.
    Blis,
    /// Intel's `oneMKL`.
    Mkl,
}

impl MatrixLibrary {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Builtin, Self::OpenBlas, Self::Blis, Self::Mkl];

    /// Its name in `TUNESMITH_MATMUL`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Builtin => "builtin",
            Self::OpenBlas => "openblas",
            Self::Blis => "blis",
            Self::Mkl => "mkl",
        }
    }

    /// Opens it, which is done once; says why where it cannot be used.
    pub fn open(self) -> Result<(), String> {
        if self == Self::Builtin { Ok(()) } else { open(self).map(|_| ()) }
    }

    /// File names to look for, newest interface first.
    fn file_names(self) -> &'static [&'static str] {
        match self {
            Self::Builtin => &[],
            Self::OpenBlas => &["libopenblas.so.0", "libopenblas.so", "libopenblas.dylib"],
            Self::Blis => {
                &["libblis-mt.so.4", "libblis.so.5", "libblis.so.4", "libblis.so", "libblis.dylib"]
            }
            Self::Mkl => &["libmkl_rt.so.3", "libmkl_rt.so.2", "libmkl_rt.so.1", "libmkl_rt.so"],
        }
    }
}

/// `cblas_sgemm` with 32-bit sizes.
type Sgemm = unsafe extern "C" fn(
    layout: c_int,
    transpose_a: c_int,
    transpose_b: c_int,
    m: c_int,
    n: c_int,
    k: c_int,
    alpha: f32,
    a: *const f32,
    lda: c_int,
    b: *const f32,
    ldb: c_int,
    beta: f32,
    c: *mut f32,
    ldc: c_int,
);

const ROW_MAJOR: c_int = 101;
const NO_TRANSPOSE: c_int = 111;
const TRANSPOSE: c_int = 112;

/// `MKL_THREADING_SEQUENTIAL`
const SEQUENTIAL: c_int = 1;

/// An opened library.
#[derive(Clone, Copy)]
pub(super) struct Blas {
    sgemm: Sgemm,
}

impl std::fmt::Debug for Blas {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Blas")
    }
}

/// Opens a library once; says why where it cannot be used.
pub(super) fn open(library: MatrixLibrary) -> Result<Blas, String> {
    static OPENED: [OnceLock<Result<Blas, String>>; 3] = [const { OnceLock::new() }; 3];
    let slot = match library {
        MatrixLibrary::Builtin => return Err("it is part of the program".to_owned()),
        MatrixLibrary::OpenBlas => &OPENED[0],
        MatrixLibrary::Blis => &OPENED[1],
        MatrixLibrary::Mkl => &OPENED[2],
    };
    slot.get_or_init(|| open_new(library)).clone()
}

#[cfg(unix)]
fn open_new(library: MatrixLibrary) -> Result<Blas, String> {
    use libloading::os::unix::Library;
    // Its symbols stay its own: two libraries that export `cblas_sgemm` must not call each other.
    #[cfg(target_os = "linux")]
    const FLAGS: c_int = 0x2 | 0x8; // RTLD_NOW | RTLD_DEEPBIND
    #[cfg(not(target_os = "linux"))]
    const FLAGS: c_int = libloading::os::unix::RTLD_NOW;
    let mut reasons = Vec::new();
    for name in library.file_names() {
        // SAFETY: opening runs the library's initialisers; these are well-known system libraries.
        match unsafe { Library::open(Some(*name), FLAGS) } {
            Ok(opened) => {
                let blas = prepare(&opened, library);
                // Functions taken from it are kept for the rest of the program.
                std::mem::forget(opened);
                return blas;
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                reasons.push(cause.unwrap_or_else(|| error.to_string()));
            }
        }
    }
    // "No such file" of the first name says less than a library that is there and does not load.
    let missing = |reason: &&String| !reason.contains("cannot open shared object file");
    let reason = reasons.iter().find(missing).or(reasons.first());
    Err(reason.map_or_else(|| "it is not known on this system".to_owned(), Clone::clone))
}

#[cfg(not(unix))]
fn open_new(_library: MatrixLibrary) -> Result<Blas, String> {
    Err("matrix libraries are opened on Unix systems only".to_owned())
}

/// Sets it to one thread and checks what would make it compute something else.
#[cfg(unix)]
fn prepare(opened: &libloading::os::unix::Library, library: MatrixLibrary) -> Result<Blas, String> {
    // SAFETY: the signatures are those of the libraries' public headers.
    unsafe {
        match library {
            MatrixLibrary::OpenBlas => {
                if let Ok(config) =
                    opened.get::<unsafe extern "C" fn() -> *const c_char>(b"openblas_get_config\0")
                    && CStr::from_ptr(config()).to_string_lossy().contains("USE64BITINT")
                {
                    return Err("it takes 64-bit sizes; install the build with 32-bit ones".into());
                }
                if let Ok(parallel) =
                    opened.get::<unsafe extern "C" fn() -> c_int>(b"openblas_get_parallel\0")
                    && parallel() == 0
                {
                    return Err("it is the serial build, which several threads may not call; \
                                install libopenblas0-pthread"
                        .into());
                }
                let threads = opened
                    .get::<unsafe extern "C" fn(c_int)>(b"openblas_set_num_threads\0")
                    .map_err(|error| error.to_string())?;
                threads(1);
            }
            MatrixLibrary::Blis => {
                if let Ok(bits) = opened
                    .get::<unsafe extern "C" fn() -> isize>(b"bli_info_get_blas_int_type_size\0")
                    && bits() != 32
                {
                    return Err("it takes 64-bit sizes; install the build with 32-bit ones".into());
                }
                let threads = opened
                    .get::<unsafe extern "C" fn(isize)>(b"bli_thread_set_num_threads\0")
                    .map_err(|error| error.to_string())?;
                threads(1);
            }
            MatrixLibrary::Mkl => {
                let layer = opened
                    .get::<unsafe extern "C" fn(c_int) -> c_int>(b"MKL_Set_Threading_Layer\0")
                    .map_err(|error| error.to_string())?;
                layer(SEQUENTIAL);
            }
            MatrixLibrary::Builtin => {}
        }
        let sgemm = opened.get::<Sgemm>(b"cblas_sgemm\0").map_err(|error| error.to_string())?;
        Ok(Blas { sgemm: *sgemm })
    }
}

impl Blas {
    /// Whether an operand can be handed over: one of its strides must be 1.
    pub(super) fn takes(operand: &Operand) -> bool {
        operand.strides.column == 1 || operand.strides.row == 1
    }

    /// `output = factor * lhs x rhs`, or `output +=` the same, on the calling thread.
    ///
    /// # Safety
    /// As in [`super::multiply_raw`]; and [`Blas::takes`] both operands.
    pub(super) unsafe fn multiply(
        self,
        output: *mut f32,
        output_row: usize,
        mode: Output,
        (lhs, rhs): (Operand, Operand),
        Sizes { m, k, n }: Sizes,
        factor: f32,
    ) {
        let (transpose_a, lda) = layout(&lhs, k);
        let (transpose_b, ldb) = layout(&rhs, n);
        let beta = if mode == Output::Add { 1.0 } else { 0.0 };
        // SAFETY: promised by the caller; sizes of operands that fit in memory row by row are
        // below 2^31, which `fits` asserts.
        unsafe {
            (self.sgemm)(
                ROW_MAJOR,
                transpose_a,
                transpose_b,
                fits(m),
                fits(n),
                fits(k),
                factor,
                lhs.values.as_ptr(),
                lda,
                rhs.values.as_ptr(),
                ldb,
                beta,
                output,
                fits(output_row),
            );
        }
    }
}

/// Whether it is transposed, and the distance of its rows in memory; `columns` of the operand.
fn layout(operand: &Operand, columns: usize) -> (c_int, c_int) {
    let strides = operand.strides;
    if strides.column == 1 {
        // A single row may have any distance to the next, which CBLAS wants to be the width.
        (NO_TRANSPOSE, fits(strides.row.max(columns)))
    } else {
        (TRANSPOSE, fits(strides.column))
    }
}

fn fits(size: usize) -> c_int {
    c_int::try_from(size).expect("sizes of matrices are below 2^31")
}
