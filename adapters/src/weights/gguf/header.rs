//! The head of a GGUF file: metadata and the list of tensors, checked against the file's size.
//!
//! ```text
//! "GGUF" | version u32 | tensors u64 | entries u64 | entries… | tensor infos… | padding | data
//! ```

use std::{collections::BTreeMap, ops::Range, path::Path, sync::Arc};

use super::{
    metadata::{Metadata, Value, read_value},
    reader::Reader,
};
use crate::weights::{StoredDtype, WeightsError, mapped_file::MappedFile};

/// A tensor as the file lists it.
#[derive(Clone, Debug)]
pub(super) struct TensorInfo {
    /// Outermost first, as in the HF layout (the file has innermost first).
    pub(super) shape: Vec<usize>,
    pub(super) dtype: StoredDtype,
    /// Bytes of the file.
    pub(super) range: Range<usize>,
}

pub(super) struct Header {
    pub(super) metadata: Metadata,
    pub(super) tensors: BTreeMap<String, TensorInfo>,
}

const MAGIC: &[u8; 4] = b"GGUF";
const DEFAULT_ALIGNMENT: u64 = 32;
const MOST_DIMENSIONS: u32 = 4;
/// Key length, value type and the shortest value.
const LEAST_ENTRY_BYTES: usize = 8 + 4 + 1;
/// Name length, dimension count, one dimension, type, offset.
const LEAST_INFO_BYTES: usize = 8 + 4 + 8 + 4 + 8;

pub(super) fn read(file: &Arc<MappedFile>) -> Result<Header, WeightsError> {
    let (path, bytes) = (file.path(), file.bytes());
    if !bytes.starts_with(MAGIC) {
        let found = bytes.get(..4).unwrap_or(bytes).escape_ascii().to_string();
        let problem = format!("expected `GGUF`, found `{found}`");
        return Err(WeightsError::damaged(path, "first 4 bytes", problem));
    }
    let mut reader = Reader::new(path, bytes, MAGIC.len());
    check_version(path, reader.u32("version")?)?;
    let tensor_count = reader.count("number of tensors", LEAST_INFO_BYTES)?;
    let entry_count = reader.count("number of metadata entries", LEAST_ENTRY_BYTES)?;
    let metadata = read_metadata(file, &mut reader, entry_count)?;
    let mut infos = BTreeMap::new();
    for _ in 0..tensor_count {
        let (name, info) = read_info(path, &mut reader)?;
        if infos.insert(name.clone(), info).is_some() {
            return Err(WeightsError::damaged(path, format!("tensor `{name}`"), "listed twice"));
        }
    }
    let tensors = place_tensors(path, bytes.len(), reader.position(), &metadata, infos)?;
    Ok(Header { metadata, tensors })
}

fn check_version(path: &Path, version: u32) -> Result<(), WeightsError> {
    let found = match version {
        2 | 3 => return Ok(()),
        _ if matches!(version.swap_bytes(), 1..=3) => "big-endian file".to_owned(),
        _ => version.to_string(),
    };
    Err(WeightsError::Unsupported {
        path: path.to_owned(),
        what: "GGUF version".to_owned(),
        found,
        known: "2 and 3, little-endian".to_owned(),
    })
}

fn read_metadata(
    file: &Arc<MappedFile>,
    reader: &mut Reader,
    count: usize,
) -> Result<Metadata, WeightsError> {
    let mut entries: BTreeMap<String, Value> = BTreeMap::new();
    let mut places = Vec::new();
    for _ in 0..count {
        let key = reader.string("metadata key")?.to_owned();
        let start = reader.position();
        let value = read_value(reader, &key)?;
        places.push((key.clone(), start..reader.position()));
        if entries.insert(key.clone(), value).is_some() {
            return Err(WeightsError::damaged(
                file.path(),
                format!("metadata `{key}`"),
                "given twice",
            ));
        }
    }
    Ok(Metadata::new(Arc::clone(file), entries, places))
}

/// A tensor before its place in the file is known.
struct RawInfo {
    shape: Vec<usize>,
    ggml_type: u32,
    offset: u64,
}

