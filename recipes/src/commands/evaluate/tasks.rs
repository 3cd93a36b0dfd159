//! Which tasks are asked for: names and files, with what the command line says about them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trainer::evaluate::Definition;

use super::{EvaluateArgs, shipped};
use crate::diagnostics::UserError;

/// A task and the name its figures go under.
pub(super) struct NamedTask {
    pub(super) name: String,
    pub(super) source: TaskSource,
}

/// What a task scores.
pub(super) enum TaskSource {
    /// A plain text.
    Text(PathBuf),
    /// Rows that training could train on.
    Loss(PathBuf),
    /// What a task file says.
    Definition(Box<Definition>),
}

impl NamedTask {
    /// Seed of its intervals.
    pub(super) fn seed(&self) -> u64 {
        match &self.source {
            TaskSource::Text(_) | TaskSource::Loss(_) => 1234,
            TaskSource::Definition(definition) => definition.seed,
        }
    }
}

/// Reads every task that is asked for.
pub(super) fn read(arguments: &EvaluateArgs) -> anyhow::Result<Vec<NamedTask>> {
    let names: Vec<String> = arguments.tasks.iter().map(|task| name_of(task)).collect();
    for (place, name) in names.iter().enumerate() {
        if names[..place].contains(name) {
            let message = format!("two tasks are called `{name}`");
            return Err(UserError::new(message, "rename one of the task files").into());
        }
    }
    let data = ByTask::new("--data", &arguments.data, &names)?;
    let examples = ByTask::new("--few-shot-data", &arguments.few_shot_data, &names)?;
    let mut tasks = Vec::new();
    for (task, name) in arguments.tasks.iter().zip(&names) {
        let source = match name.as_str() {
            "perplexity" | "loss" if !is_file(task) => plain(name, data.of(name))?,
            _ => {
                let text = task_text(task)?;
                let definition =
                    definition(task, &text, (data.of(name), examples.of(name)), arguments)?;
                TaskSource::Definition(Box::new(definition))
            }
        };
        tasks.push(NamedTask { name: name.clone(), source });
    }
    Ok(tasks)
}

fn is_file(task: &str) -> bool {
    Path::new(task).extension().is_some_and(|ending| ending.eq_ignore_ascii_case("toml"))
}

fn name_of(task: &str) -> String {
    let stem = Path::new(task).file_stem().filter(|_| is_file(task));
    stem.map_or_else(|| task.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn plain(name: &str, data: Option<&str>) -> anyhow::Result<TaskSource> {
    let Some(data) = data else {
        let message = format!("task `{name}` needs `--data`");
        let hint = match name {
            "loss" => "give `--data` rows in any format that recipes take",
            _ => "give `--data` a text file",
        };
        return Err(UserError::new(message, hint).into());
    };
    Ok(match name {
        "loss" => TaskSource::Loss(data.into()),
        _ => TaskSource::Text(data.into()),
    })
}

fn task_text(task: &str) -> anyhow::Result<String> {
    if is_file(task) {
        return std::fs::read_to_string(task).map_err(|error| {
            let message = format!("cannot read the task file `{task}`: {error}");
            UserError::new(message, "paths are relative to the current folder").into()
        });
    }
    let found = shipped::TASKS.iter().find(|shipped| shipped.name == task);
    found.map(|shipped| shipped.text.to_owned()).ok_or_else(|| {
        let message = format!("`{task}` is no task");
        let hint = format!(
            "known are perplexity, loss, {} and task files ending in `.toml`",
            shipped::names()
        );
        UserError::new(message, hint).into()
    })
}

/// A task file with what the command line says in place of its own keys.
fn definition(
    task: &str,
    text: &str,
    (data, examples): (Option<&str>, Option<&str>),
    arguments: &EvaluateArgs,
) -> anyhow::Result<Definition> {
    let hint = "`recipes/tasks/README.md` says what a task file takes";
    let failed = |problem: String| UserError::new(format!("task `{task}`: {problem}"), hint);
    let table: toml::Table = toml::from_str(text).map_err(|error| {
        let place = error.span().map_or(String::new(), |span| {
            let before = text.get(..span.start).unwrap_or_default();
            format!("line {}: ", before.matches('\n').count() + 1)
        });
        failed(format!("{place}{}", error.message()))
    })?;
    let mut value = serde_json::to_value(table)?;
    if let Some(data) = data {
        value["data"] = json!(data);
    }
    if let Some(limit) = arguments.limit {
        value["limit"] = json!(limit);
    }
    if arguments.chat && trainer::evaluate::has_prompts(&value) {
        value["chat"] = json!(true);
    }
    override_examples(&mut value, examples, arguments.few_shot).map_err(failed)?;
    let definition = Definition::read(&value).map_err(|error| failed(error.to_string()))?;
    if definition.data.is_none() {
        let message = format!("task `{task}` names no `data`");
        return Err(UserError::new(message, "name its rows with `--data`").into());
    }
    Ok(definition)
}

fn override_examples(
    value: &mut Value,
    data: Option<&str>,
    count: Option<usize>,
) -> Result<(), String> {
    if (data.is_some() || count.is_some()) && !trainer::evaluate::has_prompts(value) {
        return Err("its kind takes no few-shot examples".to_owned());
    }
    if let Some(data) = data {
        value["few_shot"]["data"] = json!(data);
        if let Some(few_shot) = value["few_shot"].as_object_mut() {
            few_shot.remove("rows");
            few_shot.remove("from_task");
        }
    }
    if let Some(count) = count {
        value["few_shot"]["count"] = json!(count);
    }
    Ok(())
}

/// Values of a flag that may name a task: `FILE` or `TASK=FILE`.
struct ByTask<'a>(Vec<(Option<&'a str>, &'a str)>);

impl<'a> ByTask<'a> {
    fn new(flag: &str, values: &'a [String], names: &[String]) -> anyhow::Result<Self> {
        let split = |value: &'a String| match value.split_once('=') {
            Some((name, file)) if names.iter().any(|known| known == name) => (Some(name), file),
            _ => (None, value.as_str()),
        };
        let values: Vec<_> = values.iter().map(split).collect();
        let unnamed = values.iter().filter(|(name, _)| name.is_none()).count();
        if unnamed > 1 {
            let message = format!("`{flag}` is given {unnamed} times without a task");
            return Err(UserError::new(message, format!("write `{flag} TASK=FILE`")).into());
        }
        Ok(Self(values))
    }

    fn of(&self, task: &str) -> Option<&'a str> {
        let named = self.0.iter().find(|(name, _)| *name == Some(task));
        named.or_else(|| self.0.iter().find(|(name, _)| name.is_none())).map(|(_, file)| *file)
    }
}
