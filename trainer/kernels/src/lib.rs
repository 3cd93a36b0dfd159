//! The closed set of operations of the hot path, each with its gradient.
//!
//! Every operation takes and returns burn tensors. On the CPU (burn-flex) it runs a kernel of
//! this crate on the tensor's own memory; on any other device, and for any other number format,
//! it runs the reference: the same maths in plain burn operations. There is no autodiff graph:
//! callers keep what the gradient needs and call it by name.
//!
//! Activations are `[tokens, features]`: the examples of a micro-batch stand end to end and
//! [`Segments`] says where each begins, so nothing is padded.
//!
//! Results do not depend on the number of threads: work is cut by shape alone, and sums run over
//! a fixed number of lanes.

#![expect(unsafe_code, reason = "kernels write disjoint parts of one buffer from several threads")]
#![expect(clippy::inline_always, reason = "loops are compiled along with their instruction set")]

mod adamw;
mod adamw_8bit;
mod attention;
mod cross_entropy;
#[cfg(feature = "cuda")]
pub mod cuda;
mod dropout;
mod embedding;
mod expert_rows;
mod gelu;
#[cfg(all(unix, any(test, feature = "cuda")))]
mod gpu_memory;
mod host;
mod launch;
mod layer_norm;
mod linear;
mod math;
mod matmul;
mod panel;
mod park;
mod product;
mod quantise;
mod rms_norm;
mod rope;
mod soft_cap;
mod swiglu;
mod weight;

pub use adamw::{AdamwStep, adamw, sum_of_squares};
pub use adamw_8bit::{EightBitMoments, EightBitParts, adamw_8bit};
pub use attention::{
    AttentionOutput, AttentionShape, Segments, Sight, attention, attention_gradient,
};
pub use cross_entropy::{
    CrossEntropy, TokenScore, cross_entropy, cross_entropy_gradient, token_scores,
};
pub use dropout::{DropoutKey, dropout};
pub use embedding::{RowSpan, embedding, gather_rows, put_rows, scatter_rows};
pub use expert_rows::{add_rows, weighted_rows};
pub use gelu::{Gelu, geglu, geglu_gradient, gelu, gelu_gradient};
#[cfg(all(unix, any(test, feature = "cuda")))]
pub use gpu_memory::GpuMemory;
pub use host::{from_f32, from_stored, on_host, to_f32, values};
pub use launch::{Checked, Operation, check_operation};
pub use layer_norm::{layer_norm, layer_norm_gradient, layer_norm_weight_gradient};
pub use linear::{
    add_bias, linear, linear_add, linear_input_gradient, linear_weight_gradient,
    linear_weight_gradient_onto, row_square_sums,
};
pub use math::{InstructionSet, instruction_set};
pub use matmul::{
    MatrixLibrary, Threads, matrix_library, measure_matrix_library, use_matrix_library,
};
pub use park::{Parked, park};
pub use quantise::{Int8Matrix, Nf4Matrix, to_device};
pub use rms_norm::{rms_norm, rms_norm_gradient, rms_norm_weight_gradient};
pub use rope::{Direction, RotaryHead, RotaryPairs, rope};
pub use soft_cap::{soft_cap, soft_cap_gradient};
pub use swiglu::{swiglu, swiglu_gradient};
pub use weight::{QuantisedMatrix, Stored, Weight, WeightRef};

/// Reference implementations in plain burn operations: the oracle of every kernel.
pub mod reference {
    pub use crate::attention::{reference as attention, reference_gradient as attention_gradient};
    pub use crate::cross_entropy::{
        reference as cross_entropy, reference_gradient as cross_entropy_gradient,
        reference_scores as token_scores,
    };
    pub use crate::expert_rows::reference as add_rows;
    pub use crate::gelu::{
        reference as gelu, reference_gated as geglu, reference_gated_gradient as geglu_gradient,
        reference_gradient as gelu_gradient,
    };
    pub use crate::layer_norm::{
        reference as layer_norm, reference_gradient as layer_norm_gradient,
    };
    pub use crate::rms_norm::{reference as rms_norm, reference_gradient as rms_norm_gradient};
    pub use crate::rope::reference as rope;
    pub use crate::soft_cap::{reference as soft_cap, reference_gradient as soft_cap_gradient};
    pub use crate::swiglu::{reference as swiglu, reference_gradient as swiglu_gradient};
}
