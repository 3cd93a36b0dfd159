//! A model folder in HF layout: `config.json`, safetensors (one file or shards with an index), and
//! the files beside them.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
};

use serde::Deserialize;
use serde_json::Value;

use super::{
    TensorEntry, TensorPart, WeightSource, WeightsError,
    decode::{RowOrder, StoredRows},
    fused_experts,
    mapped_file::MappedFile,
    names, safetensors,
};

pub(super) const CONFIG: &str = "config.json";
pub(super) const SINGLE: &str = "model.safetensors";
pub(super) const INDEX: &str = "model.safetensors.index.json";
/// The model card.
pub(super) const CARD: &str = "README.md";
/// Where a base keeps its named chat templates, as `NAME.jinja`.
const NAMED_TEMPLATES: &str = "additional_chat_templates";

/// Head and embedding, as families call them.
const HEADS: &[(&str, &str)] = &[
    ("lm_head.weight", "model.embed_tokens.weight"),
    ("lm_head.weight", "transformer.wte.weight"),
    ("lm_head.weight", "gpt_neox.embed_in.weight"),
    ("language_model.lm_head.weight", "language_model.model.embed_tokens.weight"),
];
/// Bytes of two tensors that are compared before their pages are given back.
const COMPARED_BYTES: usize = 32 << 20;

/// Endings of tensor names that only quantised checkpoints have, with the method.
const QUANTISED_TENSORS: &[(&str, &str)] = &[
    (".qweight", "GPTQ or AWQ"),
    (".qzeros", "GPTQ or AWQ"),
    (".SCB", "bitsandbytes int8"),
    (".quant_state.bitsandbytes__nf4", "bitsandbytes NF4"),
    (".quant_state.bitsandbytes__fp4", "bitsandbytes FP4"),
    (".weight_scale", "FP8 or compressed-tensors"),
    (".weight_scale_inv", "FP8"),
    (".weight_packed", "compressed-tensors"),
];

/// An opened folder.
pub(super) struct FolderModel {
    path: PathBuf,
    config: Value,
    shards: Vec<MappedFile>,
    entries: BTreeMap<String, TensorEntry>,
    /// Shard and bytes of each tensor.
    places: BTreeMap<String, (usize, Range<usize>)>,
    /// Names in the file of tensors whose modules are called otherwise.
    stored_names: BTreeMap<String, String>,
    /// Tensors that are parts of one in the file.
    parts: BTreeMap<String, TensorPart>,
    /// What was found and set right.
    warnings: Vec<String>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl FolderModel {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let config = read_config(path)?;
        let mut model = Self {
            path: path.to_owned(),
            config,
            shards: Vec::new(),
            entries: BTreeMap::new(),
            places: BTreeMap::new(),
            stored_names: BTreeMap::new(),
            parts: BTreeMap::new(),
            warnings: Vec::new(),
        };
        // The order in which transformers looks, where a folder has both.
        if path.join(SINGLE).is_file() {
            model.add_shard(&path.join(SINGLE))?;
        } else if path.join(INDEX).is_file() {
            model.open_shards()?;
        } else {
            return Err(no_weights(path));
        }
        model.rename()?;
        model.untie_head();
        model.parts = fused_experts::split(&model.config, &mut model.entries, &mut model.places);
        Ok(model)
    }

    /// Calls tensors by the names of their modules.
    fn rename(&mut self) -> Result<(), WeightsError> {
        let changed = self.entries.keys().filter_map(|stored| {
            let name = names::module_name(&self.config, stored);
            (name != *stored).then(|| (name, stored.clone()))
        });
        let changed: Vec<(String, String)> = changed.collect();
        for (name, stored) in changed {
            if self.entries.contains_key(&name) {
                let problem = format!("is there as `{name}`, too");
                let place = format!("tensor `{stored}`");
                return Err(WeightsError::damaged(&self.path, place, problem));
            }
            if let (Some(entry), Some(place)) =
                (self.entries.remove(&stored), self.places.remove(&stored))
            {
                self.entries.insert(name.clone(), entry);
                self.places.insert(name.clone(), place);
                self.stored_names.insert(name, stored);
            }
        }
        Ok(())
    }

    /// A head of its own, where the weights hold one and the config ties it to the embedding.
    ///
    /// The weights are the newer truth, as for transformers: tools that train a head of its own
    /// forget the config.
    fn untie_head(&mut self) {
        let said = self.config.get("tie_word_embeddings").and_then(Value::as_bool);
        if said == Some(false) {
            return;
        }
        let own = HEADS.iter().find(|(head, embedding)| self.is_different(head, embedding));
        let Some((head, _)) = own else { return };
        if let Value::Object(keys) = &mut self.config {
            keys.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
        }
        if said == Some(true) {
            self.warnings.push(format!(
                "`config.json` in `{}` ties the head to the embedding, but the weights hold \
                 another `{head}`, which is used; set `tie_word_embeddings` to false there",
                self.path.display()
            ));
        }
    }

