//! The command line: clap types, whose doc comments are the help, and one line a verb.
//!
//! To add a command: a variant of [`Command`] here, an arm in [`run`], a file in `commands/`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::Context;
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::commands;
use crate::diagnostics::{self, ExitStatus};
use crate::printer::{JsonTarget, Printer, Verbosity};

/// Fine-tunes language models with low-rank adapters: recipe, train, adapter, merge, evaluate.
#[derive(Debug, Parser)]
#[command(name = "tunesmith", version, arg_required_else_help = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 something to fix, 2 a fault of the program or \
                        machine, 130 interrupted.")]
pub struct Cli {
    /// What every command takes.
    #[command(flatten)]
    pub global: GlobalArgs,
    /// The verb.
    #[command(subcommand)]
    pub command: Command,
}

/// Flags of every command.
#[derive(Debug, Clone, Args)]
pub struct GlobalArgs {
    /// Say nothing but errors on stderr.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Threads of the CPU to use; all where it is not given.
    #[arg(long, global = true, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Whether the network may be used.
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// Whether the network may be used.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Use no network, as with `HF_HUB_OFFLINE=1`; hub ids must be in the cache.
    #[arg(long, global = true)]
    pub offline: bool,
}

impl NetworkArgs {
    /// What the flag and the environment allow.
    pub fn network(&self) -> adapters::weights::Network {
        let variable = std::env::var("HF_HUB_OFFLINE").unwrap_or_default();
        let is_set = matches!(variable.to_ascii_lowercase().as_str(), "1" | "true" | "yes" | "on");
        if self.offline || is_set {
            adapters::weights::Network::Offline
        } else {
            adapters::weights::Network::Allowed
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a recipe to a finished adapter; goes on by itself where a run was interrupted.
    Train(commands::train::TrainArgs),
    /// Say what a run takes, before any weight is read: tokens, steps, time, memory, disk.
    Plan(commands::plan::PlanArgs),
    /// Validate a recipe and everything it names; runs and downloads nothing.
    Check(commands::check::CheckArgs),
    /// Show rows exactly as training will see them: tokens, and which of them carry loss.
    Preview(commands::preview::PreviewArgs),
    /// Merge an adapter into its base: a model folder for inference, with a parity report.
    Merge(commands::merge::MergeArgs),
    /// Convert adapters, make one of several, take one out of a merged model.
    Adapter(commands::adapter::AdapterArgs),
    /// Say what inference programs would refuse of an adapter or model, and how to fix it.
    Lint(commands::lint::LintArgs),
    /// Measure models, adapters and runs side by side.
    Evaluate(commands::evaluate::EvaluateArgs),
    /// Write text with a model, adapter or run; `--chat` to talk.
    Generate(commands::generate::GenerateArgs),
    /// Re-hash everything that the lock file of a run names, and say what changed.
    Verify(commands::verify::VerifyArgs),
    /// Write one HTML page about runs: curves, plan, data, scores, comparisons, licence duties.
    Report(commands::report::ReportArgs),
    /// Write a commented recipe to start from.
    New(commands::new::NewArgs),
    /// Print the JSON schema of recipes, for editors.
    Schema,
    /// Say what this machine offers: processor, memory, disk, GPU, caches.
    Doctor(commands::doctor::DoctorArgs),
    /// Compare kernels with their references on a GPU; what this program asks of itself.
    #[cfg(feature = "cuda")]
    #[command(name = "internal-check-cuda", hide = true)]
    InternalCheckCuda {
        /// The GPU.
        index: usize,
        /// Names of operations.
        operations: Vec<String>,
    },
}

/// A recipe and its overrides.
#[derive(Debug, Clone, Args)]
pub struct RecipeArgs {
    /// The recipe, a TOML file.
    #[arg(value_name = "RECIPE")]
    pub recipe: PathBuf,
    /// Override a key of the recipe: `--set train.steps=20`; may be given several times.
    #[arg(long = "set", value_name = "KEY.PATH=VALUE")]
    pub overrides: Vec<String>,
}

/// Where figures go as JSON.
#[derive(Debug, Clone, Args)]
pub struct JsonArgs {
    /// Write the figures as JSON to FILE, or to stdout with `-`.
    #[arg(long, value_name = "FILE|-", value_parser = JsonTarget::from_str)]
    pub json: Option<JsonTarget>,
}

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// CUDA where it works, else the CPU.
    #[default]
    Auto,
    /// The processor.
    Cpu,
    /// A GPU, by its number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str| text.parse().ok().map(Self::Cuda);
        let found = match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(0)),
            other => other.strip_prefix("cuda:").and_then(number),
        };
        found.ok_or_else(|| "expected auto, cpu, cuda or cuda:N".to_owned())
    }
}

