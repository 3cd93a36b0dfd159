//! `W + scale·B·A` on blocks of rows, and the magnitudes of DoRA on top.
//!
//! Each row is the work of one thread and sums over the rank in a fixed order, so the result has
//! the same bits whatever the number of threads and the size of a block. The product is written
//! out, not called: the rank is small, A stays in cache, and time goes into reading W.

use rayon::prelude::*;

use super::plan::PlannedUpdate;
use crate::peft::LoraFactors;

/// Elements of a block of rows: 4 MiB in f32.
pub(super) const BLOCK_ELEMENTS: usize = 1 << 20;

/// What scales the updated weight.
pub(super) enum Rescale<'a> {
    /// Nothing: the update is LoRA's.
    None,
    /// Rows get the norms given: DoRA's magnitudes.
    RowNorms(&'a [f32]),
    /// Columns are multiplied: DoRA's magnitudes over norms measured before, where the weight is
    /// stored transposed.
    ColumnFactors(Vec<f32>),
}

/// Updates rows of a weight in f32; `first_row` is the place of the first of them.
///
/// # Shapes
/// - `rows`: `[n, d_in]` of a weight `[d_out, d_in]`, as it is stored
pub(super) fn apply(rows: &mut [f32], first_row: usize, update: &PlannedUpdate) {
    add_low_rank(rows, first_row, &update.factors, update.scale as f32);
    let columns = update.factors.d_in;
    match &update.rescale {
        Rescale::None => {}
        Rescale::RowNorms(norms) => {
            rows.par_chunks_mut(columns).zip(norms.par_iter().skip(first_row)).for_each(
                |(row, &wanted)| {
                    let factor = norm_factor(wanted, square_sum(row));
                    for value in row {
                        *value *= factor;
                    }
                },
            );
        }
        Rescale::ColumnFactors(factors) => {
            rows.par_chunks_mut(columns).for_each(|row| {
                row.iter_mut().zip(factors).for_each(|(value, factor)| *value *= factor);
            });
        }
    }
}

/// The factor that gives a row the norm `wanted`; a row of zeros stays one.
pub(super) fn norm_factor(wanted: f32, square_sum: f64) -> f32 {
    if square_sum > 0.0 { wanted / square_sum.sqrt() as f32 } else { 0.0 }
}

pub(super) fn square_sum(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value) * f64::from(value)).sum()
}

/// Adds `scale·B·A` to rows of a weight, in f32.
///
/// # Shapes
/// - `rows`: `[n, d_in]`, rows `first_row..first_row + n` of `[d_out, d_in]`
pub(super) fn add_low_rank(rows: &mut [f32], first_row: usize, factors: &LoraFactors, scale: f32) {
    let LoraFactors { a, b, rank, d_in, .. } = factors;
    rows.par_chunks_mut(*d_in).zip(b.par_chunks(*rank).skip(first_row)).for_each_init(
        || vec![0.0; *d_in],
        |delta, (row, b_row)| {
            combine_rows(delta, b_row, a);
            for (weight, change) in row.iter_mut().zip(&*delta) {
                *weight += scale * change;
            }
        },
    );
}

/// `out = b_row @ a`, four rows of A at a time to spare passes over `out`.
fn combine_rows(out: &mut [f32], b_row: &[f32], a: &[f32]) {
    let d_in = out.len();
    out.fill(0.0);
    let (quads, rest) = b_row.as_chunks::<4>();
    let mut a_quads = a.chunks_exact(4 * d_in);
    for (&[b0, b1, b2, b3], a_quad) in quads.iter().zip(&mut a_quads) {
        let (a01, a23) = a_quad.split_at(2 * d_in);
        let (a0, a1) = a01.split_at(d_in);
        let (a2, a3) = a23.split_at(d_in);
        let columns = out.iter_mut().zip(a0).zip(a1).zip(a2).zip(a3);
        for ((((out, a0), a1), a2), a3) in columns {
            *out += b0 * a0 + b1 * a1 + (b2 * a2 + b3 * a3);
        }
    }
    for (&b, a_row) in rest.iter().zip(a_quads.remainder().chunks_exact(d_in)) {
        for (out, a) in out.iter_mut().zip(a_row) {
            *out += b * a;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn rows_equal_the_product_in_f64(
            rank in 1_usize..11, d_in in 1_usize..40, d_out in 1_usize..12,
            seed in 0_u32..1000, first in 0_usize..12,
        ) {
            let value = |n: usize| ((n as u32).wrapping_mul(2_654_435_761).wrapping_add(seed) >> 8) as f32
                / 8_388_608.0 - 1.0;
            let a: Vec<f32> = (0..rank * d_in).map(value).collect();
            let b: Vec<f32> = (0..d_out * rank).map(|n| value(n + 77)).collect();
            let first = first % d_out;
            let base: Vec<f32> = (0..(d_out - first) * d_in).map(|n| value(n + 999)).collect();
            let factors = LoraFactors { a, b, rank, d_in, d_out };
            let mut merged = base.clone();
            add_low_rank(&mut merged, first, &factors, 0.75);
            for (n, (&merged, &base)) in merged.iter().zip(&base).enumerate() {
                let (row, column) = (first + n / d_in, n % d_in);
                let product: f64 = (0..rank)
                    .map(|k| f64::from(factors.b[row * rank + k]) * f64::from(factors.a[k * d_in + column]))
                    .sum();
                let expected = f64::from(base) + 0.75 * product;
                prop_assert!((f64::from(merged) - expected).abs() < 2e-6, "{merged} {expected}");
            }
        }

        #[test]
        fn blocks_give_the_bits_of_the_whole(split in 1_usize..6) {
            let factors = LoraFactors {
                a: (0..35).map(|n| (n as f32).sin()).collect(),
                b: (0..30).map(|n| (n as f32).cos()).collect(),
                rank: 5, d_in: 7, d_out: 6,
            };
            let base: Vec<f32> = (0..42).map(|n| n as f32 * 0.1).collect();
            let mut whole = base.clone();
            add_low_rank(&mut whole, 0, &factors, 1.5);
            let mut blocks = base;
            let (head, tail) = blocks.split_at_mut(split * 7);
            add_low_rank(head, 0, &factors, 1.5);
            add_low_rank(tail, split, &factors, 1.5);
            prop_assert_eq!(whole, blocks);
        }
    }
}
