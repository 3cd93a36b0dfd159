//! NVIDIA GPUs: what the process needs before the first, and how the plans of `launch` reach one.
//!
//! **Order of work.** Kernels go to the GPU through CubeCL itself, as CUDA C++ text with buffers of
//! burn tensors: they lie in the same queue as burn's own kernels. cuBLASLt works on a stream of
//! ours (`cublas.rs` says how the two wait for each other).
//!
//! **Trust.** A faster way is taken only where [`allow`] named it, after
//! [`crate::check_operation`] compared it with its reference on this GPU. Until then, and for everything else, the reference runs.

mod cublas;
mod driver;
mod gpu;

use std::collections::BTreeSet;
use std::sync::{PoisonError, RwLock};

use crate::launch::{self, Operation};

pub use driver::{CudaVersion, compute_capability, driver_version, memory, preload, set_headers};
pub(crate) use gpu::Gpu;

/// Operations whose faster way may be taken.
static ALLOWED: RwLock<BTreeSet<Operation>> = RwLock::new(BTreeSet::new());

/// Says which operations may go their faster way, from now on and in all threads.
pub fn allow(operations: impl IntoIterator<Item = Operation>) {
    *ALLOWED.write().unwrap_or_else(PoisonError::into_inner) = operations.into_iter().collect();
}

/// The GPU, where `operation` may go its faster way.
pub(crate) fn gpu(operation: Operation) -> Option<Gpu> {
    let allowed = ALLOWED.read().unwrap_or_else(PoisonError::into_inner);
    allowed.contains(&operation).then_some(Gpu)
}

/// The GPU, whatever is on.
pub(crate) fn any_gpu() -> Option<Gpu> {
    Some(Gpu)
}

/// What a model with heads of these widths could go faster, whether or not it has been checked.
pub fn operations(head_dims: &[usize]) -> Vec<Operation> {
    let mut operations = Operation::WITHOUT_HEADS.to_vec();
    operations.extend(
        head_dims.iter().copied().filter(|&dim| launch::knows(dim)).map(Operation::Attention),
    );
    if !cublas::is_there() {
        operations.retain(|&operation| operation != Operation::Product);
    }
    operations
}
