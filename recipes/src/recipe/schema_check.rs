//! Walks a recipe beside its JSON schema: unknown keys, types, words, missing keys.

use std::sync::LazyLock;

use serde_json::Value as Json;

use super::availability;
use super::document::{Entry, KeyPath, Node, Value};
use super::problem::{Located, Problem};
use super::schema::schema;

static SCHEMA: LazyLock<Json> = LazyLock::new(schema);

/// Names that other programs use, and where the same thing is in a recipe.
const NAMES_ELSEWHERE: &[(&str, &str)] = &[
    ("datasets", "[[dataset]]"),
    ("gradient_accumulation_steps", "batch.micro_batches_per_step"),
    ("learning_rate_scheduler", "[schedule.cosine]"),
    ("lora_alpha", "adapter.lora.alpha"),
    ("lora_dropout", "adapter.lora.dropout"),
    ("lora_r", "adapter.lora.rank"),
    ("lora_target_modules", "adapter.lora.target_modules"),
    ("lr", "optimizer.adamw.learning_rate"),
    ("lr_scheduler_type", "[schedule.cosine]"),
    ("max_grad_norm", "train.max_gradient_norm"),
    ("max_length", "batch.sequence_length"),
    ("max_seq_length", "batch.sequence_length"),
    ("max_steps", "train.steps"),
    ("micro_batch_size", "batch.sequences_per_micro_batch"),
    ("model", "base_model"),
    ("model_name_or_path", "base_model"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("per_device_train_batch_size", "batch.sequences_per_micro_batch"),
    ("r", "adapter.lora.rank"),
    ("save_steps", "checkpoint.every_steps"),
    ("sequence_len", "batch.sequence_length"),
    ("val_set_size", "validation.fraction"),
];

/// Every departure of `root` from the schema of recipes.
pub(crate) fn check(root: &Node) -> Vec<Located> {
    let mut walker = Walker { problems: Vec::new() };
    walker.value(root, &SCHEMA, &KeyPath::default());
    walker.problems
}

struct Walker {
    problems: Vec<Located>,
}

impl Walker {
    fn report(&mut self, node: &Node, problem: Problem) {
        self.problems.push(Located::new(problem, node.place.clone()));
    }

    fn value(&mut self, node: &Node, schema: &Json, path: &KeyPath) {
        if matches!(node.value, Value::Invalid) {
            return;
        }
        if let Some(words) = words(schema) {
            self.word(node, &words, path);
        } else if let Some(variants) = variants(schema) {
            self.variant(node, &variants, path);
        } else if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
            match choices.iter().find(|choice| kind(choice) == node_kind(node)) {
                Some(choice) => self.value(node, choice, path),
                None => self.wrong_type(node, schema, path),
            }
        } else {
            self.typed(node, schema, path);
        }
    }

    fn typed(&mut self, node: &Node, schema: &Json, path: &KeyPath) {
        match (kind(schema), &node.value) {
            ("object", Value::Table(entries)) => self.table(node, entries, schema, path),
            ("array", Value::Array(elements)) => self.array(node, elements, schema, path),
            ("string", Value::String(_))
            | ("boolean", Value::Boolean(_))
            | ("number", Value::Float(_) | Value::Integer(_))
            | ("integer", Value::Integer(_)) => {}
            _ => self.wrong_type(node, schema, path),
        }
    }

    fn wrong_type(&mut self, node: &Node, schema: &Json, path: &KeyPath) {
        let found = describe(node);
        let expected = expected(schema);
        self.report(node, Problem::WrongType { path: path.to_string(), found, expected });
    }

    fn array(&mut self, node: &Node, elements: &[Node], schema: &Json, path: &KeyPath) {
        let limit = |name: &str| schema.get(name).and_then(Json::as_u64);
        let count = elements.len() as u64;
        let fits = limit("minItems").is_none_or(|least| count >= least)
            && limit("maxItems").is_none_or(|most| count <= most);
        if !fits {
            let found = format!("a list of {count}");
            let expected = format!("a list of {}", limit("minItems").unwrap_or_default());
            self.report(node, Problem::WrongType { path: path.to_string(), found, expected });
        }
        if let Some(items) = schema.get("items") {
            for (index, element) in elements.iter().enumerate() {
                self.value(element, items, &path.index(index));
            }
        }
    }

    fn table(&mut self, node: &Node, entries: &[Entry], schema: &Json, path: &KeyPath) {
        let properties = schema.get("properties").and_then(Json::as_object);
        let others = schema.get("additionalProperties").filter(|others| others.is_object());
        for entry in entries {
            let below = path.key(&entry.key);
            let known = properties.and_then(|properties| properties.get(&entry.key));
            match known.or(others) {
                Some(schema) => self.value(&entry.node, schema, &below),
                None => self.unknown_key(entry, schema, path),
            }
        }
        let required = schema.get("required").and_then(Json::as_array);
        for key in required.into_iter().flatten().filter_map(Json::as_str) {
            if !entries.iter().any(|entry| entry.key == key) {
                self.missing_key(node, key, path);
            }
        }
    }

    fn missing_key(&mut self, node: &Node, key: &str, path: &KeyPath) {
        let hint = match path.key(key).rule_name().as_str() {
            "base_model" => "write `base_model = \"models/name\"` at the top: a folder, a `.gguf` \
                             file or a hub id"
                .to_owned(),
            "output_dir" => "write `output_dir = \"runs/name\"` at the top".to_owned(),
            "dataset" => {
                "write `[[dataset]]` and below it `path = \"data/train.jsonl\"`".to_owned()
            }
            "dataset.path" => "write `path = \"data/train.jsonl\"`".to_owned(),
            _ => format!("write `{key} = ...`"),
        };
        let problem = Problem::MissingKey { table: path.table_name(), key: key.to_owned(), hint };
        let place = (*path != KeyPath::default()).then(|| node.place.clone());
        self.problems.push(Located { problem, place });
    }

    fn unknown_key(&mut self, entry: &Entry, schema: &Json, path: &KeyPath) {
        let below = path.key(&entry.key);
        let problem = match availability::missing_table(&below.rule_name()) {
            Some(instead) => Problem::NotAvailable {
                what: key_or_table(entry, &below),
                instead: instead.to_owned(),
            },
            None => Problem::UnknownKey {
                key: entry.key.clone(),
                table: path.table_name(),
                hint: unknown_key_hint(&entry.key, schema),
            },
        };
        self.problems.push(Located::new(problem, entry.key_place.clone()));
    }

    fn word(&mut self, node: &Node, words: &[&str], path: &KeyPath) {
        let Some(text) = node.text() else {
            let expected = format!("one of {}", quoted(words));
            let (path, found) = (path.to_string(), describe(node));
            return self.report(node, Problem::WrongType { path, found, expected });
        };
        if words.contains(&text) {
            return;
        }
        let problem = match availability::missing_word(&path.rule_name(), text) {
            Some(instead) => Problem::NotAvailable {
                what: format!("`{} = \"{text}\"`", path.rule_name()),
                instead: instead.to_owned(),
            },
            None => Problem::UnknownWord {
                path: path.to_string(),
                found: shortened(text),
                allowed: quoted(words),
                suggestion: nearest(text, words.iter().copied()).map(str::to_owned),
            },
        };
        self.report(node, problem);
    }

    fn variant(&mut self, node: &Node, variants: &[(&str, &Json)], path: &KeyPath) {
        let table = path.rule_name();
        let bracketed = |name: &str| format!("`[{table}.{name}]`");
        let names: Vec<_> = variants.iter().map(|(name, _)| *name).collect();
        let possible = names.iter().map(|name| bracketed(name)).collect::<Vec<_>>().join(" or ");
        let Value::Table(entries) = &node.value else {
            let (path, found) = (path.to_string(), describe(node));
            let expected = format!("a table {possible}");
            return self.report(node, Problem::WrongType { path, found, expected });
        };
        for entry in entries {
            match variants.iter().find(|(name, _)| *name == entry.key) {
                Some((_, schema)) => self.value(&entry.node, schema, &path.key(&entry.key)),
                None => self.unknown_variant(entry, &table, &possible),
            }
        }
        if entries.len() > 1 {
            let found: Vec<_> = entries.iter().map(|entry| bracketed(&entry.key)).collect();
            let found = found.join(" and ");
            let problem = Problem::SeveralVariants { table, found };
            let last = entries.last().map(|entry| entry.key_place.clone());
            self.problems.push(Located { problem, place: last });
        } else if entries.is_empty() {
            self.report(node, Problem::NoVariant { table, possible });
        }
    }

    fn unknown_variant(&mut self, entry: &Entry, table: &str, possible: &str) {
        let path = format!("{table}.{}", entry.key);
        let problem = match availability::missing_table(&path) {
            Some(instead) => {
                Problem::NotAvailable { what: format!("`[{path}]`"), instead: instead.to_owned() }
            }
            None => Problem::UnknownVariant {
                table: table.to_owned(),
                found: shortened(&entry.key),
                possible: possible.to_owned(),
                hint: home_of(&entry.key),
            },
        };
        self.problems.push(Located::new(problem, entry.key_place.clone()));
    }
}

