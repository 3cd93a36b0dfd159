//! Dense f32 products on the CPU: by the `gemm` crate, or by a library of the system.

mod library;

use std::sync::OnceLock;
use std::time::Instant;

use gemm::Parallelism;
use rayon::prelude::*;

use library::Blas;
pub use library::MatrixLibrary;

use crate::host::Shared;

/// Rows and columns of a tile that one thread computes. Tiles are handed out as threads come
/// free, which keeps a busy machine's threads together; each product inside is single-threaded.
const TILE: (usize, usize) = (256, 256);

/// A tile where the right operand is turned over, which its library packs again for every tile.
const TURNED_TILE: (usize, usize) = (512, 256);

/// With fewer tiles than this some threads end long before others: tiles get half the height.
const FEW: usize = 6;

/// Rows that a kernel of the built-in library computes at once.
const KERNEL_ROWS: usize = 6;

/// Products of fewer operations are left to the calling thread: waking another takes as long.
const SMALL: usize = 2_000_000;

/// Rows and columns of a matrix in memory, in elements.
#[derive(Clone, Copy)]
pub(crate) struct Strides {
    pub(crate) row: usize,
    pub(crate) column: usize,
}

impl Strides {
    /// Rows end to end, `columns` apart.
    pub(crate) fn rows(columns: usize) -> Self {
        Self { row: columns, column: 1 }
    }

    /// The same memory with rows and columns exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { row: self.column, column: self.row }
    }
}

/// What happens to the values that stand in the output.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Output {
    /// They are written over.
    Overwrite,
    /// The product is added to them.
    Add,
}

/// Who computes a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The calling thread.
    One,
    /// All threads of rayon's pool.
    All,
}

/// Sizes of a product: `[m, k] x [k, n]`.
#[derive(Clone, Copy)]
pub(crate) struct Sizes {
    pub(crate) m: usize,
    pub(crate) k: usize,
    pub(crate) n: usize,
}

/// A matrix operand: its memory and how to walk it.
#[derive(Clone, Copy)]
pub(crate) struct Operand<'a> {
    pub(crate) values: &'a [f32],
    pub(crate) strides: Strides,
}

impl<'a> Operand<'a> {
    /// A matrix whose rows stand end to end.
    pub(crate) fn rows(values: &'a [f32], columns: usize) -> Self {
        Self { values, strides: Strides::rows(columns) }
    }

    /// Its transpose, without moving anything.
    pub(crate) fn transposed(self) -> Self {
        Self { values: self.values, strides: self.strides.transposed() }
    }

    fn assert_holds(&self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * self.strides.row + (columns - 1) * self.strides.column;
            assert!(last < self.values.len(), "operand of {rows}x{columns} is out of bounds");
        }
    }
}

/// The library of the whole program: `None` is the built-in one.
static IN_USE: OnceLock<(MatrixLibrary, Option<Blas>)> = OnceLock::new();

fn in_use() -> &'static (MatrixLibrary, Option<Blas>) {
    IN_USE.get_or_init(|| {
        // The program chooses before its first product; tests and benches name a library here.
        let forced = std::env::var("TUNESMITH_MATMUL").unwrap_or_default();
        let library = MatrixLibrary::ALL.into_iter().find(|library| library.name() == forced);
        match library.filter(|&library| library != MatrixLibrary::Builtin) {
            Some(library) => {
                let blas = library::open(library);
                (library, Some(blas.unwrap_or_else(|why| panic!("TUNESMITH_MATMUL: {why}"))))
            }
            None => (MatrixLibrary::Builtin, None),
        }
    })
}

/// The matrix library in use.
pub fn matrix_library() -> MatrixLibrary {
    in_use().0
}

/// Takes a library for all products of the program; to be called before the first.
///
/// # Errors
/// Says why it cannot be opened, or that another is in use.
pub fn use_matrix_library(library: MatrixLibrary) -> Result<(), String> {
    let blas = match library {
        MatrixLibrary::Builtin => None,
        other => Some(library::open(other)?),
    };
    if IN_USE.get_or_init(|| (library, blas)).0 == library {
        Ok(())
    } else {
        Err("products were computed by another library already".to_owned())
    }
}

/// What a measurement is timed by.
enum Clock {
    Wall(Instant),
    #[cfg(unix)]
    Thread(std::time::Duration),
}

impl Clock {
    fn start(threads: Threads) -> Self {
        match threads {
            #[cfg(unix)]
            Threads::One => Self::Thread(thread_time()),
            _ => Self::Wall(Instant::now()),
        }
    }

