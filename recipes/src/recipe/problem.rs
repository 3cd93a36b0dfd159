//! What can be wrong with a recipe, and how it is shown: place, line, caret, way out.

use std::fmt;

use super::document::{Place, Source, SourceKind};

/// One thing that is wrong with a recipe.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Problem {
    /// The text is no TOML.
    #[error("{message}")]
    Syntax {
        /// The parser's words.
        message: String,
    },
    /// A number that no 64 bits hold.
    #[error("the number `{found}` is too large")]
    NumberTooLarge {
        /// As written.
        found: String,
    },
    /// A key that no table of this name has.
    #[error("unknown key `{key}` in {table}")]
    UnknownKey {
        /// As written.
        key: String,
        /// The table it stands in, with brackets.
        table: String,
        /// What to do instead.
        hint: String,
    },
    /// A value of another type.
    #[error("`{path}` is {found}, expected {expected}")]
    WrongType {
        /// Path of the key.
        path: String,
        /// Type of the value that stands there.
        found: String,
        /// What belongs there.
        expected: String,
    },
    /// A key that has no default.
    #[error("{table} lacks `{key}`")]
    MissingKey {
        /// The table, with brackets.
        table: String,
        /// The key.
        key: String,
        /// What to write.
        hint: String,
    },
    /// A word that is none of the possible ones.
    #[error("`{path}` is \"{found}\", expected one of {allowed}")]
    UnknownWord {
        /// Path of the key.
        path: String,
        /// As written.
        found: String,
        /// All words, quoted.
        allowed: String,
        /// The nearest word.
        suggestion: Option<String>,
    },
    /// A number or text outside of what has a meaning.
    #[error("`{path}` is {found}, but it must be {rule}")]
    OutOfRange {
        /// Path of the key.
        path: String,
        /// As written.
        found: String,
        /// What is possible, to be read after "must be".
        rule: String,
    },
    /// Two variants of a table that takes one.
    #[error("`[{table}]` takes one variant, found {found}")]
    SeveralVariants {
        /// The table.
        table: String,
        /// All variants found, with brackets.
        found: String,
    },
    /// A table that needs a variant and has none.
    #[error("`[{table}]` names no variant")]
    NoVariant {
        /// The table.
        table: String,
        /// All variants, with brackets.
        possible: String,
    },
    /// A variant that does not exist.
    #[error("`[{table}.{found}]` does not exist; `[{table}]` has {possible}")]
    UnknownVariant {
        /// The table.
        table: String,
        /// As written.
        found: String,
        /// All variants, with brackets.
        possible: String,
        /// The table that has a key of this name.
        hint: Option<String>,
    },
    /// Something planned that does not work yet.
    #[error("{what} is not available yet")]
    NotAvailable {
        /// The key with its value, or the table.
        what: String,
        /// What works today.
        instead: String,
    },
    /// Two keys that say different things.
    #[error("{message}")]
    Conflict {
        /// Which keys, and why not both.
        message: String,
        /// What to do.
        hint: String,
    },
    /// `--set` without `=`.
    #[error("an override needs the form `key.path=value`")]
    OverrideWithoutValue,
    /// `--set` with a key that is none.
    #[error("`{key}` is not a key path")]
    OverrideKey {
        /// As typed.
        key: String,
    },
    /// `--set` into an element that a list lacks.
    #[error("no element `{found}`: the list has {count}, counted from 0")]
    OverrideIndex {
        /// As typed.
        found: String,
        /// Elements there are.
        count: usize,
    },
    /// `--set` below something that is no table.
    #[error("cannot set `{key}` below a value that is no table")]
    OverrideIntoScalar {
        /// As typed.
        key: String,
    },
    /// Something that the recipe names is missing or unusable.
    #[error("{message}")]
    Named {
        /// The whole message.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Problem {
    /// The next thing to type, shown as `hint: ...` under the error.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::UnknownKey { hint, .. }
            | Self::MissingKey { hint, .. }
            | Self::Conflict { hint, .. } => Some(hint.clone()),
            Self::Named { hint, .. } | Self::UnknownVariant { hint, .. } => hint.clone(),
            Self::UnknownWord { suggestion, .. } => {
                suggestion.as_ref().map(|word| format!("did you mean \"{word}\"?"))
            }
            Self::SeveralVariants { .. } => Some("keep one of them and delete the others".into()),
            Self::NoVariant { possible, .. } => Some(format!("write {possible}")),
            Self::NotAvailable { instead, .. } => Some(instead.clone()),
            Self::OverrideKey { .. } => Some(
                "keys are joined with dots, elements of a list are numbers: \
                 `--set dataset.0.path=data.jsonl`"
                    .into(),
            ),
            Self::OverrideWithoutValue => Some("for example `--set train.steps=20`".into()),
            Self::OverrideIndex { count, .. } => {
                Some(format!("use a number from 0 to {count}; {count} adds an element"))
            }
            Self::WrongType { found, expected, .. } if found == "a table" => {
                expected.contains("[[").then(|| "write the table's name in double brackets".into())
            }
            Self::Syntax { .. }
            | Self::NumberTooLarge { .. }
            | Self::WrongType { .. }
            | Self::OutOfRange { .. }
            | Self::OverrideIntoScalar { .. } => None,
        }
    }
}

