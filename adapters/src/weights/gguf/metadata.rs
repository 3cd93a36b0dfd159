//! The key-value metadata of a GGUF file.
//!
//! Arrays stay where they are in the file and are decoded when asked for: a header that lies about
//! their length then costs a walk over the file, never an allocation.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use super::reader::Reader;
use crate::weights::{WeightsError, mapped_file::MappedFile};

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    /// Kept apart from `Float`: its shortest decimal is what the model's author wrote.
    Float32(f32),
    Bool(bool),
    String(String),
    Array {
        item_type: u32,
        count: usize,
        range: Range<usize>,
    },
}

const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a fixed-size value type.
fn fixed_bytes(value_type: u32) -> Option<usize> {
    match value_type {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

pub(super) fn read_value(reader: &mut Reader, key: &str) -> Result<Value, WeightsError> {
    let what = format!("metadata `{key}`");
    let value_type = reader.u32(&what)?;
    match value_type {
        STRING => Ok(Value::String(reader.string(&what)?.to_owned())),
        ARRAY => read_array(reader, &what),
        _ => read_fixed(reader, value_type, &what),
    }
}

fn read_array(reader: &mut Reader, what: &str) -> Result<Value, WeightsError> {
    let item_type = reader.u32(what)?;
    if item_type == STRING {
        let count = reader.count(what, 8)?;
        let start = reader.position();
        for _ in 0..count {
            reader.string(what)?;
        }
        return Ok(Value::Array { item_type, count, range: start..reader.position() });
    }
    let Some(size) = fixed_bytes(item_type) else {
        return Err(reader.damaged(what, format!("array of value type {item_type}")));
    };
    let count = reader.count(what, size)?;
    let start = reader.position();
    reader.take(count * size, what)?;
    Ok(Value::Array { item_type, count, range: start..reader.position() })
}

fn read_fixed(reader: &mut Reader, value_type: u32, what: &str) -> Result<Value, WeightsError> {
    let Some(size) = fixed_bytes(value_type) else {
        return Err(reader.damaged(what, format!("unknown value type {value_type}")));
    };
    let mut raw = [0_u8; 8];
    raw[..size].copy_from_slice(reader.take(size, what)?);
    let bits = u64::from_le_bytes(raw);
    Ok(match value_type {
        1 => Value::Signed((bits as u8).cast_signed().into()),
        3 => Value::Signed((bits as u16).cast_signed().into()),
        5 => Value::Signed((bits as u32).cast_signed().into()),
        11 => Value::Signed(bits.cast_signed()),
        6 => Value::Float32(f32::from_bits(bits as u32)),
        12 => Value::Float(f64::from_bits(bits)),
        7 => match bits {
            0 | 1 => Value::Bool(bits == 1),
            _ => return Err(reader.damaged(what, format!("boolean is {bits}"))),
        },
        _ => Value::Unsigned(bits),
    })
}

/// Type, count and bytes of an array.
type Items<'a> = (u32, usize, &'a [u8]);

/// All metadata of a file.
pub(super) struct Metadata {
    file: Arc<MappedFile>,
    entries: BTreeMap<String, Value>,
    /// Type and value of each entry as they stand, in the order of the file.
    places: Vec<(String, Range<usize>)>,
}

impl Metadata {
    pub(super) fn new(
        file: Arc<MappedFile>,
        entries: BTreeMap<String, Value>,
        places: Vec<(String, Range<usize>)>,
    ) -> Self {
        Self { file, entries, places }
    }

    /// Every key with its value.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Every key with the bytes of its type and value, in the order of the file.
    pub(super) fn raw_entries(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.places.iter().map(|(key, range)| {
            (key.as_str(), self.file.bytes().get(range.clone()).unwrap_or_default())
        })
    }

    pub(super) fn damaged(&self, key: &str, problem: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.file.path(), format!("metadata `{key}`"), problem)
    }

    pub(super) fn unsupported(
        &self,
        what: impl Into<String>,
        found: impl Into<String>,
        known: impl Into<String>,
    ) -> WeightsError {
        WeightsError::Unsupported {
            path: self.file.path().to_owned(),
            what: what.into(),
            found: found.into(),
            known: known.into(),
        }
    }

    pub(super) fn contains(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    fn wrong_type(&self, key: &str, wanted: &str) -> WeightsError {
        let found = match self.entries.get(key) {
            Some(Value::Array { item_type, count, .. }) => {
                format!("an array of {count} items of type {item_type}")
            }
            Some(Value::String(text)) => format!("the text `{}`", text.escape_debug()),
            other => format!("{other:?}"),
        };
        self.damaged(key, format!("expected {wanted}, found {found}"))
    }

    /// An integer that is not negative.
    pub(super) fn u64(&self, key: &str) -> Result<Option<u64>, WeightsError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(value)) => Ok(Some(*value)),
            Some(Value::Signed(value)) if *value >= 0 => Ok(Some(value.cast_unsigned())),
            Some(_) => Err(self.wrong_type(key, "a non-negative integer")),
        }
    }

    pub(super) fn bool(&self, key: &str) -> Result<Option<bool>, WeightsError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(_) => Err(self.wrong_type(key, "a boolean")),
        }
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&str>, WeightsError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::String(value)) => Ok(Some(value)),
            Some(_) => Err(self.wrong_type(key, "text")),
        }
    }

    /// A finite number. An `f32` is given as the shortest decimal that rounds to it: 1e-5, not
    /// 9.999999747378752e-6.
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        let value = match self.entries.get(key) {
            None => return Ok(None),
            Some(Value::Float32(value)) => value.to_string().parse().unwrap_or(f64::from(*value)),
            Some(Value::Float(value)) => *value,
            Some(Value::Unsigned(value)) => *value as f64,
            Some(Value::Signed(value)) => *value as f64,
            Some(_) => return Err(self.wrong_type(key, "a number")),
        };
        if value.is_finite() {
            Ok(Some(value))
        } else {
            Err(self.wrong_type(key, "a finite number"))
        }
    }

    /// An integer, or an array whose items are all that integer (one a layer).
    pub(super) fn uniform_u64(&self, key: &str) -> Result<Option<u64>, WeightsError> {
        if !matches!(self.entries.get(key), Some(Value::Array { .. })) {
            return self.u64(key);
        }
        let items = self.integers(key)?.unwrap_or_default();
        match items.first() {
            Some(&first) if first >= 0 && items.iter().all(|&item| item == first) => {
                Ok(Some(first.cast_unsigned()))
            }
            _ => Err(self.unsupported(
                format!("metadata `{key}`"),
                "different from layer to layer",
                "one value for all layers",
            )),
        }
    }

    fn array(&self, key: &str, wanted: &str) -> Result<Option<Items<'_>>, WeightsError> {
        match self.entries.get(key) {
            None => Ok(None),
            Some(Value::Array { item_type, count, range }) => {
                let bytes = self.file.bytes().get(range.clone()).unwrap_or_default();
                Ok(Some((*item_type, *count, bytes)))
            }
            Some(_) => Err(self.wrong_type(key, wanted)),
        }
    }

    /// An array of text.
    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, WeightsError> {
        const WANTED: &str = "an array of text";
        let Some((item_type, count, bytes)) = self.array(key, WANTED)? else { return Ok(None) };
        if item_type != STRING {
            return Err(self.wrong_type(key, WANTED));
        }
        let mut reader = Reader::new(self.file.path(), bytes, 0);
        (0..count).map(|_| reader.string(key)).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// An array of integers.
    pub(super) fn integers(&self, key: &str) -> Result<Option<Vec<i64>>, WeightsError> {
        const WANTED: &str = "an array of integers";
        let Some((item_type, _, bytes)) = self.array(key, WANTED)? else { return Ok(None) };
        Ok(Some(match item_type {
            0 => bytes.iter().map(|&b| b.into()).collect(),
            1 => bytes.iter().map(|&b| b.cast_signed().into()).collect(),
            2 => items(bytes, |b| u16::from_le_bytes(b).into()),
            3 => items(bytes, |b| i16::from_le_bytes(b).into()),
            4 => items(bytes, |b| u32::from_le_bytes(b).into()),
            5 => items(bytes, |b| i32::from_le_bytes(b).into()),
            11 => items(bytes, i64::from_le_bytes),
            _ => return Err(self.wrong_type(key, WANTED)),
        }))
    }

    /// An array of numbers.
    pub(super) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, WeightsError> {
        const WANTED: &str = "an array of 32-bit floats";
        match self.array(key, WANTED)? {
            None => Ok(None),
            Some((6, _, bytes)) => Ok(Some(items(bytes, f32::from_le_bytes))),
            Some(_) => Err(self.wrong_type(key, WANTED)),
        }
    }
}

fn items<const N: usize, T>(bytes: &[u8], decode: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks().0.iter().map(|&item| decode(item)).collect()
}
