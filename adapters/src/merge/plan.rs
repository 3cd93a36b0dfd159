//! Decides from headers what a merge will write, and refuses what would not be faithful.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::delta::{BLOCK_ELEMENTS, Rescale, add_low_rank, norm_factor};
use super::round::OutputDtype;
use super::{MergeDtype, MergeError, MergeRequest};
use crate::error::TensorProblem;
use crate::peft::{LoraFactors, WholeTensor};
use crate::safetensors_file::TensorSpec;
use crate::target::HEAD;
use crate::weights::{GgufFileType, TensorEntry};

/// A merge that is known to fit, not yet made.
pub struct MergePlan<'a> {
    pub(super) request: MergeRequest<'a>,
    pub(super) dtype: OutputDtype,
    pub(super) tensors: Vec<PlannedTensor<'a>>,
    /// Places in `tensors`, one range for each file.
    pub(super) shards: Vec<Range<usize>>,
    pub(super) left_out: Vec<String>,
    pub(super) zero_deltas: Vec<String>,
    /// Tensors of the adapter that say what another one says: the head of a tied pair.
    pub(super) said_twice: usize,
}

/// A tensor of the output.
pub(super) struct PlannedTensor<'a> {
    pub(super) name: &'a str,
    /// Its name in the file.
    pub(super) stored_name: &'a str,
    pub(super) entry: &'a TensorEntry,
    pub(super) dtype: OutputDtype,
    pub(super) update: Option<PlannedUpdate<'a>>,
    /// The adapter's tensor that takes its place, before any update.
    pub(super) whole: Option<&'a WholeTensor>,
    /// Which of how many it is, where the file has several of them as one.
    pub(super) part: Option<(usize, usize)>,
}

/// The update of a tensor.
pub(super) struct PlannedUpdate<'a> {
    /// Of the weight as it is stored.
    pub(super) factors: Cow<'a, LoraFactors>,
    pub(super) scale: f64,
    /// Frobenius norm of `scale·B·A`.
    pub(super) delta_norm: f64,
    /// What DoRA does after.
    pub(super) rescale: Rescale<'a>,
}

impl PlannedTensor<'_> {
    /// The file's tensor, which the first of several stands for.
    pub(super) fn spec(&self) -> Option<TensorSpec> {
        let parts = match self.part {
            None => None,
            Some((0, count)) => Some(count),
            Some(_) => return None,
        };
        Some(TensorSpec {
            name: self.stored_name.to_owned(),
            dtype: self.dtype.in_header(),
            shape: parts.into_iter().chain(self.entry.shape.iter().copied()).collect(),
        })
    }

    /// Parts of one tensor stay in one file.
    fn is_first(&self) -> bool {
        self.part.is_none_or(|(index, _)| index == 0)
    }

    /// Bytes of the file's tensor that begins here.
    fn whole_bytes(&self) -> u64 {
        self.bytes() * self.part.map_or(1, |(_, count)| count as u64)
    }

    /// Tensors of the adapter that go into this one.
    pub(super) fn adapter_tensors(&self) -> usize {
        let of_update = match self.update.as_ref().map(|update| &update.rescale) {
            None => 0,
            Some(Rescale::None) => 2,
            Some(_) => 3,
        };
        of_update + usize::from(self.whole.is_some())
    }

    /// Whether the adapter touches it.
    pub(super) fn is_updated(&self) -> bool {
        self.update.is_some() || self.whole.is_some()
    }

    pub(super) fn bytes(&self) -> u64 {
        self.entry.elements() as u64 * self.dtype.bytes() as u64
    }
}

impl MergePlan<'_> {
    /// Bytes of all tensors that will be written.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.iter().map(PlannedTensor::bytes).sum()
    }

    /// Weight files that will be written.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Type of the merged weights, as `config.json` will name it.
    pub fn dtype_name(&self) -> &'static str {
        self.dtype.config_name()
    }

    /// The type of a GGUF file that holds the merge without quantising it.
    pub fn gguf_file_type(&self) -> GgufFileType {
        match self.dtype {
            OutputDtype::F32 => GgufFileType::F32,
            OutputDtype::F16 => GgufFileType::F16,
            OutputDtype::Bf16 => GgufFileType::Bf16,
        }
    }

    /// Modules whose update is zero; worth a warning.
    pub fn zero_deltas(&self) -> &[String] {
        &self.zero_deltas
    }
}