/// A problem and its place; without a place it is about the whole recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Located {
    /// What is wrong.
    pub problem: Problem,
    /// Where, if anywhere.
    pub place: Option<Place>,
}

impl Located {
    pub(crate) fn new(problem: Problem, place: Place) -> Self {
        Self { problem, place: Some(place) }
    }
}

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// Runs, but is known to be a poor choice.
    Warning,
}

/// Problems of one recipe with the texts they point into.
#[derive(Debug, Clone)]
pub struct Findings {
    pub(crate) sources: Vec<Source>,
    pub(crate) severity: Severity,
    pub(crate) items: Vec<Located>,
}

impl Findings {
    /// Number of problems.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// The problems, in the order of the text.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.items.iter().map(|located| &located.problem)
    }

    /// The problems, each with its line and column in the file, counting from 1.
    pub fn located(&self) -> impl Iterator<Item = (&Problem, Option<(usize, usize)>)> {
        self.items.iter().map(|located| {
            let place = located.place.as_ref().filter(|place| place.source == 0);
            let position = place.and_then(|place| {
                let text = &self.sources.get(place.source)?.text;
                let excerpt = Excerpt::of(text, place.span.start, place.span.end);
                Some((excerpt.line_number, excerpt.column + 1))
            });
            (&located.problem, position)
        })
    }

    /// Puts the problems into the order of the text, and drops repetitions.
    pub(crate) fn sort(&mut self) {
        let key = |located: &Located| {
            let place = located.place.as_ref();
            place.map_or((usize::MAX, 0), |place| (place.source, place.span.start))
        };
        self.items.sort_by_key(key);
        self.items.dedup();
    }
}

/// Most problems that are written out; the rest is counted.
const MAX_PROBLEMS_SHOWN: usize = 50;

impl fmt::Display for Findings {
    /// One block a problem, blank lines between them, no line break at the end.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let label = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        for (position, located) in self.items.iter().take(MAX_PROBLEMS_SHOWN).enumerate() {
            if position > 0 {
                formatter.write_str("\n\n")?;
            }
            write!(formatter, "{label}: ")?;
            self.write_block(formatter, located)?;
        }
        match self.items.len().saturating_sub(MAX_PROBLEMS_SHOWN) {
            0 => Ok(()),
            more => write!(formatter, "\n\n{label}: and {more} more"),
        }
    }
}

