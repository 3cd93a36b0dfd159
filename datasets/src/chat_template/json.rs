//! JSON into template values, and back by `tojson` as `transformers` defines it: Python's
//! `json.dumps` with its separators.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use serde_json::Value as Json;

use super::python::float_text;

/// Deepest nesting that is written; JSON read from a file is never deeper.
const DEEPEST: usize = 200;

/// JSON as the template engine sees it; objects keep the order of their keys.
pub(crate) fn value(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => Value::from(number),
            (None, Some(number)) => Value::from(number),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::from(text.as_str()),
        Json::Array(items) => items.iter().map(value).collect(),
        Json::Object(fields) => {
            Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), value(field))))
        }
    }
}

/// How values are written.
struct Style {
    letters: Letters,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    keys: Keys,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Letters {
    Any,
    Ascii,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Keys {
    AsTheyCome,
    Sorted,
}

/// The filter: `tojson(ensure_ascii=false, indent=none, separators=none, sort_keys=false)`.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template filter")]
pub(crate) fn tojson(
    value: Value,
    positional: Rest<Value>,
    named: Kwargs,
) -> Result<String, Error> {
    let argument = |index: usize, name: &str| -> Result<Value, Error> {
        match positional.get(index) {
            Some(value) => Ok(value.clone()),
            None => Ok(named.get::<Option<Value>>(name)?.unwrap_or(Value::from(()))),
        }
    };
    let indent = indent(&argument(1, "indent")?)?;
    let separators = argument(2, "separators")?;
    let (item_separator, key_separator) = if separators.is_none() {
        (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned())
    } else {
        let text = |index: usize| separators.get_item(&Value::from(index)).map(|v| v.to_string());
        (text(0)?, text(1)?)
    };
    let style = Style {
        letters: if argument(0, "ensure_ascii")?.is_true() { Letters::Ascii } else { Letters::Any },
        indent,
        item_separator,
        key_separator,
        keys: if argument(3, "sort_keys")?.is_true() { Keys::Sorted } else { Keys::AsTheyCome },
    };
    named.assert_all_used()?;
    let mut text = String::new();
    write(&mut text, &value, &style, 0)?;
    Ok(text)
}

fn indent(value: &Value) -> Result<Option<String>, Error> {
    if value.is_none() {
        return Ok(None);
    }
    if let Some(text) = value.as_str() {
        return Ok(Some(text.to_owned()));
    }
    let spaces = usize::try_from(value.clone())?;
    if spaces > 64 {
        return Err(failed("`indent` is larger than 64"));
    }
    Ok(Some(" ".repeat(spaces)))
}

fn failed(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", problem.into()))
}

fn write(text: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > DEEPEST {
        return Err(failed("values are nested too deep"));
    }
    match value.kind() {
        ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => text.push_str(&number(value)),
        ValueKind::String => write_string(text, value.as_str().unwrap_or_default(), style),
        ValueKind::Seq | ValueKind::Iterable => {
            let items: Vec<Value> = value.try_iter()?.collect();
            write_group(text, ['[', ']'], items.len(), style, depth, |text, index| {
                write(text, items.get(index).unwrap_or(&Value::UNDEFINED), style, depth + 1)
            })?;
        }
        ValueKind::Map => write_map(text, value, style, depth)?,
        kind => return Err(failed(format!("{kind} is not JSON serializable"))),
    }
    Ok(())
}

fn write_map(text: &mut String, map: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    let mut keys: Vec<Value> = map.try_iter()?.collect();
    if style.keys == Keys::Sorted {
        keys.sort();
    }
    write_group(text, ['{', '}'], keys.len(), style, depth, |text, index| {
        let Some(key) = keys.get(index) else { return Ok(()) };
        match key.kind() {
            ValueKind::String => write_string(text, key.as_str().unwrap_or_default(), style),
            ValueKind::None | ValueKind::Bool | ValueKind::Number => {
                text.push('"');
                write(text, key, style, depth + 1)?;
                text.push('"');
            }
            kind => return Err(failed(format!("keys of kind {kind} are not JSON"))),
        }
        text.push_str(&style.key_separator);
        write(text, &map.get_item(key)?, style, depth + 1)
    })
}

/// Brackets, separators and line breaks around `count` items.
fn write_group(
    text: &mut String,
    [open, close]: [char; 2],
    count: usize,
    style: &Style,
    depth: usize,
    mut item: impl FnMut(&mut String, usize) -> Result<(), Error>,
) -> Result<(), Error> {
    text.push(open);
    for index in 0..count {
        if index > 0 {
            text.push_str(&style.item_separator);
        }
        new_line(text, style, depth + 1);
        item(text, index)?;
    }
    if count > 0 {
        new_line(text, style, depth);
    }
    text.push(close);
    Ok(())
}

fn new_line(text: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        text.push('\n');
        for _ in 0..depth {
            text.push_str(indent);
        }
    }
}

fn number(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    f64::try_from(value.clone()).map_or_else(
        |_| value.to_string(),
        |number| match number {
            number if number.is_nan() => "NaN".to_owned(),
            f64::INFINITY => "Infinity".to_owned(),
            f64::NEG_INFINITY => "-Infinity".to_owned(),
            number => float_text(number),
        },
    )
}

fn write_string(text: &mut String, string: &str, style: &Style) {
    text.push('"');
    for letter in string.chars() {
        match letter {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\u{8}' => text.push_str("\\b"),
            '\u{c}' => text.push_str("\\f"),
            control if control < ' ' => push_escape(text, control as u16),
            letter if style.letters == Letters::Ascii && letter > '~' => {
                for unit in letter.encode_utf16(&mut [0; 2]) {
                    push_escape(text, *unit);
                }
            }
            letter => text.push(letter),
        }
    }
    text.push('"');
}

fn push_escape(text: &mut String, unit: u16) {
    text.push_str("\\u");
    text.extend([12, 8, 4, 0].map(|shift| hex(unit >> shift & 15)));
}

fn hex(digit: u16) -> char {
    char::from_digit(u32::from(digit), 16).unwrap_or('0')
}
