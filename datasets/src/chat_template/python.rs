//! Behaviour of Python values that templates rely on and the Jinja engine does not have.

use minijinja::value::{Rest, ValueKind};
use minijinja::{Error, ErrorKind, Output, State, Value};

/// Methods of Python's strings, lists and dicts.
pub(crate) fn method(
    state: &mut State,
    value: &Value,
    name: &str,
    arguments: &[Value],
) -> Result<Value, Error> {
    if let (Some(text), true) = (value.as_str(), arguments.iter().all(Value::is_none)) {
        // Python's notion of white space is a little wider than Rust's.
        match name {
            "strip" => return Ok(Value::from(text.trim_matches(is_space))),
            "lstrip" => return Ok(Value::from(text.trim_start_matches(is_space))),
            "rstrip" => return Ok(Value::from(text.trim_end_matches(is_space))),
            "split" => {
                let words = text.split(is_space).filter(|word| !word.is_empty());
                return Ok(words.map(Value::from).collect());
            }
            _ => {}
        }
    }
    if let (Some(text), &[_]) = (value.as_str(), arguments) {
        let argument = arguments.first().and_then(Value::as_str);
        match (name, argument) {
            ("removeprefix", Some(prefix)) => {
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            ("removesuffix", Some(suffix)) => {
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            _ => {}
        }
    }
    if let ("index", [wanted]) = (name, arguments) {
        return index(value, wanted);
    }
    check_size(value, name, arguments)?;
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// `index` of a string, in characters, or of a list.
fn index(value: &Value, wanted: &Value) -> Result<Value, Error> {
    let found = match (value.as_str(), wanted.as_str()) {
        (Some(text), Some(part)) => {
            text.find(part).map(|at| text.get(..at).unwrap_or_default().chars().count())
        }
        _ => value.try_iter()?.position(|item| item == *wanted),
    };
    let missing = || Error::new(ErrorKind::InvalidOperation, "index: the value is not in it");
    found.map(Value::from).ok_or_else(missing)
}

/// Longest text that a method may make.
const MOST_BYTES: usize = 1 << 26;

/// Refuses methods that would make a text of any size out of a few: the engine's own operators
/// are bounded, these are not.
fn check_size(value: &Value, name: &str, arguments: &[Value]) -> Result<(), Error> {
    let text = value.as_str().unwrap_or_default();
    let argument = |index: usize| arguments.get(index).and_then(Value::as_str).unwrap_or_default();
    let bytes = match name {
        "replace" => {
            let found = text.matches(argument(0)).count();
            found.saturating_mul(argument(1).len()).saturating_add(text.len())
        }
        "join" => {
            let items = arguments.first().and_then(Value::len).unwrap_or_default();
            items.saturating_mul(text.len())
        }
        // `{:999999999}` pads to that width.
        "format" => text
            .split(|letter: char| !letter.is_ascii_digit())
            .map(|digits| match digits.len() {
                0..=6 => 0,
                _ => usize::MAX,
            })
            .max()
            .unwrap_or_default(),
        _ => 0,
    };
    if bytes > MOST_BYTES {
        let problem = format!("{name}: the text would be longer than {MOST_BYTES} bytes");
        return Err(Error::new(ErrorKind::InvalidOperation, problem));
    }
    Ok(())
}

/// The filter `trim`: white space, or the characters given, at both ends.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template filter")]
pub(crate) fn trim(value: Value, characters: Rest<Value>) -> Result<Value, Error> {
    if value.is_undefined() {
        return Ok(Value::from(""));
    }
    let text = match value.as_str() {
        Some(text) => text.to_owned(),
        None => value.to_string(),
    };
    let Some(characters) = characters.first().filter(|characters| !characters.is_none()) else {
        return Ok(Value::from(text.trim_matches(is_space)));
    };
    let Some(characters) = characters.as_str().filter(|_| characters.kind() == ValueKind::String)
    else {
        return Err(Error::new(ErrorKind::InvalidOperation, "trim: characters must be a string"));
    };
    Ok(Value::from(text.trim_matches(|letter| characters.contains(letter))))
}

/// The filter `string`: `str(value)`.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template filter")]
pub(crate) fn string(value: Value) -> String {
    text(&value)
}

/// The test `sequence`: what has a length and takes an index, dicts included.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template test")]
pub(super) fn is_sequence(value: Value) -> bool {
    matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map)
}

/// Writes what `{{ value }}` shows.
pub(crate) fn write(output: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    Ok(match value.as_str() {
        Some(text) => output.write_str(text),
        None => output.write_str(&text(value)),
    }?)
}

/// `str(value)`. The engine writes everything as Python does but floats.
pub(crate) fn text(value: &Value) -> String {
    match value.kind() {
        ValueKind::Number => number_text(value),
        ValueKind::Seq | ValueKind::Map if holds_float(value, 0) => repr(value, 0),
        _ => value.to_string(),
    }
}

fn number_text(value: &Value) -> String {
    if value.is_integer() {
        return value.to_string();
    }
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => "nan".to_owned(),
        Ok(number) if number.is_finite() => float_text(number),
        _ => value.to_string(),
    }
}

/// Deepest nesting that is looked into for floats; JSON read from a file is never deeper.
const DEEPEST: usize = 200;

fn holds_float(value: &Value, depth: usize) -> bool {
    let mut items = value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Number => !value.is_integer(),
        _ if depth > DEEPEST => false,
        ValueKind::Seq => items.any(|item| holds_float(&item, depth + 1)),
        ValueKind::Map => {
            items.any(|key| value.get_item(&key).is_ok_and(|item| holds_float(&item, depth + 1)))
        }
        _ => false,
    }
}

fn repr(value: &Value, depth: usize) -> String {
    let items = value.try_iter().into_iter().flatten();
    match value.kind() {
        ValueKind::Number => number_text(value),
        ValueKind::Seq if depth <= DEEPEST && !value.is_tuple() => {
            let items: Vec<String> = items.map(|item| repr(&item, depth + 1)).collect();
            format!("[{}]", items.join(", "))
        }
        ValueKind::Seq if depth <= DEEPEST => {
            let items: Vec<String> = items.map(|item| repr(&item, depth + 1)).collect();
            format!("({}{})", items.join(", "), if items.len() == 1 { "," } else { "" })
        }
        ValueKind::Map if depth <= DEEPEST => {
            let items: Vec<String> = items
                .map(|key| {
                    let item = value.get_item(&key).unwrap_or_default();
                    format!("{}: {}", repr(&key, depth + 1), repr(&item, depth + 1))
                })
                .collect();
            format!("{{{}}}", items.join(", "))
        }
        // The engine's own `repr`, out of a list of one.
        _ => {
            let listed = Value::from(vec![value.clone()]).to_string();
            let inside = listed.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
            inside.unwrap_or(&listed).to_owned()
        }
    }
}

/// `str.isspace` of one character.
fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}

/// `repr` of a finite float.
pub(super) fn float_text(number: f64) -> String {
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_read_as_in_python() {
        let cases = [
            (1.0, "1.0"),
            (0.1, "0.1"),
            (1e16, "1e+16"),
            (1e15, "1000000000000000.0"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (0.0001, "0.0001"),
            (-0.0, "-0.0"),
            (1.25e300, "1.25e+300"),
        ];
        for (number, text) in cases {
            assert_eq!(float_text(number), text);
        }
    }

    #[test]
    fn white_space_is_pythons() {
        assert_eq!(trim(Value::from("\u{1c} a\u{a0}"), Rest(vec![])).unwrap().as_str(), Some("a"));
    }
}
