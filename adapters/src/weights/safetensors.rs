//! The header of a safetensors file, checked against the file's size.
//!
//! ```text
//! header length u64 | header JSON: {"name": {"dtype", "shape", "data_offsets"}, …} | data
//! ```
//!
//! Tensors must cover the data exactly, without gap or overlap. The `safetensors` crate's reader
//! keeps the last of two entries of one name; here that is an error, as it is a lie about one.

use std::{collections::BTreeMap, fmt, ops::Range, path::Path};

use serde::{
    Deserialize, Deserializer,
    de::{IgnoredAny, MapAccess, Visitor},
};

use super::{StoredDtype, TensorEntry, WeightsError};

/// A tensor and its bytes in the file.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    pub(super) entry: TensorEntry,
    pub(super) range: Range<usize>,
}

const LENGTH_BYTES: usize = 8;
/// The format's own limit.
const LONGEST_HEADER: u64 = 100_000_000;

/// Dtypes that only quantised or packed checkpoints use for weights.
const PACKED_DTYPES: &[(&str, &str)] = &[
    ("I8", "int8"),
    ("U8", "8-bit or packed 4-bit integers"),
    ("I16", "packed integers"),
    ("U16", "packed integers"),
    ("I32", "packed integers"),
    ("U32", "packed integers"),
    ("F8_E4M3", "FP8"),
    ("F8_E5M2", "FP8"),
    ("F8_E8M0", "FP8"),
    ("F4", "FP4"),
];

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Info {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// The header's entries in file order, duplicates kept.
struct Entries(Vec<(String, Info)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntriesVisitor;
        impl<'de> Visitor<'de> for EntriesVisitor {
            type Value = Entries;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(EntriesVisitor)
    }
}

/// Reads the header of the file at `path`, whose content is `bytes`.
pub(super) fn read_header(
    path: &Path,
    bytes: &[u8],
) -> Result<BTreeMap<String, Placed>, WeightsError> {
    let damaged = |problem: String| WeightsError::damaged(path, "header", problem);
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        return Err(damaged(format!("the file has only {} bytes", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > LONGEST_HEADER || length > rest.len() as u64 {
        let left = rest.len();
        return Err(damaged(format!("claims {length} bytes of header, the file has {left} more")));
    }
    let (header, data) = rest.split_at(length as usize);
    let Entries(entries) = serde_json::from_slice(header)
        .map_err(|error| damaged(format!("no valid list of tensors: {error}")))?;
    let data_start = LENGTH_BYTES + header.len();
    let mut placed = BTreeMap::new();
    for (name, info) in entries {
        let tensor = place(path, &name, &info, data_start, data.len())?;
        if placed.insert(name.clone(), tensor).is_some() {
            return Err(WeightsError::damaged(path, format!("tensor `{name}`"), "listed twice"));
        }
    }
    check_coverage(path, &placed, data_start, bytes.len())?;
    Ok(placed)
}

fn place(
    path: &Path,
    name: &str,
    info: &Info,
    data_start: usize,
    data_bytes: usize,
) -> Result<Placed, WeightsError> {
    let damaged =
        |problem: String| WeightsError::damaged(path, format!("tensor `{name}`"), problem);
    let dtype = dtype(path, name, &info.dtype)?;
    let (start, end) = info.data_offsets;
    if start > end || end > data_bytes as u64 {
        return Err(damaged(format!("lies at {start}..{end} of {data_bytes} bytes of data")));
    }
    let shape: Option<Vec<usize>> = info.shape.iter().map(|&n| usize::try_from(n).ok()).collect();
    // Zero-sized tensors exist; sizes beside the zero must not overflow either.
    let bytes = shape.as_ref().and_then(|shape| {
        shape.iter().try_fold(dtype.block_bytes(), |bytes, &size| bytes.checked_mul(size))
    });
    match (shape, bytes) {
        (Some(shape), Some(bytes)) if bytes as u64 == end - start => {
            let range = data_start + start as usize..data_start + end as usize;
            Ok(Placed { entry: TensorEntry { shape, dtype }, range })
        }
        _ => Err(damaged(format!(
            "shape {:?} as {} does not take the {} bytes it is given",
            info.shape,
            info.dtype,
            end - start
        ))),
    }
}

fn dtype(path: &Path, tensor: &str, name: &str) -> Result<StoredDtype, WeightsError> {
    if let Some(dtype) = StoredDtype::from_safetensors(name) {
        return Ok(dtype);
    }
    if let Some((_, method)) = PACKED_DTYPES.iter().find(|row| row.0 == name) {
        return Err(WeightsError::Quantised {
            path: path.to_owned(),
            method: (*method).to_owned(),
            evidence: format!("tensor `{tensor}` is {name}"),
        });
    }
    Err(WeightsError::Unsupported {
        path: path.to_owned(),
        what: format!("dtype of tensor `{tensor}`"),
        found: name.to_owned(),
        known: "F32, F16, BF16".to_owned(),
    })
}

fn check_coverage(
    path: &Path,
    placed: &BTreeMap<String, Placed>,
    data_start: usize,
    file_bytes: usize,
) -> Result<(), WeightsError> {
    let mut by_place: Vec<(&String, &Placed)> = placed.iter().collect();
    by_place.sort_by_key(|(_, tensor)| (tensor.range.start, tensor.range.end));
    let mut covered = data_start;
    for (name, tensor) in by_place {
        if tensor.range.start != covered {
            let problem =
                if tensor.range.start < covered { "overlaps" } else { "leaves a gap after" };
            return Err(WeightsError::damaged(
                path,
                format!("tensor `{name}`"),
                format!("{problem} the tensor before it"),
            ));
        }
        covered = tensor.range.end;
    }
    if covered == file_bytes {
        return Ok(());
    }
    let problem = format!("the tensors end at byte {covered}, the file at {file_bytes}");
    Err(WeightsError::damaged(path, "length", problem))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(header: &str, data: usize) -> Vec<u8> {
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(header.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn problem(header: &str, data: usize) -> String {
        read_header(Path::new("m"), &file(header, data)).unwrap_err().to_string()
    }

    #[test]
    fn a_header_is_read() {
        let header = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"BF16","shape":[3],"data_offsets":[8,14]},"a":{"dtype":"F32","shape":[2,1],"data_offsets":[0,8]}}"#;
        let tensors = read_header(Path::new("m"), &file(header, 14)).unwrap();
        assert_eq!(tensors["a"].entry.shape, [2, 1]);
        assert_eq!(tensors["b"].entry.dtype, StoredDtype::Bf16);
        assert_eq!(tensors["b"].range.len(), 6);
    }

    #[test]
    fn lies_are_named() {
        let one = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"w":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        let twice = r#"{"w":{"dtype":"F16","shape":[1],"data_offsets":[0,2]},"w":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#;
        let overlap = r#"{"v":{"dtype":"F16","shape":[2],"data_offsets":[0,4]},"w":{"dtype":"F16","shape":[1],"data_offsets":[2,4]}}"#;
        for (header, data, part) in [
            (one("F32", "[2]", "[0,8]"), 4, "lies at 0..8 of 4 bytes"),
            (one("F32", "[3]", "[0,8]"), 8, "does not take the 8 bytes"),
            (one("F32", "[18446744073709551615,9]", "[0,8]"), 8, "does not take"),
            (one("F32", "[2]", "[8,0]"), 8, "lies at 8..0"),
            (one("F32", "[2]", "[0,8]"), 9, "the file at"),
            (one("F64", "[1]", "[0,8]"), 8, "`F64` is not supported"),
            (one("I8", "[8]", "[0,8]"), 8, "quantised with int8"),
            (twice.to_owned(), 4, "listed twice"),
            (overlap.to_owned(), 4, "overlaps"),
            ("{\"w\":".to_owned(), 0, "no valid list"),
        ] {
            let found = problem(&header, data);
            assert!(found.contains(part), "{found}");
        }
    }

    #[test]
    fn a_giant_header_length_is_refused_before_reading() {
        let found = read_header(Path::new("m"), &u64::MAX.to_le_bytes()).unwrap_err().to_string();
        assert!(found.contains("claims 18446744073709551615 bytes of header"), "{found}");
        assert!(read_header(Path::new("m"), b"abc").is_err());
    }
}
