//! PEFT adapter folders: `adapter_config.json` and `adapter_model.safetensors`.
//!
//! The format is Hugging Face PEFT's. A tensor pair for module `m` is named
//! `base_model.model.<m>.lora_A.weight`, `[rank, d_in]`, and `base_model.model.<m>.lora_B.weight`,
//! `[d_out, rank]`; the layer then computes `W·x + scale·B·(A·x)`. DoRA has a magnitude besides,
//! `base_model.model.<m>.lora_magnitude_vector`, `[d_out]`. A tensor `t` that takes the place of the
//! base's is `base_model.model.<t>`, or with `.base_layer` before its last part where the module has
//! an update as well. What the format can express and
//! this program does not implement is refused by name, never ignored.

mod config;
mod config_json;
mod converted;
mod experts;
mod read;
mod write;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::TensorProblem;
use crate::modules_to_save::module_of;

pub use config::{ModuleNames, ParameterAxes, PeftConfig, Scaling};
#[cfg(test)]
pub(crate) use config_json::parse as parse_config;
pub use experts::fit_experts;
pub(crate) use experts::{ExpertLayer, PARAMETERS};
pub use read::read_adapter;
pub use write::write_adapter;

/// Name of the file that describes an adapter.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// Name of the file with an adapter's tensors.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";

const TENSOR_PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";
/// Stands before `.weight` and `.bias` of a module that PEFT has wrapped.
const BASE_LAYER: &str = ".base_layer";

/// The factors of every adapted layer, by module path.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct AdapterWeights {
    /// Key: module path such as `model.layers.0.self_attn.q_proj`.
    pub modules: BTreeMap<String, LoraFactors>,
    /// Magnitudes of DoRA by module: `[d_out]` each.
    pub magnitudes: BTreeMap<String, Vec<f32>>,
    /// What was taken out of the base when training began, by module; files hold the difference.
    pub starts: BTreeMap<String, LoraFactors>,
    /// Tensors that take the place of the base's, by their names there: `modules_to_save`, biases,
    /// embeddings that were saved along.
    pub whole: BTreeMap<String, WholeTensor>,
}

/// A tensor that takes the place of one of the base.
#[derive(Debug, Clone, PartialEq)]
pub struct WholeTensor {
    /// Sizes as the base's file holds them.
    pub shape: Vec<usize>,
    /// Row by row.
    pub values: Vec<f32>,
}

impl AdapterWeights {
    /// Numbers that were trained.
    pub fn parameters(&self) -> u64 {
        let of_factors = self.modules.values().map(|factors| factors.a.len() + factors.b.len());
        let of_whole = self.whole.values().map(|tensor| tensor.values.len());
        let of_magnitudes = self.magnitudes.values().map(Vec::len);
        of_factors.chain(of_magnitudes).chain(of_whole).sum::<usize>() as u64
    }

    /// Modules that have tensors of their own in place of the base's, each once.
    pub fn whole_modules(&self) -> BTreeSet<&str> {
        self.whole.keys().map(|name| module_of(name)).collect()
    }

    /// Refuses tensors that take the place of the base's, for what knows only updates of it.
    pub fn refuse_whole(&self, reason: &str) -> Vec<TensorProblem> {
        let problem = |name: &String| TensorProblem::new(name, reason);
        self.whole.keys().map(problem).collect()
    }

    /// What is wrong with a module's magnitude, if anything is.
    pub(crate) fn magnitude_fault(&self, module: &str, config: &PeftConfig) -> Option<String> {
        let d_out = self.modules.get(module).map_or(0, |factors| factors.d_out);
        match (self.magnitudes.get(module), config.use_dora) {
            (None, false) => None,
            (None, true) => Some("has no magnitude, but the config says DoRA".to_owned()),
            (Some(_), false) => {
                Some("has a magnitude, but the config does not say DoRA".to_owned())
            }
            (Some(values), true) if values.len() != d_out => {
                Some(format!("has {} magnitudes for {d_out} outputs", values.len()))
            }
            (Some(values), true) => first_non_finite(values)
                .map(|(place, value)| format!("has {value} in its magnitude, at element {place}")),
        }
    }

    /// Tensors in the adapter's file.
    pub fn tensors(&self) -> usize {
        2 * self.modules.len() + self.magnitudes.len() + self.whole.len()
    }
}

/// The low-rank update `B·A` of one layer.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraFactors {
    /// Row-major `[rank, d_in]`.
    pub a: Vec<f32>,
    /// Row-major `[d_out, rank]`.
    pub b: Vec<f32>,
    /// Inner dimension.
    pub rank: usize,
    /// Features that enter the layer.
    pub d_in: usize,
    /// Features that leave the layer.
    pub d_out: usize,
}

impl WholeTensor {
    /// What keeps this from being a tensor, if anything does.
    pub(crate) fn fault(&self) -> Option<String> {
        let size = self.shape.iter().try_fold(1_usize, |size, &n| size.checked_mul(n));
        if size != Some(self.values.len()) || self.values.is_empty() {
            return Some(format!("has {} values for {:?}", self.values.len(), self.shape));
        }
        first_non_finite(&self.values)
            .map(|(place, value)| format!("holds {value}, at element {place}"))
    }

