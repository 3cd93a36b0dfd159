//! Dense f32 products on the CPU.

use gemm::Parallelism;

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
#[derive(Clone, Copy)]
pub(crate) enum Threads {
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

/// Name of the matrix library in use.
pub fn backend_name() -> &'static str {
    "builtin (gemm crate)"
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
    let parallelism = match threads {
        Threads::One => Parallelism::None,
        Threads::All => Parallelism::Rayon(0),
    };
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
            parallelism,
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
                let mut output = vec![0.0; m * n];
                let operands = (Operand::rows(&a, k), Operand::rows(&b, n));
                let sizes = Sizes { m, k, n };
                multiply(&mut output, n, Output::Overwrite, operands, sizes, 1.0, threads);
                output
            };
            let all = rayon::ThreadPoolBuilder::new().num_threads(4).build().unwrap();
            assert_eq!(run(Threads::One), all.install(|| run(Threads::All)), "{m}x{k}x{n}");
        }
    }
}
