//! One task on one model, for `tunesmith evaluate` and for runs that are scored on their way.

use datasets::{ChatTemplate, Tokenizer};
use serde_json::{Map, Value, json};
use trainer::base_model::Decoder;
use trainer::evaluate::{Chat, CodeRunner, Items, Measured, Model};

use super::tasks::{NamedTask, TaskSource};
use super::text;
use crate::diagnostics::UserError;
use crate::named::BaseParts;
use crate::sandbox::{self, Isolation};

/// What tasks are measured on, apart from the weights.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    /// How messages call it.
    pub(crate) name: &'a str,
    /// Its tokenizer and shape.
    pub(crate) base: &'a BaseParts,
    /// A Jinja file or built-in template in place of its own.
    pub(crate) chat_template: Option<&'a str>,
    /// What runs programs, where a task asks for it.
    pub(crate) runner: Option<&'a dyn CodeRunner>,
}

/// The rows of a task.
pub(crate) fn items(task: &NamedTask) -> anyhow::Result<Items> {
    match &task.source {
        TaskSource::Definition(definition) => Ok(definition.items()?),
        TaskSource::Text(..) | TaskSource::Loss(..) => Ok(Items::default()),
    }
}

/// Scores a task; `done` is told tokens or items, with their name.
pub(crate) fn measure(
    task: &NamedTask,
    items: &Items,
    subject: &Subject,
    decoder: &Decoder,
    done: &mut dyn FnMut(u64),
) -> anyhow::Result<Measured> {
    match &task.source {
        TaskSource::Text(path, windows) => {
            text::perplexity(subject.base, decoder, (path, windows), done)
        }
        TaskSource::Loss(path, windows) => text::loss(subject.base, decoder, (path, windows)),
        TaskSource::Definition(definition) => {
            let chat = match definition.chat {
                Chat::Plain => None,
                Chat::Template => Some(chat_template(subject)?),
            };
            let Subject { runner, .. } = *subject;
            let tokenizer = &subject.base.tokenizer;
            let model = Model { decoder, tokenizer, chat: chat.as_ref(), runner };
            Ok(definition.task().run(&model, items, done)?)
        }
    }
}

/// What runs programs, where one of the tasks asks for it.
pub(crate) fn runner<'a>(
    tasks: impl IntoIterator<Item = &'a NamedTask>,
    isolation: Isolation,
) -> anyhow::Result<Option<Box<dyn CodeRunner>>> {
    let runs = |task: &NamedTask| match &task.source {
        TaskSource::Definition(definition) => definition.task().runs_programs(),
        TaskSource::Text(..) | TaskSource::Loss(..) => false,
    };
    if tasks.into_iter().any(runs) {
        return Ok(Some(sandbox::runner(isolation)?));
    }
    Ok(None)
}

/// The template that prompts go through.
pub(crate) fn chat_template(subject: &Subject) -> anyhow::Result<ChatTemplate> {
    let tokenizer: &Tokenizer = &subject.base.tokenizer;
    if let Some(name) = subject.chat_template {
        return Ok(ChatTemplate::named_or_file(name, tokenizer)?);
    }
    let own = ChatTemplate::of_base(tokenizer)?;
    own.ok_or_else(|| {
        let names: Vec<&str> =
            datasets::BUILTIN_TEMPLATES.iter().map(|template| template.name).collect();
        let message = format!("`{}` brings no chat template", subject.name);
        let hint = format!("name one with `--chat-template`: {}", names.join(", "));
        UserError::new(message, hint).into()
    })
}

/// The figures of a task: values, standard errors, counts.
pub(crate) fn figures(measured: &Measured, seed: u64) -> Map<String, Value> {
    let mut figures = Map::new();
    for metric in &measured.metrics {
        figures.insert(metric.name.clone(), json!(metric.value()));
        if let Some(error) = metric.standard_error(seed) {
            figures.insert(format!("{}_standard_error", metric.name), json!(error));
        }
    }
    for (name, count) in &measured.counts {
        figures.insert(name.clone(), json!(count));
    }
    if let Some(metric) = measured.metrics.first() {
        figures.insert("items".to_owned(), json!(metric.items.len()));
    }
    figures
}
