//! `tunesmith evaluate`: figures of several targets side by side, and what their differences say.

mod cache;
pub(crate) mod contamination;
mod differences;
pub(crate) mod measure;
mod shipped;
mod table;
pub(crate) mod tasks;
mod text;

use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use trainer::base_model::Decoder;
use trainer::evaluate::{Chat, CodeRunner, Items, Measured};

use crate::cli::{DeviceArgs, JsonArgs, NetworkArgs, PrecisionArgs};
use crate::device::{self, Chosen};
use crate::diagnostics::ExitStatus;
use crate::printer::{Printer, write_atomically};
use crate::provenance::hash_file;
use crate::sandbox::Isolation;
use crate::target::Target;
use cache::Cache;
use measure::Subject;
use tasks::{NamedTask, TaskSource};

/// Flags of `tunesmith evaluate`.
#[expect(clippy::struct_excessive_bools, reason = "independent switches of the command line")]
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
    /// Training data to search for rows of the tasks; that of runs is searched by itself.
    #[arg(long, value_name = "FILE")]
    pub training_data: Vec<String>,
    /// Measure again what was measured before.
    #[arg(long)]
    pub no_cache: bool,
    /// Run programs of code tasks with your own rights, where the sandbox cannot be had.
    #[arg(long)]
    pub unsafe_execution: bool,
    /// The base model of adapters, where their own is elsewhere.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Where to run.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// In what to compute.
    #[command(flatten)]
    pub precision: PrecisionArgs,
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
    let runner = runner(&tasks, arguments, printer)?;
    let mut scored = Vec::new();
    for name in &arguments.targets {
        let target = Target::open(name, arguments.base.as_deref(), arguments.network.network())?;
        printer.warnings(target.base.files.warnings());
        if let Some(line) = target.base.left_out() {
            printer.warning(&line);
        }
        if tasks.iter().any(NamedTask::has_windows) {
            target.base.check_length("`--sequence-length`", arguments.sequence_length.get())?;
        }
        let setting =
            Setting { target: &target, chosen: &chosen, runner: runner.as_deref(), arguments };
        scored.push(score(&setting, &tasks, printer)?);
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

/// What runs programs, where a task asks for it.
fn runner(
    tasks: &[NamedTask],
    arguments: &EvaluateArgs,
    printer: &mut Printer,
) -> anyhow::Result<Option<Box<dyn CodeRunner>>> {
    let isolation = if arguments.unsafe_execution { Isolation::None } else { Isolation::Sandbox };
    let runner = measure::runner(tasks, isolation)?;
    if runner.is_some() && isolation == Isolation::None {
        printer.warning("programs that the model writes run with your rights, without a sandbox");
    }
    Ok(runner)
}

/// A target and what is the same for all its tasks.
#[derive(Clone, Copy)]
struct Setting<'a> {
    target: &'a Target,
    chosen: &'a Chosen,
    runner: Option<&'a dyn CodeRunner>,
    arguments: &'a EvaluateArgs,
}

fn score(setting: &Setting, tasks: &[NamedTask], printer: &mut Printer) -> anyhow::Result<Scored> {
    let Setting { target, chosen, arguments, .. } = *setting;
    let dtype = chosen.dtype(arguments.precision.precision.into());
    // Answers are not kept, so samples are measured anew.
    let cache = if arguments.no_cache || arguments.samples.is_some() {
        Cache::off()
    } else {
        Cache::of(target, &format!("{dtype:?} {}", chosen.reason))
    };
    let training = contamination::training_files(&target.name, arguments);
    let mut decoder = None;
    let mut measured = Vec::new();
    for task in tasks {
        let work = Work { setting: *setting, task, training: &training };
        measured.push(work.measure(&cache, &mut decoder, printer)?);
    }
    Ok(Scored { target: target.name.clone(), tasks: measured })
}

/// Rows that are measured together: enough to fill batches, and little to do again.
const ROWS_AT_ONCE: usize = 256;

/// One task on one target.
struct Work<'a> {
    setting: Setting<'a>,
    task: &'a NamedTask,
    training: &'a [PathBuf],
}

