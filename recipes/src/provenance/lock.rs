//! `tunesmith.lock`: the hash of everything that decided the result of a run.
//!
//! Paths stay as the recipe has them. [`Lock::differences`] looks for a relative one in the
//! current folder first, then in the folder the run was started from, which follows from where
//! the run folder is now and what its recipe calls it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ProvenanceError;
use crate::printer::write_atomically;

/// Name of the file in a run folder.
pub const FILE_NAME: &str = "tunesmith.lock";
/// Version of the format.
const FORMAT: u32 = 1;
/// A lock file has a line for each file; a longer one is something else.
const MAX_LOCK_BYTES: u64 = 64 << 20;

/// Everything that decided a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Version of this format.
    pub format: u32,
    /// The program that ran.
    pub program: Program,
    /// What else can change bits: matrix library, instruction set, threads, device.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Every file that was read, and the finished adapter.
    #[serde(default)]
    pub file: Vec<LockedFile>,
}

/// The program that ran.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Program {
    /// Its version.
    pub version: String,
    /// SHA-256 of the binary.
    pub sha256: String,
}

/// A file and its hash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedFile {
    /// What it was for.
    pub role: Role,
    /// Path as the recipe has it; below the run folder for [`Role::Recipe`] and [`Role::Result`].
    pub path: String,
    /// Its length.
    pub bytes: u64,
    /// SHA-256 in hexadecimal digits.
    pub sha256: String,
}

/// What a file was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Weights of the base model.
    BaseWeights,
    /// `config.json` and the like of the base model.
    BaseConfig,
    /// Tokenizer files of the base model.
    Tokenizer,
    /// A chat template that the recipe names, or the base model's own file.
    ChatTemplate,
    /// Rows.
    Data,
    /// Rows or a file of a task that the run was scored on.
    Evaluation,
    /// The adapter that training started from.
    InitialAdapter,
    /// The recipe as run.
    Recipe,
    /// A file of the finished adapter.
    Result,
}

impl Role {
    /// How reports call it.
    pub fn label(self) -> &'static str {
        match self {
            Self::BaseWeights => "base weights",
            Self::BaseConfig => "base config",
            Self::Tokenizer => "tokenizer",
            Self::ChatTemplate => "chat template",
            Self::Data => "data",
            Self::Evaluation => "evaluation",
            Self::InitialAdapter => "initial adapter",
            Self::Recipe => "recipe",
            Self::Result => "result",
        }
    }

    fn is_below_run(self) -> bool {
        matches!(self, Self::Recipe | Self::Result)
    }
}

/// Something that is not as the lock says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// `base weights`, `data`, `program`, ...
    pub what: String,
    /// The file; empty for the program.
    pub path: String,
    /// What happened to it.
    pub change: Change,
}

/// What happened to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    /// It is gone.
    Missing,
    /// It cannot be read; the system's words.
    Unreadable(String),
    /// It is longer or shorter: bytes then and now.
    Length(u64, u64),
    /// It has the same length and other bytes.
    Content,
    /// The program is another one: version then and now.
    Program(String, String),
}

impl std::fmt::Display for Change {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Missing => write!(formatter, "is missing"),
            Self::Unreadable(reason) => write!(formatter, "cannot be read: {reason}"),
            Self::Length(then, now) => write!(formatter, "had {then} bytes and has {now}"),
            Self::Content => write!(formatter, "has the same length and other content"),
            Self::Program(then, now) if then == now => {
                write!(formatter, "is another build of version {now}")
            }
            Self::Program(then, now) => write!(formatter, "was version {then} and is {now}"),
        }
    }
}

impl Lock {
    /// A lock of the running program, without files.
    pub fn of_this_program(environment: BTreeMap<String, String>) -> Result<Self, ProvenanceError> {
        let path = std::env::current_exe()
            .map_err(ProvenanceError::io("find the program", Path::new("tunesmith")))?;
        let (_, sha256) = hash_file(&path)?;
        let program = Program { version: env!("CARGO_PKG_VERSION").to_owned(), sha256 };
        Ok(Self { format: FORMAT, program, environment, file: Vec::new() })
    }

