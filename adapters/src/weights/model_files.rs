//! Opens a base model by whatever name the user gave it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::changed::{ChangedWeights, UntiedHead};
use super::{
    StoredDtype, WeightSource, WeightsError,
    folder::{self, FolderModel},
    gguf::{GgufModel, placement::Reading},
    hub::{self, HubId, HubSettings},
    names,
};
use crate::error::AdapterError;
use crate::mix::MixedWeights;
use crate::modules_to_save::BaseTensors;
use crate::peft::WholeTensor;

/// Whether the hub may be asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Files not on disk are downloaded.
    Allowed,
    /// Only what is on disk is used.
    Offline,
}

/// An opened base model: a folder in HF layout, a GGUF file, or a hub id resolved to a folder.
#[derive(Clone)]
pub struct ModelFiles {
    kind: Arc<Kind>,
    /// In place of its own tensors: those of several models, of which this is the first.
    mixed: Option<Arc<MixedWeights>>,
    /// In place of some of these: an adapter's.
    changed: Option<Arc<ChangedWeights>>,
    /// What is used in place of the configuration as found.
    config: Option<Value>,
    /// Whether [`Self::set_config`] was used.
    reconfigured: bool,
}

/// What a base model is stored as.
pub(in crate::weights) enum Kind {
    Folder(FolderModel),
    /// With the folder, where that was named and not the file.
    Gguf(GgufModel, Option<PathBuf>),
}

impl ModelFiles {
    /// The model with an adapter's whole tensors in place of its own. Other files stay.
    pub fn with_whole(
        &self,
        whole: &BTreeMap<String, WholeTensor>,
        base: &BaseTensors,
        head: UntiedHead,
    ) -> Result<Self, AdapterError> {
        let changed = ChangedWeights::new(self.clone(), whole, base, head)?;
        // The changed tensors' configuration follows from the one at hand.
        Ok(Self { changed: Some(Arc::new(changed)), config: None, ..self.clone() })
    }

    /// Whether an adapter's whole tensor is in its place, or needs none because the head is the
    /// embedding.
    pub(crate) fn holds_whole(&self, name: &str) -> bool {
        self.changed.as_ref().is_some_and(|changed| changed.holds(name))
    }

    /// Rows of a tensor as they were before an adapter's tensor took its place.
    pub(crate) fn rows_before(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, WeightsError> {
        match &self.changed {
            Some(changed) => changed.rows_before(name, rows),
            None => self.weights().read_rows_f32(name, rows),
        }
    }

    /// Opens the folder, `.gguf` file or hub id `spec`. Weights are mapped, not read.
    pub fn open(spec: &str, network: Network) -> Result<Self, WeightsError> {
        let path = Path::new(spec);
        if path.is_dir() {
            return Self::open_folder(path);
        }
        if path.exists() {
            return Self::open_file(path);
        }
        let id =
            HubId::parse(spec).ok_or_else(|| WeightsError::NotFound { spec: spec.to_owned() })?;
        Self::open_folder(&hub::resolve(&id, &HubSettings::from_environment(network))?)
    }

    fn of(kind: Kind) -> Self {
        let (mixed, changed, config) = (None, None, None);
        Self { kind: Arc::new(kind), mixed, changed, config, reconfigured: false }
    }

    /// The same files with other tensors.
    pub(crate) fn with_mixed(self, mixed: impl FnOnce(Self) -> MixedWeights) -> Self {
        let (kind, config, reconfigured) =
            (self.kind.clone(), self.config.clone(), self.reconfigured);
        let mixed = Some(Arc::new(mixed(self)));
        Self { kind, mixed, changed: None, config, reconfigured }
    }

    /// Uses another configuration than the files', such as one of a longer context.
    pub fn set_config(&mut self, config: Value) {
        self.config = Some(config);
        self.reconfigured = true;
    }

    /// Whether [`Self::set_config`] replaced the configuration.
    pub fn is_reconfigured(&self) -> bool {
        self.reconfigured
    }

    /// Whether the tensors are those of several models.
    pub fn is_mixed(&self) -> bool {
        self.mixed.is_some()
    }

    fn open_file(path: &Path) -> Result<Self, WeightsError> {
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let folder = path.parent().unwrap_or(path);
            return Err(WeightsError::Unsupported {
                path: path.to_owned(),
                what: "base model".to_owned(),
                found: "a single safetensors file".to_owned(),
                known: format!(
                    "the folder around it, `{}`, with its `config.json`",
                    folder.display()
                ),
            });
        }
        Ok(Self::of(Kind::Gguf(GgufModel::open(path)?, None)))
    }

