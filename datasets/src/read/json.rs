//! Reads JSON: a list of objects, or objects one after another.
//!
//! The text is cut into the objects of the top level before it is parsed, so that a large list
//! streams and every object keeps the line it starts on. Files with the ending `json` that hold
//! JSON Lines are common, hence objects without a list around them.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value};

use super::json_lines::syntax_problem;
use super::source::{MAX_ROW_BYTES, Source, utf8};
use super::{Reader, Row, Rows};
use crate::error::{DatasetError, RowProblem};

pub(super) const READER: Reader = Reader { endings: &["json"], open };

fn open(path: &Path) -> Result<Rows, DatasetError> {
    Ok(Box::new(Objects {
        source: Source::open(path)?,
        place: Cursor { line: 1, column: 1 },
        state: State::Start,
    }))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Start,
    /// In a list, before an object or, where it is empty, its end.
    FirstOfList,
    /// In a list, after an object.
    InList,
    /// Objects without a list.
    Bare,
    Finished,
}

struct Objects {
    source: Source,
    place: Cursor,
    state: State,
}

/// Line and column, in bytes, of the next byte; both count from 1.
#[derive(Debug, Clone, Copy)]
struct Cursor {
    line: u64,
    column: u64,
}

impl Cursor {
    fn pass(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                *self = Self { line: self.line + 1, column: 1 };
            } else {
                self.column += 1;
            }
        }
    }
}

impl Objects {
    fn next_row(&mut self) -> Result<Option<Row>, DatasetError> {
        if !self.find_object()? {
            self.state = State::Finished;
            return Ok(None);
        }
        let (Cursor { line, column }, offset) = (self.place, self.source.offset);
        let text = self.cut_object()?;
        let fields = utf8(&text, offset)
            .and_then(|text| parse(text, column))
            .map_err(|problem| self.source.error(line, problem))?;
        Ok(Some(Row { line, fields, bytes: text.len() }))
    }

    /// Goes to the next opening brace; false at the end of the list or file.
    fn find_object(&mut self) -> Result<bool, DatasetError> {
        loop {
            let byte = self.peek_past_space()?;
            match (self.state, byte) {
                (State::Start, Some(b'[')) => self.state = State::FirstOfList,
                (State::FirstOfList | State::InList, Some(b']')) => {
                    self.bump(b']');
                    return match self.peek_past_space()? {
                        None => Ok(false),
                        Some(_) => {
                            Err(self.problem("more text after the list", "the end of the file"))
                        }
                    };
                }
                (State::InList, Some(b',')) => {
                    self.bump(b',');
                    return match self.peek_past_space()? {
                        Some(b'{') => Ok(true),
                        _ => Err(self.problem("no object after a comma", "a JSON object")),
                    };
                }
                (State::FirstOfList | State::Start | State::Bare, Some(b'{')) => return Ok(true),
                (State::Start | State::Bare | State::Finished, None) => return Ok(false),
                (State::FirstOfList | State::InList, None) => {
                    return Err(self.problem("the file ends inside the list", "`]`"));
                }
                (State::InList, Some(_)) => {
                    return Err(self.problem("no comma after an object", "`,` or `]`"));
                }
                (_, Some(_)) => {
                    return Err(self.problem("no object", "a JSON object or a list of them"));
                }
            }
            self.bump(b'[');
        }
    }

    /// The text from the opening brace to the one that closes it.
    fn cut_object(&mut self) -> Result<Vec<u8>, DatasetError> {
        let started = self.place.line;
        let mut text = Vec::new();
        let mut nesting = Nesting::default();
        loop {
            let available = self.source.peek_all()?;
            if available.is_empty() {
                return Err(self.problem("the file ends inside an object", "`}`"));
            }
            let end = available.iter().position(|&byte| nesting.closes(byte));
            let taken = end.map_or(available.len(), |end| end + 1);
            text.extend(available.iter().take(taken));
            self.place.pass(available.get(..taken).unwrap_or_default());
            self.source.consume(taken);
            if end.is_some() {
                self.state = match self.state {
                    State::FirstOfList | State::InList => State::InList,
                    _ => State::Bare,
                };
                return Ok(text);
            }
            if text.len() as u64 > MAX_ROW_BYTES {
                self.state = State::Finished;
                let problem = RowProblem::TooLong { limit: MAX_ROW_BYTES };
                return Err(self.source.error(started, problem));
            }
        }
    }

    fn peek_past_space(&mut self) -> Result<Option<u8>, DatasetError> {
        while let Some(byte) = self.source.peek_all()?.first().copied() {
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.bump(byte);
        }
        Ok(None)
    }

