//! `--set key.path=value`: values of the command line, merged into the tree of the file.
//!
//! The value is TOML; what is no TOML value is taken as a string, so that
//! `--set base_model=models/tiny` needs no quotes inside quotes. An override takes the place of
//! keys that exclude it: `train.steps` removes `train.epochs`, `schedule.linear` removes
//! `schedule.cosine`.

use toml::de::{DeTable, DeValue};

use super::document::{Builder, Entry, Node, Place, Value, syntax_problem};
use super::problem::{Located, Problem};

/// Tables whose keys are variants: one at a time.
pub(crate) const VARIANT_TABLES: &[&str] = &["adapter", "objective", "optimizer", "schedule"];

/// Keys of one table that exclude each other.
const EXCLUSIVE_KEYS: &[(&str, &[&str])] =
    &[("train", &["epochs", "steps"]), ("validation", &["path", "fraction"])];

/// One step of an override's key.
struct Step {
    key: String,
    place: Place,
}

/// Merges `text` (`key.path=value`), which is source number `source`, into `root`.
pub(crate) fn apply(root: &mut Node, text: &str, source: usize) -> Vec<Located> {
    let mut problems = Vec::new();
    match parse(text, source, &mut problems) {
        Ok((steps, value)) => {
            if let Err(problem) = insert(root, &steps, value, "") {
                problems.push(*problem);
            }
        }
        Err(problem) => problems.push(*problem),
    }
    problems
}

type Parsed = (Vec<Step>, Node);

fn parse(text: &str, source: usize, problems: &mut Vec<Located>) -> Result<Parsed, Box<Located>> {
    let whole = Place { source, span: 0..text.len() };
    let Some((key, value)) = text.split_once('=') else {
        return Err(Box::new(Located::new(Problem::OverrideWithoutValue, whole)));
    };
    let steps = parse_key(key, source).ok_or_else(|| {
        Box::new(Located::new(Problem::OverrideKey { key: key.to_owned() }, whole))
    })?;
    let value = parse_value(value, key.len() + 1, source, problems)?;
    Ok((steps, value))
}

fn parse_key(key: &str, source: usize) -> Option<Vec<Step>> {
    if key.contains(['\n', '\r', '#']) {
        return None;
    }
    let document = format!("{key}=0");
    let root = DeTable::parse(&document).ok()?;
    let mut steps = Vec::new();
    let mut table = root.get_ref();
    loop {
        let (name, value) = table.iter().next()?;
        let place = Place { source, span: name.span() };
        steps.push(Step { key: name.get_ref().to_string(), place });
        match value.get_ref() {
            DeValue::Table(inner) => table = inner,
            _ => return Some(steps),
        }
    }
}

fn parse_value(
    value: &str,
    offset: usize,
    source: usize,
    problems: &mut Vec<Located>,
) -> Result<Node, Box<Located>> {
    match DeValue::parse(value) {
        Ok(parsed) => Ok(Builder { source, offset, problems }.node(&parsed)),
        Err(error) if value.trim_start().starts_with(['"', '\'', '[', '{']) => {
            Err(Box::new(syntax_problem(&error, source, offset)))
        }
        Err(_) => {
            let place = Place { source, span: offset..offset + value.len() };
            Ok(Node { place, value: Value::String(value.to_owned()) })
        }
    }
}

fn insert(node: &mut Node, steps: &[Step], value: Node, table: &str) -> Result<(), Box<Located>> {
    let Some((step, rest)) = steps.split_first() else {
        *node = value;
        return Ok(());
    };
    match &mut node.value {
        Value::Table(entries) => {
            remove_excluded(entries, table, &step.key);
            let position = entries.iter().position(|entry| entry.key == step.key);
            let entry = match position.and_then(|position| entries.get_mut(position)) {
                Some(entry) => entry,
                None => append(entries, step),
            };
            entry.key_place = step.place.clone();
            insert(&mut entry.node, rest, value, &step.key)
        }
        Value::Array(elements) => {
            let count = elements.len();
            let index = step.key.parse::<usize>().ok().filter(|&index| index <= count);
            if index == Some(count) {
                elements.push(empty_table(&step.place));
            }
            match index.and_then(|index| elements.get_mut(index)) {
                Some(element) => insert(element, rest, value, table),
                None => Err(Box::new(no_element(step, count))),
            }
        }
        _ => {
            let problem = Problem::OverrideIntoScalar { key: step.key.clone() };
            Err(Box::new(Located::new(problem, step.place.clone())))
        }
    }
}

fn append<'a>(entries: &'a mut Vec<Entry>, step: &Step) -> &'a mut Entry {
    let node = empty_table(&step.place);
    let entry = Entry { key: step.key.clone(), key_place: step.place.clone(), node };
    let position = entries.len();
    entries.push(entry);
    &mut entries[position]
}

fn empty_table(place: &Place) -> Node {
    Node { place: place.clone(), value: Value::Table(Vec::new()) }
}

fn no_element(step: &Step, count: usize) -> Located {
    let problem = Problem::OverrideIndex { found: step.key.clone(), count };
    Located::new(problem, step.place.clone())
}

/// Drops what the file says in keys that exclude the one being set.
fn remove_excluded(entries: &mut Vec<Entry>, table: &str, key: &str) {
    let from_file = |entry: &Entry| entry.key_place.source == 0;
    if VARIANT_TABLES.contains(&table) {
        entries.retain(|entry| entry.key == key || !from_file(entry));
    }
    for (_, keys) in EXCLUSIVE_KEYS.iter().filter(|(name, _)| *name == table) {
        if keys.contains(&key) {
            entries.retain(|entry| {
                entry.key == key || !keys.contains(&entry.key.as_str()) || !from_file(entry)
            });
        }
    }
}
