//! What is linted: an adapter or a model, as its headers and configuration describe it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::AdapterError;
use crate::peft::{CONFIG_FILE, WEIGHTS_FILE};
use crate::safetensors_file::{HeaderFault, read_header};
use crate::weights::{GgufDescription, ModelFiles, Network, describe_gguf};

/// MLX's file of weights.
const MLX_WEIGHTS: &str = "adapters.safetensors";

/// An adapter or a model.
#[derive(Debug)]
pub enum Subject {
    /// An adapter.
    Adapter(AdapterFacts),
    /// A model.
    Model(ModelFacts),
}

/// Formats of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdapterLayout {
    /// A Hugging Face PEFT folder.
    Peft,
    /// A folder of Apple's MLX.
    Mlx,
    /// A GGUF file for llama.cpp.
    Gguf,
}

/// What is known of an adapter.
#[derive(Debug)]
pub struct AdapterFacts {
    /// Its folder or file.
    pub path: PathBuf,
    /// Its format.
    pub layout: AdapterLayout,
    /// `adapter_config.json`; metadata texts of a GGUF.
    pub config: Map<String, Value>,
    /// Shapes of its tensors by name.
    pub tensors: BTreeMap<String, Vec<usize>>,
    /// Bytes of its weights.
    pub bytes: u64,
    /// The weights are a pickle file.
    pub is_pickle: bool,
    /// The base model, where it was found.
    pub base: Option<BaseFacts>,
}

/// What is known of an adapter's base.
#[derive(Debug, Clone)]
pub struct BaseFacts {
    /// `model_type` of its config.
    pub model_type: String,
    /// Whether its weights are quantised.
    pub is_quantised: bool,
}

/// Formats of models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ModelLayout {
    /// A folder in Hugging Face layout.
    Folder,
    /// A GGUF file.
    Gguf,
}

/// What is known of a model.
#[derive(Debug)]
pub struct ModelFacts {
    /// Its folder or file.
    pub path: PathBuf,
    /// Its format.
    pub layout: ModelLayout,
    /// `config.json`; made from the metadata of a GGUF.
    pub config: Value,
    /// Number formats of its tensors.
    pub dtypes: Vec<&'static str>,
    /// Rows of its embedding.
    pub embedding_rows: Option<usize>,
    /// One more than the largest id of its tokenizer; nothing without a `tokenizer.json`.
    pub tokens: Option<u64>,
    /// Whether there is a chat template.
    pub has_chat_template: bool,
    /// `generation_config.json`.
    pub generation_config: Option<Value>,
    /// Files beside it that matter.
    pub files: Vec<String>,
    /// The header of a GGUF.
    pub gguf: Option<GgufDescription>,
}

impl Subject {
    /// Looks at the adapter or model at `path`. `base` is the adapter's base model.
    pub fn open(path: &Path, base: Option<&ModelFiles>) -> Result<Self, AdapterError> {
        if path.join(CONFIG_FILE).is_file() {
            return AdapterFacts::of_folder(path, base).map(Self::Adapter);
        }
        if path.is_file() && has_ending(path, "gguf") {
            let description = describe_gguf(path)?;
            if description.texts.get("general.type").is_some_and(|kind| kind == "adapter") {
                return Ok(Self::Adapter(AdapterFacts::of_gguf(path, description, base)));
            }
        }
        let files = ModelFiles::open(&path.display().to_string(), Network::Offline)?;
        ModelFacts::of(&files).map(Self::Model)
    }
}

fn has_ending(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
}

impl AdapterFacts {
    fn of_folder(path: &Path, base: Option<&ModelFiles>) -> Result<Self, AdapterError> {
        let file = path.join(CONFIG_FILE);
        let text = fs::read(&file).map_err(AdapterError::io("read", &file))?;
        let config: Map<String, Value> = serde_json::from_slice(&text).map_err(|error| {
            AdapterError::ConfigSyntax { path: file.clone(), reason: error.to_string() }
        })?;
        let layout = if config.contains_key("fine_tune_type")
            || (config.contains_key("lora_parameters") && !config.contains_key("peft_type"))
        {
            AdapterLayout::Mlx
        } else {
            AdapterLayout::Peft
        };
        let names = if layout == AdapterLayout::Mlx { MLX_WEIGHTS } else { WEIGHTS_FILE };
        let weights = path.join(names);
        let is_pickle = !weights.is_file() && path.join("adapter_model.bin").is_file();
        let (tensors, bytes) =
            if is_pickle { (BTreeMap::new(), 0) } else { shapes_of(&weights, path)? };
        let base = base.map(BaseFacts::of);
        Ok(Self { path: path.to_owned(), layout, config, tensors, bytes, is_pickle, base })
    }

    fn of_gguf(path: &Path, description: GgufDescription, base: Option<&ModelFiles>) -> Self {
        let config = description.texts.into_iter().map(|(key, text)| (key, text.into()));
        Self {
            path: path.to_owned(),
            layout: AdapterLayout::Gguf,
            config: config.collect(),
            tensors: description.tensors,
            bytes: fs::metadata(path).map_or(0, |metadata| metadata.len()),
            is_pickle: false,
            base: base.map(BaseFacts::of),
        }
    }