    fn bump(&mut self, byte: u8) {
        self.source.consume(1);
        self.place.pass(&[byte]);
    }

    /// An error here, after which nothing can be read.
    fn problem(&mut self, found: &str, expected: &'static str) -> DatasetError {
        self.state = State::Finished;
        let (column, found) = (self.place.column, found.to_owned());
        self.source.error(self.place.line, RowProblem::Syntax { column, found, expected })
    }
}

impl Iterator for Objects {
    type Item = Result<Row, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.state == State::Finished {
            return None;
        }
        let row = self.next_row();
        if matches!(row, Err(DatasetError::Io { .. })) {
            self.state = State::Finished;
        }
        row.transpose()
    }
}

/// Depth of braces and brackets outside strings.
#[derive(Debug, Default)]
struct Nesting {
    depth: usize,
    within: Within,
}

#[derive(Debug, Default)]
enum Within {
    #[default]
    Structure,
    Text,
    /// After the backslash of a text.
    Escape,
}

impl Nesting {
    /// Takes the next byte; true where it closes the outermost object.
    fn closes(&mut self, byte: u8) -> bool {
        self.within = match (&self.within, byte) {
            (Within::Text, b'\\') => Within::Escape,
            (Within::Text, b'"') => Within::Structure,
            (Within::Structure, b'"') | (Within::Text | Within::Escape, _) => Within::Text,
            (Within::Structure, b'{' | b'[') => {
                self.depth += 1;
                Within::Structure
            }
            (Within::Structure, b'}' | b']') => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            (Within::Structure, _) => Within::Structure,
        };
        false
    }
}

/// Parses the text of one object whose first line starts at `column`.
fn parse(text: &str, column: u64) -> Result<Map<String, Value>, RowProblem> {
    serde_json::from_str(text).map_err(|error| {
        let mut problem = syntax_problem(&error);
        if let RowProblem::Syntax { column: inner, found, .. } = &mut problem {
            match error.line() {
                0 | 1 => *inner += column.saturating_sub(1),
                line => {
                    let _ = write!(found, " in line {line} of the object that starts here");
                }
            }
        }
        problem
    })
}

#[cfg(test)]
mod tests {
    use super::super::json_lines::tests::{gzip, lines_and_field, read};
    use super::*;

    fn expected() -> [(u64, Value); 2] {
        [(2, Value::from("x]}\"{")), (4, Value::from(2))]
    }

    #[test]
    fn a_list_of_objects_keeps_the_lines_they_start_on() {
        let content = b"[\n {\"a\": \"x]}\\\"{\",\n \"b\": [{}]},\n{\"a\": 2}\n]\n";
        assert_eq!(lines_and_field(&read("x.json", content), "a"), expected());
        assert_eq!(lines_and_field(&read("x.json.gz", &gzip(content)), "a"), expected());
    }

    #[test]
    fn objects_without_a_list_are_rows_too() {
        let content = b"\n{\"a\": \"x]}\\\"{\",\n \"b\": [{}]}\n{\"a\": 2}\n";
        assert_eq!(lines_and_field(&read("x.json", content), "a"), expected());
    }

    #[test]
    fn an_empty_list_and_an_empty_file_have_no_rows() {
        assert_eq!(read("x.json", b" [ ] ").len(), 0);
        assert_eq!(read("x.json", b"").len(), 0);
    }

    #[test]
    fn errors_name_line_and_column() {
        for (content, expected) in [
            (
                "[{\"a\": 1},\n  3]",
                "x.json:2: column 3: no object after a comma, expected a JSON object",
            ),
            (
                "[{\"a\": 1}\n{}]",
                "x.json:2: column 1: no comma after an object, expected `,` or `]`",
            ),
            ("[{\"a\": 1}", "x.json:1: column 10: the file ends inside the list, expected `]`"),
            ("[{\"a\": 1", "x.json:1: column 9: the file ends inside an object, expected `}`"),
            ("[] x", "x.json:1: column 4: more text after the list, expected the end of the file"),
            ("\"text\"", "x.json:1: column 1: no object, expected a JSON object or a list of them"),
            (
                "[{}, {\"a\" 1}]",
                "x.json:1: column 11: not valid JSON (expected `:`), expected one JSON object",
            ),
        ] {
            let rows = read("x.json", content.as_bytes());
            assert_eq!(rows.last().unwrap().as_ref().unwrap_err(), expected, "{content}");
        }
    }

    #[test]
    fn a_broken_object_does_not_hide_the_next() {
        let rows = read("x.json", b"[{\"a\": tru},\n{\"a\": 2}]");
        assert!(rows[0].is_err());
        assert_eq!(rows[1].as_ref().unwrap().fields["a"], 2);
    }
}
