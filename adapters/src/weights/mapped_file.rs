//! A read-only memory map of a weight file.
//!
//! Weights are larger than memory may be. Mapping lets the system load pages as they are read and
//! drop them again; [`MappedFile::release`] drops them at once, so that streaming through a model
//! keeps only the tensor at hand.

use std::{
    fs::File,
    ops::Range,
    path::{Path, PathBuf},
};

use memmap2::{Mmap, UncheckedAdvice};

use super::WeightsError;

pub(super) struct MappedFile {
    path: PathBuf,
    map: Mmap,
}

impl MappedFile {
    pub(super) fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = File::open(path).map_err(|error| WeightsError::io(path, "open", error))?;
        let metadata = file.metadata().map_err(|error| WeightsError::io(path, "read", error))?;
        if !metadata.is_file() {
            let error = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
            return Err(WeightsError::io(path, "read", error));
        }
        if metadata.len() == 0 {
            return Err(WeightsError::damaged(path, "length", "the file is empty"));
        }
        #[expect(
            unsafe_code,
            reason = "mapping is the only way to read weights without copying them"
        )]
        // SAFETY: the map is read-only and every access is checked against its length. A program
        // that shortens the file meanwhile ends this one with SIGBUS; nothing is corrupted.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|error| WeightsError::io(path, "map into memory", error))?;
        Ok(Self { path: path.to_owned(), map })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }

    /// Drops the resident pages of `range`; they are read from disk again when next touched.
    pub(super) fn release(&self, range: &Range<usize>) {
        if range.start >= range.end || range.end > self.map.len() {
            return;
        }
        #[expect(unsafe_code, reason = "bounds resident memory while a model is streamed")]
        // SAFETY: the map is shared, read-only and file-backed: dropped pages come back with the
        // file's bytes, so no reader can see a difference.
        let advised = unsafe {
            self.map.unchecked_advise_range(
                UncheckedAdvice::DontNeed,
                range.start,
                range.end - range.start,
            )
        };
        // Advice only: a kernel that refuses it keeps the pages until it needs the memory.
        drop(advised);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_pages_read_the_same_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        let content: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
        std::fs::write(&path, &content).unwrap();
        let file = MappedFile::open(&path).unwrap();
        assert_eq!(file.bytes(), content);
        file.release(&(5_000..90_000));
        file.release(&(0..usize::MAX));
        assert_eq!(file.bytes(), content);
    }

    #[test]
    fn empty_files_and_folders_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("w");
        std::fs::write(&path, b"").unwrap();
        assert!(matches!(MappedFile::open(&path), Err(WeightsError::Damaged { .. })));
        assert!(matches!(MappedFile::open(dir.path()), Err(WeightsError::Io { .. })));
    }
}