/// The device of commands that run a model.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to run: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = DeviceChoice::from_str)]
    pub device: DeviceChoice,
}

/// The number format of commands that run a model.
#[derive(Debug, Clone, Args)]
pub struct PrecisionArgs {
    /// Number format of the weights; `auto` is bf16 on a GPU that computes in it, else f32.
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = PrecisionChoice::Auto)]
    pub precision: PrecisionChoice,
}

/// Number formats a model runs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PrecisionChoice {
    /// What suits the device.
    Auto,
    /// 32 bit.
    F32,
    /// bfloat16; sums, norms and softmax stay in 32 bit.
    Bf16,
}

impl From<PrecisionChoice> for trainer::Precision {
    fn from(choice: PrecisionChoice) -> Self {
        match choice {
            PrecisionChoice::Auto => Self::Auto,
            PrecisionChoice::F32 => Self::F32,
            PrecisionChoice::Bf16 => Self::Bf16,
        }
    }
}

/// Parses the command line, runs the verb, reports what went wrong.
pub(crate) fn parse_and_run(arguments: Vec<OsString>) -> ExitStatus {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    let verbosity = if cli.global.quiet { Verbosity::Quiet } else { Verbosity::Normal };
    let mut printer = Printer::new(verbosity);
    let outcome = check_variables()
        .and_then(|()| limit_threads(&cli.global))
        .and_then(|()| run(&cli, &mut printer));
    outcome.unwrap_or_else(|error| diagnostics::report(&error, &mut printer))
}

fn run(cli: &Cli, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let network = cli.global.network.network();
    match &cli.command {
        Command::Train(arguments) => commands::train::train(arguments, printer),
        Command::Plan(arguments) => commands::plan::plan(arguments, printer),
        Command::Merge(arguments) => commands::merge::merge(arguments, printer),
        Command::Adapter(arguments) => commands::adapter::adapter(arguments, network, printer),
        Command::Lint(arguments) => commands::lint::lint(arguments, network, printer),
        Command::Evaluate(arguments) => commands::evaluate::evaluate(arguments, printer),
        Command::Generate(arguments) => commands::generate::generate(arguments, printer),
        Command::Check(arguments) => commands::check::check(arguments, network, printer),
        Command::Preview(arguments) => commands::preview::preview(arguments, network, printer),
        Command::Verify(arguments) => commands::verify::verify(arguments, printer),
        Command::Report(arguments) => commands::report::report(arguments, printer),
        Command::New(arguments) => commands::new::new(arguments, printer),
        Command::Schema => commands::schema::schema(printer),
        Command::Doctor(arguments) => commands::doctor::doctor(arguments, printer),
        #[cfg(feature = "cuda")]
        Command::InternalCheckCuda { index, operations } => {
            crate::cuda_kernels::check_here(*index, operations, printer)?;
            Ok(ExitStatus::Success)
        }
    }
}

/// Help and version are answers; anything else is a mistake on the command line.
fn usage(error: &clap::Error) -> ExitStatus {
    let is_answer = !error.use_stderr();
    // Nobody is left to be told that the terminal is closed.
    let _ = error.print();
    if is_answer { ExitStatus::Success } else { ExitStatus::Failure }
}

/// Refuses an instruction set that is not there, in place of taking another one silently.
fn check_variables() -> anyhow::Result<()> {
    let Some(value) = std::env::var_os("TUNESMITH_SIMD").filter(|value| !value.is_empty()) else {
        return Ok(());
    };
    let available = kernels::InstructionSet::available();
    if value == "auto" || available.iter().any(|set| value == *set.name()) {
        return Ok(());
    }
    let names: Vec<_> = available.iter().map(|set| set.name()).collect();
    let message =
        format!("`TUNESMITH_SIMD={}` is not available on this machine", value.to_string_lossy());
    let hint = format!("set it to auto, {}, or unset it", names.join(", "));
    Err(diagnostics::UserError::new(message, hint).into())
}

fn limit_threads(global: &GlobalArgs) -> anyhow::Result<()> {
    let Some(threads) = global.threads else { return Ok(()) };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
    pool.build_global().with_context(|| format!("cannot start {threads} threads"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn devices_are_auto_cpu_and_numbered_gpus() {
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert!("cuda:x".parse::<DeviceChoice>().is_err());
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
