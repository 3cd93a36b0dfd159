//! Rows of files as they stand, for evaluation: no format, no tokens.

use serde_json::{Map, Value};

use crate::error::{DatasetError, Place, SHOWN_ERRORS};
use crate::read;

/// One row: its columns, and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct SourceRow {
    /// File and line.
    pub place: Place,
    /// The columns.
    pub fields: Map<String, Value>,
}

/// The first `limit` rows of the files that a path, glob or folder means, files sorted by path.
pub fn read_rows(pattern: &str, limit: Option<usize>) -> Result<Vec<SourceRow>, DatasetError> {
    let (mut rows, mut errors, mut error_count) = (Vec::new(), Vec::new(), 0);
    let most = limit.unwrap_or(usize::MAX);
    for path in read::find(pattern)?.files {
        for row in read::open(&path)? {
            if rows.len() + error_count >= most {
                break;
            }
            match row {
                Ok(row) => rows.push(SourceRow {
                    place: Place { path: path.clone(), line: row.line },
                    fields: row.fields,
                }),
                Err(error) => {
                    error_count += 1;
                    if errors.len() < SHOWN_ERRORS {
                        errors.push(error);
                    }
                }
            }
        }
    }
    match DatasetError::from_many(errors, error_count) {
        Some(error) => Err(error),
        None if rows.is_empty() => Err(DatasetError::NoRows { pattern: pattern.to_owned() }),
        None => Ok(rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_in_order_up_to_the_limit_with_their_places() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("b.jsonl"), "{\"x\": 3}\n").unwrap();
        std::fs::write(dir.path().join("a.jsonl"), "{\"x\": 1}\n\n{\"x\": 2}\n").unwrap();
        let pattern = dir.path().to_str().unwrap();
        let rows = read_rows(pattern, None).unwrap();
        let found: Vec<_> =
            rows.iter().map(|row| (row.fields["x"].clone(), row.place.line)).collect();
        assert_eq!(found, [(1.into(), 1), (2.into(), 3), (3.into(), 1)]);
        assert_eq!(read_rows(pattern, Some(2)).unwrap().len(), 2);
    }

    #[test]
    fn a_broken_row_is_an_error_with_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"x\": 1}\n{\n").unwrap();
        let error = read_rows(path.to_str().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("a.jsonl:2"), "{error}");
    }
}
