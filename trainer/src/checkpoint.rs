//! Checkpoints: a PEFT adapter folder with the optimizer's and the trainer's state beside it.
//!
//! A folder gets its final name when everything in it is on disk, so a run killed in the middle
//! of a save finds the checkpoint before it. `state.json` holds the hashes of the other files;
//! a folder that does not match them is passed over.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use adapters::{AdapterWeights, PeftConfig, read_adapter, write_adapter};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::error::CheckpointError;
use crate::optimizer::{Optimizer, StateTensor, StateValues};

const STATE: &str = "state.json";
const OPTIMIZER: &str = "optimizer.safetensors";
const FORMAT: u32 = 1;

/// `state.json`: where the run stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunState {
    /// Version of the checkpoint's layout.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Epoch of the next step, from 0.
    pub epoch: u64,
    /// Steps done in that epoch.
    pub step_in_epoch: u64,
    /// Updates of the optimizer.
    pub optimizer_updates: u64,
    /// Input tokens so far.
    pub tokens: u64,
    /// Trained tokens so far.
    pub trained_tokens: u64,
    /// SHA-256 of every other file in the folder.
    pub files: BTreeMap<String, String>,
}

impl RunState {
    /// The state before the first step.
    pub fn start() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            epoch: 0,
            step_in_epoch: 0,
            optimizer_updates: 0,
            tokens: 0,
            trained_tokens: 0,
            files: BTreeMap::new(),
        }
    }
}

/// What a checkpoint holds.
pub struct Checkpoint {
    /// Where the run stands.
    pub state: RunState,
    /// The adapter's configuration.
    pub peft: PeftConfig,
    /// The adapter.
    pub adapter: AdapterWeights,
    /// The optimizer's moments.
    pub optimizer: Vec<StateTensor>,
}

/// Writes `checkpoints/step-NNNNNN` and gives its path.
pub fn save(
    checkpoints: &Path,
    mut state: RunState,
    (peft, weights): (&PeftConfig, &AdapterWeights),
    optimizer: &Optimizer,
) -> Result<PathBuf, CheckpointError> {
    let name = format!("step-{:06}", state.step);
    let (partial, done) = (checkpoints.join(format!(".{name}.partial")), checkpoints.join(&name));
    let io = |source| CheckpointError::Io { path: partial.clone(), source };
    remove_folder(&partial).map_err(io)?;
    fs::create_dir_all(&partial).map_err(io)?;
    write_adapter(&partial, peft, weights)?;
    write_optimizer(&partial.join(OPTIMIZER), optimizer)?;
    state.files = hashes(&partial).map_err(io)?;
    let text = serde_json::to_vec_pretty(&state).expect("plain values become JSON");
    write_synced(&partial.join(STATE), &text).map_err(io)?;
    remove_folder(&done).map_err(io)?;
    fs::rename(&partial, &done).map_err(io)?;
    sync_folder(checkpoints).map_err(io)?;
    Ok(done)
}

/// What [`newest`] finds.
pub struct Newest {
    /// The newest complete checkpoint and its folder.
    pub found: Option<(PathBuf, Checkpoint)>,
    /// Folders that are not what was written.
    pub damaged: Vec<PathBuf>,
}

/// The newest complete checkpoint, and the folders that were passed over.
pub fn newest(checkpoints: &Path) -> Result<Newest, CheckpointError> {
    let mut damaged = Vec::new();
    for (_, path) in list(checkpoints)?.into_iter().rev() {
        match load(&path) {
            Ok(checkpoint) => return Ok(Newest { found: Some((path, checkpoint)), damaged }),
            Err(_) => damaged.push(path),
        }
    }
    Ok(Newest { found: None, damaged })
}

/// Keeps the newest `count` checkpoints and removes what an interrupted save left.
pub fn prune(checkpoints: &Path, count: u64) -> Result<(), CheckpointError> {
    let all = list(checkpoints)?;
    let surplus = all.len().saturating_sub(count as usize);
    for (_, path) in &all[..surplus] {
        fs::remove_dir_all(path)
            .map_err(|source| CheckpointError::Io { path: path.clone(), source })?;
    }
    Ok(())
}

/// Checkpoints by step, oldest first.
fn list(checkpoints: &Path) -> Result<Vec<(u64, PathBuf)>, CheckpointError> {
    let io = |source| CheckpointError::Io { path: checkpoints.to_path_buf(), source };
    let entries = match fs::read_dir(checkpoints) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(io(error)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(io)?.path();
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        if let Some(step) = name.as_deref().and_then(|n| n.strip_prefix("step-")?.parse().ok()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn load(path: &Path) -> Result<Checkpoint, CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let damaged = |reason: &str| CheckpointError::Damaged {
        path: path.to_path_buf(),
        reason: reason.to_owned(),
    };
    let text = fs::read(path.join(STATE)).map_err(io)?;
    let state: RunState =
        serde_json::from_slice(&text).map_err(|_| damaged("`state.json` does not parse"))?;
    if state.format != FORMAT {
        return Err(damaged("it was written by another version"));
    }
    let mut found = hashes(path).map_err(io)?;
    found.remove(STATE);
    if found != state.files {
        return Err(damaged("its files differ from the hashes in `state.json`"));
    }
    let (peft, adapter) = read_adapter(path)?;
    let optimizer =
        read_optimizer(&path.join(OPTIMIZER)).map_err(|_| damaged("optimizer state"))?;
    Ok(Checkpoint { state, peft, adapter, optimizer })
}

fn write_optimizer(path: &Path, optimizer: &Optimizer) -> Result<(), CheckpointError> {
    let io = |source| CheckpointError::Io { path: path.to_path_buf(), source };
    let state = optimizer.state();
    let mut views = Vec::with_capacity(state.len());
    let stored = |tensor: &StateTensor| match &tensor.values {
        StateValues::Floats(values) => {
            (Dtype::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect())
        }
        StateValues::Codes(codes) => (Dtype::U8, codes.clone()),
    };
    let bytes: Vec<(Dtype, Vec<u8>)> = state.iter().map(stored).collect();
    for (tensor, (dtype, bytes)) in state.iter().zip(&bytes) {
        let view = TensorView::new(*dtype, tensor.shape.to_vec(), bytes)
            .expect("as many values as the shape says");
        views.push((tensor.name.as_str(), view));
    }
    let file = safetensors::serialize(views, None)
        .map_err(|error| io(io::Error::other(error.to_string())))?;
    write_synced(path, &file).map_err(io)
}

fn read_optimizer(path: &Path) -> io::Result<Vec<StateTensor>> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
    file.iter()
        .map(|(name, view)| {
            let [rows, columns] = view.shape() else {
                return Err(io::Error::other("a moment is a matrix"));
            };
            let values = match view.dtype() {
                Dtype::U8 => StateValues::Codes(view.data().to_vec()),
                Dtype::F32 => {
                    let words = view.data().as_chunks::<4>().0.iter();
                    StateValues::Floats(words.map(|b| f32::from_le_bytes(*b)).collect())
                }
                _ => return Err(io::Error::other("moments are f32 or 8-bit codes")),
            };
            Ok(StateTensor { name: name.to_owned(), shape: [*rows, *columns], values })
        })
        .collect()
}

/// SHA-256 of every file of a folder, by name.
fn hashes(folder: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut hashes = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let digest = Sha256::digest(fs::read(&path)?);
        let hex = format!("{digest:x}");
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        hashes.insert(name, hex);
    }
    Ok(hashes)
}

fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    fs::write(path, bytes)?;
    File::open(path)?.sync_all()
}

/// Makes a rename inside the folder last.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