    /// Whether a key of the config asks for something: neither null, false, `"none"` nor empty.
    pub(super) fn asks_for(&self, key: &str) -> bool {
        match self.config.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(word)) => !word.is_empty() && word != "none",
            Some(Value::Array(items)) => !items.is_empty(),
            Some(Value::Object(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }

    /// A key as the file has it, for a message.
    pub(super) fn shown(&self, key: &str) -> String {
        let value = self.config.get(key).map(Value::to_string).unwrap_or_default();
        let cut: String = value.chars().take(60).collect();
        if cut.len() < value.len() {
            format!("`{key}` = {cut}...")
        } else {
            format!("`{key}` = {value}")
        }
    }

    /// Ranks of the updates, by the shapes of their first factors; sorted, each once.
    pub(super) fn ranks(&self) -> Vec<usize> {
        let rank = |(name, shape): (&String, &Vec<usize>)| {
            let is_first = name.contains(".lora_A.") || name.ends_with(".lora_a");
            let rows = if self.layout == AdapterLayout::Mlx { shape.last() } else { shape.first() };
            is_first.then(|| rows.copied()).flatten()
        };
        let mut ranks: Vec<usize> = self.tensors.iter().filter_map(rank).collect();
        ranks.sort_unstable();
        ranks.dedup();
        ranks
    }

    /// `r` of the config, else the largest rank of a tensor.
    pub(super) fn largest_rank(&self) -> usize {
        let said = self.config.get("r").and_then(Value::as_u64).unwrap_or(0) as usize;
        self.ranks().last().copied().unwrap_or(0).max(said)
    }

    /// Tensors whose names contain one of `parts`, the first of them.
    pub(super) fn tensor_with(&self, parts: &[&str]) -> Option<&str> {
        let fits = |name: &&String| parts.iter().any(|part| name.contains(part));
        self.tensors.keys().find(fits).map(String::as_str)
    }

    /// The way of starting that changed the base's weights too, where there was one.
    pub(super) fn base_changing_start(&self) -> Option<&str> {
        const STARTS: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
        let start = self.config.get("init_lora_weights")?.as_str()?;
        STARTS.iter().any(|known| start.to_ascii_lowercase().starts_with(known)).then_some(start)
    }
}

impl BaseFacts {
    fn of(files: &ModelFiles) -> Self {
        let model_type = files.config()["model_type"].as_str().unwrap_or_default().to_owned();
        Self { model_type, is_quantised: files.is_quantised() }
    }
}

fn shapes_of(
    path: &Path,
    folder: &Path,
) -> Result<(BTreeMap<String, Vec<usize>>, u64), AdapterError> {
    if !path.is_file() {
        return Err(AdapterError::NoWeights { path: folder.to_owned() });
    }
    let mut file = File::open(path).map_err(AdapterError::io("open", path))?;
    let header = read_header(&mut file).map_err(|fault| match fault {
        HeaderFault::Io(source) => AdapterError::io("read", path)(source),
        HeaderFault::Invalid(reason) => {
            AdapterError::WeightsHeader { path: path.to_owned(), reason }
        }
    })?;
    let bytes = header.metadata.data_len() as u64;
    let shapes = header.metadata.tensors();
    Ok((shapes.into_iter().map(|(name, info)| (name, info.shape.clone())).collect(), bytes))
}

impl ModelFacts {
    fn of(files: &ModelFiles) -> Result<Self, AdapterError> {
        let location = files.location();
        let is_gguf = has_ending(location, "gguf");
        let entries = files.weights().entries();
        let mut dtypes: Vec<_> = entries.values().map(|entry| entry.dtype.name()).collect();
        dtypes.sort_unstable();
        dtypes.dedup();
        let json = |name: &str| -> Result<Option<Value>, AdapterError> {
            let bytes = files.side_file(name)?;
            Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()))
        };
        let tokenizer_config = json("tokenizer_config.json")?.unwrap_or_default();
        let has_template = files.side_file("chat_template.jinja")?.is_some()
            || !tokenizer_config["chat_template"].is_null();
        let embedding = ["model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"]
            .into_iter()
            .chain(["gpt_neox.embed_in.weight"])
            .find_map(|name| entries.get(name));
        let folder = if is_gguf { location.parent() } else { Some(location) };
        Ok(Self {
            path: location.to_owned(),
            layout: if is_gguf { ModelLayout::Gguf } else { ModelLayout::Folder },
            config: files.config().clone(),
            dtypes,
            embedding_rows: embedding.map(crate::weights::TensorEntry::rows),
            tokens: json("tokenizer.json")?.as_ref().map(token_count),
            has_chat_template: has_template,
            generation_config: json("generation_config.json")?,
            files: folder.map(names_in).unwrap_or_default(),
            gguf: if is_gguf { Some(describe_gguf(location)?) } else { None },
        })
    }

    /// `model_type` of the config.
    pub(super) fn model_type(&self) -> &str {
        self.config["model_type"].as_str().unwrap_or_default()
    }

    /// Whether the base of the rotary frequencies stands only where transformers 5 puts it.
    pub(super) fn has_nested_rope_theta_only(&self) -> bool {
        self.config["rope_theta"].is_null()
            && self.config["rope_parameters"]["rope_theta"].is_number()
    }
}

fn names_in(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut names: Vec<_> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort_unstable();
    names
}

/// One more than the largest id.
fn token_count(tokenizer: &Value) -> u64 {
    let words = tokenizer["model"]["vocab"].as_object();
    let words = words.into_iter().flat_map(|table| table.values()).filter_map(Value::as_u64);
    let pieces = tokenizer["model"]["vocab"].as_array().map_or(0, Vec::len) as u64;
    let added = tokenizer["added_tokens"].as_array().into_iter().flatten();
    let added = added.filter_map(|row| row["id"].as_u64());
    words.chain(added).max().map_or(0, |id| id + 1).max(pieces)
}
