//! The output folder: complete under its final name, or not there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::MergeError;

/// What to do with an output folder that holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// Leave it and fail.
    Refuse,
    /// Put the new folder in its place.
    Replace,
}

/// A folder beside the final one in which output is prepared; removed unless finished.
#[derive(Debug)]
pub struct PartialFolder {
    path: PathBuf,
    final_dir: PathBuf,
    existing: Existing,
}

impl PartialFolder {
    /// Makes the folder `.<name>.partial` next to `final_dir`, in place of what an interrupted run
    /// left under that name. An output folder that must not be replaced is refused here, before
    /// any work.
    pub fn beside(final_dir: &Path, existing: Existing) -> Result<Self, MergeError> {
        check_existing(final_dir, existing)?;
        let path = sibling(final_dir, "partial")?;
        remove_folder(&path)?;
        fs::create_dir_all(&path).map_err(MergeError::io("create the folder", &path))?;
        Ok(Self { path, final_dir: final_dir.to_owned(), existing })
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Brings the folder to disk and gives it its final name.
    pub fn finish(self) -> Result<(), MergeError> {
        finish(&self.path, &self.final_dir, self.existing)
    }
}

impl Drop for PartialFolder {
    fn drop(&mut self) {
        // After `finish` the folder has another name and there is nothing to remove; otherwise the
        // error that led here is the one to report.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Brings every file of `temp_dir` to disk, then renames the folder to `final_dir`.
pub fn finish(temp_dir: &Path, final_dir: &Path, existing: Existing) -> Result<(), MergeError> {
    check_existing(final_dir, existing)?;
    sync_tree(temp_dir)?;
    let aside = sibling(final_dir, "replaced")?;
    remove_folder(&aside)?;
    let is_replaced = fs::symlink_metadata(final_dir).is_ok();
    if is_replaced {
        rename(final_dir, &aside)?;
    }
    if let Err(error) = rename(temp_dir, final_dir) {
        if is_replaced {
            rename(&aside, final_dir)?;
        }
        return Err(error);
    }
    if let Some(parent) = parent_of(final_dir) {
        sync(parent)?;
    }
    remove_folder(&aside)
}

fn rename(from: &Path, to: &Path) -> Result<(), MergeError> {
    fs::rename(from, to).map_err(MergeError::io("give a finished folder its name", to))
}

fn check_existing(final_dir: &Path, existing: Existing) -> Result<(), MergeError> {
    let is_free = match fs::read_dir(final_dir) {
        Ok(mut entries) => existing == Existing::Replace || entries.next().is_none(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => false,
        Err(error) => return Err(MergeError::io("open the folder", final_dir)(error)),
    };
    if is_free { Ok(()) } else { Err(MergeError::OutputExists { path: final_dir.to_owned() }) }
}

/// `.<name>.<ending>` in the folder of `dir`, so that renaming stays within one file system.
fn sibling(dir: &Path, ending: &str) -> Result<PathBuf, MergeError> {
    let Some(name) = dir.file_name() else {
        return Err(MergeError::OutputName { path: dir.to_owned() });
    };
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".");
    hidden.push(ending);
    Ok(dir.with_file_name(hidden))
}

fn remove_folder(path: &Path) -> Result<(), MergeError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(MergeError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

fn parent_of(path: &Path) -> Option<&Path> {
    path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

fn sync_tree(dir: &Path) -> Result<(), MergeError> {
    for entry in fs::read_dir(dir).map_err(MergeError::io("open the folder", dir))? {
        let path = entry.map_err(MergeError::io("read the folder", dir))?.path();
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            sync(&path)?;
        }
    }
    sync(dir)
}

fn sync(path: &Path) -> Result<(), MergeError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(MergeError::io("sync", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prepared(final_dir: &Path, existing: Existing) -> PartialFolder {
        let partial = PartialFolder::beside(final_dir, existing).unwrap();
        fs::write(partial.path().join("a"), "new").unwrap();
        partial
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_finished_folder_has_its_final_name_only() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("deep/out");
        prepared(&out, Existing::Refuse).finish().unwrap();
        assert_eq!(fs::read_to_string(out.join("a")).unwrap(), "new");
        assert_eq!(names(&root.path().join("deep")), ["out"]);
    }

    #[test]
    fn an_unfinished_folder_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        drop(prepared(&root.path().join("out"), Existing::Refuse));
        assert!(names(root.path()).is_empty());
    }

    #[test]
    fn what_a_killed_run_left_is_not_part_of_the_next_output() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        let killed = prepared(&out, Existing::Refuse);
        fs::write(killed.path().join("stale"), "x").unwrap();
        std::mem::forget(killed);
        prepared(&out, Existing::Refuse).finish().unwrap();
        assert_eq!(names(&out), ["a"]);
    }

    #[test]
    fn a_folder_with_something_in_it_is_refused_or_replaced_as_asked() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        fs::write(out.join("old"), "old").unwrap();
        let error = PartialFolder::beside(&out, Existing::Refuse).unwrap_err();
        assert!(error.to_string().ends_with("out` exists and is not an empty folder"), "{error}");
        assert_eq!(names(root.path()), ["out"]);
        prepared(&out, Existing::Replace).finish().unwrap();
        assert_eq!(names(&out), ["a"]);
        assert_eq!(names(root.path()), ["out"]);
    }

    #[test]
    fn an_empty_folder_is_taken_and_a_file_is_not() {
        let root = tempfile::tempdir().unwrap();
        let out = root.path().join("out");
        fs::create_dir(&out).unwrap();
        prepared(&out, Existing::Refuse).finish().unwrap();
        assert_eq!(names(&out), ["a"]);
        let file = root.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(
            PartialFolder::beside(&file, Existing::Replace),
            Err(MergeError::OutputExists { .. })
        ));
        assert!(matches!(
            PartialFolder::beside(Path::new(".."), Existing::Refuse),
            Err(MergeError::OutputExists { .. } | MergeError::OutputName { .. })
        ));
    }
}