fn key_or_table(entry: &Entry, path: &KeyPath) -> String {
    match entry.node.value {
        Value::Table(_) => path.table_name(),
        _ => format!("`{path}`"),
    }
}

/// The strings of an enumeration of words.
fn words(schema: &Json) -> Option<Vec<&str>> {
    if let Some(Json::Array(words)) = schema.get("enum") {
        return words.iter().map(Json::as_str).collect();
    }
    let choices = schema.get("oneOf")?.as_array()?;
    let all_words = choices.iter().all(|choice| !choice_words(choice).is_empty());
    all_words.then(|| choices.iter().flat_map(choice_words).collect())
}

fn choice_words(choice: &Json) -> Vec<&str> {
    let single = choice.get("const").and_then(Json::as_str);
    let several = choice.get("enum").and_then(Json::as_array);
    single.into_iter().chain(several.into_iter().flatten().filter_map(Json::as_str)).collect()
}

/// Names and schemas of the variants of a table that takes one.
fn variants(schema: &Json) -> Option<Vec<(&str, &Json)>> {
    let choices = schema.get("oneOf")?.as_array()?;
    let variant = |choice: &'_ Json| -> Option<()> {
        (choice.get("properties")?.as_object()?.len() == 1).then_some(())
    };
    choices.iter().try_for_each(variant)?;
    let pairs = choices.iter().filter_map(|choice| choice.get("properties")?.as_object());
    Some(pairs.flatten().map(|(name, schema)| (name.as_str(), schema)).collect())
}

