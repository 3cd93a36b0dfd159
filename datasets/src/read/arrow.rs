//! Reads Arrow IPC: the file format and the stream format, told apart by the file's first bytes.

use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::Path;

use arrow_array::RecordBatch;
use arrow_ipc::reader::{FileReader, StreamReader};
use arrow_schema::ArrowError;

use super::record_batch::{BatchRows, guard};
use super::source::open_seekable;
use super::{Reader, Rows};
use crate::error::DatasetError;

pub(super) const READER: Reader = Reader { endings: &["arrow", "feather", "ipc"], open };

const KIND: &str = "Arrow";

/// First bytes of the file format; a stream starts with a message.
const FILE_MAGIC: &[u8; 6] = b"ARROW1";

type Batches = Box<dyn Iterator<Item = Result<RecordBatch, String>>>;

fn open(path: &Path) -> Result<Rows, DatasetError> {
    let mut file = open_seekable(path)?;
    let size = file.metadata().map_err(|error| DatasetError::io("read", path, error))?.len();
    let layout =
        starts_with_magic(&mut file).map_err(|error| DatasetError::io("read", path, error))?;
    let opened = guard(path, KIND, || match layout {
        Layout::File => batches(FileReader::try_new(BufReader::new(file), None), size),
        Layout::Stream => batches(StreamReader::try_new(BufReader::new(file), None), size),
    })?;
    let batches = opened.map_err(|error| DatasetError::BadFile {
        path: path.to_path_buf(),
        kind: KIND,
        problem: error.to_string(),
    })?;
    Ok(Box::new(BatchRows::new(path, KIND, batches)))
}

enum Layout {
    File,
    Stream,
}

fn starts_with_magic(file: &mut File) -> std::io::Result<Layout> {
    let mut start = Vec::with_capacity(FILE_MAGIC.len());
    file.take(FILE_MAGIC.len() as u64).read_to_end(&mut start)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(if start == FILE_MAGIC { Layout::File } else { Layout::Stream })
}

/// The batches, each checked against the file's size: columns of nulls take no bytes, so a damaged
/// header could announce any number of rows.
fn batches(
    reader: Result<impl Iterator<Item = Result<RecordBatch, ArrowError>> + 'static, ArrowError>,
    size: u64,
) -> Result<Batches, ArrowError> {
    let most_rows = size.saturating_mul(8);
    Ok(Box::new(reader?.map(move |batch| match batch {
        Ok(batch) if batch.num_rows() as u64 > most_rows => {
            Err(format!("a batch of {} rows in a file of {size} bytes", batch.num_rows()))
        }
        Ok(batch) => Ok(batch),
        Err(error) => Err(error.to_string()),
    })))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int32Array, StringArray};
    use arrow_ipc::writer::{FileWriter, StreamWriter};

    use super::super::json_lines::tests::{gzip, lines_and_field, read};
    use super::*;

    fn batch(rows: i32) -> RecordBatch {
        let text = StringArray::from_iter_values((0..rows).map(|row| format!("row {row}")));
        RecordBatch::try_from_iter([
            ("n", Arc::new((0..rows).collect::<Int32Array>()) as ArrayRef),
            ("text", Arc::new(text)),
        ])
        .unwrap()
    }

    fn file_bytes() -> Vec<u8> {
        let mut writer = FileWriter::try_new(Vec::new(), &batch(0).schema()).unwrap();
        writer.write(&batch(300)).unwrap();
        writer.write(&batch(2)).unwrap();
        writer.into_inner().unwrap()
    }

    fn stream_bytes() -> Vec<u8> {
        let mut writer = StreamWriter::try_new(Vec::new(), &batch(0).schema()).unwrap();
        writer.write(&batch(300)).unwrap();
        writer.write(&batch(2)).unwrap();
        writer.into_inner().unwrap()
    }

    #[test]
    fn file_and_stream_give_the_same_rows() {
        for (name, bytes) in [
            ("x.arrow", file_bytes()),
            ("x.arrow", stream_bytes()),
            ("x.arrow.gz", gzip(&stream_bytes())),
        ] {
            let rows = read(name, &bytes);
            assert_eq!(rows.len(), 302);
            assert_eq!(
                lines_and_field(&rows[300..], "text"),
                [(301, "row 0".into()), (302, "row 1".into())]
            );
        }
    }

    #[test]
    fn damaged_and_truncated_files_never_panic() {
        for whole in [file_bytes(), stream_bytes()] {
            for place in (0..whole.len()).step_by(3) {
                let mut damaged = whole.clone();
                damaged[place] ^= 1 << (place % 8);
                let _ = read("x.arrow", &damaged);
                if place % 21 == 0 {
                    let _ = read("x.arrow", &whole[..place]);
                }
            }
            assert!(read("x.arrow", &whole[..whole.len() / 2]).iter().any(Result::is_err));
        }
    }
}
