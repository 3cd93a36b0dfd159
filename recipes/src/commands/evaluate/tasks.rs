//! Which tasks are asked for: names and files, with what the command line says about them.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use trainer::evaluate::Definition;

use super::{EvaluateArgs, shipped};
use crate::diagnostics::UserError;

/// A task and the name its figures go under.
pub(crate) struct NamedTask {
    pub(crate) name: String,
    pub(super) source: TaskSource,
}

/// How a plain text or plain rows are cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    /// Tokens of a window; longest row.
    pub(super) length: NonZeroUsize,
    /// Windows or rows at most.
    pub(super) limit: Option<NonZeroUsize>,
}

/// A task as it is asked for, on the command line or in a recipe.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskRequest<'a> {
    /// Its name, or its file.
    pub(crate) task: &'a str,
    /// Its rows, in place of its own.
    pub(crate) data: Option<&'a str>,
    /// Rows that examples come from.
    pub(crate) few_shot_data: Option<&'a str>,
    /// Examples before each question.
    pub(crate) few_shot: Option<usize>,
    /// Windows or rows at most.
    pub(crate) limit: Option<NonZeroUsize>,
    /// Whether prompts go through a chat template.
    pub(crate) chat: bool,
    /// Tokens of a window.
    pub(crate) sequence_length: NonZeroUsize,
}

/// What a task scores.
pub(super) enum TaskSource {
    /// A plain text.
    Text(PathBuf, Windows),
    /// Rows that training could train on.
    Loss(PathBuf, Windows),
    /// What a task file says.
    Definition(Box<Definition>),
}

impl NamedTask {
    /// Seed of its intervals.
    pub(crate) fn seed(&self) -> u64 {
        match &self.source {
            TaskSource::Text(..) | TaskSource::Loss(..) => 1234,
            TaskSource::Definition(definition) => definition.seed,
        }
    }

    /// Whether the model runs over windows of a length that was asked for.
    pub(crate) fn has_windows(&self) -> bool {
        !matches!(self.source, TaskSource::Definition(_))
    }
}

/// Reads every task of a command line.
pub(super) fn read(arguments: &EvaluateArgs) -> anyhow::Result<Vec<NamedTask>> {
    let names: Vec<String> = arguments.tasks.iter().map(|task| name_of(task)).collect();
    let data = ByTask::new("--data", &arguments.data, &names)?;
    let examples = ByTask::new("--few-shot-data", &arguments.few_shot_data, &names)?;
    let requests = arguments.tasks.iter().zip(&names).map(|(task, name)| TaskRequest {
        task,
        data: data.of(name),
        few_shot_data: examples.of(name),
        few_shot: arguments.few_shot,
        limit: arguments.limit,
        chat: arguments.chat,
        sequence_length: arguments.sequence_length,
    });
    read_all(requests)
}

/// Reads tasks; each goes under a name of its own.
pub(crate) fn read_all<'a>(
    requests: impl IntoIterator<Item = TaskRequest<'a>>,
) -> anyhow::Result<Vec<NamedTask>> {
    let mut tasks: Vec<NamedTask> = Vec::new();
    for request in requests {
        let name = name_of(request.task);
        if tasks.iter().any(|known| known.name == name) {
            let message = format!("two tasks are called `{name}`");
            return Err(UserError::new(message, "rename one of the task files").into());
        }
        let source = match name.as_str() {
            "perplexity" | "loss" if !is_file(request.task) => plain(&name, &request)?,
            _ => {
                let text = task_text(request.task)?;
                TaskSource::Definition(Box::new(definition(&text, &request)?))
            }
        };
        tasks.push(NamedTask { name, source });
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

fn plain(name: &str, request: &TaskRequest) -> anyhow::Result<TaskSource> {
    let Some(data) = request.data else {
        let message = format!("task `{name}` needs `--data`");
        let hint = match name {
            "loss" => "give `--data` rows in any format that recipes take",
            _ => "give `--data` a text file",
        };
        return Err(UserError::new(message, hint).into());
    };
    let windows = Windows { length: request.sequence_length, limit: request.limit };
    Ok(match name {
        "loss" => TaskSource::Loss(data.into(), windows),
        _ => TaskSource::Text(data.into(), windows),
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
fn definition(text: &str, request: &TaskRequest) -> anyhow::Result<Definition> {
    let TaskRequest { task, data, few_shot_data, few_shot, limit, chat, .. } = *request;
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
    if let Some(limit) = limit {
        value["limit"] = json!(limit);
    }
    if chat && trainer::evaluate::has_prompts(&value) {
        value["chat"] = json!(true);
    }
    override_examples(&mut value, few_shot_data, few_shot).map_err(failed)?;
    let definition = Definition::read(&value).map_err(|error| failed(error.to_string()))?;
    if definition.data.is_none() && definition.rows.is_empty() {
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
