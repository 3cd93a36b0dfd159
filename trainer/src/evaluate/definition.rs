//! A task as data: its kind, its rows, and what the kind needs to know.

use std::collections::BTreeMap;

use datasets::{Place, SourceRow, read_rows};
use serde_json::Value;

use super::error::EvaluateError;
use super::prompt::{FewShot, Pool, draw_examples};
use super::template::Template;
use super::{Items, KINDS, Task};

/// Seed of what is drawn, where a definition names none; lm-eval's.
const SEED: u64 = 1234;

/// Keys of every kind; the rest of a definition belongs to its kind.
#[derive(Debug, serde::Deserialize)]
struct Common {
    kind: String,
    #[serde(default)]
    data: Option<String>,
    #[serde(default)]
    rows: Vec<serde_json::Map<String, Value>>,
    #[serde(default)]
    columns: BTreeMap<String, Template>,
    #[serde(default)]
    limit: Option<usize>,
    #[serde(default)]
    seed: Option<u64>,
    #[serde(default)]
    chat: bool,
}

const COMMON_KEYS: &[&str] = &["kind", "data", "rows", "columns", "limit", "seed", "chat"];

/// A task, read and checked.
#[derive(Debug)]
pub struct Definition {
    /// Name of its kind.
    pub kind: &'static str,
    /// File, folder or glob of its rows.
    pub data: Option<String>,
    /// Rows that stand in the definition itself, where `data` names none.
    pub rows: Vec<serde_json::Map<String, Value>>,
    /// Rows at most.
    pub limit: Option<usize>,
    /// Seed of what is drawn.
    pub seed: u64,
    /// Whether prompts go through the model's chat template.
    pub chat: Chat,
    columns: BTreeMap<String, Template>,
    task: Box<dyn Task>,
    written: String,
}

/// Whether prompts are plain text or a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chat {
    /// Plain text.
    Plain,
    /// A conversation in the model's chat template.
    Template,
}

impl Definition {
    /// Reads a definition; unknown keys are errors.
    pub fn read(value: &Value) -> Result<Self, EvaluateError> {
        let Some(table) = value.as_object() else {
            return Err(EvaluateError::definition("kind", "is missing"));
        };
        let names = || KINDS.iter().map(|kind| kind.name).collect::<Vec<_>>().join(", ");
        if !table.contains_key("kind") {
            return Err(EvaluateError::definition(
                "kind",
                format!("is missing; kinds are {}", names()),
            ));
        }
        let (common, own): (Vec<_>, Vec<_>) = table
            .iter()
            .map(|(key, value)| (key.clone(), value.clone()))
            .partition(|(key, _)| COMMON_KEYS.contains(&key.as_str()));
        let common: Common = parse(Value::from_iter(common))?;
        let kind = KINDS.iter().find(|kind| kind.name == common.kind).ok_or_else(|| {
            let problem = format!("= `{}` is not available; kinds are {}", common.kind, names());
            EvaluateError::definition("kind", problem)
        })?;
        let task = (kind.read)(Value::from_iter(own)).map_err(|error| unreadable(&error))?;
        if common.chat && !task.can_chat() {
            let problem =
                format!("does not go with `kind` = `{}`, which has no prompts", kind.name);
            return Err(EvaluateError::definition("chat", problem));
        }
        Ok(Self {
            kind: kind.name,
            data: common.data,
            rows: common.rows,
            limit: common.limit,
            seed: common.seed.unwrap_or(SEED),
            chat: if common.chat { Chat::Template } else { Chat::Plain },
            columns: common.columns,
            task,
            written: value.to_string(),
        })
    }

    /// As it was written, with what the command line changed: equal ones ask the same of equal rows.
    pub fn written(&self) -> &str {
        &self.written
    }

    /// What it does with its rows.
    pub fn task(&self) -> &dyn Task {
        self.task.as_ref()
    }

    /// Reads the rows and draws the examples.
    pub fn items(&self) -> Result<Items, EvaluateError> {
        let few_shot = self.task.few_shot().filter(|few_shot| few_shot.count > 0);
        let from_asked = few_shot.is_some_and(|few_shot| few_shot.from_task);
        // Examples drawn from the task's own rows come from all of them, asked or not.
        let limit = if from_asked { None } else { self.limit };
        let all = self.with_columns(self.own_rows(limit)?)?;
        let asked: Vec<SourceRow> =
            all.iter().take(self.limit.unwrap_or(all.len())).cloned().collect();
        let examples = match few_shot {
            None => vec![Vec::new(); asked.len()],
            Some(few_shot) => {
                let apart = if from_asked { Vec::new() } else { self.example_rows(few_shot)? };
                let pool = if from_asked { Pool::Asked(&all) } else { Pool::Apart(&apart) };
                let drawn = draw_examples(few_shot, pool, &asked, self.seed)?;
                drawn.into_iter().map(|rows| rows.into_iter().cloned().collect()).collect()
            }
        };
        Ok(Items { rows: asked, examples, seed: self.seed, first: 0 })
    }

