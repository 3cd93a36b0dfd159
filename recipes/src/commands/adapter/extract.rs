//! `tunesmith adapter extract`: a LoRA out of a base and its full fine-tune.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use adapters::extract::{ExtractReport, ExtractRequest, extract as extract_adapter};
use adapters::merge::{Existing, PartialFolder};
use adapters::weights::{ModelFiles, Network};
use adapters::{PeftConfig, write_adapter};
use clap::Args;
use trainer::base_model::{DecoderConfig, linear_layers};

use crate::cli::JsonArgs;
use crate::diagnostics::ExitStatus;
use crate::printer::{Printer, write_atomically};

/// Flags of `tunesmith adapter extract`.
#[derive(Debug, Clone, Args)]
pub struct ExtractArgs {
    /// The fine-tuned model: a folder or a `.gguf` file.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The model that it was tuned from.
    #[arg(long, value_name = "DIR")]
    pub base: String,
    /// Inner dimension of the updates; layers that have less get less.
    #[arg(long, value_name = "R", default_value = "16")]
    pub rank: NonZeroUsize,
    /// Iterations of a fast, approximate decomposition, such as 4; exact where it is not given.
    #[arg(long, value_name = "N")]
    pub iterations: Option<NonZeroUsize>,
    /// Folder of the adapter; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Where the report goes besides `extract_report.json`.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Extracts, and writes the adapter with its report.
pub(super) fn extract(
    arguments: &ExtractArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let base = ModelFiles::open(&arguments.base, network)?;
    let tuned = ModelFiles::open(&arguments.model, network)?;
    let layers = linear_layers(&DecoderConfig::read(base.config())?);
    let request = ExtractRequest {
        base: &base,
        tuned: &tuned,
        layers: &layers,
        rank: arguments.rank.get(),
        iterations: arguments.iterations.map(NonZeroUsize::get),
    };
    let (config, weights, report) = extract_adapter(&request, tuned.location())?;
    let config = PeftConfig { base_model_name_or_path: Some(arguments.base.clone()), ..config };
    let folder = PartialFolder::beside(&arguments.output, Existing::Refuse)?;
    write_adapter(folder.path(), &config, &weights)?;
    let text = serde_json::to_string_pretty(&report)?;
    write_atomically(&folder.path().join("extract_report.json"), format!("{text}\n").as_bytes())?;
    folder.finish()?;
    if let Some(target) = &arguments.json.json {
        printer.json(target, &report)?;
    }
    warn_of_losses(&report, printer);
    printer.status(&format!(
        "extracted: {}, {} layers of rank {}, {:.2} % of the change is missed",
        arguments.output.display(),
        report.layers.len(),
        config.rank,
        100.0 * report.relative_error
    ));
    Ok(ExitStatus::Success)
}

/// What the fine-tune changed and the adapter cannot hold.
fn warn_of_losses(report: &ExtractReport, printer: &mut Printer) {
    if let Some(first) = report.left_out.first() {
        printer.warning(&format!(
            "{} changed tensors are no linear layers and not in the adapter, such as `{}`; \
             `extract_report.json` lists them",
            report.left_out.len(),
            first.tensor
        ));
    }
}