    /// Hashes `paths` in parallel and adds them under `role`.
    pub fn add_files(&mut self, role: Role, paths: &[PathBuf]) -> Result<(), ProvenanceError> {
        let hash = |path: &PathBuf| {
            let (bytes, sha256) = hash_file(path)?;
            Ok(LockedFile { role, path: path.display().to_string(), bytes, sha256 })
        };
        let files: Result<Vec<_>, _> = paths.par_iter().map(hash).collect();
        self.file.extend(files?);
        Ok(())
    }

    /// Adds a file whose hash is known already.
    pub fn add_known(&mut self, role: Role, path: &Path, bytes: u64, sha256: &str) {
        let (path, sha256) = (path.display().to_string(), sha256.to_owned());
        self.file.push(LockedFile { role, path, bytes, sha256 });
    }

    /// Hashes files of the run folder, named by their path below it.
    pub fn add_of_run(
        &mut self,
        role: Role,
        run: &Path,
        names: &[&str],
    ) -> Result<(), ProvenanceError> {
        for name in names {
            let (bytes, sha256) = hash_file(&run.join(name))?;
            self.file.push(LockedFile { role, path: (*name).to_owned(), bytes, sha256 });
        }
        Ok(())
    }

    /// Files of rows that the run was trained on, where they are found.
    pub fn data_files(&self, run: &Path) -> Vec<PathBuf> {
        let folders = search_folders(run);
        let found = |file: &LockedFile| {
            folders.iter().map(|folder| folder.join(&file.path)).find(|path| path.is_file())
        };
        self.file.iter().filter(|file| file.role == Role::Data).filter_map(found).collect()
    }

    /// Writes the lock into `run`, as a whole or not at all.
    pub fn write(&self, run: &Path) -> Result<(), ProvenanceError> {
        let path = run.join(FILE_NAME);
        let text = toml::to_string(self).map_err(|error| ProvenanceError::BadLock {
            path: path.clone(),
            reason: error.to_string(),
        })?;
        let text = format!(
            "# Written by tunesmith; `tunesmith verify` compares it with the files.\n{text}"
        );
        write_atomically(&path, text.as_bytes()).map_err(|error| {
            ProvenanceError::io("write", &path)(std::io::Error::other(format!(
                "{:#}",
                error.root_cause()
            )))
        })
    }

    /// Reads the lock of `run`.
    pub fn read(run: &Path) -> Result<Self, ProvenanceError> {
        let path = run.join(FILE_NAME);
        let file = match File::open(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(ProvenanceError::NoLock { path: run.to_owned() });
            }
            other => other.map_err(ProvenanceError::io("read", &path))?,
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_LOCK_BYTES).read_to_end(&mut bytes);
        read.map_err(ProvenanceError::io("read", &path))?;
        let bad = |reason: String| ProvenanceError::BadLock { path: path.clone(), reason };
        let text = String::from_utf8(bytes).map_err(|_| bad("it is not UTF-8 text".to_owned()))?;
        let lock: Self = toml::from_str(&text).map_err(|error| {
            let line = text.get(..error.span().map_or(0, |span| span.start));
            let line = line.map_or(0, |before| before.matches('\n').count()) + 1;
            bad(format!("line {line}: {}", error.message()))
        })?;
        if lock.format != FORMAT {
            return Err(bad(format!("its format is {}, this program knows {FORMAT}", lock.format)));
        }
        Ok(lock)
    }

    /// What of the files and the program is not as the lock says, in the lock's order.
    pub fn differences(&self, run: &Path) -> Result<Vec<Difference>, ProvenanceError> {
        let folders = search_folders(run);
        let check = |file: &LockedFile| file.difference(run, &folders);
        let files: Vec<_> = self.file.par_iter().map(check).collect();
        let now = Self::of_this_program(BTreeMap::new())?.program;
        let program = (now.sha256 != self.program.sha256).then(|| Difference {
            what: "program".to_owned(),
            path: String::new(),
            change: Change::Program(self.program.version.clone(), now.version),
        });
        Ok(files.into_iter().chain([program]).flatten().collect())
    }

    /// The first of these weight files that is none of the locked base's; nothing where the lock
    /// names none.
    pub fn other_base_file(&self, files: &[PathBuf]) -> Result<Option<PathBuf>, ProvenanceError> {
        let locked = || self.file.iter().filter(|file| file.role == Role::BaseWeights);
        if locked().next().is_none() {
            return Ok(None);
        }
        for path in files {
            let bytes = path.metadata().map_err(ProvenanceError::io("read", path))?.len();
            let is_known = locked().any(|file| file.bytes == bytes) && {
                let (_, sha256) = hash_file(path)?;
                locked().any(|file| file.sha256 == sha256)
            };
            if !is_known {
                return Ok(Some(path.clone()));
            }
        }
        Ok(None)
    }

    /// What of the environment is not as the lock says: name, then, now.
    ///
    /// Facts that only one side knows are left out: another version may record more.
    pub fn environment_differences(
        &self,
        now: &BTreeMap<String, String>,
    ) -> Vec<(String, String, String)> {
        let differs = |(name, then): (&String, &String)| {
            let now = now.get(name).filter(|now| *now != then)?;
            Some((name.clone(), then.clone(), now.clone()))
        };
        self.environment.iter().filter_map(differs).collect()
    }
}