    fn open_folder(path: &Path) -> Result<Self, WeightsError> {
        let has_safetensors =
            path.join(folder::SINGLE).is_file() || path.join(folder::INDEX).is_file();
        let is_gguf = |name: &String| name.to_ascii_lowercase().ends_with(".gguf");
        let ggufs: Vec<String> = folder::file_names(path).into_iter().filter(is_gguf).collect();
        match ggufs.as_slice() {
            [one] if !has_safetensors => {
                let model = GgufModel::open(&path.join(one))?;
                Ok(Self::of(Kind::Gguf(model, Some(path.to_owned()))))
            }
            [_, _, ..] if !has_safetensors => {
                Err(WeightsError::Ambiguous { folder: path.to_owned(), found: ggufs.join(", ") })
            }
            _ => Ok(Self::of(Kind::Folder(FolderModel::open(path)?))),
        }
    }

    pub(in crate::weights) fn kind(&self) -> &Kind {
        &self.kind
    }

    /// The bytes of a tensor, or of the piece of it that is read this way, as a GGUF file stores
    /// them. Nothing where the model is no GGUF.
    pub(crate) fn gguf_blocks(&self, name: &str, reading: Reading) -> Option<(StoredDtype, &[u8])> {
        if self.is_mixed() {
            return None;
        }
        match &*self.kind {
            Kind::Gguf(model, _) if !self.weights().replaces(name) => {
                model.stored_blocks(name, reading)
            }
            _ => None,
        }
    }

    /// The folder, or the GGUF file.
    pub fn location(&self) -> &Path {
        match &*self.kind {
            Kind::Folder(model) => model.path(),
            Kind::Gguf(model, _) => model.path(),
        }
    }

    /// What was wrong with the model and was set right, a sentence each.
    pub fn warnings(&self) -> &[String] {
        match &*self.kind {
            Kind::Folder(model) => model.warnings(),
            Kind::Gguf(..) => &[],
        }
    }

    /// The HF `config.json` as found, apart from [`Self::warnings`]; made from the metadata of a
    /// GGUF.
    pub fn config(&self) -> &Value {
        if let Some(config) = &self.config {
            return config;
        }
        match (&self.changed, &*self.kind) {
            (Some(changed), _) => changed.config(),
            (None, Kind::Folder(model)) => model.config(),
            (None, Kind::Gguf(model, _)) => model.config(),
        }
    }

    /// Whether a linear weight lies as `[d_in, d_out]`.
    pub fn stores_transposed(&self, name: &str) -> bool {
        names::is_transposed(self.config(), name)
    }

    /// The tensors.
    pub fn weights(&self) -> &dyn WeightSource {
        if let Some(changed) = &self.changed {
            return &**changed;
        }
        if let Some(mixed) = &self.mixed {
            return &**mixed;
        }
        match &*self.kind {
            Kind::Folder(model) => model,
            Kind::Gguf(model, _) => model,
        }
    }

    /// A file beside the weights, such as `tokenizer.json`, or `None` where the model has none.
    /// Made from the metadata of a GGUF.
    pub fn side_file(&self, name: &str) -> Result<Option<Vec<u8>>, WeightsError> {
        match &*self.kind {
            Kind::Folder(model) => folder::side_file(model.path(), name),
            Kind::Gguf(_, Some(folder)) if folder::is_licence(name) => {
                folder::side_file(folder, name)
            }
            Kind::Gguf(model, folder) if name == folder::CARD => {
                let beside = folder.as_ref().map(|folder| folder::side_file(folder, name));
                Ok(beside.transpose()?.flatten().or_else(|| model.card()))
            }
            Kind::Gguf(model, _) => model.side_file(name),
        }
    }

    /// Names of every file that a merged folder carries along: tokenizer, chat template, licence
    /// and the like, without weights and `config.json`.
    pub fn side_files(&self) -> Result<Vec<String>, WeightsError> {
        match &*self.kind {
            Kind::Folder(model) => Ok(folder::side_file_names(model.path())),
            Kind::Gguf(model, folder) => {
                let licences = folder.iter().flat_map(|folder| folder::file_names(folder));
                let made = model.side_file_names().iter().map(|name| (*name).to_owned());
                Ok(licences.filter(|name| folder::is_licence(name)).chain(made).collect())
            }
        }
    }

    /// The files that hold the weights.
    pub fn weight_files(&self) -> Vec<PathBuf> {
        match &*self.kind {
            Kind::Folder(model) => model.weight_files(),
            Kind::Gguf(model, _) => vec![model.path().to_owned()],
        }
    }

    /// Whether any weight is stored in quantised blocks.
    pub fn is_quantised(&self) -> bool {
        self.weights().entries().values().any(|entry| entry.dtype.is_quantised())
    }
}