    /// The rows of `data`, else those of the definition.
    fn own_rows(&self, limit: Option<usize>) -> Result<Vec<SourceRow>, EvaluateError> {
        match &self.data {
            Some(data) => Ok(read_rows(data, limit)?),
            None if self.rows.is_empty() => Err(EvaluateError::definition("data", "is missing")),
            None => Ok(inline(&self.rows, "rows").take(limit.unwrap_or(usize::MAX)).collect()),
        }
    }

    fn example_rows(&self, few_shot: &FewShot) -> Result<Vec<SourceRow>, EvaluateError> {
        let rows = match (&few_shot.data, few_shot.rows.is_empty()) {
            (Some(data), true) => read_rows(data, None)?,
            (Some(_), false) | (None, true) => {
                let problem = "needs one of `data`, `rows` and `from_task = true`";
                return Err(EvaluateError::definition("few_shot", problem));
            }
            (None, false) => inline(&few_shot.rows, "few_shot.rows").collect(),
        };
        self.with_columns(rows)
    }

    /// Adds the columns that the definition makes; each sees those of the file.
    fn with_columns(&self, rows: Vec<SourceRow>) -> Result<Vec<SourceRow>, EvaluateError> {
        let add = |mut row: SourceRow| {
            let made: Vec<(String, Value)> = self
                .columns
                .iter()
                .map(|(name, template)| Ok((name.clone(), template.value(&row)?)))
                .collect::<Result<_, EvaluateError>>()?;
            row.fields.extend(made);
            Ok(row)
        };
        rows.into_iter().map(add).collect()
    }
}

/// Rows that stand in a definition; `key` is what messages call their place.
fn inline<'a>(
    rows: &'a [serde_json::Map<String, Value>],
    key: &'a str,
) -> impl Iterator<Item = SourceRow> + 'a {
    rows.iter().enumerate().map(move |(index, fields)| SourceRow {
        place: Place { path: key.into(), line: index as u64 + 1 },
        fields: fields.clone(),
    })
}

/// Whether a definition, as far as it is known, is of a kind that asks with prompts.
pub fn has_prompts(value: &Value) -> bool {
    let is_text = |key: &str| value.get(key).is_some();
    is_text("prompt") || is_text("prompts")
}

fn parse<T: serde::de::DeserializeOwned>(value: Value) -> Result<T, EvaluateError> {
    serde_json::from_value(value).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> EvaluateError {
    EvaluateError::Model(error.to_string())
}

/// How a kind's own keys are read.
pub(super) fn read<T: Task + serde::de::DeserializeOwned + 'static>(
    own: Value,
) -> Result<Box<dyn Task>, serde_json::Error> {
    Ok(Box::new(serde_json::from_value::<T>(own)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn problem(value: &Value) -> String {
        Definition::read(value).unwrap_err().to_string()
    }

    #[test]
    fn unknown_kinds_keys_and_broken_templates_are_refused_by_name() {
        assert!(problem(&json!({})).contains("`kind` is missing; kinds are perplexity"));
        assert!(problem(&json!({"kind": "poetry"})).contains("`poetry` is not available"));
        let mut task = json!({"kind": "perplexity", "text": "page", "limti": 3});
        assert!(problem(&task).contains("limti"));
        task = json!({"kind": "perplexity", "text": "{% if %}"});
        assert!(problem(&task).contains("syntax error"), "{}", problem(&task));
        task = json!({"kind": "perplexity", "text": "page", "chat": true});
        assert!(problem(&task).contains("`chat` does not go with"));
    }

    #[test]
    fn columns_are_made_from_those_of_the_file_and_limits_keep_the_pool_of_examples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        std::fs::write(&path, "{\"x\": \"a\"}\n{\"x\": \"b\"}\n{\"x\": \"c\"}\n").unwrap();
        let definition = Definition::read(&json!({
            "kind": "generate_match", "data": path, "columns": {"x": "{{ x * 2 }}", "y": "x"},
            "limit": 1, "prompt": "x", "answer": "y", "few_shot": {"count": 2, "order": "first", "from_task": true},
        }));
        let items = definition.unwrap().items().unwrap();
        assert_eq!(Value::from(items.rows[0].fields.clone()), json!({"x": "aa", "y": "a"}));
        let examples: Vec<_> =
            items.examples[0].iter().map(|row| row.fields["y"].clone()).collect();
        assert_eq!(examples, ["b", "c"]);
    }
}