impl LockedFile {
    fn difference(&self, run: &Path, folders: &[PathBuf]) -> Option<Difference> {
        let change = self.change(run, folders)?;
        Some(Difference { what: self.role.label().to_owned(), path: self.path.clone(), change })
    }

    fn change(&self, run: &Path, folders: &[PathBuf]) -> Option<Change> {
        let candidates: Vec<PathBuf> = if self.role.is_below_run() {
            vec![run.join(&self.path)]
        } else {
            folders.iter().map(|folder| folder.join(&self.path)).collect()
        };
        let Some(path) = candidates.iter().find(|path| path.exists()) else {
            return Some(Change::Missing);
        };
        let length = match path.metadata() {
            Ok(metadata) => metadata.len(),
            Err(error) => return Some(Change::Unreadable(error.to_string())),
        };
        if length != self.bytes {
            return Some(Change::Length(self.bytes, length));
        }
        match hash_file(path) {
            Ok((_, sha256)) => (sha256 != self.sha256).then_some(Change::Content),
            Err(error) => Some(Change::Unreadable(error.to_string())),
        }
    }
}

/// The lock of the run that an adapter folder or checkpoint belongs to, with its path; nothing
/// where it is in no run, or the lock cannot be read.
pub fn lock_above(adapter: &Path) -> Option<(PathBuf, Lock)> {
    let folder = std::path::absolute(adapter).ok()?;
    let run = folder.ancestors().skip(1).take(2).find(|run| run.join(FILE_NAME).is_file())?;
    Some((run.join(FILE_NAME), Lock::read(run).ok()?))
}

/// Folders that relative paths of a run may be relative to.
fn search_folders(run: &Path) -> Vec<PathBuf> {
    let mut folders = vec![PathBuf::from(".")];
    folders.extend(started_from(run));
    folders
}

/// The folder that the run was started from: its own path without what its recipe calls it.
fn started_from(run: &Path) -> Option<PathBuf> {
    let text = std::fs::read_to_string(run.join("recipe.toml")).ok()?;
    let recipe = crate::recipe::Recipe::parse("recipe.toml", &text).ok()?;
    let full = run.canonicalize().ok()?;
    let mut folder = full.as_path();
    for component in recipe.output_dir.components().rev() {
        match component {
            std::path::Component::CurDir => {}
            std::path::Component::Normal(name) if folder.file_name() == Some(name) => {
                folder = folder.parent()?;
            }
            _ => return None,
        }
    }
    Some(folder.to_owned())
}