impl Work<'_> {
    /// Figures kept from before, or new ones; weights are read when the first are needed.
    fn measure(
        &self,
        cache: &Cache,
        decoder: &mut Option<Decoder>,
        printer: &mut Printer,
    ) -> anyhow::Result<Measured> {
        let Self { task, setting: Setting { target, chosen, arguments, .. }, .. } = *self;
        let items = measure::items(task)?;
        let key = self.key(&items)?;
        let mut measured = match cache.get(&key) {
            Some(measured) => {
                printer.status(&format!("{}: `{}` was measured before", target.name, task.name));
                measured
            }
            None => {
                if decoder.is_none() {
                    let dtype = chosen.dtype(arguments.precision.precision.into());
                    *decoder = Some(target.load(&chosen.device, dtype)?);
                }
                let decoder = decoder.as_ref().expect("loaded above");
                let label = format!("{} {}", target.name, task.name);
                let unit = if task.has_windows() { "tokens" } else { "items" };
                let mut progress = printer.progress(&label, items.rows.len() as u64);
                let mut done = |done| progress.update(done, unit);
                let measured = self.in_parts(&items, (cache, &key), decoder, &mut done);
                progress.finish();
                let (measured, kept) = measured?;
                if kept > 0 {
                    let (rows, task) = (items.rows.len(), &task.name);
                    let line = format!("{kept} of {rows} rows of `{task}` were measured before");
                    printer.status(&format!("{}: {line}", target.name));
                }
                cache.put(&key, &measured);
                measured
            }
        };
        contamination::check(task, &items, self.training, &mut measured, printer)?;
        Ok(measured)
    }

    /// Measures part by part; a part that was finished before an interruption is not done again.
    /// Also gives the number of rows that were not.
    fn in_parts(
        &self,
        items: &Items,
        (cache, key): (&Cache, &[u8]),
        decoder: &Decoder,
        done: &mut dyn FnMut(u64),
    ) -> anyhow::Result<(Measured, usize)> {
        let subject = self.subject();
        let parts = items.parts(ROWS_AT_ONCE);
        if parts.len() < 2 {
            return Ok((measure::measure(self.task, items, &subject, decoder, done)?, 0));
        }
        let (mut whole, mut kept) = (Measured::default(), 0);
        let key_of = |part: &Items| [key, b" from row ", &part.first.to_le_bytes()].concat();
        for part in &parts {
            let key = key_of(part);
            let measured = match cache.get(&key) {
                Some(measured) => {
                    kept += part.rows.len();
                    measured
                }
                None => {
                    let first = part.first as u64;
                    let mut all = |count| done(first + count);
                    let measured = measure::measure(self.task, part, &subject, decoder, &mut all)?;
                    cache.put(&key, &measured);
                    measured
                }
            };
            whole.extend(measured);
            done((part.first + part.rows.len()) as u64);
        }
        for part in &parts {
            cache.remove(&key_of(part));
        }
        Ok((whole, kept))
    }

    fn subject(&self) -> Subject<'_> {
        let Setting { target, arguments, runner, .. } = self.setting;
        let chat_template = arguments.chat_template.as_deref();
        Subject { name: &target.name, base: &target.base, chat_template, runner }
    }

    /// What the figures depend on besides the target: the task, its rows, the settings.
    fn key(&self, items: &Items) -> anyhow::Result<Vec<u8>> {
        let Setting { runner, arguments, .. } = self.setting;
        let mut key = Sha256::new();
        key.update(format!("{} {:?}", arguments.sequence_length, arguments.limit));
        match &self.task.source {
            TaskSource::Text(path, _) | TaskSource::Loss(path, _) => {
                key.update(&self.task.name);
                if path.is_file() {
                    key.update(hash_file(path)?.1);
                } else {
                    // Several files: their rows are not worth hashing for a short task.
                    key.update(format!("{:?}", std::time::SystemTime::now()));
                }
            }
            TaskSource::Definition(definition) => {
                key.update(definition.written());
                if definition.chat == Chat::Template {
                    key.update(measure::chat_template(&self.subject())?.source());
                }
                if let Some(runner) = runner {
                    key.update(format!("{:?}", definition.task().toolchains(items, runner)?));
                }
                let examples = items.examples.iter().flatten();
                for row in items.rows.iter().chain(examples) {
                    key.update(serde_json::to_vec(&row.fields)?);
                }
            }
        }
        Ok(key.finalize().to_vec())
    }
}

fn figures(
    scored: &[Scored],
    tasks: &[NamedTask],
    differences: &[differences::TaskDifference],
) -> Value {
    let targets = scored.iter().map(|scored| {
        let figures = tasks.iter().zip(&scored.tasks).map(|(task, measured)| {
            (task.name.clone(), Value::Object(measure::figures(measured, task.seed())))
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