impl Findings {
    fn write_block(&self, out: &mut fmt::Formatter<'_>, located: &Located) -> fmt::Result {
        let source = located.place.as_ref().and_then(|place| self.sources.get(place.source));
        if let (Some(source), Some(place)) = (source, &located.place) {
            let excerpt = Excerpt::of(&source.text, place.span.start, place.span.end);
            write!(out, "{}: {}", excerpt.position(source), shown(&located.problem))?;
            excerpt.write(out, source.kind)?;
        } else {
            let name = self.sources.first().map_or("recipe", |source| &source.name);
            write!(out, "{name}: {}", shown(&located.problem))?;
        }
        match located.problem.hint() {
            Some(hint) => write!(out, "\n\nhint: {hint}"),
            None => Ok(()),
        }
    }
}

/// Most characters of a line that are shown.
const MAX_SHOWN: usize = 100;

/// The line that a span starts in.
struct Excerpt {
    line_number: usize,
    column: usize,
    line: Vec<char>,
    marked: usize,
}

impl Excerpt {
    fn of(text: &str, start: usize, end: usize) -> Self {
        let start = floor_boundary(text, start);
        let end = floor_boundary(text, end).max(start);
        let before = text.get(..start).unwrap_or_default();
        let line_start = before.rfind('\n').map_or(0, |position| position + 1);
        let rest = text.get(line_start..).unwrap_or_default();
        let line = rest.split('\n').next().unwrap_or_default().trim_end_matches('\r');
        let column = text.get(line_start..start).unwrap_or_default().chars().count();
        let marked = text.get(start..end).unwrap_or_default();
        let marked = marked.split('\n').next().unwrap_or_default().chars().count();
        Self {
            line_number: before.matches('\n').count() + 1,
            column,
            line: line.chars().map(printable).collect(),
            marked: marked.max(1),
        }
    }

    fn position(&self, source: &Source) -> String {
        match source.kind {
            SourceKind::File => {
                format!("{}:{}:{}", source.name, self.line_number, self.column + 1)
            }
            SourceKind::Override => source.name.clone(),
        }
    }

    fn write(&self, out: &mut fmt::Formatter<'_>, kind: SourceKind) -> fmt::Result {
        let number = match kind {
            SourceKind::File => self.line_number.to_string(),
            SourceKind::Override => String::new(),
        };
        let margin = " ".repeat(number.len());
        let first = self.column.saturating_sub(MAX_SHOWN / 2);
        let shown: String = self.line.iter().skip(first).take(MAX_SHOWN).collect();
        let column = self.column - first;
        let width = self.marked.min(MAX_SHOWN.saturating_sub(column)).max(1);
        let indent = " ".repeat(column);
        let carets = "^".repeat(width);
        write!(out, "\n{margin} |\n{number} | {shown}\n{margin} | {indent}{carets}")
    }
}

/// Longest message, in characters: keys and words of a file may be of any length.
const MAX_MESSAGE: usize = 8000;

/// A message that fits a terminal and cannot control it.
fn shown(problem: &Problem) -> String {
    let message = problem.to_string();
    let keep = |c: char| if c == '\n' { c } else { printable(c) };
    let mut text: String = message.chars().take(MAX_MESSAGE).map(keep).collect();
    if message.chars().nth(MAX_MESSAGE).is_some() {
        text.push('…');
    }
    text
}

/// Nothing from a file may move the cursor or change colours.
fn printable(character: char) -> char {
    match character {
        '\t' => ' ',
        other if other.is_control() => '\u{fffd}',
        other => other,
    }
}

fn floor_boundary(text: &str, position: usize) -> usize {
    let position = position.min(text.len());
    (0..=position).rev().find(|&candidate| text.is_char_boundary(candidate)).unwrap_or(0)
}

/// Why a recipe cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file cannot be read.
    #[error("cannot read the recipe `{path}`: {reason}")]
    Unreadable {
        /// As given.
        path: String,
        /// The system's words.
        reason: String,
    },
    /// The recipe is wrong in one or more places.
    #[error("{0}")]
    Invalid(Findings),
}

impl RecipeError {
    /// The next thing to type.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unreadable { .. } => {
                Some("`tunesmith new RECIPE` writes a recipe to start from".to_owned())
            }
            Self::Invalid(_) => None,
        }
    }
}
