//! The folder of a run: one process at a time, one recipe, resumed or started over.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde_json::Value;

use crate::diagnostics::UserError;
use crate::printer::write_atomically;
use crate::recipe::Recipe;

/// Keys that may differ when a run goes on: they do not change the steps that were done.
const FREE: &[&str] = &[
    "output_dir",
    "train.steps",
    "train.epochs",
    "train.gradient_checkpointing",
    "checkpoint.every_steps",
    "checkpoint.keep_last",
    "validation.every_steps",
];

/// A run folder that this process holds.
pub struct RunFolder {
    /// The folder.
    pub path: PathBuf,
    _lock: File,
}

impl RunFolder {
    /// Opens or makes the folder of a recipe; refuses one that belongs to another recipe.
    pub fn open(recipe: &Recipe, start: Start) -> anyhow::Result<Self> {
        let path = recipe.output_dir.clone();
        if start == Start::Fresh && path.exists() {
            drop(Self::lock(&path)?);
            set_aside(&path)?;
        }
        fs::create_dir_all(&path)
            .with_context(|| format!("cannot make the run folder `{}`", path.display()))?;
        let lock = Self::lock(&path)?;
        let folder = Self { path, _lock: lock };
        folder.claim(recipe)?;
        Ok(folder)
    }

    /// One process per run folder: the lock ends with the process, however it ends.
    fn lock(path: &Path) -> anyhow::Result<File> {
        let name = path.join(".lock");
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&name)
            .with_context(|| format!("cannot write `{}`", name.display()))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(UserError::new(
                format!("another process is working in `{}`", path.display()),
                "wait for it, stop it, or name another `output_dir`",
            )
            .into()),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock `{}`", name.display()))
            }
        }
    }

    /// Writes `recipe.toml`, or compares with the one that is there.
    fn claim(&self, recipe: &Recipe) -> anyhow::Result<()> {
        let path = self.path.join("recipe.toml");
        if path.exists() && self.has_state() {
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read `{}`", path.display()))?;
            let old = Recipe::parse(&path.display().to_string(), &text)?;
            refuse_differences(&self.path, &old, recipe)?;
        }
        write_atomically(&path, recipe.to_toml()?.as_bytes())
    }

    /// Whether there is anything that another recipe would spoil.
    fn has_state(&self) -> bool {
        let saved = fs::read_dir(self.path.join("checkpoints"))
            .is_ok_and(|entries| entries.flatten().count() > 0);
        saved || self.path.join("adapter").exists()
    }

    /// Steps that the run was to have, where it is finished, at its last step or early.
    pub fn finished_steps(&self) -> Option<u64> {
        let report = fs::read(self.path.join("report.json")).ok()?;
        let report: Value = serde_json::from_slice(&report).ok()?;
        let complete = self.path.join("adapter/adapter_model.safetensors").exists();
        report
            .get("planned_steps")
            .or(report.get("steps"))
            .and_then(Value::as_u64)
            .filter(|_| complete)
    }
}

/// What happens to what is in the folder already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The run goes on from its newest checkpoint.
    Resume,
    /// The old folder is moved aside.
    Fresh,
}

fn set_aside(path: &Path) -> anyhow::Result<()> {
    let name = path.display().to_string();
    let name = name.trim_end_matches('/');
    for number in 1.. {
        let aside = PathBuf::from(format!("{name}.old-{number}"));
        if !aside.exists() {
            return fs::rename(path, &aside).with_context(|| {
                format!("cannot move `{}` to `{}`", path.display(), aside.display())
            });
        }
    }
    Ok(())
}

fn refuse_differences(folder: &Path, old: &Recipe, new: &Recipe) -> anyhow::Result<()> {
    let (old, new) = (serde_json::to_value(old)?, serde_json::to_value(new)?);
    let mut lines = Vec::new();
    differences("", &old, &new, &mut lines);
    if lines.is_empty() {
        return Ok(());
    }
    Err(UserError::new(
        format!("`{}` holds a run of another recipe:\n{}", folder.display(), lines.join("\n")),
        "add `--fresh` to move that run aside and start over, set the keys back, or name another \
         `output_dir`",
    )
    .into())
}

/// One line for every key that differs, unless it is free to.
fn differences(path: &str, old: &Value, new: &Value, lines: &mut Vec<String>) {
    if FREE.contains(&path) {
        return;
    }
    match (old, new) {
        (Value::Object(a), Value::Object(b)) => {
            let keys: std::collections::BTreeSet<_> = a.keys().chain(b.keys()).collect();
            for key in keys {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                let value = |map: &serde_json::Map<_, _>| map.get(key).cloned().unwrap_or_default();
                differences(&path, &value(a), &value(b), lines);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{index}]"), a, b, lines);
            }
        }
        (Value::Object(map), Value::Null) | (Value::Null, Value::Object(map))
            if map.keys().all(|key| FREE.contains(&format!("{path}.{key}").as_str())) => {}
        (a, b) if a != b => lines.push(format!("  {path}: {a} there, {b} here")),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipe(extra: &str) -> Recipe {
        let text = format!(
            "base_model = \"m\"\noutput_dir = \"o\"\n{extra}\n[[dataset]]\npath = \"d.jsonl\"\n"
        );
        Recipe::parse("r.toml", &text).unwrap()
    }

    #[test]
    fn keys_that_change_results_are_named_with_both_values() {
        let error = refuse_differences(Path::new("o"), &recipe("seed = 1"), &recipe("seed = 2"));
        assert!(error.unwrap_err().to_string().contains("seed: 1 there, 2 here"));
    }

    #[test]
    fn more_steps_and_other_checkpoints_are_free() {
        let longer = "[train]\nsteps = 9\n[checkpoint]\nevery_steps = 3\n";
        assert!(refuse_differences(Path::new("o"), &recipe(""), &recipe(longer)).is_ok());
    }
}
