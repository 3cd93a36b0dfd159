//! Safetensors files: headers checked against the file's size, and files written as a stream.
//!
//! A file is 8 bytes of header length, a JSON header with name, dtype, shape and place of every
//! tensor, and the tensors' bytes. Writing needs only the header in memory.

use std::fs::File;
use std::io::{self, Read, Write};

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde_json::{Map, Value, json};

/// Bytes before the header: its length.
pub(crate) const LENGTH_BYTES: u64 = 8;
/// The limit that the safetensors library sets itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor as a header describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorSpec {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of the tensor's data.
    pub(crate) fn bytes(&self) -> u64 {
        let elements: u64 = self.shape.iter().map(|&size| size as u64).product();
        elements * (self.dtype.bitsize() as u64 / 8)
    }
}

/// Length and header of a file that holds `tensors` in this order.
///
/// The header is padded with spaces to a multiple of 8 bytes, so that the data is aligned.
pub(crate) fn header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut object = Map::new();
    object.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.bytes();
        let entry = json!({
            "dtype": tensor.dtype.to_string(),
            "shape": tensor.shape,
            "data_offsets": [start, end],
        });
        object.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut text = Value::Object(object).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(LENGTH_BYTES as usize), b' ');
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    bytes
}

/// A header that was read, and where the tensors' bytes begin.
pub(crate) struct ReadHeader {
    pub(crate) metadata: Metadata,
    pub(crate) data_start: u64,
}

/// Why a header was not read.
pub(crate) enum HeaderFault {
    Io(io::Error),
    Invalid(String),
}

/// Reads and checks the header at the beginning of `file`.
pub(crate) fn read_header(file: &mut File) -> Result<ReadHeader, HeaderFault> {
    let file_bytes = file.metadata().map_err(HeaderFault::Io)?.len();
    if file_bytes < LENGTH_BYTES {
        return Err(HeaderFault::Invalid(format!("it has only {file_bytes} bytes")));
    }
    let mut length = [0; LENGTH_BYTES as usize];
    file.read_exact(&mut length).map_err(HeaderFault::Io)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES || length > file_bytes - LENGTH_BYTES {
        let reason = format!("it claims a header of {length} bytes in a file of {file_bytes}");
        return Err(HeaderFault::Invalid(reason));
    }
    let mut text = vec![0; length as usize];
    file.read_exact(&mut text).map_err(HeaderFault::Io)?;
    let metadata: Metadata =
        serde_json::from_slice(&text).map_err(|error| HeaderFault::Invalid(error.to_string()))?;
    let data_start = LENGTH_BYTES + length;
    let claimed = metadata.data_len() as u64;
    if data_start.checked_add(claimed) != Some(file_bytes) {
        let present = file_bytes - data_start;
        let reason = format!("its header describes {claimed} bytes of tensors, it has {present}");
        return Err(HeaderFault::Invalid(reason));
    }
    Ok(ReadHeader { metadata, data_start })
}

/// `values` as little-endian bytes in f32.
pub(crate) fn write_f32(out: &mut impl Write, values: &[f32]) -> io::Result<()> {
    let mut block = Vec::with_capacity(4 * 4096);
    for chunk in values.chunks(4096) {
        block.clear();
        block.extend(chunk.iter().flat_map(|value| value.to_le_bytes()));
        out.write_all(&block)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_aligned_and_the_library_reads_the_file() {
        let tensors = [
            TensorSpec { name: "b".to_owned(), dtype: Dtype::F32, shape: vec![2, 1] },
            TensorSpec { name: "a".to_owned(), dtype: Dtype::BF16, shape: vec![3] },
        ];
        let mut file = header(&tensors);
        assert_eq!(file.len() % 8, 0);
        write_f32(&mut file, &[1.5, -2.0]).unwrap();
        file.extend_from_slice(&[0, 1, 2, 3, 4, 5]);
        let read = safetensors::SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.tensor("b").unwrap().data()[..4], 1.5_f32.to_le_bytes());
        assert_eq!(read.tensor("a").unwrap().data(), [0, 1, 2, 3, 4, 5]);
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
    }
}
