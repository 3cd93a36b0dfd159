//! The hub cache on disk: `models--org--name/{refs,snapshots,blobs}`.

use std::path::{Path, PathBuf};

use super::{HubId, shards_of};
use crate::weights::folder::{CONFIG, INDEX, SINGLE};

/// What the cache holds of a model.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Snapshot {
    Complete(PathBuf),
    /// Programs that need no text fetch only configuration and weights.
    WithoutTokenizer(PathBuf),
    /// The first file that is missing.
    Partial(String),
    Absent,
}

/// Looks for the model without asking the hub.
pub(super) fn find(cache: &Path, id: &HubId) -> Snapshot {
    let Some(folder) = snapshot_folder(cache, id) else { return Snapshot::Absent };
    if let Some(missing) = first_missing(&folder) {
        return Snapshot::Partial(missing);
    }
    if folder.join("tokenizer.json").is_file() {
        Snapshot::Complete(folder)
    } else {
        Snapshot::WithoutTokenizer(folder)
    }
}

fn snapshot_folder(cache: &Path, id: &HubId) -> Option<PathBuf> {
    let repository = cache.join(format!("models--{}", id.repository.replace('/', "--")));
    let commit = std::fs::read_to_string(repository.join("refs").join(&id.revision));
    // A commit's own hash has no entry among the refs.
    let commit = commit.map_or_else(|_| id.revision.clone(), |commit| commit.trim().to_owned());
    let is_hash = !commit.is_empty() && commit.chars().all(|c| c.is_ascii_alphanumeric());
    let folder = repository.join("snapshots").join(&commit);
    (is_hash && folder.is_dir()).then_some(folder)
}

fn first_missing(folder: &Path) -> Option<String> {
    let is_missing = |name: &String| !folder.join(name).is_file();
    if is_missing(&CONFIG.to_owned()) {
        return Some(CONFIG.to_owned());
    }
    if !is_missing(&SINGLE.to_owned()) {
        return None;
    }
    match shards_of(&folder.join(INDEX)) {
        None => Some(SINGLE.to_owned()),
        Some(shards) => shards.into_iter().find(is_missing),
    }
}
