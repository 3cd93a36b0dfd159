//! What `evaluate` and `generate` run: a model, an adapter over its base, or the adapter of a run.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use adapters::weights::{ModelFiles, Network, UntiedHead};
use adapters::{AdapterWeights, PeftConfig, read_adapter};
use burn::tensor::{DType, Device, Tensor};
use datasets::Tokenizer;
use trainer::RopeScalingConfig;
use trainer::base_model::{Decoder, ModelLoader, linear_layers};

use crate::base_format;
use crate::device::DeviceKind;
use crate::diagnostics::UserError;
use crate::named::BaseParts;

/// A target whose parts are known and whose weights are not read yet.
pub struct Target {
    /// As it was named.
    pub name: String,
    /// The model, or the adapter's base.
    pub base: BaseParts,
    /// The adapter, where there is one.
    pub adapter: Option<(PeftConfig, AdapterWeights)>,
}

/// The folder of an adapter: `path` itself, or `adapter/` in a run folder.
pub fn adapter_folder(path: &Path) -> Option<PathBuf> {
    [path.to_path_buf(), path.join("adapter")]
        .into_iter()
        .find(|folder| folder.join("adapter_config.json").is_file())
}

/// The run that an adapter, a checkpoint or a run folder belongs to.
pub fn run_of_adapter(given: &Path) -> Option<PathBuf> {
    let folder = std::path::absolute(adapter_folder(given)?).ok()?;
    let mut above = folder.ancestors().skip(1).take(2);
    above.find(|run| run.join("recipe.toml").is_file()).map(Path::to_owned)
}

impl Target {
    /// Opens a target; `base` replaces the base that an adapter names.
    pub fn open(name: &str, base: Option<&str>, network: Network) -> anyhow::Result<Self> {
        let path = Path::new(name);
        let Some(folder) = adapter_folder(path) else {
            refuse_unfinished_run(path)?;
            let base =
                BaseParts::open(&single_gguf(path).unwrap_or_else(|| name.to_owned()), network)?;
            return Ok(Self { name: name.to_owned(), base, adapter: None });
        };
        let (peft, weights) = read_adapter(&folder)?;
        let mut base = base_of(&folder, &peft, base, network)?;
        base.take_whole(&weights, UntiedHead::WhereDifferent)?;
        let layers = linear_layers(&base.config);
        let (peft, weights) = adapters::fit_experts(peft, weights, &layers);
        adapters::targets_of_adapter(&peft, &weights, &layers)?;
        Ok(Self { name: name.to_owned(), base, adapter: Some((peft, weights)) })
    }

    /// Reads the weights.
    pub fn load(&self, device: &Device, dtype: DType) -> anyhow::Result<Decoder> {
        let kind = if kernels::on_host(&Tensor::<1>::zeros([1], device)) {
            DeviceKind::Cpu
        } else {
            DeviceKind::Cuda
        };
        let (files, config) = (&self.base.files, &self.base.config);
        // What is off is in the words of `tunesmith doctor`.
        crate::device::prepare_heads(config.head_dim)?;
        let format = base_format::dense_or_stored(files, config, dtype, kind);
        let mut decoder = ModelLoader::new(files, device, format)?.decoder()?;
        if let Some((peft, weights)) = &self.adapter {
            decoder.attach(peft, weights);
        }
        Ok(decoder)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.base.tokenizer
    }
}

/// Refuses a base other than the one that a run trained an adapter on, as far as that is known:
/// by the hashes in the run's lock file, and by the tokenizer that was saved beside the adapter.
pub fn check_base(folder: &Path, base: &ModelFiles) -> anyhow::Result<()> {
    let hint = "name the base of the run with `--base`, or merge into another one on purpose \
                with `--allow-other-base`";
    let lock = crate::provenance::lock_above(folder);
    if let Some((path, lock)) = lock
        && let Some(file) = lock.other_base_file(&base.weight_files())?
    {
        let message = format!(
            "`{}` is not what the adapter was trained on: `{}` holds no file of its hash",
            file.display(),
            path.display()
        );
        return Err(UserError::new(message, hint).into());
    }
    let saved = std::fs::read(folder.join("tokenizer.json")).ok();
    let own = base.side_file("tokenizer.json")?;
    let pair = saved.as_deref().and_then(vocabulary).zip(own.as_deref().and_then(vocabulary));
    if let Some((saved, own)) = pair
        && let Some((token, id)) = saved.iter().find(|(token, id)| own.get(*token) != Some(id))
    {
        let found =
            own.get(token).map_or("has no such token".to_owned(), |id| format!("has it as {id}"));
        let message = format!(
            "the adapter was trained with another vocabulary: its token {id} is `{}`, the base {found}",
            token.escape_debug()
        );
        return Err(UserError::new(message, hint).into());
    }
    Ok(())
}

/// Refuses models whose tokens mean different things.
pub fn check_vocabulary(first: &ModelFiles, other: &ModelFiles) -> anyhow::Result<()> {
    let read = |files: &ModelFiles| files.side_file("tokenizer.json");
    let pair = read(first)?.as_deref().and_then(vocabulary);
    let pair = pair.zip(read(other)?.as_deref().and_then(vocabulary));
    let Some((of_first, of_other)) = pair else { return Ok(()) };
    let Some((token, id)) = of_first.iter().find(|(token, id)| of_other.get(*token) != Some(id))
    else {
        return Ok(());
    };
    let message = format!(
        "`{}` and `{}` have other vocabularies: token {id} of the first is `{}`",
        first.location().display(),
        other.location().display(),
        token.escape_debug()
    );
    Err(UserError::new(message, "only tunes of one base model can be merged").into())
}

