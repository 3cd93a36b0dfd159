//! RMS and layer normalisation: a block takes a row.

use burn::tensor::{DType, Tensor};

use super::{Access, Element, File, Launch, Machine, Program, Scalars, THREADS, element_of};

/// What a launch of a norm follows from.
struct Rows {
    element: Element,
    rows: usize,
    width: usize,
    weight_rows: usize,
}

impl Rows {
    fn of(x: &Tensor<2>, weight: &Tensor<1>) -> Option<Self> {
        let [rows, width] = x.dims();
        let element = element_of(x, width)?;
        let whole = weight.dims()[0].is_multiple_of(width) && weight.dtype() == DType::F32;
        let weight_rows = weight.dims()[0] / width;
        (whole && weight_rows > 0).then_some(Self { element, rows, width, weight_rows })
    }

    fn launch(&self, entry: &'static str, epsilon: f64, second: Optional) -> Launch {
        Launch {
            program: Program::new(File::Norms, entry, self.element),
            grid: [self.rows as u32, 1, 1],
            threads: THREADS,
            scalars: Scalars::default()
                .word(self.width)
                .word(self.weight_rows)
                .float(epsilon as f32)
                .word(usize::from(second == Optional::There)),
        }
    }
}

/// Whether a bias, or a sum that a gradient is added to, is there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Optional {
    There,
    Missing,
}

impl Optional {
    fn of<T>(value: Option<&T>) -> Self {
        if value.is_some() { Self::There } else { Self::Missing }
    }
}

pub(crate) fn rms_norm<M: Machine>(
    machine: &M,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    epsilon: f64,
) -> Option<Tensor<2>> {
    let rows = Rows::of(x, weight)?;
    let (input, weights) = (machine.read(x)?, machine.read(weight)?);
    let y = machine.empty(&input, x.dtype(), rows.rows * rows.width);
    let arguments = [(&input, Access::Read), (&weights, Access::Read), (&y, Access::Write)];
    machine.launch(&rows.launch("rms_norm", epsilon, Optional::Missing), &arguments);
    Some(machine.tensor(y, x.dims()))
}

pub(crate) fn layer_norm<M: Machine>(
    machine: &M,
    x: &Tensor<2>,
    weight: &Tensor<1>,
    bias: Option<&Tensor<1>>,
    epsilon: f64,
) -> Option<Tensor<2>> {
    let rows = Rows::of(x, weight)?;
    if bias.is_some_and(|bias| bias.dims() != weight.dims() || bias.dtype() != DType::F32) {
        return None;
    }
    let (input, weights) = (machine.read(x)?, machine.read(weight)?);
    let biases = machine.read(bias.unwrap_or(weight))?;
    let y = machine.empty(&input, x.dtype(), rows.rows * rows.width);
    let arguments = [
        (&input, Access::Read),
        (&weights, Access::Read),
        (&biases, Access::Read),
        (&y, Access::Write),
    ];
    machine.launch(&rows.launch("layer_norm", epsilon, Optional::of(bias)), &arguments);
    Some(machine.tensor(y, x.dims()))
}

pub(crate) fn rms_norm_gradient<M: Machine>(
    machine: &M,
    sum: Option<&Tensor<2>>,
    (dy, x): (&Tensor<2>, &Tensor<2>),
    weight: &Tensor<1>,
    epsilon: f64,
) -> Option<Tensor<2>> {
    gradient(machine, "rms_norm_gradient", sum, (dy, x), (weight, epsilon))
}

pub(crate) fn layer_norm_gradient<M: Machine>(
    machine: &M,
    sum: Option<&Tensor<2>>,
    (dy, x): (&Tensor<2>, &Tensor<2>),
    weight: &Tensor<1>,
    epsilon: f64,
) -> Option<Tensor<2>> {
    gradient(machine, "layer_norm_gradient", sum, (dy, x), (weight, epsilon))
}

fn gradient<M: Machine>(
    machine: &M,
    entry: &'static str,
    sum: Option<&Tensor<2>>,
    (dy, x): (&Tensor<2>, &Tensor<2>),
    (weight, epsilon): (&Tensor<1>, f64),
) -> Option<Tensor<2>> {
    let rows = Rows::of(x, weight)?;
    let alike = |other: &Tensor<2>| other.dtype() == x.dtype() && other.dims() == x.dims();
    if !alike(dy) || !sum.is_none_or(alike) {
        return None;
    }
    let (slopes, input, weights) = (machine.read(dy)?, machine.read(x)?, machine.read(weight)?);
    let before = machine.read(sum.unwrap_or(dy))?;
    let dx = machine.empty(&input, x.dtype(), rows.rows * rows.width);
    let arguments = [
        (&before, Access::Read),
        (&slopes, Access::Read),
        (&input, Access::Read),
        (&weights, Access::Read),
        (&dx, Access::Write),
    ];
    machine.launch(&rows.launch(entry, epsilon, Optional::of(sum)), &arguments);
    Some(machine.tensor(dx, x.dims()))
}
