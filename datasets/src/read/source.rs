//! Opens files as bytes: decompresses, drops a byte-order mark, bounds the size of a row.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use flate2::read::MultiGzDecoder;
use sha2::{Digest, Sha256};

use super::is_gzip;
use crate::error::{DatasetError, Place, RowProblem};

/// Most bytes of one row of a structured text file. Parsed JSON takes up to 16 times its text.
pub(super) const MAX_ROW_BYTES: u64 = 64 << 20;

/// Bytes of a text file after decompression, without byte-order mark, with their place.
pub(super) struct Source {
    pub(super) path: PathBuf,
    reader: BufReader<Box<dyn Read>>,
    /// Offset of the next byte in the decompressed file.
    pub(super) offset: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, DatasetError> {
        let file = File::open(path).map_err(|error| DatasetError::io("read", path, error))?;
        let bytes: Box<dyn Read> =
            if is_gzip(path) { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) };
        let mut source = Self {
            path: path.to_path_buf(),
            reader: BufReader::with_capacity(1 << 16, bytes),
            offset: 0,
        };
        source.skip_byte_order_mark()?;
        Ok(source)
    }

    fn skip_byte_order_mark(&mut self) -> Result<(), DatasetError> {
        if self.peek_all()?.starts_with(b"\xef\xbb\xbf") {
            self.consume(3);
        }
        Ok(())
    }

    /// The bytes at hand; empty at the end of the file.
    pub(super) fn peek_all(&mut self) -> Result<&[u8], DatasetError> {
        let Self { path, reader, .. } = self;
        reader.fill_buf().map_err(|error| DatasetError::io("read", path.as_path(), error))
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.reader.consume(bytes);
        self.offset = self.offset.saturating_add(bytes as u64);
    }

    /// Reads up to and with the next line feed into `line`, at most `limit` bytes.
    ///
    /// `Ok(0)` is the end of the file. More bytes than `limit` end in `line` being `limit + 1`
    /// long.
    pub(super) fn read_line(
        &mut self,
        line: &mut Vec<u8>,
        limit: u64,
    ) -> Result<usize, DatasetError> {
        let read = (&mut self.reader)
            .take(limit.saturating_add(1))
            .read_until(b'\n', line)
            .map_err(|error| DatasetError::io("read", self.path.as_path(), error))?;
        self.offset = self.offset.saturating_add(read as u64);
        Ok(read)
    }

    /// The rest of the file, at most `limit` bytes and one more.
    pub(super) fn read_rest(&mut self, limit: u64) -> Result<Vec<u8>, DatasetError> {
        let mut bytes = Vec::new();
        (&mut self.reader)
            .take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| DatasetError::io("read", self.path.as_path(), error))?;
        Ok(bytes)
    }

    pub(super) fn error(&self, line: u64, problem: RowProblem) -> DatasetError {
        DatasetError::Row { place: Place { path: self.path.clone(), line }, problem }
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.reader.read(buffer)?;
        self.offset = self.offset.saturating_add(read as u64);
        Ok(read)
    }
}

/// `bytes` as text, or the problem with the offset at which it stops being UTF-8.
pub(super) fn utf8(bytes: &[u8], offset: u64) -> Result<&str, RowProblem> {
    std::str::from_utf8(bytes).map_err(|error| RowProblem::NotUtf8 {
        byte: offset.saturating_add(error.valid_up_to() as u64),
        guess: if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
            ", and the file looks like UTF-16; convert it to UTF-8"
        } else {
            ""
        },
    })
}

/// A file that can be sought: `.gz` files are decompressed into an anonymous temporary file.
pub(super) fn open_seekable(path: &Path) -> Result<File, DatasetError> {
    let file = File::open(path).map_err(|error| DatasetError::io("read", path, error))?;
    if !is_gzip(path) {
        return Ok(file);
    }
    let io_error = |error| DatasetError::io("decompress", path, error);
    let mut plain = tempfile::tempfile().map_err(io_error)?;
    io::copy(&mut MultiGzDecoder::new(file), &mut plain).map_err(io_error)?;
    plain.flush().map_err(io_error)?;
    plain.seek(SeekFrom::Start(0)).map_err(io_error)?;
    Ok(plain)
}

/// What identifies a file's content, and what tells that it changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ContentHash {
    /// SHA-256 in lower-case hexadecimal digits.
    pub(crate) sha256: String,
    /// Size on disk.
    pub(crate) bytes: u64,
    modified: Option<SystemTime>,
}

impl ContentHash {
    /// An error where the file is no longer as it was when it was hashed.
    pub(crate) fn check_unchanged(&self, path: &Path) -> Result<(), DatasetError> {
        let now = path.metadata().map_err(|error| DatasetError::io("read", path, error))?;
        if now.len() == self.bytes && now.modified().ok() == self.modified {
            return Ok(());
        }
        Err(DatasetError::FileChanged { path: path.to_path_buf() })
    }
}

/// SHA-256 and size of a file.
pub(crate) fn hash_file(path: &Path) -> Result<ContentHash, DatasetError> {
    let io_error = |error| DatasetError::io("read", path, error);
    let mut file = File::open(path).map_err(io_error)?;
    let metadata = file.metadata().map_err(io_error)?;
    let mut hasher = Sha256::new();
    let bytes = io::copy(&mut file, &mut hasher).map_err(io_error)?;
    Ok(ContentHash {
        sha256: crate::hex(&hasher.finalize()),
        bytes,
        modified: metadata.modified().ok(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_hashes_as_sha256sum_says() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let hash = hash_file(&path).unwrap();
        assert_eq!(hash.sha256, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(hash.bytes, 3);
    }

    #[test]
    fn a_file_that_grew_since_it_was_hashed_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("abc");
        std::fs::write(&path, "abc").unwrap();
        let hash = hash_file(&path).unwrap();
        hash.check_unchanged(&path).unwrap();
        std::fs::write(&path, "abcd").unwrap();
        assert!(matches!(hash.check_unchanged(&path), Err(DatasetError::FileChanged { .. })));
    }

    #[test]
    fn utf16_is_recognised() {
        let problem = utf8(b"\xff\xfe{\0", 0).unwrap_err().to_string();
        assert!(problem.contains("byte 0") && problem.contains("UTF-16"), "{problem}");
    }
}
