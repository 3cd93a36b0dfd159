//! `tunesmith evaluate`: figures of several targets side by side, and what their differences say.

mod differences;
mod shipped;
mod table;
mod tasks;
mod text;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use datasets::ChatTemplate;
use serde_json::{Map, Value, json};
use trainer::base_model::Decoder;
use trainer::evaluate::{Chat, Definition, Measured, Model};

use crate::cli::{DeviceArgs, JsonArgs, NetworkArgs};
use crate::device;
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::{Printer, write_atomically};
use crate::target::Target;
use tasks::{NamedTask, TaskSource};

/// Flags of `tunesmith evaluate`.
#[derive(Debug, Clone, Args)]
#[command(after_help = shipped::help())]
pub struct EvaluateArgs {
    /// Models, `.gguf` files, adapters or runs; the others are compared with the first.
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
    /// What is measured: `perplexity` of a text file, `loss` of training rows, a shipped task
    /// (see below) or a task file; several with commas or by giving the flag again.
    #[arg(long = "task", value_name = "NAME|FILE.toml", required = true, value_delimiter = ',')]
    pub tasks: Vec<String>,
    /// Rows of the tasks: file, folder or glob; with several tasks, once for each.
    #[arg(long, value_name = "[TASK=]FILE")]
    pub data: Vec<String>,
    /// Rows that few-shot examples come from.
    #[arg(long, value_name = "[TASK=]FILE")]
    pub few_shot_data: Vec<String>,
    /// Few-shot examples before each question, in place of the task's own number.
    #[arg(long, value_name = "N")]
    pub few_shot: Option<usize>,
    /// Put prompts through the model's chat template.
    #[arg(long)]
    pub chat: bool,
    /// A Jinja file or the name of a built-in template, for bases that bring none.
    #[arg(long, value_name = "NAME|FILE")]
    pub chat_template: Option<String>,
    /// Tokens of a window of `perplexity`; longest row of `loss`.
    #[arg(long, value_name = "N", default_value = "256")]
    pub sequence_length: NonZeroUsize,
    /// Windows or rows at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
    /// Write every prompt and answer to FILE, a JSON object a line; they are kept nowhere else.
    #[arg(long, value_name = "FILE")]
    pub samples: Option<PathBuf>,
    /// The base model of adapters, where their own is elsewhere.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Where to run.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether the network may be used.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Where the figures go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// What one target scored, task by task.
struct Scored {
    target: String,
    tasks: Vec<Measured>,
}

/// Measures every target and shows tables, or JSON.
pub fn evaluate(arguments: &EvaluateArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let tasks = tasks::read(arguments)?;
    let chosen = device::choose(arguments.device.device)?;
    printer.status(&chosen.reason);
    let mut scored = Vec::new();
    for name in &arguments.targets {
        let target = Target::open(name, arguments.base.as_deref(), arguments.network.network())?;
        if let Some(line) = target.base.left_out() {
            printer.warning(&line);
        }
        if tasks.iter().any(|task| !matches!(task.source, TaskSource::Definition(_))) {
            target.base.check_length("`--sequence-length`", arguments.sequence_length.get())?;
        }
        let decoder = target.load(&chosen.device, chosen.dtype(trainer::Precision::Auto))?;
        scored.push(score(&target, &decoder, &tasks, arguments, printer)?);
    }
    let differences = differences::all(&scored, &tasks);
    if let Some(path) = &arguments.samples {
        write_atomically(path, samples(&scored, &tasks).as_bytes())?;
    }
    match &arguments.json.json {
        Some(target) => printer.json(target, &figures(&scored, &tasks, &differences))?,
        None => table::show(&scored, &tasks, &differences, printer)?,
    }
    Ok(ExitStatus::Success)
}

fn score(
    target: &Target,
    decoder: &Decoder,
    tasks: &[NamedTask],
    arguments: &EvaluateArgs,
    printer: &mut Printer,
) -> anyhow::Result<Scored> {
    let mut measured = Vec::new();
    for task in tasks {
        measured.push(match &task.source {
            TaskSource::Text(path) => text::perplexity(target, decoder, path, arguments, printer)?,
            TaskSource::Loss(path) => text::loss(target, decoder, path, arguments)?,
            TaskSource::Definition(definition) => {
                run(target, decoder, &task.name, definition, arguments, printer)?
            }
        });
    }
    Ok(Scored { target: target.name.clone(), tasks: measured })
}

fn run(
    target: &Target,
    decoder: &Decoder,
    name: &str,
    definition: &Definition,
    arguments: &EvaluateArgs,
    printer: &mut Printer,
) -> anyhow::Result<Measured> {
    let items = definition.items()?;
    let chat = match definition.chat {
        Chat::Plain => None,
        Chat::Template => Some(chat_template(target, arguments)?),
    };
    let model = Model { decoder, tokenizer: target.tokenizer(), chat: chat.as_ref() };
    let label = format!("{} {name}", target.name);
    let mut progress = printer.progress(&label, items.rows.len() as u64);
    let measured =
        definition.task().run(&model, &items, &mut |done| progress.update(done, "items"));
    progress.finish();
    Ok(measured?)
}

/// The template that prompts go through.
fn chat_template(target: &Target, arguments: &EvaluateArgs) -> anyhow::Result<ChatTemplate> {
    if let Some(name) = &arguments.chat_template {
        return Ok(ChatTemplate::named_or_file(name, target.tokenizer())?);
    }
    let own = ChatTemplate::of_base(target.tokenizer())?;
    own.ok_or_else(|| {
        let names: Vec<&str> =
            datasets::BUILTIN_TEMPLATES.iter().map(|template| template.name).collect();
        let message = format!("`{}` brings no chat template", target.name);
        let hint = format!("name one with `--chat-template`: {}", names.join(", "));
        UserError::new(message, hint).into()
    })
}

/// The figures of a task: values, standard errors, counts.
fn task_figures(measured: &Measured, seed: u64) -> Map<String, Value> {
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

fn figures(
    scored: &[Scored],
    tasks: &[NamedTask],
    differences: &[differences::TaskDifference],
) -> Value {
    let targets = scored.iter().map(|scored| {
        let figures = tasks.iter().zip(&scored.tasks).map(|(task, measured)| {
            (task.name.clone(), Value::Object(task_figures(measured, task.seed())))
        });
        json!({ "target": scored.target, "tasks": figures.collect::<Map<_, _>>() })
    });
    json!({ "targets": targets.collect::<Vec<_>>(), "comparisons": differences })
}

/// Every prompt and answer, a line each.
fn samples(scored: &[Scored], tasks: &[NamedTask]) -> String {
    let mut lines = String::new();
    for scored in scored {
        for (task, measured) in tasks.iter().zip(&scored.tasks) {
            for sample in &measured.samples {
                let mut line = json!({ "target": scored.target, "task": task.name });
                if let (Some(line), Some(sample)) = (line.as_object_mut(), sample.as_object()) {
                    line.extend(sample.clone());
                }
                lines.push_str(&line.to_string());
                lines.push('\n');
            }
        }
    }
    lines
}
