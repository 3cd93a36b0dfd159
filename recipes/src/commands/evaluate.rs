//! `tunesmith evaluate`: figures of several targets side by side.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use datasets::{BatchConfig, DatasetConfig, LoadRequest, OnOverlong};
use serde::Serialize;
use serde_json::{Value, json};
use trainer::base_model::Decoder;
use trainer::evaluate::perplexity;

use crate::cli::{DeviceArgs, JsonArgs, NetworkArgs};
use crate::device::{self, Chosen};
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::Printer;
use crate::target::Target;

/// Flags of `tunesmith evaluate`.
#[derive(Debug, Clone, Args)]
pub struct EvaluateArgs {
    /// Models, `.gguf` files, adapters or runs.
    #[arg(value_name = "TARGET", required = true)]
    pub targets: Vec<String>,
    /// What is measured; may be given several times.
    #[arg(long = "task", value_name = "NAME", value_enum, required = true)]
    pub tasks: Vec<TaskName>,
    /// Text file of `perplexity`; rows of `loss`, in any format that recipes take.
    #[arg(long, value_name = "FILE")]
    pub data: PathBuf,
    /// Tokens of a window of `perplexity`; longest row of `loss`.
    #[arg(long, value_name = "N", default_value = "256")]
    pub sequence_length: NonZeroUsize,
    /// Windows or rows at most.
    #[arg(long, value_name = "N")]
    pub limit: Option<NonZeroUsize>,
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

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum TaskName {
    /// Perplexity of a plain text, in windows.
    Perplexity,
    /// Loss of held-out rows over the tokens that training would train on.
    Loss,
}

#[derive(Debug, Serialize)]
struct Scored {
    target: String,
    tasks: BTreeMap<&'static str, Value>,
}

/// Measures every target and shows a table, or JSON.
pub fn evaluate(arguments: &EvaluateArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let chosen = device::choose(arguments.device.device)?;
    printer.status(&chosen.reason);
    let mut scored = Vec::new();
    for name in &arguments.targets {
        scored.push(score(name, arguments, &chosen, printer)?);
    }
    match &arguments.json.json {
        Some(target) => printer.json(target, &json!({ "targets": scored }))?,
        None => table(&scored, printer)?,
    }
    Ok(ExitStatus::Success)
}

fn score(
    name: &str,
    arguments: &EvaluateArgs,
    chosen: &Chosen,
    printer: &mut Printer,
) -> anyhow::Result<Scored> {
    let base = arguments.base.as_deref();
    let target = Target::open(name, base, arguments.network.network())?;
    if let Some(line) = target.base.left_out() {
        printer.warning(&line);
    }
    target.base.check_length("`--sequence-length`", arguments.sequence_length.get())?;
    let decoder = target.load(&chosen.device, chosen.dtype(trainer::Precision::Auto))?;
    let mut tasks = BTreeMap::new();
    for task in &arguments.tasks {
        let (label, figures) = match task {
            TaskName::Perplexity => {
                ("perplexity", perplexity_of(&target, &decoder, arguments, printer)?)
            }
            TaskName::Loss => ("loss", loss_of(&target, &decoder, arguments)?),
        };
        tasks.insert(label, figures);
    }
    Ok(Scored { target: target.name, tasks })
}

fn perplexity_of(
    target: &Target,
    decoder: &Decoder,
    arguments: &EvaluateArgs,
    printer: &mut Printer,
) -> anyhow::Result<Value> {
    let path = &arguments.data;
    let text = std::fs::read(path).map_err(|error| {
        UserError::new(
            format!("cannot read `{}`: {error}", path.display()),
            "give `--data` a text file",
        )
    })?;
    let text = String::from_utf8(text).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let message = format!("`{}` is not UTF-8 at byte {place}", path.display());
        UserError::new(message, "convert the file to UTF-8")
    })?;
    let mut ids = target.tokenizer().encode(&text)?;
    let window = arguments.sequence_length.get();
    if let Some(limit) = arguments.limit {
        ids.truncate(limit.get().saturating_mul(window));
    }
    check_ids(&ids, target)?;
    let mut progress = printer.progress(&target.name, ids.len() as u64);
    let figures = perplexity(decoder, &ids, window, &mut |done| progress.update(done, "tokens"));
    progress.finish();
    let figures = figures.ok_or_else(|| {
        let message = format!("`{}` has fewer than 2 tokens", path.display());
        UserError::new(message, "give `--data` a longer text and `--sequence-length` at least 2")
    })?;
    Ok(serde_json::to_value(figures)?)
}

/// A tokenizer may know tokens that the model has no row for.
fn check_ids(ids: &[u32], target: &Target) -> anyhow::Result<()> {
    let vocab = target.base.config.vocab_size;
    match ids.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let message = format!(
                "the tokenizer of `{}` gives token {id}, the model has {vocab} rows",
                target.name
            );
            Err(UserError::new(message, "take tokenizer and weights from the same model").into())
        }
    }
}

/// Mean loss over the rows' trained tokens, rows in file order.
fn loss_of(target: &Target, decoder: &Decoder, arguments: &EvaluateArgs) -> anyhow::Result<Value> {
    let config: DatasetConfig =
        serde_json::from_value(json!({ "path": arguments.data.display().to_string() }))?;
    let batch = BatchConfig {
        sequence_length: arguments.sequence_length.max(NonZeroUsize::new(2048).expect("not zero")),
        on_overlong: OnOverlong::Error,
        shuffle: false,
        ..BatchConfig::default()
    };
    let dataset = datasets::load(&LoadRequest {
        datasets: std::slice::from_ref(&config),
        validation: None,
        batch: &batch,
        seed: 0,
        tokenizer: target.tokenizer(),
        vocab_size: target.base.config.vocab_size,
        cache_dir: None,
        row_limit: arguments.limit.map(NonZeroUsize::get),
    })?;
    let (mut loss_sum, mut tokens) = (0.0, 0);
    for batch in datasets::validation_batches(&dataset.train, &batch) {
        loss_sum += decoder.loss_sum(&batch);
        tokens += batch.trained_tokens();
    }
    let rows = dataset.train.len();
    Ok(
        json!({ "loss_per_token": loss_sum / (tokens as f64).max(1.0), "tokens": tokens, "rows": rows }),
    )
}

/// One line a target and figure.
fn table(scored: &[Scored], printer: &mut Printer) -> anyhow::Result<()> {
    let width = scored.iter().map(|s| s.target.chars().count()).max().unwrap_or(0).max(6);
    let mut columns: Vec<(String, String)> = Vec::new();
    for (task, figures) in scored.first().map(|s| &s.tasks).into_iter().flatten() {
        let names = figures.as_object().into_iter().flat_map(|map| map.keys());
        columns.extend(names.map(|name| ((*task).to_owned(), name.clone())));
    }
    let head = joined(columns.iter().map(|(_, name)| format!("  {name:>14}")));
    printer.data(&format!("{:width$}{head}", "target"))?;
    for Scored { target, tasks } in scored {
        let cell = |(task, name): &(String, String)| {
            let value = tasks.get(task.as_str()).and_then(|figures| figures.get(name));
            match value.and_then(Value::as_u64) {
                Some(count) => format!("  {count:>14}"),
                None => format!("  {:>14.4}", value.and_then(Value::as_f64).unwrap_or(f64::NAN)),
            }
        };
        let cells = joined(columns.iter().map(cell));
        printer.data(&format!("{target:width$}{cells}"))?;
    }
    Ok(())
}

fn joined(cells: impl Iterator<Item = String>) -> String {
    cells.collect::<Vec<_>>().concat()
}
