//! `tunesmith lint`: what inference programs would make of an adapter or a model.

use std::path::{Path, PathBuf};

use adapters::lint::{Engine, EngineReport, ModelFacts, Severity, Subject, lint as lint_for};
use adapters::merge::{Existing, PartialFolder};
use adapters::weights::{ModelFiles, Network};
use adapters::write_adapter;
use anyhow::Context;
use clap::Args;
use serde::Serialize;

use crate::cli::JsonArgs;
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::{JsonTarget, Printer, write_atomically};
use crate::target::adapter_folder;

/// Flags of `tunesmith lint`.
#[derive(Debug, Clone, Args)]
pub struct LintArgs {
    /// An adapter (PEFT or MLX folder, run, GGUF file) or a model (folder, GGUF file).
    #[arg(value_name = "TARGET")]
    pub target: PathBuf,
    /// Engines: vllm, llama.cpp, ollama, mlx, mistral.rs, candle, groq; all by default.
    #[arg(long = "for", value_name = "ENGINE,...", value_delimiter = ',', value_parser = engine)]
    pub engines: Vec<Engine>,
    /// The adapter's base model, where its own is elsewhere.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Put right what can be without loss, and write the result to `--output`.
    #[arg(long, requires = "output")]
    pub fix: bool,
    /// Folder of the result of `--fix`; must not exist or be empty.
    #[arg(long, value_name = "DIR", requires = "fix")]
    pub output: Option<PathBuf>,
    /// Where the findings go as JSON.
    #[command(flatten)]
    pub json: JsonArgs,
}

fn engine(name: &str) -> Result<Engine, String> {
    Engine::named(name).ok_or_else(|| {
        let names: Vec<_> = Engine::ALL.iter().map(|row| row.0).collect();
        format!("the engines are {}", names.join(", "))
    })
}

/// The findings as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    target: String,
    engines: &'a [EngineReport],
}

/// Looks, says, and puts right where that was asked for. Exit code 1 where an engine cannot use the
/// target.
pub fn lint(
    arguments: &LintArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let mut target = adapter_folder(&arguments.target).unwrap_or(arguments.target.clone());
    if arguments.fix {
        let output = arguments.output.as_deref().context("clap asks for `--output`")?;
        fix(&target, output, printer)?;
        output.clone_into(&mut target);
    }
    let subject = open(&target, arguments, network)?;
    let engines: Vec<Engine> = if arguments.engines.is_empty() {
        Engine::ALL.iter().map(|row| row.1).collect()
    } else {
        arguments.engines.clone()
    };
    let reports: Vec<_> = engines.into_iter().map(|engine| lint_for(&subject, engine)).collect();
    if let Some(json) = &arguments.json.json {
        let target = target.display().to_string();
        printer.json(json, &Report { target, engines: &reports })?;
    }
    if arguments.json.json != Some(JsonTarget::Stdout) {
        for report in &reports {
            print(report, printer)?;
        }
    }
    let usable = reports.iter().all(EngineReport::is_usable);
    Ok(if usable { ExitStatus::Success } else { ExitStatus::Failure })
}

/// The base is a help, not a need: without it, what depends on it is not said.
fn open(target: &Path, arguments: &LintArgs, network: Network) -> anyhow::Result<Subject> {
    let base = match &arguments.base {
        Some(base) => Some(ModelFiles::open(base, network)?),
        None => named_base(target).and_then(|base| ModelFiles::open(&base, Network::Offline).ok()),
    };
    Ok(Subject::open(target, base.as_ref())?)
}

/// What an adapter's config calls its base; such a config may hold what no other command reads.
fn named_base(folder: &Path) -> Option<String> {
    let text = std::fs::read(folder.join("adapter_config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    let name = config.get("base_model_name_or_path").or_else(|| config.get("model"))?;
    name.as_str().map(str::to_owned)
}

fn print(report: &EngineReport, printer: &mut Printer) -> anyhow::Result<()> {
    let verdict = match report.worst() {
        None | Some(Severity::Note) => "takes it as it is",
        Some(Severity::Setting) => "takes it with a setting",
        Some(Severity::Wrong) => "would compute something else",
        Some(Severity::Refused) => "would refuse it",
    };
    printer.data(&format!("{:<11} {verdict}", report.engine.name()))?;
    for finding in &report.findings {
        let word = match finding.severity {
            Severity::Note => "note",
            Severity::Setting => "setting",
            Severity::Wrong => "wrong",
            Severity::Refused => "refused",
        };
        printer.data(&format!("  {word}: {}", finding.what))?;
        if let Some(fix) = &finding.fix {
            let fix = fix.replace("ENGINE", report.engine.name());
            printer.data(&format!("    fix: {fix}"))?;
        }
    }
    Ok(())
}

fn fix(target: &Path, output: &Path, printer: &mut Printer) -> anyhow::Result<()> {
    let folder = PartialFolder::beside(output, Existing::Refuse)?;
    let changes = if let Some(adapter) = adapter_folder(target) {
        let fix = adapters::lint::fix(&adapter)?;
        copy_beside(
            &adapter,
            folder.path(),
            &["adapter_config.json", "adapter_model.safetensors"],
        )?;
        write_adapter(folder.path(), &fix.fixed.0, &fix.fixed.1)?;
        fix.changes
    } else {
        fix_model(target, folder.path())?
    };
    if changes.is_empty() {
        let message =
            format!("there is nothing in `{}` to put right without loss", target.display());
        return Err(UserError::new(
            message,
            "run `tunesmith lint` without `--fix` for what remains",
        )
        .into());
    }
    folder.finish()?;
    for change in changes {
        printer.status(&format!("fixed: {change}"));
    }
    Ok(())
}

fn fix_model(target: &Path, folder: &Path) -> anyhow::Result<Vec<String>> {
    let subject = Subject::open(target, None)?;
    let Subject::Model(facts) = subject else { return Ok(Vec::new()) };
    let Some(fix) = ModelFacts::fixed_config(&facts) else { return Ok(Vec::new()) };
    copy_beside(&facts.path, folder, &["config.json"])?;
    let text = serde_json::to_string_pretty(&fix.fixed)?;
    write_atomically(&folder.join("config.json"), format!("{text}\n").as_bytes())?;
    Ok(fix.changes)
}

/// Every file of `from` but some, as links where the file system has them: weights are large.
fn copy_beside(from: &Path, to: &Path, but: &[&str]) -> anyhow::Result<()> {
    for entry in
        std::fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))?
    {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default();
        if !path.is_file() || but.iter().any(|left_out| name == *left_out) {
            continue;
        }
        let goal = to.join(name);
        if std::fs::hard_link(&path, &goal).is_err() {
            std::fs::copy(&path, &goal)
                .with_context(|| format!("cannot copy `{}`", path.display()))?;
        }
    }
    Ok(())
}
