//! The optimizer's update.

use burn::tensor::{DType, Tensor};

use super::{Access, Element, File, Launch, Machine, Program, Scalars, THREADS, blocks_for};
use crate::adamw::Factors;
use crate::adamw_8bit::{EightBitMoments, EightBitParts};

/// Numbers that share a scale in 8-bit moments.
const BLOCK: usize = 256;

fn scalars(elements: usize, factors: &Factors) -> Scalars {
    let Factors { decay, beta1, beta2, step_size, root_correction, epsilon, gradient } = *factors;
    [decay, beta1, beta2, step_size, root_correction, epsilon, gradient]
        .into_iter()
        .fold(Scalars::default().long(elements as u64), Scalars::float)
}

/// Weight, first and second moment.
type State = (Tensor<2>, Tensor<2>, Tensor<2>);

/// New weight and moments, written in place where nothing else has the tensors; what was given where
/// this machine does not take it. The tensors are f32 of one shape.
#[expect(clippy::result_large_err, reason = "the tensors themselves, given back")]
pub(crate) fn adamw<M: Machine>(
    machine: &M,
    (weight, first, second): State,
    gradient: &Tensor<2>,
    factors: &Factors,
) -> Result<State, State> {
    let (dims, elements) = (weight.dims(), weight.shape().num_elements());
    let is_taken = |tensor: &Tensor<2>| tensor.dtype() == DType::F32 && takes(machine, tensor);
    let Some(slopes) = machine.read(gradient).filter(|_| gradient.dtype() == DType::F32) else {
        return Err((weight, first, second));
    };
    if ![&weight, &first, &second].into_iter().all(is_taken) {
        return Err((weight, first, second));
    }
    let [w, m, v] = [weight, first, second].map(|tensor| own(machine, tensor));
    let launch = Launch {
        program: Program::new(File::Adamw, "adamw", Element::F32),
        grid: blocks_for(elements as u64),
        threads: THREADS,
        scalars: scalars(elements, factors),
    };
    let arguments =
        [(&slopes, Access::Read), (&w, Access::Both), (&m, Access::Both), (&v, Access::Both)];
    machine.launch(&launch, &arguments);
    Ok((machine.tensor(w, dims), machine.tensor(m, dims), machine.tensor(v, dims)))
}

/// Whether the machine has this tensor; holds on to nothing of it.
fn takes<M: Machine>(machine: &M, tensor: &Tensor<2>) -> bool {
    machine.read(tensor).is_some()
}

fn own<M: Machine>(machine: &M, tensor: Tensor<2>) -> M::Buffer {
    machine.own(tensor).expect("it was read a moment ago")
}

/// Moments in 8 bits on a machine.
#[derive(Debug, Clone)]
pub(crate) struct EightBitState<B> {
    first: B,
    second: B,
    first_scale: B,
    second_scale: B,
    /// 256 signed and then 256 unsigned values.
    maps: B,
}

impl<B> EightBitState<B> {
    /// Moments beside a tensor's memory.
    pub(crate) fn upload<M: Machine<Buffer = B>>(
        machine: &M,
        like: &B,
        parts: &EightBitParts<'_>,
    ) -> Self {
        let floats = |values: &[f32]| machine.upload(like, bytemuck::cast_slice(values));
        Self {
            first: machine.upload(like, &parts.first),
            second: machine.upload(like, &parts.second),
            first_scale: floats(&parts.first_scales),
            second_scale: floats(&parts.second_scales),
            maps: floats(EightBitMoments::maps()),
        }
    }

    /// What a checkpoint keeps.
    pub(crate) fn download<M: Machine<Buffer = B>>(&self, machine: &M) -> EightBitParts<'static> {
        let floats = |buffer| bytemuck::pod_collect_to_vec(&machine.download(buffer));
        EightBitParts {
            first: machine.download(&self.first).into(),
            second: machine.download(&self.second).into(),
            first_scales: floats(&self.first_scale).into(),
            second_scales: floats(&self.second_scale).into(),
        }
    }
}

/// A new weight, in place where nothing else has it; the moments always are. What was given, where
/// this machine does not take it.
#[expect(clippy::result_large_err, reason = "the tensor itself, given back")]
pub(crate) fn adamw_8bit<M: Machine>(
    machine: &M,
    weight: Tensor<2>,
    state: &EightBitState<M::Buffer>,
    gradient: &Tensor<2>,
    factors: &Factors,
) -> Result<Tensor<2>, Tensor<2>> {
    let (dims, elements) = (weight.dims(), weight.shape().num_elements());
    let Some(slopes) = machine.read(gradient).filter(|_| gradient.dtype() == DType::F32) else {
        return Err(weight);
    };
    if weight.dtype() != DType::F32 || !takes(machine, &weight) {
        return Err(weight);
    }
    let w = own(machine, weight);
    let launch = Launch {
        program: Program::new(File::Adamw, "adamw_8bit", Element::F32),
        grid: [elements.div_ceil(BLOCK) as u32, 1, 1],
        threads: BLOCK as u32,
        scalars: scalars(elements, factors),
    };
    let arguments = [
        (&slopes, Access::Read),
        (&state.maps, Access::Read),
        (&w, Access::Both),
        (&state.first, Access::Both),
        (&state.second, Access::Both),
        (&state.first_scale, Access::Both),
        (&state.second_scale, Access::Both),
    ];
    machine.launch(&launch, &arguments);
    Ok(machine.tensor(w, dims))
}