    fn seconds(&self) -> f64 {
        match self {
            Self::Wall(start) => start.elapsed().as_secs_f64(),
            #[cfg(unix)]
            Self::Thread(start) => thread_time().saturating_sub(*start).as_secs_f64(),
        }
    }
}

/// Processor time of the calling thread.
#[cfg(unix)]
fn thread_time() -> std::time::Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Operations per second of a library on products like those of training, best of `rounds`. For
/// one thread its processor time counts, so that other programs do not.
///
/// # Errors
/// Says why the library cannot be opened.
pub fn measure_matrix_library(
    library: MatrixLibrary,
    threads: Threads,
    rounds: usize,
) -> Result<f64, String> {
    let sizes = Sizes { m: 512, k: 768, n: 1024 };
    let blas = match library {
        MatrixLibrary::Builtin => None,
        other => Some(library::open(other)?),
    };
    let lhs = vec![0.5; sizes.m * sizes.k];
    let rhs = vec![0.5; sizes.k * sizes.n];
    let mut output = vec![0.0; sizes.m * sizes.n];
    let operations = 2.0 * sizes.m as f64 * sizes.k as f64 * sizes.n as f64;
    let mut best = 0.0_f64;
    for _ in 0..rounds {
        let operands = (Operand::rows(&lhs, sizes.k), Operand::rows(&rhs, sizes.k).transposed());
        let start = Clock::start(threads);
        // SAFETY: the operands and the output have exactly these sizes.
        unsafe {
            let mode = Output::Overwrite;
            let to = (output.as_mut_ptr(), sizes.n, mode);
            multiply_by(blas, to, operands, sizes, 1.0, threads);
        }
        best = best.max(operations / start.seconds().max(1e-9));
    }
    Ok(best)
}

/// `output = factor * lhs x rhs`, or `output +=` the same; `output` has rows `output_row` apart.
pub(crate) fn multiply(
    output: &mut [f32],
    output_row: usize,
    mode: Output,
    (lhs, rhs): (Operand, Operand),
    sizes: Sizes,
    factor: f32,
    threads: Threads,
) {
    let Sizes { m, k, n } = sizes;
    if m == 0 || n == 0 {
        return;
    }
    lhs.assert_holds(m, k);
    rhs.assert_holds(k, n);
    assert!((m - 1) * output_row + n <= output.len(), "output of {m}x{n} is out of bounds");
    // SAFETY: the three asserts above keep every access inside its slice; `output` is borrowed
    // mutably, so it overlaps neither operand.
    unsafe {
        multiply_raw(output.as_mut_ptr(), output_row, mode, (lhs, rhs), sizes, factor, threads);
    }
}

/// [`multiply`] into memory of which other threads write other parts.
///
/// # Safety
/// `output` must be valid for `m` rows of `n` elements `output_row` apart, written by nobody
/// else meanwhile, and the operands must hold `m x k` and `k x n` elements.
pub(crate) unsafe fn multiply_raw(
    output: *mut f32,
    output_row: usize,
    mode: Output,
    (lhs, rhs): (Operand, Operand),
    Sizes { m, k, n }: Sizes,
    factor: f32,
    threads: Threads,
) {
    // SAFETY: promised by the caller.
    unsafe {
        let to = (output, output_row, mode);
        multiply_by(in_use().1, to, (lhs, rhs), Sizes { m, k, n }, factor, threads);
    }
}

/// [`multiply_raw`] by a given library.
///
/// # Safety
/// As in [`multiply_raw`].
unsafe fn multiply_by(
    blas: Option<Blas>,
    (output, output_row, mode): (*mut f32, usize, Output),
    (lhs, rhs): (Operand, Operand),
    sizes: Sizes,
    factor: f32,
    threads: Threads,
) {
    let small = 2 * sizes.m * sizes.k * sizes.n < SMALL;
    // SAFETY: promised by the caller.
    unsafe {
        if threads == Threads::One || small {
            one_thread(blas, (output, output_row, mode), (lhs, rhs), sizes, factor);
        } else {
            tiles(blas, (output, output_row, mode), (lhs, rhs), sizes, factor);
        }
    }
}

