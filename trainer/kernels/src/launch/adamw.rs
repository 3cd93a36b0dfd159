//! The optimizer's update.

use burn::tensor::{DType, Tensor};

use super::{Access, Element, File, Launch, Machine, Program, Scalars, THREADS, blocks_for};
use crate::adamw::Factors;

/// Numbers that share a scale in 8-bit moments.
const BLOCK: usize = 256;

fn scalars(elements: usize, factors: &Factors) -> Scalars {
    let Factors { decay, beta1, beta2, step_size, root_correction, epsilon, gradient } = *factors;
    [decay, beta1, beta2, step_size, root_correction, epsilon, gradient]
        .into_iter()
        .fold(Scalars::default().long(elements as u64), Scalars::float)
}

/// New weight and moments; the tensors are f32 of one shape.
pub(crate) fn adamw<M: Machine>(
    machine: &M,
    (weight, first, second): (&Tensor<2>, &Tensor<2>, &Tensor<2>),
    gradient: &Tensor<2>,
    factors: &Factors,
) -> Option<(Tensor<2>, Tensor<2>, Tensor<2>)> {
    let (dims, elements) = (weight.dims(), weight.shape().num_elements());
    if [weight, first, second, gradient].iter().any(|t| t.dtype() != DType::F32) {
        return None;
    }
    let slopes = machine.read(gradient)?;
    let [w, m, v] = [weight, first, second].map(|tensor| machine.own(tensor.clone()));
    let (w, m, v) = (w?, m?, v?);
    let launch = Launch {
        program: Program::new(File::Adamw, "adamw", Element::F32),
        grid: blocks_for(elements as u64),
        threads: THREADS,
        scalars: scalars(elements, factors),
    };
    let arguments =
        [(&slopes, Access::Read), (&w, Access::Both), (&m, Access::Both), (&v, Access::Both)];
    machine.launch(&launch, &arguments);
    Some((machine.tensor(w, dims), machine.tensor(m, dims), machine.tensor(v, dims)))
}

/// Moments in 8 bits on a machine.
pub(crate) struct EightBitState<B> {
    pub(crate) first: B,
    pub(crate) second: B,
    pub(crate) first_scale: B,
    pub(crate) second_scale: B,
}

/// A new weight; the moments are written in place. `maps` holds the 256 signed and then the 256
/// unsigned values.
pub(crate) fn adamw_8bit<M: Machine>(
    machine: &M,
    weight: &Tensor<2>,
    state: &EightBitState<M::Buffer>,
    gradient: &Tensor<2>,
    maps: &[f32; 512],
    factors: &Factors,
) -> Option<Tensor<2>> {
    let (dims, elements) = (weight.dims(), weight.shape().num_elements());
    if weight.dtype() != DType::F32 || gradient.dtype() != DType::F32 {
        return None;
    }
    let slopes = machine.read(gradient)?;
    let maps = machine.upload(&slopes, bytemuck::cast_slice(maps));
    let w = machine.own(weight.clone())?;
    let launch = Launch {
        program: Program::new(File::Adamw, "adamw_8bit", Element::F32),
        grid: [elements.div_ceil(BLOCK) as u32, 1, 1],
        threads: BLOCK as u32,
        scalars: scalars(elements, factors),
    };
    let arguments = [
        (&slopes, Access::Read),
        (&maps, Access::Read),
        (&w, Access::Both),
        (&state.first, Access::Both),
        (&state.second, Access::Both),
        (&state.first_scale, Access::Both),
        (&state.second_scale, Access::Both),
    ];
    machine.launch(&launch, &arguments);
    Some(machine.tensor(w, dims))
}
