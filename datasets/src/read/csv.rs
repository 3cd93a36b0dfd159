//! Reads CSV with a header row; every value is a string.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::source::{MAX_ROW_BYTES, Source};
use super::{Reader, Row, Rows};
use crate::error::{DatasetError, Place, RowProblem};

pub(super) const READER: Reader = Reader { endings: &["csv"], open: |path| open(path, b',') };
pub(super) const TAB_READER: Reader = Reader { endings: &["tsv"], open: |path| open(path, b'\t') };

fn open(path: &Path, delimiter: u8) -> Result<Rows, DatasetError> {
    let mut source = Source::open(path)?;
    let start = source.peek_all()?;
    let first_line = start.split(|&byte| byte == b'\n').next().unwrap_or_default();
    // With CRLF the parser is done with a row before its line feed, and counts that line late.
    let lines_late = u64::from(first_line.len() < start.len() && first_line.ends_with(b"\r"));
    let source = RowLimit { source, left: MAX_ROW_BYTES };
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter).from_reader(source);
    let names = header(path, &mut reader)?;
    let path = path.to_path_buf();
    let record = csv::ByteRecord::new();
    Ok(Box::new(Records { path, reader, names, record, lines_late, finished: false }))
}

type CsvReader = csv::Reader<RowLimit>;

fn header(path: &Path, reader: &mut CsvReader) -> Result<Vec<String>, DatasetError> {
    let bad = |line, found: String, expected| DatasetError::Row {
        place: Place { path: path.to_path_buf(), line },
        problem: RowProblem::Syntax { column: 1, found, expected },
    };
    let record = reader.byte_headers().map_err(|error| csv_error(path, 1, &error))?;
    let mut names = Vec::with_capacity(record.len());
    for (index, name) in record.iter().enumerate() {
        let name = std::str::from_utf8(name).map_err(|_| {
            bad(1, format!("the name of column {} is not UTF-8", index + 1), "a header row")
        })?;
        if names.iter().any(|other| other == name) {
            let found = format!("columns {} and another have one name", index + 1);
            return Err(bad(1, found, "a header row of different names"));
        }
        names.push(name.to_owned());
    }
    Ok(names)
}

struct Records {
    path: PathBuf,
    reader: CsvReader,
    names: Vec<String>,
    record: csv::ByteRecord,
    lines_late: u64,
    finished: bool,
}

impl Records {
    fn next_row(&mut self) -> Result<Option<Row>, DatasetError> {
        self.reader.get_mut().left = MAX_ROW_BYTES;
        let line = self.reader.position().line() + self.lines_late;
        let found = self
            .reader
            .read_byte_record(&mut self.record)
            .map_err(|error| csv_error(&self.path, line, &error))?;
        if !found {
            return Ok(None);
        }
        let mut fields = Map::new();
        for (name, value) in self.names.iter().zip(&self.record) {
            let value = std::str::from_utf8(value).map_err(|_| DatasetError::Row {
                place: Place { path: self.path.clone(), line },
                problem: RowProblem::WrongType {
                    field: name.clone(),
                    found: "not UTF-8".to_owned(),
                    expected: "text",
                },
            })?;
            fields.insert(name.clone(), Value::String(value.to_owned()));
        }
        Ok(Some(Row { line, fields, bytes: self.record.as_slice().len() }))
    }
}

impl Iterator for Records {
    type Item = Result<Row, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let row = self.next_row();
        self.finished |= matches!(row, Ok(None) | Err(DatasetError::Io { .. }));
        row.transpose()
    }
}

fn csv_error(path: &Path, line: u64, error: &csv::Error) -> DatasetError {
    let place = Place { path: path.to_path_buf(), line };
    match error.kind() {
        csv::ErrorKind::UnequalLengths { expected_len, len, .. } => DatasetError::Row {
            place,
            problem: RowProblem::Syntax {
                column: 1,
                found: format!("{len} values under {expected_len} column names"),
                expected: "a value for each column (quote values that hold the separator)",
            },
        },
        csv::ErrorKind::Io(error) if error.kind() == std::io::ErrorKind::FileTooLarge => {
            DatasetError::Row { place, problem: RowProblem::TooLong { limit: MAX_ROW_BYTES } }
        }
        csv::ErrorKind::Io(error) => {
            DatasetError::io("read", path, std::io::Error::new(error.kind(), error.to_string()))
        }
        _ => DatasetError::BadFile {
            path: path.to_path_buf(),
            kind: "CSV",
            problem: format!("line {line}: {error}"),
        },
    }
}

/// Ends with an error where one row takes more than it may: a lost quote makes the rest of the
/// file one value.
struct RowLimit {
    source: Source,
    left: u64,
}

impl std::io::Read for RowLimit {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.left == 0 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        let read = self.source.read(buffer)?;
        self.left = self.left.saturating_sub(read as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::super::json_lines::tests::{gzip, lines_and_field, read};
    use super::*;

    #[test]
    fn quoted_values_keep_line_feeds_and_rows_their_lines() {
        let content = b"\xef\xbb\xbfa,b\r\n\"x\r\n\"\"y\"\"\",1\r\n\xc3\xa9,2\r\n";
        let expected = [(2, Value::from("x\r\n\"y\"")), (4, Value::from("é"))];
        assert_eq!(lines_and_field(&read("x.csv", content), "a"), expected);
        assert_eq!(lines_and_field(&read("x.csv.gz", &gzip(content)), "a"), expected);
        assert_eq!(lines_and_field(&read("x.tsv", b"a\tb\n1,2\t3\n"), "a"), [(2, "1,2".into())]);
    }

    #[test]
    fn a_row_with_too_few_values_and_one_that_is_not_utf8_name_their_lines() {
        let rows = read("x.csv", b"a,b\n1\n\xff,2\n3,4\n");
        assert_eq!(
            rows[0].as_ref().unwrap_err(),
            "x.csv:2: column 1: 1 values under 2 column names, expected a value for each column \
             (quote values that hold the separator)"
        );
        assert_eq!(rows[1].as_ref().unwrap_err(), "x.csv:3: field `a` is not UTF-8, expected text");
        assert_eq!(rows[2].as_ref().unwrap().fields["b"], "4");
    }

    #[test]
    fn a_header_with_one_name_twice_is_an_error() {
        let rows = read("x.csv", b"a,a\n1,2\n");
        assert!(rows[0].as_ref().unwrap_err().contains("different names"), "{rows:?}");
    }

    #[test]
    fn a_quote_that_never_closes_is_an_error_before_memory_runs_out() {
        let mut content = b"a\n\"".to_vec();
        content.resize(MAX_ROW_BYTES as usize + (1 << 20), b'x');
        let rows = read("x.csv", &content);
        assert!(rows[0].as_ref().unwrap_err().contains("longer than"), "{:?}", rows[0].is_ok());
    }
}
