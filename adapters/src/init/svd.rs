//! The largest singular triples of a matrix, in f64 on one thread: the same bits however many
//! threads work on other matrices.

use nalgebra::{DMatrix, SymmetricEigen};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::random::normal;
use crate::peft::LoraFactors;

/// A weight `[d_out, d_in]`.
pub(crate) type Matrix = DMatrix<f64>;

/// Directions beyond those asked for: they make the last ones that are kept better.
const OVERSAMPLED: usize = 8;
/// Squares of singular values below this share of the largest are rounding errors of the product
/// that they come from.
const NOISE: f64 = 1e-14;

/// The first columns of `U`, `S` and `V`, the largest first.
pub(crate) struct SingularTriples {
    /// `[d_out, rank]`
    left: Matrix,
    /// Singular values.
    pub(crate) sizes: Vec<f64>,
    /// `[d_in, rank]`
    right: Matrix,
}

impl SingularTriples {
    /// `B = U·√(S/scale)` and `A = √(S/scale)·Vᵀ`, so that `scale·B·A` is what the triples make up.
    pub(crate) fn factors(&self, scale: f64) -> LoraFactors {
        let Self { left, sizes, right } = self;
        let (d_out, d_in, rank) = (left.nrows(), right.nrows(), sizes.len());
        let root = |component: usize| (sizes[component] / scale).sqrt();
        let a = |n: usize| (root(n / d_in) * right[(n % d_in, n / d_in)]) as f32;
        let b = |n: usize| (root(n % rank) * left[(n / rank, n % rank)]) as f32;
        LoraFactors {
            a: (0..rank * d_in).map(a).collect(),
            b: (0..d_out * rank).map(b).collect(),
            rank,
            d_in,
            d_out,
        }
    }
}

/// Row-major values as a matrix.
pub(crate) fn matrix(values: &[f32], [rows, columns]: [usize; 2]) -> Matrix {
    DMatrix::from_row_iterator(rows, columns, values.iter().map(|&value| f64::from(value)))
}

/// From the eigenvectors of the smaller one of `W·Wᵀ` and `Wᵀ·W`; `None` where they are not found,
/// as with values that are not finite.
///
/// The product squares sizes, so those below 1e-7 of the largest are taken as zero: far below what
/// f32 holds of a weight.
pub(crate) fn largest(weight: &Matrix, rank: usize) -> Option<SingularTriples> {
    if weight.nrows() > weight.ncols() {
        let SingularTriples { left, sizes, right } = largest(&weight.transpose(), rank)?;
        return Some(SingularTriples { left: right, sizes, right: left });
    }
    let rank = rank.min(weight.nrows());
    let eigen = SymmetricEigen::try_new(weight * weight.transpose(), f64::EPSILON, 0)?;
    let mut order: Vec<usize> = (0..weight.nrows()).collect();
    order.sort_by(|&x, &y| eigen.eigenvalues[y].total_cmp(&eigen.eigenvalues[x]).then(x.cmp(&y)));
    order.truncate(rank);
    let largest = order.first().map_or(0.0, |&first| eigen.eigenvalues[first]);
    if !largest.is_finite() {
        return None;
    }
    let left = eigen.eigenvectors.select_columns(&order);
    let mut right = weight.transpose() * &left;
    let mut sizes = Vec::with_capacity(rank);
    for (component, &place) in order.iter().enumerate() {
        let mut column = right.column_mut(component);
        // The length of `Wᵀ·u` is the size, and more exact than the eigenvalue's root.
        let size = if eigen.eigenvalues[place] > NOISE * largest { column.norm() } else { 0.0 };
        if size > 0.0 {
            column /= size;
        } else {
            column.fill(0.0);
        }
        sizes.push(size);
    }
    Some(SingularTriples { left, sizes, right })
}

/// By subspace iteration (Halko et al. 2011, arXiv 0909.4061, algorithm 4.4).
pub(crate) fn approximate(
    weight: &Matrix,
    rank: usize,
    iterations: usize,
    key: [u8; 32],
) -> Option<SingularTriples> {
    let full = weight.nrows().min(weight.ncols());
    let width = (rank + OVERSAMPLED).min(full);
    let mut words = ChaCha8Rng::from_seed(key);
    let drawn = (0..weight.ncols() * width).map(|_| normal(&mut words)).collect::<Vec<f64>>();
    let first = DMatrix::from_row_iterator(weight.ncols(), width, drawn);
    let transposed = weight.transpose();
    let mut basis = (weight * first).qr().q();
    for _ in 0..iterations {
        let across = (&transposed * &basis).qr().q();
        basis = (weight * across).qr().q();
    }
    let inner = largest(&(basis.transpose() * weight), rank.min(full))?;
    Some(SingularTriples { left: &basis * &inner.left, ..inner })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(rows: usize, columns: usize) -> Matrix {
        let mut words = ChaCha8Rng::from_seed([7; 32]);
        DMatrix::from_fn(rows, columns, |_, _| normal(&mut words))
    }

    #[test]
    fn triples_are_those_of_a_full_decomposition() {
        for (rows, columns) in [(12, 30), (30, 12), (9, 9)] {
            let weight = noise(rows, columns);
            let expected = weight.clone().svd(true, true);
            let found = largest(&weight, 5).unwrap();
            for k in 0..5 {
                assert!((found.sizes[k] - expected.singular_values[k]).abs() < 1e-10);
                let dot = found.left.column(k).dot(&expected.u.as_ref().unwrap().column(k));
                assert!((dot.abs() - 1.0).abs() < 1e-10, "{rows} x {columns}, {k}: {dot}");
            }
        }
    }

    #[test]
    fn what_has_a_lower_rank_leaves_zeros() {
        let weight = noise(20, 3) * noise(3, 14);
        let factors = largest(&weight, 6).unwrap().factors(2.0);
        assert!(factors.fault().is_none());
        let product = |row: usize, column: usize| -> f64 {
            let pair = |k: usize| factors.b[row * 6 + k] * factors.a[k * 14 + column];
            2.0 * (0..6).map(|k| f64::from(pair(k))).sum::<f64>()
        };
        for (row, column) in [(0, 0), (7, 3), (19, 13)] {
            assert!((product(row, column) - weight[(row, column)]).abs() < 1e-5);
        }
        assert_eq!(largest(&weight, 6).unwrap().sizes[3..], [0.0; 3]);
        assert!(largest(&DMatrix::from_element(3, 3, f64::NAN), 2).is_none());
    }
}