/// Maps every module of the adapter to the one tensor it changes, and lays out the files.
pub fn plan_merge<'a>(request: &MergeRequest<'a>) -> Result<MergePlan<'a>, MergeError> {
    let (mut updates, zero_deltas) = updates_by_tensor(request)?;
    let dtype = model_dtype(request);
    let mut left_out = Vec::new();
    let mut tensors = Vec::new();
    for (name, entry) in request.base.weights().entries() {
        if is_tied_head(request, name) {
            left_out.push(name.clone());
            continue;
        }
        let update = updates.remove(name.as_str());
        let whole = request.adapter.1.whole.get(name);
        let dtype = tensor_dtype(request, name, entry);
        let part = request.base.weights().part_of(name);
        let stored_name = match part {
            Some(part) => part.whole.as_str(),
            None => request.base.weights().stored_name(name),
        };
        let part = part.map(|part| (part.index, part.count));
        tensors.push(PlannedTensor { name, stored_name, entry, dtype, update, whole, part });
    }
    if tensors.iter().any(|tensor| tensor.part.is_some()) {
        tensors.sort_by_key(|tensor| (tensor.stored_name, tensor.part));
    }
    let shards = shards(&tensors, request.max_shard_bytes);
    let whole = request.adapter.1.whole.keys();
    let said_twice = whole.filter(|name| !request.base.weights().replaces(name)).count();
    let request = *request;
    Ok(MergePlan { request, dtype, tensors, shards, left_out, zero_deltas, said_twice })
}

type Updates<'a> = BTreeMap<String, PlannedUpdate<'a>>;

/// Updates by the name of the tensor they change, and the modules whose update is zero.
fn updates_by_tensor<'a>(
    request: &MergeRequest<'a>,
) -> Result<(Updates<'a>, Vec<String>), MergeError> {
    let (config, weights) = request.adapter;
    let mut updates = Updates::new();
    let mut problems = Vec::new();
    let mut zero_deltas = Vec::new();
    for name in weights.whole.keys().filter(|name| !request.base.holds_whole(name)) {
        problems.push(TensorProblem::new(name, "has no place in the base"));
    }
    for (module, factors) in &weights.modules {
        match planned_update(request, module, factors) {
            Err(reason) => problems.push(TensorProblem::new(module, reason)),
            Ok(update) => {
                if update.delta_norm == 0.0 && !config.use_dora {
                    zero_deltas.push(module.clone());
                }
                updates.insert(format!("{module}.weight"), update);
            }
        }
    }
    if !problems.is_empty() {
        let base = request.base.location().to_owned();
        return Err(MergeError::Misfit { base, problems });
    }
    match zero_deltas.first() {
        // A mix of models is an update by itself.
        _ if weights.modules.is_empty() && weights.whole.is_empty() && !request.base.is_mixed() => {
            Err(MergeError::Empty)
        }
        Some(example) if weights.whole.is_empty() && zero_deltas.len() == weights.modules.len() => {
            Err(MergeError::ZeroDelta { modules: zero_deltas.len(), example: example.clone() })
        }
        _ => Ok((updates, zero_deltas)),
    }
}

fn planned_update<'a>(
    request: &MergeRequest<'a>,
    module: &str,
    factors: &'a LoraFactors,
) -> Result<PlannedUpdate<'a>, String> {
    let (config, weights) = request.adapter;
    check_place(request, module, factors)?;
    if let Some(fault) = factors.fault() {
        return Err(fault);
    }
    if let Some(fault) = weights.magnitude_fault(module, config) {
        return Err(fault);
    }
    let configured = config.rank(module);
    if configured != factors.rank {
        return Err(format!("has rank {}, but the config says {configured}", factors.rank));
    }
    let scale = config.scale(module);
    let delta_norm = scale.abs() * factors.delta_norm();
    if !(scale as f32).is_finite() || !delta_norm.is_finite() {
        return Err(format!("has scale {scale} and an update of norm {delta_norm}"));
    }
    let magnitude = weights.magnitudes.get(module);
    let name = format!("{module}.weight");
    if !request.base.stores_transposed(&name) {
        let rescale = magnitude.map_or(Rescale::None, |norms| Rescale::RowNorms(norms));
        return Ok(PlannedUpdate { factors: Cow::Borrowed(factors), scale, delta_norm, rescale });
    }
    let factors = factors.transposed();
    let rescale = match magnitude {
        None => Rescale::None,
        Some(wanted) => {
            let sums = column_square_sums(request, &name, &factors, scale as f32)?;
            let pairs = wanted.iter().zip(sums);
            Rescale::ColumnFactors(pairs.map(|(&norm, sum)| norm_factor(norm, sum)).collect())
        }
    };
    Ok(PlannedUpdate { factors: Cow::Owned(factors), scale, delta_norm, rescale })
}