    /// Whether both tensors are there with different contents.
    fn is_different(&self, one: &str, other: &str) -> bool {
        let (Some(first), Some(second)) = (self.bytes(one), self.bytes(other)) else {
            return false;
        };
        let same_kind = self.entries.get(one) == self.entries.get(other);
        // A few pages at a time: the whole of both may be most of a small model's memory.
        let differ = !same_kind
            || first.chunks(COMPARED_BYTES).zip(second.chunks(COMPARED_BYTES)).any(|(a, b)| {
                let differ = a != b;
                self.release(one);
                self.release(other);
                differ
            });
        self.release(one);
        self.release(other);
        differ
    }

    pub(super) fn warnings(&self) -> &[String] {
        &self.warnings
    }

    fn open_shards(&mut self) -> Result<(), WeightsError> {
        let index_path = self.path.join(INDEX);
        let index: Index = serde_json::from_slice(&read(&index_path)?)
            .map_err(|error| WeightsError::damaged(&index_path, "index", error.to_string()))?;
        let files: BTreeSet<&String> = index.weight_map.values().collect();
        for file in &files {
            // A path in an index could otherwise name any file of the machine.
            if !is_file_name(file) || !file.ends_with(".safetensors") {
                let problem = format!("`{file}` is no safetensors file of this folder");
                return Err(WeightsError::damaged(&index_path, "weight_map", problem));
            }
        }
        let missing: Vec<&str> =
            files.iter().filter(|f| !self.path.join(f).is_file()).map(|f| f.as_str()).collect();
        if !missing.is_empty() {
            return Err(WeightsError::MissingFile {
                folder: self.path.clone(),
                wanted: missing.join("`, `"),
                found: listing(&self.path),
            });
        }
        let mut opened = BTreeMap::new();
        for file in files {
            opened.insert(file.as_str(), self.shards.len());
            self.add_shard(&self.path.join(file))?;
        }
        self.check_index(&index_path, &index, &opened)
    }

    fn check_index(
        &self,
        index_path: &Path,
        index: &Index,
        opened: &BTreeMap<&str, usize>,
    ) -> Result<(), WeightsError> {
        for (tensor, file) in &index.weight_map {
            let promised = opened.get(file.as_str());
            let place = self.places.get(tensor);
            if place.map(|place| &place.0) != promised {
                let problem = format!("is not in `{file}`, where the index puts it");
                return Err(WeightsError::damaged(
                    index_path,
                    format!("tensor `{tensor}`"),
                    problem,
                ));
            }
        }
        match self.places.iter().find(|(tensor, _)| !index.weight_map.contains_key(*tensor)) {
            None => Ok(()),
            Some((tensor, (shard, _))) => {
                let file = self.shards.get(*shard).map_or(index_path, MappedFile::path);
                let problem = format!("is in `{}`, but the index does not list it", file.display());
                Err(WeightsError::damaged(index_path, format!("tensor `{tensor}`"), problem))
            }
        }
    }

    fn add_shard(&mut self, path: &Path) -> Result<(), WeightsError> {
        let file = MappedFile::open(path)?;
        let header = safetensors::read_header(path, file.bytes())?;
        for (name, tensor) in header {
            if let Some((_, method)) = QUANTISED_TENSORS.iter().find(|row| name.ends_with(row.0)) {
                return Err(WeightsError::Quantised {
                    path: path.to_owned(),
                    method: (*method).to_owned(),
                    evidence: format!("it has a tensor `{name}`"),
                });
            }
            if let Some((other, _)) = self.places.get(&name) {
                let other = self.shards.get(*other).map_or(path, MappedFile::path).display();
                let problem = format!("is in `{other}` too");
                return Err(WeightsError::damaged(path, format!("tensor `{name}`"), problem));
            }
            self.places.insert(name.clone(), (self.shards.len(), tensor.range));
            self.entries.insert(name, tensor.entry);
        }
        self.shards.push(file);
        Ok(())
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    pub(super) fn weight_files(&self) -> Vec<PathBuf> {
        self.shards.iter().map(|shard| shard.path().to_owned()).collect()
    }

    fn stored(&self, name: &str) -> Result<(&TensorEntry, StoredRows<'_>), WeightsError> {
        let no_such = || WeightsError::no_such_tensor(&self.path, name);
        let entry = self.entries.get(name).ok_or_else(no_such)?;
        let bytes = self.bytes(name).ok_or_else(no_such)?;
        let (dtype, columns) = (entry.dtype, entry.columns());
        Ok((entry, StoredRows { bytes, dtype, columns, order: RowOrder::AsStored }))
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        let (shard, range) = self.places.get(name)?;
        self.shards.get(*shard)?.bytes().get(range.clone())
    }
}

impl WeightSource for FolderModel {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.stored_names.get(name).map_or(name, String::as_str)
    }

