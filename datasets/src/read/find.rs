//! Finds the files that a path, glob or folder of a recipe means.

use std::path::{Path, PathBuf};

use super::reader_of;
use crate::error::DatasetError;

/// Files of one dataset.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Sorted by path.
    pub(crate) files: Vec<PathBuf>,
    /// Files of a glob or folder whose ending no reader knows.
    pub(crate) skipped: u64,
}

/// Files that `pattern` means: a file, the readable files of a folder and its folders, or those
/// that a glob matches. Entries of a folder whose name starts with a dot are left out.
pub(crate) fn find(pattern: &str) -> Result<Found, DatasetError> {
    let path = Path::new(pattern);
    if path.is_dir() {
        return keep_readable(pattern, files_below(path)?);
    }
    if path.exists() {
        return match reader_of(path) {
            Some(_) => Ok(Found { files: vec![path.to_path_buf()], skipped: 0 }),
            None => Err(DatasetError::UnknownEnding {
                path: path.to_path_buf(),
                known: super::known_endings(),
            }),
        };
    }
    if !pattern.contains(['*', '?', '[']) {
        return Err(no_files(pattern, "there is no such file or folder"));
    }
    keep_readable(pattern, files_matching(pattern)?)
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>, DatasetError> {
    let visible = |entry: &walkdir::DirEntry| {
        entry.depth() == 0 || !entry.file_name().as_encoded_bytes().starts_with(b".")
    };
    let mut files = Vec::new();
    for entry in walkdir::WalkDir::new(folder).follow_links(true).into_iter().filter_entry(visible)
    {
        let entry = entry.map_err(|error| {
            let path = error.path().unwrap_or(folder).to_path_buf();
            DatasetError::io("read", path, error.into())
        })?;
        if entry.file_type().is_file() {
            files.push(entry.into_path());
        }
    }
    Ok(files)
}

fn files_matching(pattern: &str) -> Result<Vec<PathBuf>, DatasetError> {
    let paths = glob::glob(pattern)
        .map_err(|error| no_files(pattern, &format!("the glob is not valid: {}", error.msg)))?;
    let mut files = Vec::new();
    for path in paths {
        let path = path.map_err(|error| {
            let path = error.path().to_path_buf();
            DatasetError::io("read", path, error.into())
        })?;
        if path.is_file() {
            files.push(path);
        }
    }
    Ok(files)
}

fn keep_readable(pattern: &str, mut files: Vec<PathBuf>) -> Result<Found, DatasetError> {
    let all = files.len();
    files.retain(|path| reader_of(path).is_some());
    files.sort();
    if files.is_empty() {
        return Err(no_files(
            pattern,
            &match all {
                0 => "it has no files".to_owned(),
                _ => format!(
                    "its {all} files have endings that no reader knows; known are {}",
                    super::known_endings()
                ),
            },
        ));
    }
    let skipped = (all - files.len()) as u64;
    Ok(Found { files, skipped })
}

fn no_files(pattern: &str, reason: &str) -> DatasetError {
    DatasetError::NoFiles { pattern: pattern.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in
            ["b.jsonl", "a/z.jsonl", "a/picture.png", ".git/c.txt", "a/.hidden.txt", "B.jsonl"]
        {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{}").unwrap();
        }
        dir
    }

    fn names(found: &Found, dir: &tempfile::TempDir) -> Vec<String> {
        let name = |path: &PathBuf| path.strip_prefix(dir.path()).unwrap().display().to_string();
        found.files.iter().map(name).collect()
    }

    #[test]
    fn a_folder_gives_its_readable_files_sorted_and_counts_the_others() {
        let dir = folder();
        let found = find(dir.path().to_str().unwrap()).unwrap();
        assert_eq!(names(&found, &dir), ["B.jsonl", "a/z.jsonl", "b.jsonl"]);
        assert_eq!(found.skipped, 1);
    }

    #[test]
    fn a_glob_gives_what_it_matches() {
        let dir = folder();
        let found = find(&format!("{}/**/?.jsonl", dir.path().display())).unwrap();
        assert_eq!(names(&found, &dir), ["B.jsonl", "a/z.jsonl", "b.jsonl"]);
        let error = find(&format!("{}/*.csv", dir.path().display())).unwrap_err();
        assert!(error.to_string().contains("it has no files"), "{error}");
    }

    #[test]
    fn a_folder_without_readable_files_and_a_missing_path_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x.bin"), "").unwrap();
        let error = find(dir.path().to_str().unwrap()).unwrap_err().to_string();
        assert!(error.contains("its 1 files have endings"), "{error}");
        let error = find("no/such/file.jsonl").unwrap_err().to_string();
        assert!(error.contains("`no/such/file.jsonl`") && error.contains("no such"), "{error}");
        let file = dir.path().join("x.bin");
        assert!(matches!(find(file.to_str().unwrap()), Err(DatasetError::UnknownEnding { .. })));
    }
}
