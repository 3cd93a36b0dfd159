//! `tunesmith adapter`: adapters in other formats, several in one, and a merge taken back.

pub(super) mod combine;
mod convert;
mod extract;

use std::path::{Path, PathBuf};

use adapters::merge::{Existing, PartialFolder};
use adapters::weights::Network;
use adapters::{AdapterWeights, PeftConfig, read_adapter, write_adapter};
use clap::{Args, Subcommand};

use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::Printer;
use crate::target::{adapter_folder, shared_rope_scaling, write_rope_scaling};

/// Flags of `tunesmith adapter`.
#[derive(Debug, Clone, Args)]
pub struct AdapterArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: AdapterCommand,
}

/// What can be done with adapters.
#[derive(Debug, Clone, Subcommand)]
pub enum AdapterCommand {
    /// Write an adapter in the format of another program.
    Convert(convert::ConvertArgs),
    /// Make one adapter of several, as PEFT's `add_weighted_adapter` does.
    Combine(combine::CombineArgs),
    /// Make a LoRA of the difference between a model and its full fine-tune.
    Extract(extract::ExtractArgs),
    /// Take an adapter out of a merged model again.
    Unmerge(super::merge::UnmergeArgs),
}

/// Runs the command.
pub fn adapter(
    arguments: &AdapterArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    match &arguments.command {
        AdapterCommand::Convert(arguments) => convert::convert(arguments, network, printer),
        AdapterCommand::Combine(arguments) => combine::combine(arguments, printer),
        AdapterCommand::Extract(arguments) => extract::extract(arguments, network, printer),
        AdapterCommand::Unmerge(arguments) => super::merge::unmerge(arguments, network, printer),
    }
}

/// The PEFT adapter in a folder or a finished run.
pub(super) fn open(given: &Path) -> anyhow::Result<(PathBuf, PeftConfig, AdapterWeights)> {
    let folder = adapter_folder(given).ok_or_else(|| {
        let message = format!("`{}` holds no `adapter_config.json`", given.display());
        UserError::new(message, "name the folder of a PEFT adapter, or a finished run")
    })?;
    let (peft, weights) = read_adapter(&folder)?;
    Ok((folder, peft, weights))
}

/// Writes a PEFT folder under its final name when it is complete, with the longer context of the
/// adapters at `sources` that it was made of.
fn write_peft(
    output: &Path,
    config: &PeftConfig,
    weights: &AdapterWeights,
    sources: &[PathBuf],
) -> anyhow::Result<()> {
    let scaling = shared_rope_scaling(sources)?;
    let folder = PartialFolder::beside(output, Existing::Refuse)?;
    write_adapter(folder.path(), config, weights)?;
    if let Some(scaling) = &scaling {
        write_rope_scaling(folder.path(), scaling)?;
    }
    folder.finish()?;
    Ok(())
}
