//! Writes the head of a GGUF file: metadata, and where each tensor will lie.

use crate::weights::StoredDtype;

/// Every tensor begins at a multiple of this many bytes.
const ALIGNMENT: usize = 32;
const VERSION: u32 = 3;

const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A head under construction.
#[derive(Clone, Default)]
pub(crate) struct HeadWriter {
    entries: Vec<u8>,
    entry_count: u64,
    infos: Vec<u8>,
    info_count: u64,
    data_bytes: u64,
}

impl HeadWriter {
    /// An entry whose type and value are given as the bytes that stand in a file.
    pub(crate) fn raw(&mut self, key: &str, type_and_value: &[u8]) {
        put_string(&mut self.entries, key);
        self.entries.extend_from_slice(type_and_value);
        self.entry_count += 1;
    }

    fn entry(&mut self, key: &str, value_type: u32, value: &[u8]) {
        self.raw(key, &[&value_type.to_le_bytes(), value].concat());
    }

    pub(crate) fn u32(&mut self, key: &str, value: u32) {
        self.entry(key, U32, &value.to_le_bytes());
    }

    pub(crate) fn f32(&mut self, key: &str, value: f32) {
        self.entry(key, F32, &value.to_le_bytes());
    }

    pub(crate) fn flag(&mut self, key: &str, value: Flag) {
        self.entry(key, BOOL, &[u8::from(value == Flag::Yes)]);
    }

    pub(crate) fn string(&mut self, key: &str, value: &str) {
        let mut bytes = Vec::new();
        put_string(&mut bytes, value);
        self.entry(key, STRING, &bytes);
    }

    pub(crate) fn strings<'a>(
        &mut self,
        key: &str,
        values: impl ExactSizeIterator<Item = &'a str>,
    ) {
        let mut bytes = array_start(STRING, values.len());
        values.for_each(|value| put_string(&mut bytes, value));
        self.entry(key, ARRAY, &bytes);
    }

    pub(crate) fn i32s(&mut self, key: &str, values: &[i32]) {
        let mut bytes = array_start(I32, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.entry(key, ARRAY, &bytes);
    }

    pub(crate) fn f32s(&mut self, key: &str, values: &[f32]) {
        let mut bytes = array_start(F32, values.len());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.entry(key, ARRAY, &bytes);
    }

    /// Lists the next tensor. `shape` is outermost first, the file's order is innermost first.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize], dtype: StoredDtype) {
        put_string(&mut self.infos, name);
        self.infos.extend((shape.len() as u32).to_le_bytes());
        self.infos.extend(shape.iter().rev().flat_map(|&size| (size as u64).to_le_bytes()));
        self.infos.extend(dtype.ggml_id().to_le_bytes());
        self.infos.extend(self.data_bytes.to_le_bytes());
        self.info_count += 1;
        let bytes = tensor_bytes(shape, dtype);
        self.data_bytes += bytes + padding(bytes) as u64;
    }

    /// The head, padded so that the first tensor may follow.
    pub(crate) fn finish(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.info_count.to_le_bytes());
        bytes.extend(self.entry_count.to_le_bytes());
        bytes.extend_from_slice(&self.entries);
        bytes.extend_from_slice(&self.infos);
        bytes.resize(bytes.len() + padding(bytes.len() as u64), 0);
        bytes
    }
}

/// A boolean value.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Flag {
    No,
    Yes,
}

impl From<bool> for Flag {
    fn from(value: bool) -> Self {
        if value { Self::Yes } else { Self::No }
    }
}

/// Bytes of a tensor, without padding.
pub(crate) fn tensor_bytes(shape: &[usize], dtype: StoredDtype) -> u64 {
    let elements: u64 = shape.iter().map(|&size| size as u64).product();
    elements / dtype.block_elements() as u64 * dtype.block_bytes() as u64
}

/// Zero bytes that follow this many bytes of a tensor.
pub(crate) fn padding(bytes: u64) -> usize {
    (bytes.next_multiple_of(ALIGNMENT as u64) - bytes) as usize
}

fn put_string(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

fn array_start(item_type: u32, count: usize) -> Vec<u8> {
    [&item_type.to_le_bytes()[..], &(count as u64).to_le_bytes()].concat()
}
