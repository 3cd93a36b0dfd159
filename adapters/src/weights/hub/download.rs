//! Fetches a model's files from the hub into its cache.

use std::{
    io::IsTerminal,
    path::{Path, PathBuf},
};

use hf_hub::{
    Repo, RepoType,
    api::sync::{ApiBuilder, ApiError, ApiRepo},
};

use super::{HubId, HubSettings, shards_of};
use crate::weights::{
    WeightsError,
    folder::{CARD, CONFIG, INDEX, SINGLE, is_file_name, is_named_template, is_side_file},
};

const RETRIES: usize = 3;
/// Once more where the repository got a new commit between two files.
const ROUNDS: usize = 2;

/// Downloads what is not yet in the cache and returns the folder.
pub(super) fn model(id: &HubId, settings: &HubSettings) -> Result<PathBuf, WeightsError> {
    let hub = Hub::connect(id, settings)?;
    let listed = hub.list()?;
    for _ in 0..ROUNDS {
        let paths = hub.fetch_all(&listed)?;
        if let Some(folder) = common_folder(&paths) {
            return Ok(folder.to_owned());
        }
    }
    Err(hub.failed(CONFIG, "the repository changed during the download"))
}

fn common_folder(paths: &[PathBuf]) -> Option<&Path> {
    let folder = paths.first()?.parent()?;
    paths.iter().all(|path| path.parent() == Some(folder)).then_some(folder)
}

struct Hub<'a> {
    id: &'a HubId,
    settings: &'a HubSettings,
    files: ApiRepo,
}

impl<'a> Hub<'a> {
    fn connect(id: &'a HubId, settings: &'a HubSettings) -> Result<Self, WeightsError> {
        let api = ApiBuilder::new()
            .with_endpoint(settings.endpoint.clone())
            .with_cache_dir(settings.cache.clone())
            .with_token(settings.token.clone())
            .with_retries(RETRIES)
            .with_progress(std::io::stderr().is_terminal())
            .build()
            .map_err(|error| failed(id, settings, CONFIG, error.to_string()))?;
        let repo = Repo::with_revision(id.repository.clone(), RepoType::Model, id.revision.clone());
        Ok(Self { id, settings, files: api.repo(repo) })
    }

    /// Names of the repository's files.
    fn list(&self) -> Result<Vec<String>, WeightsError> {
        let info = self.files.info().map_err(|error| self.explain("list of files", &error))?;
        Ok(info
            .siblings
            .into_iter()
            .map(|file| file.rfilename)
            .filter(|name| is_file_name(name) || is_named_template(name))
            .collect())
    }

    fn fetch_all(&self, listed: &[String]) -> Result<Vec<PathBuf>, WeightsError> {
        let has = |name: &str| listed.iter().any(|file| file == name);
        if !has(CONFIG) || !(has(SINGLE) || has(INDEX)) {
            let holds = listed.iter().take(12).map(String::as_str).collect::<Vec<_>>().join(", ");
            let problem =
                format!("the repository has no `{CONFIG}` with safetensors; it holds {holds}");
            return Err(self.failed(if has(CONFIG) { SINGLE } else { CONFIG }, problem));
        }
        let mut paths = vec![self.fetch(CONFIG)?];
        // The card names the licence.
        for name in listed.iter().filter(|name| is_side_file(name) || *name == CARD) {
            paths.push(self.fetch(name)?);
        }
        for name in listed.iter().filter(|name| is_named_template(name)) {
            self.fetch(name)?;
        }
        if has(SINGLE) {
            paths.push(self.fetch(SINGLE)?);
            return Ok(paths);
        }
        let index = self.fetch(INDEX)?;
        let shards = shards_of(&index).ok_or_else(|| {
            WeightsError::damaged(&index, "index", "no map from tensors to files")
        })?;
        for name in shards {
            paths.push(self.fetch(&name)?);
        }
        paths.push(index);
        Ok(paths)
    }

    fn fetch(&self, name: &str) -> Result<PathBuf, WeightsError> {
        self.files.get(name).map_err(|error| self.explain(name, &error))
    }

    fn failed(&self, file: &str, problem: impl Into<String>) -> WeightsError {
        failed(self.id, self.settings, file, problem)
    }

    fn explain(&self, file: &str, error: &ApiError) -> WeightsError {
        let (id, endpoint) = (self.id.to_string(), self.settings.endpoint.clone());
        match status(error) {
            Some(status @ (401 | 403)) => WeightsError::Denied {
                id,
                endpoint,
                status,
                why: match self.settings.token {
                    None => {
                        "the model does not exist, or is gated or private and no token was given"
                    }
                    Some(_) => "the token has no access to the model",
                },
            },
            Some(404) => WeightsError::NotOnHub { id, endpoint },
            _ => self.failed(file, error.to_string()),
        }
    }
}

fn failed(
    id: &HubId,
    settings: &HubSettings,
    file: &str,
    problem: impl Into<String>,
) -> WeightsError {
    WeightsError::Download {
        id: id.to_string(),
        endpoint: settings.endpoint.clone(),
        file: file.to_owned(),
        problem: problem.into(),
    }
}

/// The HTTP status that made a request fail.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match **error {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}
