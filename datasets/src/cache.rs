//! Keeps tokenized datasets on disk, so that the next run does not tokenize them again.
//!
//! An entry is named by SHA-256 of everything its content depends on. Layout, integers little
//! endian: 8 bytes magic; length (u64) and bytes of a JSON header with the counts and the rows of
//! each file; number of examples (u64); for each, file (u32), line (u64), part (u32), tokens (u32),
//! ids (u32 each), labels (i32 each); SHA-256 of all that. An entry that does not match its
//! checksum is as good as none.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::counts::DatasetCounts;
use crate::example::{Origin, TokenizedExample};
use crate::prepare::Prepared;

const MAGIC: &[u8; 8] = b"TSTOKEN1";

/// Bytes of an example without its tokens, and of each token.
const EXAMPLE_BYTES: u64 = 20;
const TOKEN_BYTES: u64 = 8;

/// Start and end of the name of an entry that is being written.
const PARTIAL: (&str, &str) = (".tokens-", ".partial");
const ABANDONED_AFTER: Duration = Duration::from_hours(1);

/// A dataset from the cache.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub(crate) examples: Vec<TokenizedExample>,
    pub(crate) counts: DatasetCounts,
    /// Rows of each file.
    pub(crate) rows: Vec<u64>,
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    counts: Cow<'a, DatasetCounts>,
    rows: Vec<u64>,
}

/// Name of the entry that depends on these parts: each is hashed with its length.
pub(crate) fn key(parts: &[Cow<[u8]>]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(MAGIC);
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    crate::hex(&hasher.finalize())
}

/// Writes an entry; it has its name only once it is whole.
pub(crate) fn write(path: &Path, prepared: &Prepared) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    remove_abandoned(folder);
    let file = tempfile::Builder::new().prefix(PARTIAL.0).suffix(PARTIAL.1).tempfile_in(folder)?;
    let mut writer = Hashing { inner: BufWriter::new(file), hasher: Sha256::new() };
    write_content(&mut writer, prepared)?;
    let Hashing { mut inner, hasher } = writer;
    inner.write_all(&hasher.finalize())?;
    let file = inner.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    Ok(())
}

