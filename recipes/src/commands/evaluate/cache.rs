//! Figures that were measured before, kept under what they depend on: weights, tokenizer, task,
//! rows, settings, program. Rows are kept in parts as they are finished, so that an interrupted
//! evaluation goes on within a task.
//!
//! Numbers alone are kept, no prompt and no answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use trainer::evaluate::{Measured, Metric};

use crate::machine;
use crate::printer::write_atomically;
use crate::provenance::hash_file;
use crate::target::{Target, adapter_folder};

#[derive(Serialize, Deserialize)]
struct Kept {
    metrics: Vec<Metric>,
    counts: BTreeMap<String, u64>,
    identity: u64,
}

/// The cache for one target.
pub(super) struct Cache {
    folder: Option<PathBuf>,
    target: Sha256,
}

impl Cache {
    /// Hashes the target's files; without a cache folder, or where a file cannot be read, nothing
    /// is kept.
    pub(super) fn of(target: &Target, settings: &str) -> Self {
        let mut files = target.base.files.weight_files();
        if let Some(folder) = adapter_folder(target.name.as_ref()) {
            files.push(folder.join("adapter_config.json"));
            files.push(folder.join("adapter_model.safetensors"));
        }
        let mut hash = Sha256::new();
        hash.update(concat!("tunesmith/evaluate/v1/", env!("CARGO_PKG_VERSION")));
        hash.update(target.tokenizer().fingerprint());
        hash.update(settings);
        let hashes: Result<Vec<_>, _> = files.iter().map(|file| hash_file(file)).collect();
        let known = hashes.ok();
        for (bytes, sha256) in known.iter().flatten() {
            hash.update(bytes.to_le_bytes());
            hash.update(sha256);
        }
        let folder = machine::cache_dir().filter(|_| known.is_some());
        Self { folder: folder.map(|folder| folder.join("evaluations")), target: hash }
    }

    /// A cache that keeps nothing.
    pub(super) fn off() -> Self {
        Self { folder: None, target: Sha256::new() }
    }

    fn path(&self, task: &[u8]) -> Option<PathBuf> {
        let mut hash = self.target.clone();
        hash.update(task);
        let name = hash.finalize().iter().fold(String::new(), |mut name, byte| {
            name.extend(
                [byte >> 4, byte & 15].map(|digit| char::from(b"0123456789abcdef"[digit as usize])),
            );
            name
        });
        self.folder.as_ref().map(|folder| folder.join(name + ".json"))
    }

    /// What was measured before.
    pub(super) fn get(&self, task: &[u8]) -> Option<Measured> {
        let bytes = std::fs::read(self.path(task)?).ok()?;
        let Kept { metrics, counts, identity } = serde_json::from_slice(&bytes).ok()?;
        Some(Measured { metrics, counts, identity, samples: Vec::new() })
    }

    /// Forgets what was kept.
    pub(super) fn remove(&self, task: &[u8]) {
        if let Some(path) = self.path(task) {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Keeps what was measured. A cache that cannot be written to costs time, not results.
    pub(super) fn put(&self, task: &[u8], measured: &Measured) {
        let Some(path) = self.path(task) else { return };
        let Measured { metrics, counts, identity, .. } = measured.clone();
        let Ok(text) = serde_json::to_vec(&Kept { metrics, counts, identity }) else { return };
        if let Some(folder) = path.parent() {
            let _ = std::fs::create_dir_all(folder);
        }
        let _ = write_atomically(&path, &text);
    }
}