/// Length and SHA-256 of a file, read piece by piece.
pub fn hash_file(path: &Path) -> Result<(u64, String), ProvenanceError> {
    let read_error = || ProvenanceError::io("read", path);
    let mut file = File::open(path).map_err(read_error())?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let count = file.read(&mut buffer).map_err(read_error())?;
        let piece = buffer.get(..count).unwrap_or_default();
        if piece.is_empty() {
            break;
        }
        hasher.update(piece);
        bytes += count as u64;
    }
    Ok((bytes, hexadecimal(&hasher.finalize())))
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn run_folder() -> (tempfile::TempDir, PathBuf) {
        let root = tempfile::tempdir().unwrap();
        let run = root.path().join("runs/a");
        std::fs::create_dir_all(&run).unwrap();
        std::fs::create_dir_all(root.path().join("data")).unwrap();
        std::fs::write(root.path().join("data/train.jsonl"), "rows").unwrap();
        let recipe = "base_model = \"m\"\noutput_dir = \"./runs/a\"\ndataset = [{ path = \"d\" }]";
        std::fs::write(run.join("recipe.toml"), recipe).unwrap();
        (root, run)
    }

    fn lock(root: &Path, run: &Path) -> Lock {
        let environment = BTreeMap::from([("threads".to_owned(), "2".to_owned())]);
        let mut lock = Lock::of_this_program(environment).unwrap();
        lock.add_of_run(Role::Recipe, run, &["recipe.toml"]).unwrap();
        let (bytes, sha256) = hash_file(&root.join("data/train.jsonl")).unwrap();
        lock.add_known(Role::Data, Path::new("data/train.jsonl"), bytes, &sha256);
        lock.write(run).unwrap();
        lock
    }

    #[test]
    fn the_hash_of_nothing_is_the_known_one() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert_eq!(hash_file(file.path()).unwrap(), (0, EMPTY.to_owned()));
    }

    #[test]
    fn a_lock_reads_back_and_finds_files_from_any_folder() {
        let (root, run) = run_folder();
        let lock = lock(root.path(), &run);
        assert_eq!(Lock::read(&run).unwrap(), lock);
        assert_eq!(lock.differences(&run).unwrap(), []);
    }

    #[test]
    fn every_kind_of_change_is_told_apart() {
        let (root, run) = run_folder();
        let lock = lock(root.path(), &run);
        let data = root.path().join("data/train.jsonl");
        let change = || lock.differences(&run).unwrap().first().map(|found| found.change.clone());
        std::fs::write(&data, "sown").unwrap();
        assert_eq!(change(), Some(Change::Content));
        std::fs::write(&data, "longer").unwrap();
        assert_eq!(change(), Some(Change::Length(4, 6)));
        std::fs::remove_file(&data).unwrap();
        assert_eq!(change(), Some(Change::Missing));
    }

    #[test]
    fn another_program_is_a_difference() {
        let (root, run) = run_folder();
        let mut lock = lock(root.path(), &run);
        lock.program.sha256 = EMPTY.to_owned();
        let found = lock.differences(&run).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].change.to_string(), "is another build of version 0.1.0");
    }

    #[test]
    fn a_changed_environment_is_named_and_new_facts_are_not() {
        let (root, run) = run_folder();
        let lock = lock(root.path(), &run);
        let now = BTreeMap::from([("threads".into(), "4".into()), ("simd".into(), "avx2".into())]);
        let expected = vec![("threads".to_owned(), "2".to_owned(), "4".to_owned())];
        assert_eq!(lock.environment_differences(&now), expected);
    }

    #[test]
    fn damaged_locks_are_errors() {
        let (root, run) = run_folder();
        lock(root.path(), &run);
        let path = run.join(FILE_NAME);
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            let _ = Lock::read(&run).and_then(|lock| lock.differences(&run));
        }
        std::fs::write(&path, "format = 9\n[program]\nversion = \"1\"\nsha256 = \"\"\n").unwrap();
        let error = Lock::read(&run).unwrap_err().to_string();
        assert!(error.contains("its format is 9"), "{error}");
    }
}
