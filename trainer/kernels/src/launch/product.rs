//! Dense products for cuBLASLt, which counts columns first.
//!
//! A row-major `[rows, columns]` matrix is a column-major `[columns, rows]` one in the same memory. So
//! `z = op(x) op(y)` by rows is `zᵀ = op(y)ᵀ op(x)ᵀ` by columns: the operands change places and keep
//! their memory.

use burn::tensor::Tensor;

use super::{Element, Machine};

/// Whether an operand is read as it lies or turned over, in cuBLAS's column-major terms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Turn {
    Straight,
    Turned,
}

/// A column-major matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Numbers from a column to the next.
    pub(crate) leading: usize,
}

impl Layout {
    /// A row-major `[rows, columns]` matrix, seen by columns.
    fn of_rows(rows: usize, columns: usize) -> Self {
        Self { rows: columns, columns: rows, leading: columns }
    }
}

/// `d = alpha * op(a) op(b) + beta * c`, all column-major; `c` and `d` have one layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Product {
    pub(crate) a: (Layout, Turn),
    pub(crate) b: (Layout, Turn),
    pub(crate) d: Layout,
    /// Number format of `a` and `b`.
    pub(crate) input: Element,
    /// Number format of `c` and `d`; sums are f32 whatever it is.
    pub(crate) output: Element,
}

/// The buffers of a product and its factors.
pub(crate) struct Operands<'a, B> {
    pub(crate) a: &'a B,
    pub(crate) b: &'a B,
    /// With its factor `beta`.
    pub(crate) c: Option<&'a B>,
    pub(crate) d: &'a B,
    pub(crate) alpha: f32,
}

/// Products of a linear layer, `[tokens, d_in]` and `[d_out, d_in]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `y = x wᵀ`
    Forward,
    /// `dx = dy w`
    InputGradient,
    /// `dw = dyᵀ x`, always f32
    WeightGradient,
}

impl Product {
    /// The product of two row-major matrices: `left`, `right` as [`Kind`] names them.
    fn of(kind: Kind, left: [usize; 2], right: [usize; 2], input: Element) -> Option<Self> {
        let (l, r) = (Layout::of_rows(left[0], left[1]), Layout::of_rows(right[0], right[1]));
        let (a, b, inner, rows, columns, output) = match kind {
            Kind::Forward => (
                (r, Turn::Turned),
                (l, Turn::Straight),
                left[1] == right[1],
                left[0],
                right[0],
                input,
            ),
            Kind::InputGradient => (
                (r, Turn::Straight),
                (l, Turn::Straight),
                left[1] == right[0],
                left[0],
                right[1],
                input,
            ),
            Kind::WeightGradient => (
                (r, Turn::Straight),
                (l, Turn::Turned),
                left[0] == right[0],
                left[1],
                right[1],
                Element::F32,
            ),
        };
        let is_empty = left.contains(&0) || right.contains(&0);
        (inner && !is_empty).then_some(Self {
            a,
            b,
            d: Layout::of_rows(rows, columns),
            input,
            output,
        })
    }
}

/// `factor * product`, plus `sum` where one is given.
pub(crate) fn product<M: Machine>(
    machine: &M,
    kind: Kind,
    (left, right): (&Tensor<2>, &Tensor<2>),
    sum: Option<&Tensor<2>>,
    factor: f64,
) -> Option<Tensor<2>> {
    let input = Element::of(left.dtype())?;
    let plan = Product::of(kind, left.dims(), right.dims(), input)?;
    // Tensor cores take rows of a multiple of 16 bytes; others are rare and left to burn.
    let per_load = input.per_load();
    let aligned = |layout: Layout| layout.leading.is_multiple_of(per_load);
    if !(aligned(plan.a.0) && aligned(plan.b.0) && aligned(plan.d)) || right.dtype() != left.dtype()
    {
        return None;
    }
    let dims = [plan.d.columns, plan.d.rows];
    if sum.is_some_and(|sum| sum.dims() != dims || sum.dtype() != plan.output.dtype()) {
        return None;
    }
    let (b, a) = (machine.read(left)?, machine.read(right)?);
    let c = match sum {
        Some(sum) => Some(machine.read(sum)?),
        None => None,
    };
    let d = machine.empty(&a, plan.output.dtype(), dims[0] * dims[1]);
    let operands = Operands { a: &a, b: &b, c: c.as_ref(), d: &d, alpha: factor as f32 };
    machine.product(&plan, &operands).then(|| machine.tensor(d, dims))
}
