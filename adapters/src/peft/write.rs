//! Writes an adapter folder: the same adapter gives the same bytes.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;

use super::converted::for_whole_base;
use super::{
    A_SUFFIX, AdapterWeights, B_SUFFIX, BASE_LAYER, CONFIG_FILE, LoraFactors, MAGNITUDE_SUFFIX,
    PeftConfig, TENSOR_PREFIX, WEIGHTS_FILE, WholeTensor, config_json, experts,
};
use crate::error::{AdapterError, TensorProblem};
use crate::safetensors_file::{TensorSpec, header, write_f32};

/// Writes `adapter_config.json` and `adapter_model.safetensors` into `dir`, which is made where
/// it is missing.
///
/// An adapter that began as a part of the base is written as one that fits the whole base, at twice
/// the rank. Each file gets its name when it is complete and on disk. Tensors are f32, in the order of
/// their names.
pub fn write_adapter(
    dir: &Path,
    config: &PeftConfig,
    weights: &AdapterWeights,
) -> Result<(), AdapterError> {
    let (config, weights) = for_whole_base(config, weights);
    let problems = problems(&config, &weights);
    if !problems.is_empty() {
        return Err(AdapterError::Unwritable { path: dir.to_owned(), problems });
    }
    fs::create_dir_all(dir).map_err(AdapterError::io("create the folder", dir))?;
    let joined = experts::joined(&config, &weights)
        .map_err(|problems| AdapterError::Unwritable { path: dir.to_owned(), problems })?;
    let tensors = named_tensors(&joined, &weights);
    let specs: Vec<_> = tensors.iter().map(|(spec, _)| spec.clone()).collect();
    replace_file(&dir.join(WEIGHTS_FILE), |out| {
        out.write_all(&header(&specs))?;
        tensors.iter().try_for_each(|(_, values)| write_f32(out, values))
    })?;
    let text = config_json::to_text(&config, &experts::parameter_settings(&config, &weights));
    replace_file(&dir.join(CONFIG_FILE), |out| out.write_all(text.as_bytes()))?;
    sync_folder(dir).map_err(AdapterError::io("sync the folder", dir))
}

fn problems(config: &PeftConfig, weights: &AdapterWeights) -> Vec<TensorProblem> {
    let problem = |(module, factors): (&String, &LoraFactors)| {
        let rank = config.rank(module);
        let mismatch = || {
            let reason = format!("has rank {}, but the config says {rank}", factors.rank);
            (factors.rank != rank).then_some(reason)
        };
        let magnitude = || weights.magnitude_fault(module, config);
        let reason = factors.fault().or_else(mismatch).or_else(magnitude)?;
        Some(TensorProblem::new(module, reason))
    };
    let of_whole =
        |(name, tensor): (&String, &WholeTensor)| Some(TensorProblem::new(name, tensor.fault()?));
    let of_modules = weights.modules.iter().filter_map(problem);
    of_modules.chain(weights.whole.iter().filter_map(of_whole)).collect()
}

/// Sorted by name: modules are, but `a.b` may sort before `a.b.lora_A.weight`'s neighbours.
fn named_tensors<'a>(
    modules: &'a BTreeMap<String, LoraFactors>,
    weights: &'a AdapterWeights,
) -> Vec<(TensorSpec, &'a [f32])> {
    let spec = |module: &str, suffix: &str, shape: Vec<usize>| TensorSpec {
        name: format!("{TENSOR_PREFIX}{module}{suffix}"),
        dtype: Dtype::F32,
        shape,
    };
    let mut tensors: Vec<_> = modules
        .iter()
        .flat_map(|(module, f)| {
            [
                (spec(module, A_SUFFIX, vec![f.rank, f.d_in]), f.a.as_slice()),
                (spec(module, B_SUFFIX, vec![f.d_out, f.rank]), f.b.as_slice()),
            ]
        })
        .chain(weights.magnitudes.iter().map(|(module, values)| {
            (spec(module, MAGNITUDE_SUFFIX, vec![values.len()]), values.as_slice())
        }))
        .chain(weights.whole.iter().map(|(name, tensor)| {
            let name = stored_name(modules, name);
            (spec("", &name, tensor.shape.clone()), tensor.values.as_slice())
        }))
        .collect();
    tensors.sort_by(|(x, _), (y, _)| x.name.cmp(&y.name));
    tensors
}

/// PEFT's name of a tensor that takes the place of the base's: an updated module keeps its own
/// tensors one step further down.
fn stored_name(modules: &BTreeMap<String, LoraFactors>, tensor: &str) -> String {
    match tensor.rsplit_once('.') {
        Some((module, kind)) if modules.contains_key(module) => {
            format!("{module}{BASE_LAYER}.{kind}")
        }
        _ => tensor.to_owned(),
    }
}

/// Writes a file beside `path`, then gives it that name. What is unfinished is removed.
fn replace_file(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<(), AdapterError> {
    let partial = partial_name(path);
    let written = write_synced(&partial, write).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The write's error is the one to report, whether or not the remains can be removed.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(AdapterError::io("write", path))
}

fn write_synced(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    write(&mut out)?;
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
}

fn partial_name(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

/// Makes renames in `dir` last through a power cut.
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