/// Sums of squares of the columns of `W + scale·B·A`. Unlike the rest of a plan this reads the
/// weight: where outputs are columns, DoRA cannot scale the first row without having seen the last.
fn column_square_sums(
    request: &MergeRequest,
    name: &str,
    factors: &LoraFactors,
    scale: f32,
) -> Result<Vec<f64>, String> {
    let source = request.base.weights();
    let mut sums = vec![0.0; factors.d_in];
    let rows_of_block = (BLOCK_ELEMENTS / factors.d_in.max(1)).max(1);
    for start in (0..factors.d_out).step_by(rows_of_block) {
        let end = factors.d_out.min(start + rows_of_block);
        let mut rows = source.read_rows_f32(name, start..end).map_err(|error| error.to_string())?;
        add_low_rank(&mut rows, start, factors, scale);
        for row in rows.chunks_exact(factors.d_in.max(1)) {
            for (sum, &value) in sums.iter_mut().zip(row) {
                *sum += f64::from(value) * f64::from(value);
            }
        }
        source.release(name);
    }
    Ok(sums)
}

/// Whether the base has exactly the matrix that the module's update fits.
fn check_place(request: &MergeRequest, module: &str, factors: &LoraFactors) -> Result<(), String> {
    let name = format!("{module}.weight");
    if name.ends_with("embed_tokens.weight") {
        return Err("is an embedding, and updates of embeddings are not supported".to_owned());
    }
    if is_tied_head(request, &name) {
        return Err("is tied to the embedding (`tie_word_embeddings`): it has no weights of its \
                    own to merge into"
            .to_owned());
    }
    let Some(entry) = request.base.weights().entries().get(&name) else {
        let tied = if module == HEAD { ", its head is the embedding" } else { "" };
        return Err(format!("has no tensor `{name}` in the base{tied}"));
    };
    let LoraFactors { d_in, d_out, .. } = *factors;
    let wanted = if request.base.stores_transposed(&name) { [d_in, d_out] } else { [d_out, d_in] };
    if entry.shape != wanted {
        let shape = &entry.shape;
        return Err(format!("is made for a weight {wanted:?}, the base has {shape:?}"));
    }
    Ok(())
}

/// A stored head that loaders replace by the embedding, because the config ties them.
fn is_tied_head(request: &MergeRequest, name: &str) -> bool {
    let tied = request.base.config().get("tie_word_embeddings").and_then(Value::as_bool);
    name == "lm_head.weight" && tied == Some(true)
}

fn tensor_dtype(request: &MergeRequest, name: &str, entry: &TensorEntry) -> OutputDtype {
    match request.dtype {
        // Rotary frequencies that old checkpoints carry are lost in 16 bit; so are the small steps of
        // the bias that balances experts.
        _ if name.ends_with(".inv_freq") || name.ends_with(".e_score_correction_bias") => {
            OutputDtype::keeping(entry.dtype)
        }
        MergeDtype::F32 => OutputDtype::F32,
        MergeDtype::F16 => OutputDtype::F16,
        MergeDtype::Bf16 => OutputDtype::Bf16,
        MergeDtype::Same if request.base.is_quantised() => OutputDtype::F16,
        MergeDtype::Same => OutputDtype::keeping(entry.dtype),
    }
}

/// The type that most of the model's elements will have.
fn model_dtype(request: &MergeRequest) -> OutputDtype {
    let mut elements = [(OutputDtype::F32, 0), (OutputDtype::F16, 0), (OutputDtype::Bf16, 0)];
    for (name, entry) in request.base.weights().entries() {
        let dtype = tensor_dtype(request, name, entry);
        for (known, count) in &mut elements {
            if *known == dtype {
                *count += entry.elements();
            }
        }
    }
    elements.iter().max_by_key(|(_, count)| *count).map_or(OutputDtype::F32, |(dtype, _)| *dtype)
}

/// Fills files in order; a file is closed before the tensor that would push it over the limit.
fn shards(tensors: &[PlannedTensor], max_bytes: u64) -> Vec<Range<usize>> {
    let mut shards = Vec::new();
    let mut start = 0;
    let mut bytes = 0_u64;
    for (place, tensor) in tensors.iter().enumerate() {
        let is_full = tensor.is_first() && bytes + tensor.whole_bytes() > max_bytes;
        if place > start && is_full {
            shards.push(start..place);
            start = place;
            bytes = 0;
        }
        bytes += tensor.bytes();
    }
    shards.push(start..tensors.len());
    shards
}

/// Name of weight file `place` out of `count`.
pub(super) fn shard_name(place: usize, count: usize) -> String {
    if count == 1 {
        "model.safetensors".to_owned()
    } else {
        format!("model-{:05}-of-{count:05}.safetensors", place + 1)
    }
}

/// Whether `name` is a file name, or one in a folder of named chat templates, and nothing that
/// leads elsewhere.
pub(super) fn is_inside(name: &str) -> bool {
    let parts: Vec<_> = Path::new(name).components().collect();
    parts.len() <= 2
        && parts.iter().all(|part| matches!(part, Component::Normal(_)))
        && parts.iter().collect::<PathBuf>().as_os_str() == name
}
