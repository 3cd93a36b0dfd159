//! Finds the model a hub id names: in the local hub cache, or on the hub.
//!
//! The cache is the one that `huggingface_hub` keeps, in the same layout, so models fetched by
//! other programs are found, and theirs find ours. Where the cache has the whole model, nothing is
//! asked of the network.

mod cache;
mod download;

use std::{
    fmt,
    path::{Path, PathBuf},
};

use self::cache::Snapshot;
use super::{Network, WeightsError};

/// `org/name`, with `@revision` where another than `main` is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HubId {
    repository: String,
    revision: String,
}

impl HubId {
    /// `None` where the text cannot be an id, such as a path.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (repository, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) = repository.split_once('/')?;
        let is_file = [".gguf", ".safetensors", ".json", ".bin", ".toml"];
        let valid = [owner, name, revision].into_iter().all(is_word);
        (valid && !is_file.iter().any(|ending| name.ends_with(ending)))
            .then(|| Self { repository: repository.to_owned(), revision: revision.to_owned() })
    }
}

/// Letters, digits, `-`, `_` and `.`, starting with none of the last three.
fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.len() <= 96
        && text.chars().all(allowed)
        && !text.contains("..")
}

impl fmt::Display for HubId {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        match self.revision.as_str() {
            "main" => formatter.write_str(&self.repository),
            revision => write!(formatter, "{}@{revision}", self.repository),
        }
    }
}

/// Where the hub and its cache are, and whether the hub may be asked.
#[derive(Clone, Debug)]
pub(super) struct HubSettings {
    endpoint: String,
    cache: PathBuf,
    token: Option<String>,
    /// What forbids downloading.
    offline: Option<&'static str>,
}

impl HubSettings {
    /// From the environment variables that `huggingface_hub` reads.
    pub(super) fn from_environment(network: Network) -> Self {
        Self::from_variables(network, |name| std::env::var(name).ok())
    }

    fn from_variables(network: Network, variable: impl Fn(&str) -> Option<String>) -> Self {
        let set = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let home = set("HF_HOME").map_or_else(
            || {
                let cache = set("XDG_CACHE_HOME").map_or_else(
                    || PathBuf::from(set("HOME").unwrap_or_default()).join(".cache"),
                    PathBuf::from,
                );
                cache.join("huggingface")
            },
            PathBuf::from,
        );
        let cache = set("HF_HUB_CACHE").or_else(|| set("HUGGINGFACE_HUB_CACHE"));
        let token_file = set("HF_TOKEN_PATH").map_or_else(|| home.join("token"), PathBuf::from);
        let saved_token = || std::fs::read_to_string(token_file).ok();
        let token = set("HF_TOKEN").or_else(saved_token).map(|token| token.trim().to_owned());
        let offline_variable = set("HF_HUB_OFFLINE").is_some_and(|value| is_true(&value));
        let offline = match network {
            Network::Offline => Some("`--offline`"),
            Network::Allowed if offline_variable => Some("`HF_HUB_OFFLINE`"),
            Network::Allowed => None,
        };
        let endpoint = set("HF_ENDPOINT").unwrap_or_else(|| "https://huggingface.co".to_owned());
        let cache = cache.map_or_else(|| home.join("hub"), PathBuf::from);
        Self {
            endpoint: endpoint.trim_end_matches('/').to_owned(),
            // Links inside the cache are computed between absolute paths.
            cache: std::path::absolute(&cache).unwrap_or(cache),
            token: token.filter(|token| !token.is_empty()),
            offline,
        }
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.trim().to_ascii_lowercase().as_str(), "1" | "on" | "yes" | "true")
}

/// The folder that holds the model `id`.
pub(super) fn resolve(id: &HubId, settings: &HubSettings) -> Result<PathBuf, WeightsError> {
    let snapshot = cache::find(&settings.cache, id);
    match (snapshot, settings.offline) {
        (Snapshot::Complete(folder), _) | (Snapshot::WithoutTokenizer(folder), Some(_)) => {
            Ok(folder)
        }
        // The weights are there; a hub that cannot be reached must not make them useless.
        (Snapshot::WithoutTokenizer(folder), None) => {
            Ok(download::model(id, settings).unwrap_or(folder))
        }
        (Snapshot::Partial(missing), Some(reason)) => {
            Err(offline(id, settings, reason, format!("is in part (without `{missing}`)")))
        }
        (Snapshot::Absent, Some(reason)) => Err(offline(id, settings, reason, "is not".to_owned())),
        (Snapshot::Partial(_) | Snapshot::Absent, None) => download::model(id, settings),
    }
}

fn offline(
    id: &HubId,
    settings: &HubSettings,
    reason: &'static str,
    found: String,
) -> WeightsError {
    WeightsError::Offline { id: id.to_string(), found, cache: settings.cache.clone(), reason }
}

/// Shards that an index names, or `None` where it cannot be read.
fn shards_of(index: &Path) -> Option<Vec<String>> {
    let index: serde_json::Value = serde_json::from_slice(&std::fs::read(index).ok()?).ok()?;
    let names = index.get("weight_map")?.as_object()?.values();
    let mut shards: Vec<String> =
        names.map(|name| name.as_str().map(str::to_owned)).collect::<Option<_>>()?;
    shards.sort();
    shards.dedup();
    shards.iter().all(|name| super::folder::is_file_name(name)).then_some(shards)
}

#[cfg(test)]
mod tests;