    /// Elements of a row.
    pub(crate) fn columns(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// A row-major matrix with its axes swapped.
pub(crate) fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| values.iter().skip(column).step_by(columns).copied()).collect()
}

impl LoraFactors {
    /// `B·A` of both, `other`'s times -1: side by side in the sum of their ranks.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        let Self { rank, d_in, d_out, .. } = *self;
        let rows = self.b.chunks_exact(rank).zip(other.b.chunks_exact(other.rank));
        let b = rows.flat_map(|(own, other)| own.iter().copied().chain(other.iter().map(|x| -x)));
        Self {
            a: self.a.iter().chain(&other.a).copied().collect(),
            b: b.collect(),
            rank: rank + other.rank,
            d_in,
            d_out,
        }
    }

    /// The reverse of [`LoraFactors::minus`] for two of equal rank.
    pub(crate) fn halves(&self) -> (Self, Self) {
        let Self { rank, d_in, d_out, .. } = *self;
        let half = rank / 2;
        let (first_a, second_a) = self.a.split_at(half * d_in);
        let (mut first_b, mut second_b) = (Vec::new(), Vec::new());
        for row in self.b.chunks_exact(rank) {
            first_b.extend_from_slice(&row[..half]);
            second_b.extend(row[half..].iter().map(|x| -x));
        }
        let factors = |a: &[f32], b| Self { a: a.to_vec(), b, rank: half, d_in, d_out };
        (factors(first_a, first_b), factors(second_a, second_b))
    }

    /// The same update at a rank that is no lower, filled up with zeros.
    pub(crate) fn padded_to(&self, rank: usize) -> Self {
        let mut a = self.a.clone();
        a.resize(rank * self.d_in, 0.0);
        let mut b = Vec::with_capacity(self.d_out * rank);
        for row in self.b.chunks_exact(self.rank) {
            b.extend_from_slice(row);
            b.resize(b.len() + rank - self.rank, 0.0);
        }
        Self { a, b, rank, ..*self }
    }

    /// What keeps these factors from being an update, if anything does.
    pub(crate) fn fault(&self) -> Option<String> {
        let Self { rank, d_in, d_out, .. } = *self;
        if rank == 0 || d_in == 0 || d_out == 0 {
            return Some(format!("has rank {rank}, d_in {d_in}, d_out {d_out}: none may be 0"));
        }
        if Some(self.a.len()) != rank.checked_mul(d_in) {
            return Some(format!("has {} values in A, not [{rank}, {d_in}]", self.a.len()));
        }
        if Some(self.b.len()) != d_out.checked_mul(rank) {
            return Some(format!("has {} values in B, not [{d_out}, {rank}]", self.b.len()));
        }
        let factor = if first_non_finite(&self.a).is_some() { "A" } else { "B" };
        first_non_finite(&self.a)
            .or_else(|| first_non_finite(&self.b))
            .map(|(place, value)| format!("has {value} in {factor}, at element {place}"))
    }

    /// The update of the transposed weight: `(B·A)ᵀ = Aᵀ·Bᵀ`.
    pub(crate) fn transposed(&self) -> Self {
        let Self { ref a, ref b, rank, d_in, d_out } = *self;
        Self { a: transposed(b, rank), b: transposed(a, d_in), rank, d_in: d_out, d_out: d_in }
    }

    /// Frobenius norm of `B·A`, in f64 and without forming the product.
    ///
    /// ‖B·A‖² = trace((BᵀB)(AAᵀ)), two `[rank, rank]` matrices.
    pub fn delta_norm(&self) -> f64 {
        let gram_a = self.gram_of_a();
        let gram_b = self.gram_of_b();
        let squared: f64 = gram_a.iter().zip(&gram_b).map(|(x, y)| x * y).sum();
        squared.max(0.0).sqrt()
    }

    /// `AAᵀ`, `[rank, rank]`.
    fn gram_of_a(&self) -> Vec<f64> {
        let rows: Vec<&[f32]> = self.a.chunks_exact(self.d_in.max(1)).collect();
        let dot = |x: &[f32], y: &[f32]| -> f64 {
            x.iter().zip(y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum()
        };
        rows.iter().flat_map(|x| rows.iter().map(move |y| dot(x, y))).collect()
    }

    /// `BᵀB`, `[rank, rank]`.
    fn gram_of_b(&self) -> Vec<f64> {
        let mut gram = vec![0.0; self.rank * self.rank];
        for row in self.b.chunks_exact(self.rank.max(1)) {
            for (out, &x) in gram.chunks_exact_mut(self.rank.max(1)).zip(row) {
                for (out, &y) in out.iter_mut().zip(row) {
                    *out += f64::from(x) * f64::from(y);
                }
            }
        }
        gram
    }
}

/// Place and value of the first element that is not finite.
pub(crate) fn first_non_finite(values: &[f32]) -> Option<(usize, f32)> {
    values.iter().copied().enumerate().find(|(_, value)| !value.is_finite())
}

#[cfg(test)]
mod tests;