fn kind(schema: &Json) -> &str {
    schema.get("type").and_then(Json::as_str).unwrap_or_default()
}

fn node_kind(node: &Node) -> &'static str {
    match node.value {
        Value::String(_) => "string",
        Value::Integer(_) => "integer",
        Value::Float(_) => "number",
        Value::Boolean(_) => "boolean",
        Value::Array(_) => "array",
        Value::Table(_) => "object",
        Value::Datetime(_) | Value::Invalid => "",
    }
}

fn expected(schema: &Json) -> String {
    if let Some(choices) = schema.get("anyOf").and_then(Json::as_array) {
        return choices.iter().map(expected).collect::<Vec<_>>().join(" or ");
    }
    match kind(schema) {
        "string" => "a string".to_owned(),
        "boolean" => "`true` or `false`".to_owned(),
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "array" => match schema.get("items").map(kind) {
            Some("string") => "a list of strings".to_owned(),
            Some("number") => "a list of numbers".to_owned(),
            Some("object") => "a list of tables `[[...]]`".to_owned(),
            _ => "a list".to_owned(),
        },
        _ => "a table".to_owned(),
    }
}

/// Type and, where it is short, value of what stands in a recipe.
fn describe(node: &Node) -> String {
    match &node.value {
        Value::String(text) => format!("the string \"{}\"", shortened(text)),
        Value::Integer(integer) => format!("the whole number {integer}"),
        Value::Float(float) => format!("the number {float}"),
        Value::Boolean(boolean) => format!("`{boolean}`"),
        Value::Datetime(text) => format!("the date {text}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Table(_) | Value::Invalid => "a table".to_owned(),
    }
}

fn shortened(text: &str) -> String {
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    let mut short: String = text.chars().take(60).map(printable).collect();
    if text.chars().count() > 60 {
        short.push('…');
    }
    short
}

fn quoted(words: &[&str]) -> String {
    words.iter().map(|word| format!("\"{word}\"")).collect::<Vec<_>>().join(", ")
}

fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.get(..64).unwrap_or(word);
    let score = |candidate: &&str| (strsim::jaro_winkler(word, candidate) * 1000.0) as u64;
    candidates.max_by_key(score).filter(|candidate| score(candidate) >= 850)
}

fn unknown_key_hint(key: &str, schema: &Json) -> String {
    let properties = schema.get("properties").and_then(Json::as_object);
    let known: Vec<&str> =
        properties.into_iter().flat_map(|keys| keys.keys()).map(String::as_str).collect();
    if let Some(near) = nearest(key, known.iter().copied()) {
        return format!("did you mean `{near}`?");
    }
    if let Some((_, here)) = NAMES_ELSEWHERE.iter().find(|(name, _)| *name == key) {
        return format!("a recipe says `{here}`");
    }
    home_of(key).unwrap_or_else(|| match known.as_slice() {
        [] => "this table has no keys".to_owned(),
        _ => format!("known keys: `{}`", known.join("`, `")),
    })
}

/// Where a recipe has `key`, in words.
fn home_of(key: &str) -> Option<String> {
    let mut homes = Vec::new();
    find_homes(&SCHEMA, "", key, &mut homes);
    (!homes.is_empty()).then(|| format!("`{key}` belongs in {}", homes.join(" or ")))
}

/// Tables of the schema that have `key`.
fn find_homes(schema: &Json, path: &str, key: &str, homes: &mut Vec<String>) {
    let join =
        |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
    for choice in schema.get("oneOf").and_then(Json::as_array).into_iter().flatten() {
        find_homes(choice, path, key, homes);
    }
    if let Some(items) = schema.get("items") {
        find_homes(items, path, key, homes);
    }
    let properties = schema.get("properties").and_then(Json::as_object);
    for (name, below) in properties.into_iter().flatten() {
        if name == key && below.get("properties").is_none() {
            homes.push(if path.is_empty() {
                "the top level".into()
            } else {
                format!("`[{path}]`")
            });
        }
        find_homes(below, &join(name), key, homes);
    }
}