/// Tokens of a `tokenizer.json` with their ids; nothing where it is not of the usual kind.
fn vocabulary(bytes: &[u8]) -> Option<BTreeMap<String, u64>> {
    let json: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let words = json["model"]["vocab"].as_object()?.iter();
    let words = words.filter_map(|(word, id)| Some((word.clone(), id.as_u64()?)));
    let added = json["added_tokens"].as_array().into_iter().flatten();
    let added =
        added.filter_map(|row| Some((row["content"].as_str()?.to_owned(), row["id"].as_u64()?)));
    Some(words.chain(added).collect())
}

/// What an adapter needs besides PEFT's files: the longer context that it was trained for.
const ROPE_SCALING: &str = "rope_scaling.json";

/// The longer context that an adapter was trained for, from its folder, or from the run that a
/// checkpoint lies in.
fn rope_scaling(folder: &Path) -> anyhow::Result<Option<RopeScalingConfig>> {
    let above = folder.parent().filter(|above| above.ends_with("checkpoints"));
    for folder in [Some(folder), above.and_then(Path::parent)].into_iter().flatten() {
        let path = folder.join(ROPE_SCALING);
        let Ok(bytes) = std::fs::read(&path) else { continue };
        let scaling = serde_json::from_slice(&bytes).map_err(|error| {
            let message = format!("`{}` is no `rope_scaling` table: {error}", path.display());
            UserError::new(message, "copy the file out of the run again")
        })?;
        return Ok(Some(scaling));
    }
    Ok(None)
}

/// The longer context that all of some adapters were trained for; those that differ do not go
/// together.
pub fn shared_rope_scaling(folders: &[PathBuf]) -> anyhow::Result<Option<RopeScalingConfig>> {
    let Some((first, others)) = folders.split_first() else { return Ok(None) };
    let scaling = rope_scaling(first)?;
    for other in others {
        if rope_scaling(other)? != scaling {
            let message = format!(
                "`{}` and `{}` were trained for contexts of other lengths (`{ROPE_SCALING}`)",
                first.display(),
                other.display()
            );
            let hint = "put together only adapters of one `[rope_scaling]`";
            return Err(UserError::new(message, hint).into());
        }
    }
    Ok(scaling)
}

/// Refuses to write an adapter in a format that has no place for the longer context that it was
/// trained for.
pub fn refuse_rope_scaling(folder: &Path, format: &str) -> anyhow::Result<()> {
    if rope_scaling(folder)?.is_none() {
        return Ok(());
    }
    let message = format!(
        "`{}` was trained for a longer context (`{ROPE_SCALING}`), which {format} adapters cannot \
         say",
        folder.display()
    );
    let hint = "merge it: `tunesmith merge ADAPTER --output DIR` writes the longer context";
    Err(UserError::new(message, hint).into())
}

/// Puts the longer context of a recipe beside an adapter.
pub fn write_rope_scaling(folder: &Path, scaling: &RopeScalingConfig) -> anyhow::Result<()> {
    let mut bytes = serde_json::to_vec_pretty(scaling)?;
    bytes.push(b'\n');
    crate::printer::write_atomically(&folder.join(ROPE_SCALING), &bytes)?;
    Ok(())
}

/// The base model of an adapter: the one given, else the one it names.
pub fn base_of(
    folder: &Path,
    peft: &PeftConfig,
    given: Option<&str>,
    network: Network,
) -> anyhow::Result<BaseParts> {
    let hint = "name the base model's folder with `--base`";
    let Some(spec) = given.or(peft.base_model_name_or_path.as_deref()) else {
        let message = format!("`{}` does not say which base model it is for", folder.display());
        return Err(UserError::new(message, hint).into());
    };
    let location = single_gguf(Path::new(spec)).unwrap_or_else(|| spec.to_owned());
    let opened = BaseParts::open(&location, network).and_then(|mut base| {
        base.extend_context(rope_scaling(folder)?.as_ref())?;
        Ok(base)
    });
    opened.map_err(|error| {
        if given.is_some() {
            return error;
        }
        let (message, own_hint) = crate::diagnostics::message_and_hint(&error);
        let message =
            format!("the base model of `{}` cannot be opened: {message}", folder.display());
        let own_hint = own_hint.map_or(String::new(), |own| format!("; {own}"));
        UserError::new(message, format!("{hint}{own_hint}")).into()
    })
}

/// The file of a folder that holds one `.gguf` and no HF model.
fn single_gguf(path: &Path) -> Option<String> {
    if !path.is_dir() || path.join("config.json").exists() {
        return None;
    }
    let is_gguf = |path: &PathBuf| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    let entries = std::fs::read_dir(path).ok()?.flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> = entries.filter(is_gguf).collect();
    match (files.pop(), files.pop()) {
        (Some(file), None) => file.to_str().map(str::to_owned),
        _ => None,
    }
}

fn refuse_unfinished_run(path: &Path) -> anyhow::Result<()> {
    if path.join("recipe.toml").is_file() && path.join("checkpoints").is_dir() {
        let message =
            format!("the run in `{}` is not finished: it has no `adapter/`", path.display());
        let hint = "finish it with `tunesmith train`, or name one of its `checkpoints/step-...`";
        return Err(UserError::new(message, hint).into());
    }
    Ok(())
}
