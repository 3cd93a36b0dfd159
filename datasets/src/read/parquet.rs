//! Reads Parquet, a few rows at a time.

use std::fs::File;
use std::path::Path;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::file::metadata::ParquetMetaData;

use super::record_batch::{BatchRows, guard};
use super::source::open_seekable;
use super::{Reader, Rows};
use crate::error::DatasetError;

pub(super) const READER: Reader = Reader { endings: &["parquet", "pq"], open };

const KIND: &str = "Parquet";

/// Rows that are decoded at once.
const ROWS_AT_ONCE: usize = 256;

fn open(path: &Path) -> Result<Rows, DatasetError> {
    let file = open_seekable(path)?;
    let size = file.metadata().map_err(|error| DatasetError::io("read", path, error))?.len();
    let bad =
        |problem: String| DatasetError::BadFile { path: path.to_path_buf(), kind: KIND, problem };
    let reader = guard(path, KIND, || -> Result<_, String> {
        let builder = builder(file)?;
        check_claims(builder.metadata(), size)?;
        builder.with_batch_size(ROWS_AT_ONCE).build().map_err(|error| error.to_string())
    })?
    .map_err(bad)?;
    Ok(Box::new(BatchRows::new(path, KIND, reader)))
}

fn builder(file: File) -> Result<ParquetRecordBatchReaderBuilder<File>, String> {
    ParquetRecordBatchReaderBuilder::try_new(file).map_err(|error| error.to_string())
}

/// What the footer says must fit the file: the decoder allocates by it.
fn check_claims(metadata: &ParquetMetaData, size: u64) -> Result<(), String> {
    let mut rows = 0_i64;
    for (index, group) in metadata.row_groups().iter().enumerate() {
        if group.num_rows() < 0 {
            return Err(format!("row group {index} has a negative number of rows"));
        }
        rows = rows.saturating_add(group.num_rows());
        for column in group.columns() {
            let start = column.dictionary_page_offset().unwrap_or(column.data_page_offset());
            let end = start.checked_add(column.compressed_size());
            let fits = end.is_some_and(|end| end >= start && end as u64 <= size);
            if start < 0 || !fits {
                return Err(format!(
                    "column `{}` of row group {index} lies outside the file's {size} bytes",
                    column.column_path()
                ));
            }
        }
    }
    if rows == metadata.file_metadata().num_rows() {
        return Ok(());
    }
    Err(format!(
        "the row groups have {rows} rows and the footer says {}",
        metadata.file_metadata().num_rows()
    ))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{
        ArrayRef, Int32Array, ListArray, RecordBatch, StringArray, StructArray, types::Int64Type,
    };
    use arrow_schema::{DataType, Field};
    use parquet::arrow::ArrowWriter;
    use parquet::basic::{Compression, ZstdLevel};
    use parquet::file::properties::WriterProperties;
    use serde_json::json;

    use super::super::json_lines::tests::{gzip, lines_and_field, read};

    fn batch(rows: i32) -> RecordBatch {
        let ids = (0..rows).map(|row| Some((0..i64::from(row % 5)).map(Some)));
        let ids = ListArray::from_iter_primitive::<Int64Type, _, _>(ids);
        let roles: StringArray = (0..rows).map(|row| (row % 2 == 0).then_some("user")).collect();
        let message = StructArray::from(vec![(
            Arc::new(Field::new("role", DataType::Utf8, true)),
            Arc::new(roles) as ArrayRef,
        )]);
        RecordBatch::try_from_iter([
            ("n", Arc::new((0..rows).collect::<Int32Array>()) as ArrayRef),
            ("ids", Arc::new(ids)),
            ("message", Arc::new(message)),
        ])
        .unwrap()
    }

    fn parquet_bytes(rows: i32, compression: Compression) -> Vec<u8> {
        let properties = WriterProperties::builder()
            .set_compression(compression)
            .set_max_row_group_row_count(Some(300))
            .build();
        let mut bytes = Vec::new();
        let batch = batch(rows);
        let mut writer =
            ArrowWriter::try_new(&mut bytes, batch.schema(), Some(properties)).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn rows_come_back_with_nested_values_and_row_numbers() {
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::ZSTD(ZstdLevel::default()),
        ] {
            let rows = read("x.parquet", &parquet_bytes(700, compression));
            assert_eq!(rows.len(), 700);
            let numbers = lines_and_field(&rows, "n");
            assert!(
                numbers.iter().enumerate().all(|(i, (line, n))| *line == i as u64 + 1 && *n == i)
            );
            assert_eq!(rows[9].as_ref().unwrap().fields["ids"], json!([0, 1, 2, 3]));
            assert_eq!(rows[8].as_ref().unwrap().fields["message"], json!({"role": "user"}));
            assert_eq!(rows[9].as_ref().unwrap().fields["message"], json!({}));
        }
        let rows = read("x.parquet.gz", &gzip(&parquet_bytes(3, Compression::SNAPPY)));
        assert_eq!(rows.len(), 3);
    }

    #[test]
    fn what_is_no_parquet_file_says_so() {
        let rows = read("x.parquet", b"{\"a\": 1}\n");
        let error = rows[0].as_ref().unwrap_err();
        assert!(error.starts_with("`x.parquet` is not a readable Parquet file"), "{error}");
    }

    #[test]
    fn damaged_and_truncated_files_never_panic() {
        for compression in [Compression::UNCOMPRESSED, Compression::SNAPPY] {
            let whole = parquet_bytes(50, compression);
            for place in 0..whole.len() {
                let mut damaged = whole.clone();
                damaged[place] ^= 1 << (place % 8);
                let _ = read("x.parquet", &damaged);
                if place % 7 == 0 {
                    assert!(read("x.parquet", &whole[..place]).iter().any(Result::is_err));
                }
            }
        }
    }
}
