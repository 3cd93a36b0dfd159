//! Turns Arrow record batches into rows, and decoder panics into errors.

use std::path::{Path, PathBuf};
use std::vec;

use arrow_array::RecordBatch;
use arrow_json::LineDelimitedWriter;
use serde_json::{Map, Value};

use super::Row;
use crate::error::DatasetError;
use crate::tokenizer::panics;

/// Rows that are turned into JSON at once.
const ROWS_AT_ONCE: usize = 256;

/// Rows of all batches of one file.
pub(super) struct BatchRows<B> {
    path: PathBuf,
    kind: &'static str,
    batches: B,
    /// What is left of the batch at hand.
    batch: Option<RecordBatch>,
    rows: vec::IntoIter<Row>,
    row_number: u64,
    finished: bool,
}

impl<B, E> BatchRows<B>
where
    B: Iterator<Item = Result<RecordBatch, E>>,
    E: std::fmt::Display,
{
    pub(super) fn new(path: &Path, kind: &'static str, batches: B) -> Self {
        let rows = Vec::new().into_iter();
        Self {
            path: path.to_path_buf(),
            kind,
            batches,
            batch: None,
            rows,
            row_number: 0,
            finished: false,
        }
    }

    /// Takes the next rows of the batch at hand, or the next batch; false at the end.
    fn refill(&mut self) -> Result<bool, DatasetError> {
        let Some(batch) = self.batch.take() else {
            let Self { batches, .. } = self;
            let next = guard(&self.path, self.kind, || batches.next())?;
            self.batch = next.transpose().map_err(|error| self.bad(&error.to_string()))?;
            return Ok(self.batch.is_some());
        };
        let taken = batch.num_rows().min(ROWS_AT_ONCE);
        if taken == 0 {
            return Ok(true);
        }
        let rows = guard(&self.path, self.kind, || rows_of(&batch.slice(0, taken)))?
            .map_err(|problem| self.bad(&problem))?;
        self.batch = Some(batch.slice(taken, batch.num_rows() - taken));
        let first = self.row_number + 1;
        self.row_number += taken as u64;
        let numbered =
            (first..).zip(rows).map(|(line, (fields, bytes))| Row { line, fields, bytes });
        self.rows = numbered.collect::<Vec<_>>().into_iter();
        Ok(true)
    }

    fn bad(&self, problem: &str) -> DatasetError {
        let problem = format!("after row {}: {problem}", self.row_number);
        DatasetError::BadFile { path: self.path.clone(), kind: self.kind, problem }
    }
}

impl<B, E> Iterator for BatchRows<B>
where
    B: Iterator<Item = Result<RecordBatch, E>>,
    E: std::fmt::Display,
{
    type Item = Result<Row, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(row) = self.rows.next() {
                return Some(Ok(row));
            }
            if self.finished {
                return None;
            }
            match self.refill() {
                Ok(true) => {}
                Ok(false) => self.finished = true,
                Err(error) => {
                    self.finished = true;
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A row without its number, and the length of its JSON text.
type Fields = (Map<String, Value>, usize);

/// The batch as JSON objects; null fields are left out.
fn rows_of(batch: &RecordBatch) -> Result<Vec<Fields>, String> {
    let mut text = Vec::new();
    let mut writer = LineDelimitedWriter::new(&mut text);
    writer.write(batch).and_then(|()| writer.finish()).map_err(|error| error.to_string())?;
    let mut rows = Vec::with_capacity(batch.num_rows());
    for line in text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
        let fields =
            serde_json::from_slice(line).map_err(|error| format!("{:?}", error.classify()))?;
        rows.push((fields, line.len()));
    }
    if rows.len() == batch.num_rows() {
        return Ok(rows);
    }
    Err(format!("{} rows where {} were announced", rows.len(), batch.num_rows()))
}

/// Runs decoder code; a panic in it becomes an error without the panic's message, which may quote
/// the file.
///
/// Decoders of binary formats assert what a damaged file can violate.
pub(super) fn guard<T>(
    path: &Path,
    kind: &'static str,
    decode: impl FnOnce() -> T,
) -> Result<T, DatasetError> {
    panics::caught(|| Ok::<_, String>(decode())).map_err(|_| DatasetError::BadFile {
        path: path.to_path_buf(),
        kind,
        problem: "the file is damaged".to_owned(),
    })
}
