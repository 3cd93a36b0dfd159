//! Gated activations, rotary embedding, dropout.

use burn::tensor::{DType, Tensor};

use super::{
    Access, Element, File, Launch, Machine, Program, Scalars, THREADS, blocks_for, element_of,
};
use crate::{Direction, DropoutKey, Gelu, RotaryHead, RotaryPairs};

/// The function of a gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Silu,
    Gelu(Gelu),
}

impl Activation {
    fn number(self) -> usize {
        match self {
            Self::Silu => 0,
            Self::Gelu(Gelu::Exact) => 1,
            Self::Gelu(Gelu::Tanh) => 2,
        }
    }
}

fn flat(entry: &'static str, element: Element, activation: Activation, elements: usize) -> Launch {
    let loads = (elements / element.per_load()) as u64;
    Launch {
        program: Program::new(File::Elementwise, entry, element)
            .with("ACTIVATION", activation.number()),
        grid: blocks_for(loads),
        threads: THREADS,
        scalars: Scalars::default().long(loads),
    }
}

/// The number format of tensors that are alike.
fn common(tensors: &[&Tensor<2>]) -> Option<Element> {
    let first = tensors.first()?;
    let alike = |t: &&Tensor<2>| t.dtype() == first.dtype() && t.dims() == first.dims();
    tensors.iter().all(alike).then(|| element_of(first, first.dims()[1]))?
}

pub(crate) fn gate<M: Machine>(
    machine: &M,
    gates: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
) -> Option<Tensor<2>> {
    let element = common(&[gates, up])?;
    let (g, u) = (machine.read(gates)?, machine.read(up)?);
    let elements = gates.shape().num_elements();
    let y = machine.empty(&g, gates.dtype(), elements);
    let arguments = [(&g, Access::Read), (&u, Access::Read), (&y, Access::Write)];
    machine.launch(&flat("gate", element, activation, elements), &arguments);
    Some(machine.tensor(y, gates.dims()))
}

pub(crate) fn gate_gradient<M: Machine>(
    machine: &M,
    dy: &Tensor<2>,
    gates: &Tensor<2>,
    up: &Tensor<2>,
    activation: Activation,
) -> Option<(Tensor<2>, Tensor<2>)> {
    let element = common(&[dy, gates, up])?;
    let (d, g, u) = (machine.read(dy)?, machine.read(gates)?, machine.read(up)?);
    let elements = gates.shape().num_elements();
    let empty = || machine.empty(&g, gates.dtype(), elements);
    let (d_gates, d_up) = (empty(), empty());
    let arguments = [
        (&d, Access::Read),
        (&g, Access::Read),
        (&u, Access::Read),
        (&d_gates, Access::Write),
        (&d_up, Access::Write),
    ];
    machine.launch(&flat("gate_gradient", element, activation, elements), &arguments);
    Some((machine.tensor(d_gates, gates.dims()), machine.tensor(d_up, gates.dims())))
}

pub(crate) fn activate<M: Machine>(
    machine: &M,
    x: &Tensor<2>,
    activation: Activation,
) -> Option<Tensor<2>> {
    let element = common(&[x])?;
    let input = machine.read(x)?;
    let elements = x.shape().num_elements();
    let y = machine.empty(&input, x.dtype(), elements);
    let arguments = [(&input, Access::Read), (&y, Access::Write)];
    machine.launch(&flat("activate", element, activation, elements), &arguments);
    Some(machine.tensor(y, x.dims()))
}

pub(crate) fn activate_gradient<M: Machine>(
    machine: &M,
    dy: &Tensor<2>,
    x: &Tensor<2>,
    activation: Activation,
) -> Option<Tensor<2>> {
    let element = common(&[dy, x])?;
    let (d, input) = (machine.read(dy)?, machine.read(x)?);
    let elements = x.shape().num_elements();
    let dx = machine.empty(&input, x.dtype(), elements);
    let arguments = [(&d, Access::Read), (&input, Access::Read), (&dx, Access::Write)];
    machine.launch(&flat("activate_gradient", element, activation, elements), &arguments);
    Some(machine.tensor(dx, x.dims()))
}

pub(crate) fn rope<M: Machine>(
    machine: &M,
    x: &Tensor<2>,
    (cos, sin): (&Tensor<2>, &Tensor<2>),
    head: RotaryHead,
    direction: Direction,
) -> Option<Tensor<2>> {
    let ([tokens, width], [rows, half]) = (x.dims(), cos.dims());
    let element = Element::of(x.dtype())?;
    let fits = width.is_multiple_of(head.head_dim) && 2 * half <= head.head_dim && rows == tokens;
    if !fits || half == 0 || cos.dtype() != DType::F32 || sin.dtype() != DType::F32 {
        return None;
    }
    let (input, cosines, sines) = (machine.read(x)?, machine.read(cos)?, machine.read(sin)?);
    let y = machine.empty(&input, x.dtype(), tokens * width);
    let launch = Launch {
        program: Program::new(File::Elementwise, "rope", element),
        grid: [tokens as u32, 1, 1],
        threads: THREADS,
        scalars: Scalars::default()
            .word(width)
            .word(head.head_dim)
            .word(half)
            .word(usize::from(head.pairs == RotaryPairs::Interleaved))
            .float(if direction == Direction::Forward { 1.0 } else { -1.0 }),
    };
    let arguments = [
        (&input, Access::Read),
        (&cosines, Access::Read),
        (&sines, Access::Read),
        (&y, Access::Write),
    ];
    machine.launch(&launch, &arguments);
    Some(machine.tensor(y, x.dims()))
}

pub(crate) fn dropout<M: Machine>(
    machine: &M,
    x: &Tensor<2>,
    (threshold, keep): (u64, f32),
    key: DropoutKey,
) -> Option<Tensor<2>> {
    let element = Element::of(x.dtype())?;
    let elements = x.shape().num_elements();
    let input = machine.read(x)?;
    let y = machine.empty(&input, x.dtype(), elements);
    let launch = Launch {
        program: Program::new(File::Elementwise, "dropout", element),
        grid: blocks_for(elements.div_ceil(4) as u64),
        threads: THREADS,
        scalars: Scalars::default()
            .long(elements as u64)
            .long(threshold)
            .float(keep)
            .word(key.module[0] as usize)
            .word(key.module[1] as usize)
            .word(key.micro_batch as usize)
            .word(key.step as usize),
    };
    machine.launch(&launch, &[(&input, Access::Read), (&y, Access::Write)]);
    Some(machine.tensor(y, x.dims()))
}