/// Removes what writers that were killed left behind; an entry takes minutes to write at most.
fn remove_abandoned(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|modified| modified.elapsed().ok());
        let is_partial = name.starts_with(PARTIAL.0) && name.ends_with(PARTIAL.1);
        if is_partial && age.is_some_and(|age| age > ABANDONED_AFTER) {
            // Whoever may not remove it can still write an entry of its own.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

fn write_content(writer: &mut impl Write, prepared: &Prepared) -> io::Result<()> {
    let header = Header {
        counts: Cow::Borrowed(&prepared.counts),
        rows: prepared.files.iter().map(|file| file.rows).collect(),
    };
    let header = serde_json::to_vec(&header)?;
    writer.write_all(MAGIC)?;
    writer.write_all(&(header.len() as u64).to_le_bytes())?;
    writer.write_all(&header)?;
    writer.write_all(&(prepared.examples.len() as u64).to_le_bytes())?;
    let mut bytes = Vec::new();
    for example in &prepared.examples {
        bytes.clear();
        bytes.extend(example.origin.file.to_le_bytes());
        bytes.extend(example.origin.line.to_le_bytes());
        bytes.extend(example.origin.part.to_le_bytes());
        bytes.extend((example.token_ids.len() as u32).to_le_bytes());
        bytes.extend(example.token_ids.iter().flat_map(|id| id.to_le_bytes()));
        bytes.extend(example.labels.iter().flat_map(|label| label.to_le_bytes()));
        writer.write_all(&bytes)?;
    }
    Ok(())
}

/// The entry of this name, where there is one and it is whole.
pub(crate) fn read(path: &Path) -> Option<Entry> {
    let file = File::open(path).ok()?;
    let left = file.metadata().ok()?.len().checked_sub(32)?;
    let mut reader = Reading { inner: BufReader::new(file), hasher: Sha256::new(), left };
    let entry = read_content(&mut reader).ok()?;
    let Reading { mut inner, hasher, left } = reader;
    let mut checksum = [0; 32];
    inner.read_exact(&mut checksum).ok()?;
    (left == 0 && checksum[..] == hasher.finalize()[..]).then_some(entry)
}

fn read_content(reader: &mut Reading) -> io::Result<Entry> {
    if reader.bytes::<8>()? != *MAGIC {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let header = u64::from_le_bytes(reader.bytes()?);
    let Header { counts, rows } = serde_json::from_slice(&reader.take(header)?)?;
    let count = u64::from_le_bytes(reader.bytes()?);
    if count.checked_mul(EXAMPLE_BYTES).is_none_or(|bytes| bytes > reader.left) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let examples = (0..count).map(|_| read_example(reader)).collect::<io::Result<_>>()?;
    Ok(Entry { examples, counts: counts.into_owned(), rows })
}

fn read_example(reader: &mut Reading) -> io::Result<TokenizedExample> {
    let file = u32::from_le_bytes(reader.bytes()?);
    let line = u64::from_le_bytes(reader.bytes()?);
    let part = u32::from_le_bytes(reader.bytes()?);
    let tokens = u32::from_le_bytes(reader.bytes()?);
    let bytes = reader.take(u64::from(tokens) * TOKEN_BYTES)?;
    let (ids, labels) = bytes.split_at(bytes.len() / 2);
    let (ids, _) = ids.as_chunks::<4>();
    let (labels, _) = labels.as_chunks::<4>();
    Ok(TokenizedExample {
        token_ids: ids.iter().map(|&bytes| u32::from_le_bytes(bytes)).collect(),
        labels: labels.iter().map(|&bytes| i32::from_le_bytes(bytes)).collect(),
        dataset: 0,
        origin: Origin { file, line, part },
    })
}

/// Hashes what is written.
struct Hashing<W> {
    inner: W,
    hasher: Sha256,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Hashes what is read, and reads no more than the file has before its checksum.
struct Reading {
    inner: BufReader<File>,
    hasher: Sha256,
    left: u64,
}

impl Reading {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn take(&mut self, count: u64) -> io::Result<Vec<u8>> {
        if count > self.left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        let left = self.left.checked_sub(bytes.len() as u64);
        self.left = left.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.inner.read_exact(bytes)?;
        self.hasher.update(&*bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::FormatName;
    use crate::counts::DatasetRole;
    use crate::load::DataFile;

    fn prepared() -> Prepared {
        let example = |line: u64| TokenizedExample {
            token_ids: (0..line as u32).collect(),
            labels: (0..line as i32).map(|label| -label).collect(),
            dataset: 0,
            origin: Origin { file: 1, line, part: 2 },
        };
        let mut counts = DatasetCounts::new("data.jsonl", DatasetRole::Training, FormatName::Text);
        counts.rows = 3;
        let file = |rows| DataFile { path: "x".into(), sha256: String::new(), bytes: 1, rows };
        Prepared {
            examples: (0..4).map(example).collect(),
            counts,
            files: vec![file(1), file(2)],
            warnings: Vec::new(),
        }
    }

    #[test]
    fn an_entry_comes_back_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("folder/entry.tokens");
        assert_eq!(read(&path), None);
        write(&path, &prepared()).unwrap();
        write(&path, &prepared()).unwrap();
        let entry = read(&path).unwrap();
        assert_eq!(entry.examples, prepared().examples);
        assert_eq!(entry.counts, prepared().counts);
        assert_eq!(entry.rows, [1, 2]);
        let names: Vec<_> = std::fs::read_dir(path.parent().unwrap()).unwrap().collect();
        assert_eq!(names.len(), 1, "no partial file is left");
    }

    #[test]
    fn a_damaged_or_truncated_entry_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("entry.tokens");
        write(&path, &prepared()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for place in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[place] ^= 1 << (place % 8);
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(read(&path), None, "byte {place}");
            std::fs::write(&path, &whole[..place]).unwrap();
            assert_eq!(read(&path), None, "first {place} bytes");
        }
    }

    #[test]
    fn what_killed_writers_left_is_removed_once_it_is_old() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) =
            (dir.path().join(".tokens-a.partial"), dir.path().join(".tokens-b.partial"));
        let old_file = File::create(&old).unwrap();
        old_file.set_modified(std::time::SystemTime::now() - 2 * ABANDONED_AFTER).unwrap();
        File::create(&new).unwrap();
        write(&dir.path().join("entry.tokens"), &prepared()).unwrap();
        assert!(!old.exists() && new.exists());
    }

    #[test]
    fn keys_tell_apart_where_one_part_ends() {
        let key = |parts: &[&'static str]| {
            let part = |part: &&'static str| Cow::Borrowed(part.as_bytes());
            super::key(&parts.iter().map(part).collect::<Vec<_>>())
        };
        assert_eq!(key(&["a", "b"]), key(&["a", "b"]));
        assert_ne!(key(&["ab", ""]), key(&["a", "b"]));
    }
}
