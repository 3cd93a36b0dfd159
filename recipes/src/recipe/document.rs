//! A recipe's TOML as a tree in which every key and value knows its place.
//!
//! Serde reports one error and forgets where values stood. Rules across tables, overrides from
//! the command line, and reports of all errors at once need both, so the text is parsed into this
//! tree first; overrides are merged into it, and each keeps the command line as its place.

use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Located, Problem};

/// A piece of text that values come from.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// How messages call it: a path, or `--set`.
    pub(crate) name: String,
    pub(crate) text: String,
    pub(crate) kind: SourceKind,
}

/// Where a source stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SourceKind {
    File,
    Override,
}

/// A range of bytes of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub(crate) source: usize,
    pub(crate) span: Range<usize>,
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(Vec<Node>),
    Table(Vec<Entry>),
    /// Reported already; nothing more is said about it.
    Invalid,
}

/// One key of a table.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_place: Place,
    pub(crate) node: Node,
}

/// Where a value stands in a recipe: `dataset[0].path`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KeyPath(Vec<Segment>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Key(String),
    Index(usize),
}

impl KeyPath {
    pub(crate) fn key(&self, key: &str) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Key(key.to_owned()));
        Self(segments)
    }

    pub(crate) fn index(&self, index: usize) -> Self {
        let mut segments = self.0.clone();
        segments.push(Segment::Index(index));
        Self(segments)
    }

    /// Keys alone, with dots: what rules are written for (`dataset.path`).
    pub(crate) fn rule_name(&self) -> String {
        let keys = self.0.iter().filter_map(|segment| match segment {
            Segment::Key(key) => Some(key.as_str()),
            Segment::Index(_) => None,
        });
        keys.collect::<Vec<_>>().join(".")
    }

    /// How messages call the table at this path.
    pub(crate) fn table_name(&self) -> String {
        match self.0.last() {
            None => "the top level".to_owned(),
            Some(Segment::Index(_)) => format!("`[[{}]]`", self.rule_name()),
            Some(Segment::Key(_)) => format!("`[{}]`", self.rule_name()),
        }
    }
}

impl fmt::Display for KeyPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, segment) in self.0.iter().enumerate() {
            match segment {
                Segment::Key(key) if position == 0 => write!(formatter, "{key}")?,
                Segment::Key(key) => write!(formatter, ".{key}")?,
                Segment::Index(index) => write!(formatter, "[{index}]")?,
            }
        }
        Ok(())
    }
}

impl Node {
    /// The entries where this is a table.
    pub(crate) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Table(entries) => entries,
            _ => &[],
        }
    }

    /// The elements where this is an array.
    pub(crate) fn elements(&self) -> &[Node] {
        match &self.value {
            Value::Array(elements) => elements,
            _ => &[],
        }
    }

    /// The text where this is a string.
    pub(crate) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// The entry of `key` where this is a table that has it.
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The node below a dotted path of keys.
    pub(crate) fn find(&self, dotted: &str) -> Option<&Node> {
        dotted.split('.').try_fold(self, |node, key| node.entry(key).map(|entry| &entry.node))
    }

    /// Calls `visit` for every value below this one, tables and arrays included.
    pub(crate) fn walk(&self, path: &KeyPath, visit: &mut dyn FnMut(&KeyPath, &Node)) {
        visit(path, self);
        for entry in self.entries() {
            entry.node.walk(&path.key(&entry.key), visit);
        }
        for (index, element) in self.elements().iter().enumerate() {
            element.walk(&path.index(index), visit);
        }
    }

    /// The same value without places.
    pub(crate) fn to_toml(&self) -> toml::Value {
        match &self.value {
            Value::String(text) | Value::Datetime(text) => toml::Value::String(text.clone()),
            Value::Integer(integer) => toml::Value::Integer(*integer),
            Value::Float(float) => toml::Value::Float(*float),
            Value::Boolean(boolean) => toml::Value::Boolean(*boolean),
            Value::Array(elements) => {
                toml::Value::Array(elements.iter().map(Self::to_toml).collect())
            }
            Value::Table(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), entry.node.to_toml()));
                toml::Value::Table(pairs.collect())
            }
            Value::Invalid => toml::Value::String(String::new()),
        }
    }
}

/// Parses the text of source 0; syntax errors come back instead of a tree.
pub(crate) fn parse(text: &str) -> Result<(Node, Vec<Located>), Vec<Located>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    if !errors.is_empty() {
        return Err(errors.iter().map(|error| syntax_problem(error, 0, 0)).collect());
    }
    let mut problems = Vec::new();
    let place = Place { source: 0, span: 0..0 };
    let entries = Builder { source: 0, offset: 0, problems: &mut problems }.table(table.get_ref());
    Ok((Node { place, value: Value::Table(entries) }, problems))
}

/// Turns one parse error into a problem of `source`, its span moved by `offset` bytes.
pub(crate) fn syntax_problem(error: &toml::de::Error, source: usize, offset: usize) -> Located {
    let span = error.span().unwrap_or(0..0);
    let span = span.start.saturating_add(offset)..span.end.saturating_add(offset);
    let message = error.message().replace('\n', ", ");
    Located::new(Problem::Syntax { message }, Place { source, span })
}

/// Copies `toml`'s tree into ours.
pub(crate) struct Builder<'a> {
    pub(crate) source: usize,
    pub(crate) offset: usize,
    pub(crate) problems: &'a mut Vec<Located>,
}

impl Builder<'_> {
    pub(crate) fn place(&self, span: Range<usize>) -> Place {
        let span = span.start.saturating_add(self.offset)..span.end.saturating_add(self.offset);
        Place { source: self.source, span }
    }

    fn table(&mut self, table: &DeTable<'_>) -> Vec<Entry> {
        let entry = |(key, value): (&Spanned<_>, &Spanned<DeValue<'_>>)| {
            let key: &Spanned<std::borrow::Cow<'_, str>> = key;
            let key_place = self.place(key.span());
            Entry { key: key.get_ref().to_string(), key_place, node: self.node(value) }
        };
        table.iter().map(entry).collect()
    }

    pub(crate) fn node(&mut self, value: &Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span());
        let value = match value.get_ref() {
            DeValue::String(text) => Value::String(text.to_string()),
            DeValue::Integer(integer) => {
                match i64::from_str_radix(integer.as_str(), integer.radix()) {
                    Ok(integer) => Value::Integer(integer),
                    Err(_) => self.too_large(&place, integer),
                }
            }
            DeValue::Float(float) => match float.as_str().parse() {
                Ok(number) => Value::Float(number),
                Err(_) => self.too_large(&place, float),
            },
            DeValue::Boolean(boolean) => Value::Boolean(*boolean),
            DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
            DeValue::Array(elements) => {
                Value::Array(elements.iter().map(|element| self.node(element)).collect())
            }
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { place, value }
    }

    fn too_large(&mut self, place: &Place, found: &dyn fmt::Display) -> Value {
        let problem = Problem::NumberTooLarge { found: found.to_string() };
        self.problems.push(Located::new(problem, place.clone()));
        Value::Invalid
    }
}
