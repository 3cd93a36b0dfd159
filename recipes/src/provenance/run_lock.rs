//! The lock of one run: which of its files go in, and as what.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use adapters::weights::ModelFiles;
use datasets::DataFile;

use super::lock::{Lock, Role};
use super::{ProvenanceError, licence};
use crate::recipe::Recipe;

/// Files of a finished adapter that are locked as its result.
const RESULTS: &[&str] = &["adapter/adapter_config.json", "adapter/adapter_model.safetensors"];

/// What a run read.
#[derive(Clone, Copy)]
pub struct RunFiles<'a> {
    /// The run folder; holds `recipe.toml` already.
    pub run: &'a Path,
    /// The recipe as run.
    pub recipe: &'a Recipe,
    /// The base model.
    pub base: &'a ModelFiles,
    /// The data, hashed when it was read.
    pub data: &'a [DataFile],
}

/// Hashes everything that a run reads and writes `tunesmith.lock`.
///
/// `environment` is [`crate::machine::environment_facts`] and what the trainer adds: device,
/// precision, memory plan.
pub fn lock_run(
    files: RunFiles<'_>,
    environment: BTreeMap<String, String>,
) -> Result<Lock, ProvenanceError> {
    let mut lock = Lock::of_this_program(environment)?;
    lock.add_of_run(Role::Recipe, files.run, &["recipe.toml"])?;
    lock.add_files(Role::BaseWeights, &files.base.weight_files())?;
    for (role, path) in base_side_files(files.base)? {
        lock.add_files(role, &[path])?;
    }
    lock.add_files(Role::ChatTemplate, &named_templates(files.recipe))?;
    lock.add_files(Role::InitialAdapter, &initial_adapter(files.recipe))?;
    lock.add_files(Role::Evaluation, &evaluation_files(files.recipe))?;
    for file in files.data {
        lock.add_known(Role::Data, &file.path, file.bytes, &file.sha256);
    }
    lock.write(files.run)?;
    Ok(lock)
}

/// Adds the finished adapter to the lock of `run`.
pub fn finish_run_lock(run: &Path) -> Result<(), ProvenanceError> {
    let mut lock = Lock::read(run)?;
    lock.file.retain(|file| file.role != Role::Result);
    lock.add_of_run(Role::Result, run, RESULTS)?;
    lock.write(run)
}

/// The files beside the weights that decide a result. A GGUF holds them inside.
fn base_side_files(base: &ModelFiles) -> Result<Vec<(Role, PathBuf)>, ProvenanceError> {
    let folder = base.location();
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let names = base.side_files().map_err(|error| {
        ProvenanceError::io("read", folder)(std::io::Error::other(error.to_string()))
    })?;
    let names = names.into_iter().chain(["config.json".to_owned()]);
    let decides = |name: &String| !licence::is_carried(name) && folder.join(name).is_file();
    Ok(names.filter(decides).map(|name| (role_of(&name), folder.join(name))).collect())
}

fn role_of(name: &str) -> Role {
    match name {
        "config.json" | "generation_config.json" => Role::BaseConfig,
        _ if name.contains("chat_template") => Role::ChatTemplate,
        _ => Role::Tokenizer,
    }
}

/// Templates that the recipe names as files; built-in ones are part of the program.
fn named_templates(recipe: &Recipe) -> Vec<PathBuf> {
    let named = recipe.dataset.iter().filter_map(|dataset| dataset.chat_template.as_ref());
    let mut paths: Vec<_> = named.map(PathBuf::from).filter(|path| path.is_file()).collect();
    paths.sort();
    paths.dedup();
    paths
}

/// Task files and rows that a recipe names as files.
fn evaluation_files(recipe: &Recipe) -> Vec<PathBuf> {
    let tasks = recipe.evaluate.iter().flat_map(|evaluate| &evaluate.task);
    let named =
        tasks.flat_map(|task| [Some(&task.name), task.data.as_ref(), task.few_shot_data.as_ref()]);
    let mut files: Vec<PathBuf> =
        named.flatten().map(PathBuf::from).filter(|path| path.is_file()).collect();
    files.sort();
    files.dedup();
    files
}

fn initial_adapter(recipe: &Recipe) -> Vec<PathBuf> {
    let lora = recipe.adapter.low_rank();
    let Some(folder) = &lora.init_from else { return Vec::new() };
    ["adapter_config.json", "adapter_model.safetensors"].map(|name| folder.join(name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use adapters::weights::Network;

    #[test]
    fn a_run_over_the_tiny_base_locks_every_file_that_decides_it() {
        let root = tempfile::tempdir().unwrap();
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny_llama");
        let text = format!(
            "base_model = {:?}\noutput_dir = \"run\"\ndataset = [{{ path = \"d\" }}]\n",
            base.display().to_string()
        );
        std::fs::write(root.path().join("recipe.toml"), &text).unwrap();
        let recipe = Recipe::parse("recipe.toml", &text).unwrap();
        let base = ModelFiles::open(&recipe.base_model, Network::Offline).unwrap();
        let files = RunFiles { run: root.path(), recipe: &recipe, base: &base, data: &[] };
        let lock = lock_run(files, BTreeMap::new()).unwrap();
        let mut roles: Vec<_> = lock.file.iter().map(|file| file.role).collect();
        roles.sort();
        roles.dedup();
        let expected = [Role::BaseWeights, Role::BaseConfig, Role::Tokenizer, Role::Recipe];
        assert_eq!(roles, expected);
        assert!(lock.file.iter().all(|file| !file.path.contains("LICENSE")));
        assert_eq!(lock.differences(root.path()).unwrap(), []);
        std::fs::create_dir(root.path().join("adapter")).unwrap();
        for name in RESULTS {
            std::fs::write(root.path().join(name), "x").unwrap();
        }
        finish_run_lock(root.path()).unwrap();
        finish_run_lock(root.path()).unwrap();
        let again = Lock::read(root.path()).unwrap();
        assert_eq!(again.file.len(), lock.file.len() + RESULTS.len());
    }
}
