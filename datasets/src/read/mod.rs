//! Reads rows from files: one reader per kind of file, found by the file's ending.
//!
//! Every reader streams: a row, or a small batch of rows, is in memory at a time. What a file
//! claims about itself (lengths, counts) is checked against its size before it is believed.

mod arrow;
mod csv;
mod find;
mod json;
mod json_lines;
mod parquet;
mod plain_text;
mod record_batch;
mod source;

use std::path::Path;

use serde_json::{Map, Value};

pub(crate) use find::{Found, find};
pub(crate) use json_lines::kind_of;
pub(crate) use source::{ContentHash, hash_file};

use crate::error::DatasetError;

/// One row: its fields, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    /// Line of a text format, row of a table; counting from 1.
    pub(crate) line: u64,
    /// The columns.
    pub(crate) fields: Map<String, Value>,
    /// About how much memory it takes, to bound how many rows are held at once.
    pub(crate) bytes: usize,
}

/// Rows of one file, in order. Several errors may come: those of single rows do not end it.
pub(crate) type Rows = Box<dyn Iterator<Item = Result<Row, DatasetError>>>;

/// One kind of file.
#[derive(Debug)]
pub(crate) struct Reader {
    /// Endings without the dot, in lower case; `.gz` may follow each.
    endings: &'static [&'static str],
    open: fn(&Path) -> Result<Rows, DatasetError>,
}

/// Every kind of file.
///
/// To add one: write `read/<kind>.rs` with its `READER`, then list it here.
const READERS: &[&Reader] = &[
    &json_lines::READER,
    &json::READER,
    &csv::READER,
    &csv::TAB_READER,
    &parquet::READER,
    &arrow::READER,
    &plain_text::READER,
];

/// Opens a file by its ending.
pub(crate) fn open(path: &Path) -> Result<Rows, DatasetError> {
    let reader = reader_of(path).ok_or_else(|| DatasetError::UnknownEnding {
        path: path.to_path_buf(),
        known: known_endings(),
    })?;
    (reader.open)(path)
}

/// The reader for a file's ending, `.gz` left out of account.
fn reader_of(path: &Path) -> Option<&'static Reader> {
    let name = path.file_name()?.to_str()?.to_ascii_lowercase();
    let name = name.strip_suffix(".gz").unwrap_or(&name);
    let (_, ending) = name.rsplit_once('.')?;
    READERS.iter().find(|reader| reader.endings.contains(&ending)).copied()
}

fn is_gzip(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gz"))
}

fn known_endings() -> String {
    let data = READERS.iter().filter(|reader| !reader.endings.contains(&"txt"));
    let mut endings: Vec<&str> = data.flat_map(|reader| reader.endings).copied().collect();
    endings.extend(["txt", "md", "and those of source code"]);
    endings.join(", ") + "; each also with .gz"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_decide_the_reader_with_and_without_gz() {
        for (name, ending) in [
            ("a.jsonl", "jsonl"),
            ("a.b.JSONL.gz", "jsonl"),
            ("x.parquet", "parquet"),
            ("m.RS", "rs"),
        ] {
            let reader = reader_of(Path::new(name)).unwrap();
            assert!(reader.endings.contains(&ending), "{name}");
        }
        for name in ["a", "a.bin", "a.gz", ".jsonl~"] {
            assert!(reader_of(Path::new(name)).is_none(), "{name}");
        }
    }

    #[test]
    fn no_ending_belongs_to_two_readers() {
        let mut all: Vec<_> = READERS.iter().flat_map(|reader| reader.endings).collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn unknown_endings_are_an_error_that_lists_the_known_ones() {
        let error = open(Path::new("weights.bin")).err().unwrap().to_string();
        assert!(error.contains("`weights.bin`") && error.contains("jsonl"), "{error}");
    }
}