fn read_info(path: &Path, reader: &mut Reader) -> Result<(String, RawInfo), WeightsError> {
    let name = reader.string("tensor name")?.to_owned();
    let what = format!("tensor `{name}`");
    let dimensions = reader.u32(&what)?;
    if !(1..=MOST_DIMENSIONS).contains(&dimensions) {
        let problem = format!("has {dimensions} dimensions, 1 to {MOST_DIMENSIONS} are possible");
        return Err(WeightsError::damaged(path, what, problem));
    }
    let mut shape = Vec::with_capacity(dimensions as usize);
    for _ in 0..dimensions {
        let size = usize::try_from(reader.u64(&what)?).unwrap_or(0);
        if size == 0 {
            return Err(WeightsError::damaged(path, what, "a dimension is 0 or too large"));
        }
        shape.push(size);
    }
    shape.reverse();
    let ggml_type = reader.u32(&what)?;
    let offset = reader.u64(&what)?;
    Ok((name, RawInfo { shape, ggml_type, offset }))
}

fn place_tensors(
    path: &Path,
    file_bytes: usize,
    head_end: usize,
    metadata: &Metadata,
    infos: BTreeMap<String, RawInfo>,
) -> Result<BTreeMap<String, TensorInfo>, WeightsError> {
    let alignment = metadata.u64("general.alignment")?.unwrap_or(DEFAULT_ALIGNMENT);
    if alignment == 0 || alignment % 8 != 0 || alignment > 1 << 20 {
        let problem = format!("{alignment} is not a small multiple of 8");
        return Err(WeightsError::damaged(path, "metadata `general.alignment`", problem));
    }
    let data_start = (head_end as u64).next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    for (name, info) in infos {
        let placed = place(path, &name, &info, data_start, file_bytes)?;
        if !info.offset.is_multiple_of(alignment) {
            let problem = format!("offset {} is no multiple of {alignment}", info.offset);
            return Err(WeightsError::damaged(path, format!("tensor `{name}`"), problem));
        }
        tensors.insert(name, placed);
    }
    check_overlaps(path, &tensors)?;
    Ok(tensors)
}

fn place(
    path: &Path,
    name: &str,
    info: &RawInfo,
    data_start: u64,
    file_bytes: usize,
) -> Result<TensorInfo, WeightsError> {
    let damaged =
        |problem: String| WeightsError::damaged(path, format!("tensor `{name}`"), problem);
    let Some(dtype) = StoredDtype::from_ggml(info.ggml_type) else {
        return Err(WeightsError::Unsupported {
            path: path.to_owned(),
            what: format!("type of tensor `{name}`"),
            found: StoredDtype::ggml_type_name(info.ggml_type),
            known: StoredDtype::all_names(),
        });
    };
    let columns = info.shape.last().copied().unwrap_or(0);
    if columns % dtype.block_elements() != 0 {
        let (name, block) = (dtype.name(), dtype.block_elements());
        return Err(damaged(format!("rows of {columns} are not whole {name} blocks of {block}")));
    }
    let elements = info.shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    let bytes =
        elements.and_then(|n| (n / dtype.block_elements()).checked_mul(dtype.block_bytes()));
    let start = data_start.checked_add(info.offset).and_then(|start| usize::try_from(start).ok());
    let range = start.zip(bytes).and_then(|(start, n)| Some(start..start.checked_add(n)?));
    match range {
        Some(range) if range.end <= file_bytes => {
            Ok(TensorInfo { shape: info.shape.clone(), dtype, range })
        }
        _ => Err(damaged(format!(
            "shape {:?} as {} at offset {} ends beyond the file's {file_bytes} bytes",
            info.shape,
            dtype.name(),
            info.offset
        ))),
    }
}

fn check_overlaps(path: &Path, tensors: &BTreeMap<String, TensorInfo>) -> Result<(), WeightsError> {
    let mut by_place: Vec<(&String, &TensorInfo)> = tensors.iter().collect();
    by_place.sort_by_key(|(_, info)| (info.range.start, info.range.end));
    for pair in by_place.windows(2) {
        if let [(first, a), (second, b)] = pair
            && a.range.end > b.range.start
        {
            let problem = format!("shares bytes with tensor `{first}`");
            return Err(WeightsError::damaged(path, format!("tensor `{second}`"), problem));
        }
    }
    Ok(())
}