    fn part_of(&self, name: &str) -> Option<&TensorPart> {
        self.parts.get(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let (entry, rows) = self.stored(name)?;
        Ok(rows.decode(0..entry.rows()))
    }

    fn read_rows_f32(&self, name: &str, wanted: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let (entry, rows) = self.stored(name)?;
        entry.check_rows(name, &wanted)?;
        Ok(rows.decode(wanted))
    }

    fn raw(&self, name: &str) -> Option<&[u8]> {
        self.bytes(name)
    }

    fn release(&self, name: &str) {
        if let Some((shard, range)) = self.places.get(name)
            && let Some(shard) = self.shards.get(*shard)
        {
            shard.release(range);
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, WeightsError> {
    std::fs::read(path).map_err(|error| WeightsError::io(path, "read", error))
}

fn read_config(folder: &Path) -> Result<Value, WeightsError> {
    let path = folder.join(CONFIG);
    if !path.is_file() {
        return Err(WeightsError::MissingFile {
            folder: folder.to_owned(),
            wanted: CONFIG.to_owned(),
            found: listing(folder),
        });
    }
    let config: Value = serde_json::from_slice(&read(&path)?)
        .map_err(|error| WeightsError::damaged(&path, "JSON", error.to_string()))?;
    if !config.is_object() {
        return Err(WeightsError::damaged(&path, "JSON", "not an object"));
    }
    let quantisation = config.get("quantization_config").unwrap_or(&Value::Null);
    let method = quantisation.get("quant_method").and_then(Value::as_str);
    match (quantisation, method) {
        // transformers notes the GGUF that plain weights were once decoded from.
        (Value::Null, _) | (_, Some("gguf")) => Ok(config),
        _ => Err(WeightsError::Quantised {
            path,
            method: method.unwrap_or("an unnamed method").to_owned(),
            evidence: "it has a `quantization_config`".to_owned(),
        }),
    }
}

fn no_weights(folder: &Path) -> WeightsError {
    let names = file_names(folder);
    let pickle = names.iter().find(|name| is_pickle(name));
    match pickle {
        Some(file) => WeightsError::Pickle { folder: folder.to_owned(), file: file.clone() },
        None => WeightsError::MissingFile {
            folder: folder.to_owned(),
            wanted: SINGLE.to_owned(),
            found: listing(folder),
        },
    }
}

fn is_pickle(name: &str) -> bool {
    let weights = name.starts_with("pytorch_model") || name.starts_with("consolidated");
    let extension = Path::new(name).extension().and_then(|extension| extension.to_str());
    weights && matches!(extension, Some("bin" | "pth" | "pt"))
        || name == "pytorch_model.bin.index.json"
}

/// Names of the files of a folder, sorted; empty where it cannot be read.
pub(super) fn file_names(folder: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().is_file())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort();
    names
}

/// What a folder holds, for a message.
pub(super) fn listing(folder: &Path) -> String {
    const SHOWN: usize = 8;
    let names = file_names(folder);
    if names.is_empty() {
        return "no files".to_owned();
    }
    let shown: Vec<String> = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect();
    let more = names.len().saturating_sub(SHOWN);
    if more > 0 { format!("{} and {more} more", shown.join(", ")) } else { shown.join(", ") }
}

pub(super) fn is_file_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['/', '\\', '\0']) && name != "." && name != ".."
}

/// Whether a merged folder carries the file along byte for byte.
pub(super) fn is_side_file(name: &str) -> bool {
    const EXACT: &[&str] = &[
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "generation_config.json",
    ];
    EXACT.contains(&name)
        || name.starts_with("tokenizer")
        || name.starts_with("chat_template")
        || is_licence(name)
}

/// Whether the file states terms that bind whoever passes the model on.
pub(super) fn is_licence(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    ["LICENSE", "LICENCE", "NOTICE", "USE_POLICY"].iter().any(|start| name.starts_with(start))
}

/// Whether the path leads to a named chat template.
pub(super) fn is_named_template(path: &str) -> bool {
    let name = path.strip_prefix(NAMED_TEMPLATES).and_then(|rest| rest.strip_prefix('/'));
    name.and_then(|name| name.strip_suffix(".jinja")).is_some_and(is_file_name)
}

/// Names of the files that a merged folder carries along.
pub(super) fn side_file_names(folder: &Path) -> Vec<String> {
    let named = file_names(&folder.join(NAMED_TEMPLATES)).into_iter();
    let named =
        named.map(|name| format!("{NAMED_TEMPLATES}/{name}")).filter(|n| is_named_template(n));
    let beside = file_names(folder).into_iter().filter(|name| is_side_file(name));
    beside.chain(named).collect()
}

/// A side file's content.
pub(super) fn side_file(folder: &Path, name: &str) -> Result<Option<Vec<u8>>, WeightsError> {
    let path = folder.join(name);
    if !(is_file_name(name) || is_named_template(name)) || !path.is_file() {
        return Ok(None);
    }
    read(&path).map(Some)
}