/// A product cut into tiles whose borders follow from its sizes alone.
///
/// # Safety
/// As in [`multiply_raw`].
unsafe fn tiles(
    blas: Option<Blas>,
    (output, output_row, mode): (*mut f32, usize, Output),
    (lhs, rhs): (Operand, Operand),
    Sizes { m, k, n }: Sizes,
    factor: f32,
) {
    let (mut height, width) = if rhs.strides.column == 1 { TILE } else { TURNED_TILE };
    let columns = n.div_ceil(width);
    if m.div_ceil(height) * columns < FEW {
        height = m.min(height).div_ceil(2).next_multiple_of(KERNEL_ROWS);
    }
    let count = m.div_ceil(height) * columns;
    let output = Shared(output);
    (0..count).into_par_iter().with_max_len(1).for_each(|tile| {
        let (row, column) = (tile / columns * height, tile % columns * width);
        let sizes = Sizes { m: height.min(m - row), k, n: width.min(n - column) };
        let lhs = Operand { values: &lhs.values[row * lhs.strides.row..], ..lhs };
        let rhs = Operand { values: &rhs.values[column * rhs.strides.column..], ..rhs };
        // SAFETY: the tile lies inside the output and is this task's; its operands begin at its
        // row and column.
        unsafe {
            let output = output.at(row * output_row + column);
            one_thread(blas, (output, output_row, mode), (lhs, rhs), sizes, factor);
        }
    });
}

/// A product on the calling thread.
///
/// # Safety
/// As in [`multiply_raw`].
unsafe fn one_thread(
    blas: Option<Blas>,
    (output, output_row, mode): (*mut f32, usize, Output),
    (lhs, rhs): (Operand, Operand),
    sizes: Sizes,
    factor: f32,
) {
    // An empty sum is left to the crate, which writes zeros without reading operands.
    let blas = blas.filter(|_| sizes.k > 0 && Blas::takes(&lhs) && Blas::takes(&rhs));
    // SAFETY: promised by the caller.
    unsafe {
        match blas {
            Some(blas) => blas.multiply(output, output_row, mode, (lhs, rhs), sizes, factor),
            None => builtin((output, output_row, mode), (lhs, rhs), sizes, factor),
        }
    }
}

/// A product by the `gemm` crate.
///
/// # Safety
/// As in [`multiply_raw`].
unsafe fn builtin(
    (output, output_row, mode): (*mut f32, usize, Output),
    (lhs, rhs): (Operand, Operand),
    Sizes { m, k, n }: Sizes,
    factor: f32,
) {
    // SAFETY: promised by the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            output,
            1,
            output_row as isize,
            mode == Output::Add,
            lhs.values.as_ptr(),
            lhs.strides.column as isize,
            lhs.strides.row as isize,
            rhs.values.as_ptr(),
            rhs.strides.column as isize,
            rhs.strides.row as isize,
            1.0_f32,
            factor,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(n: usize, seed: u32) -> Vec<f32> {
        (0..n as u32)
            .map(|i| {
                ((i.wrapping_mul(2_654_435_761).wrapping_add(seed * 97)) >> 8) as f32 / 8.4e6 - 1.0
            })
            .collect()
    }

    #[test]
    fn products_equal_a_triple_loop_on_odd_shapes() {
        for (m, k, n) in [(1, 1, 1), (3, 5, 7), (17, 33, 9), (64, 12, 40), (1, 70, 130)] {
            let (a, b) = (random(m * k, 1), random(k * n, 2));
            let mut output = vec![1.0; m * n];
            let operands = (Operand::rows(&a, k), Operand::rows(&b, n));
            multiply(&mut output, n, Output::Add, operands, Sizes { m, k, n }, 0.5, Threads::All);
            for i in 0..m {
                for j in 0..n {
                    let sum: f32 = (0..k).map(|l| a[i * k + l] * b[l * n + j]).sum();
                    assert!((output[i * n + j] - (1.0 + 0.5 * sum)).abs() < 1e-4);
                }
            }
        }
    }

    #[test]
    fn results_do_not_depend_on_threads() {
        for (m, k, n) in [(256, 576, 1536), (1000, 16, 576), (16, 1000, 576), (130, 4097, 70)] {
            let (a, b) = (random(m * k, 3), random(k * n, 4));
            let run = |threads| {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let mut output = vec![0.0; m * n];
                let operands = (Operand::rows(&a, k), Operand::rows(&b, n));
                let (mode, all) = (Output::Overwrite, Threads::All);
                let sizes = Sizes { m, k, n };
                pool.install(|| multiply(&mut output, n, mode, operands, sizes, 1.0, all));
                output
            };
            assert!(run(1) == run(4), "{m}x{k}x{n}");
        }
    }
}
