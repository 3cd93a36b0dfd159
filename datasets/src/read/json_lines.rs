//! Reads JSON Lines: an object a line; empty lines are skipped.

use std::path::Path;

use serde_json::{Map, Value};

use super::source::{MAX_ROW_BYTES, Source, utf8};
use super::{Reader, Row, Rows};
use crate::error::{DatasetError, RowProblem};

pub(super) const READER: Reader = Reader { endings: &["jsonl", "ndjson"], open };

fn open(path: &Path) -> Result<Rows, DatasetError> {
    Ok(Box::new(Lines { source: Source::open(path)?, line: 0, finished: false }))
}

struct Lines {
    source: Source,
    line: u64,
    finished: bool,
}

impl Lines {
    /// The next line that is not empty.
    fn next_row(&mut self) -> Result<Option<Row>, DatasetError> {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let offset = self.source.offset;
            if self.source.read_line(&mut bytes, MAX_ROW_BYTES)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if bytes.len() as u64 > MAX_ROW_BYTES {
                self.finished = true;
                let problem = RowProblem::TooLong { limit: MAX_ROW_BYTES };
                return Err(self.source.error(self.line, problem));
            }
            if bytes.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let fields = utf8(&bytes, offset)
                .and_then(parse_object)
                .map_err(|problem| self.source.error(self.line, problem))?;
            return Ok(Some(Row { line: self.line, fields, bytes: bytes.len() }));
        }
    }
}

impl Iterator for Lines {
    type Item = Result<Row, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.finished {
            return None;
        }
        let row = self.next_row();
        // A failing disk fails again; a broken row says nothing about the next.
        self.finished |= matches!(row, Ok(None) | Err(DatasetError::Io { .. }));
        row.transpose()
    }
}

/// One JSON object; the problem's column counts from the start of `text`.
fn parse_object(text: &str) -> Result<Map<String, Value>, RowProblem> {
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(RowProblem::Syntax {
            column: 1,
            found: format!("found {}", kind_of(&other)),
            expected: "a JSON object",
        }),
        Err(error) => Err(syntax_problem(&error)),
    }
}

/// What the JSON parser met, without the place that it appends.
pub(super) fn syntax_problem(error: &serde_json::Error) -> RowProblem {
    let text = error.to_string();
    let met = text.rsplit_once(" at line ").map_or(text.as_str(), |(met, _)| met);
    RowProblem::Syntax {
        column: error.column() as u64,
        found: format!("not valid JSON ({met})"),
        expected: "one JSON object",
    }
}

/// A JSON value's type, with its article.
pub(crate) fn kind_of(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "a boolean".to_owned(),
        Value::Number(_) => "a number".to_owned(),
        Value::String(_) => "a string".to_owned(),
        Value::Array(entries) => format!("a list of {}", entries.len()),
        Value::Object(_) => "an object".to_owned(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// Rows and errors of a file with this name and content.
    pub(crate) fn read(name: &str, content: &[u8]) -> Vec<Result<Row, String>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, content).unwrap();
        let prefix = format!("{}/", dir.path().display());
        match super::super::open(&path) {
            Ok(rows) => rows
                .map(|row| row.map_err(|error| error.to_string().replace(&prefix, "")))
                .collect(),
            Err(error) => vec![Err(error.to_string().replace(&prefix, ""))],
        }
    }

    pub(crate) fn gzip(content: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(content).unwrap();
        encoder.finish().unwrap()
    }

    pub(crate) fn lines_and_field(rows: &[Result<Row, String>], field: &str) -> Vec<(u64, Value)> {
        let pair = |row: &Result<Row, String>| {
            let row = row.as_ref().unwrap();
            (row.line, row.fields[field].clone())
        };
        rows.iter().map(pair).collect()
    }

    #[test]
    fn rows_keep_their_line_through_empty_lines_crlf_and_a_byte_order_mark() {
        let content = b"\xef\xbb\xbf{\"a\": 1}\r\n\r\n  \n{\"a\": 2}";
        let expected = [(1, Value::from(1)), (4, Value::from(2))];
        assert_eq!(lines_and_field(&read("x.jsonl", content), "a"), expected);
        assert_eq!(lines_and_field(&read("x.jsonl.gz", &gzip(content)), "a"), expected);
    }

    #[test]
    fn a_broken_line_names_its_place_and_the_next_is_read() {
        let rows = read("x.jsonl", b"{\"a\": secret}\n[1, 2]\n{\"a\": 1}\n{\"a\":");
        let error = rows[0].as_ref().unwrap_err();
        assert!(error.starts_with("x.jsonl:1: column 7: not valid JSON"), "{error}");
        assert!(!error.contains("secret"), "{error}");
        assert_eq!(
            rows[1].as_ref().unwrap_err(),
            "x.jsonl:2: column 1: found a list of 2, expected a JSON object"
        );
        assert_eq!(rows[2].as_ref().unwrap().line, 3);
        assert!(rows[3].as_ref().unwrap_err().contains("EOF"), "{:?}", rows[3]);
        assert_eq!(rows.len(), 4);
    }

    #[test]
    fn bytes_that_are_not_utf8_are_named_by_their_offset() {
        let rows = read("x.jsonl", b"{\"a\": 1}\n{\"a\": \"\xff\"}\n");
        assert_eq!(rows[1].as_ref().unwrap_err(), "x.jsonl:2: byte 16 of the file is not UTF-8");
    }

    #[test]
    fn a_truncated_gz_file_is_an_error_after_its_whole_rows() {
        let whole = gzip(&b"{\"a\": 1}\n".repeat(5000));
        let rows = read("x.jsonl.gz", &whole[..whole.len() - 12]);
        assert!(rows.last().unwrap().is_err());
        assert!(rows.iter().filter(|row| row.is_err()).count() == 1);
    }

    #[test]
    fn deep_nesting_is_an_error_and_no_stack_overflow() {
        let content = format!("{}{}", "{\"a\":".repeat(100_000), "}".repeat(100_000));
        assert!(read("x.jsonl", content.as_bytes())[0].is_err());
    }
}
