//! `tunesmith adapter convert`: PEFT ↔ GGUF ↔ MLX.

use std::path::{Path, PathBuf};

use adapters::convert::{
    is_mlx_adapter, read_gguf_adapter, read_mlx_adapter, write_gguf_adapter, write_mlx_adapter,
};
use adapters::merge::{Existing, PartialFolder};
use adapters::weights::{ModelFiles, Network};
use adapters::{AdapterWeights, PeftConfig};
use clap::{Args, ValueEnum};

use super::{open, write_peft};
use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::Printer;
use crate::target::{base_of, refuse_rope_scaling};

/// Flags of `tunesmith adapter convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The adapter: a PEFT or MLX folder, a finished run, or a GGUF file.
    #[arg(value_name = "ADAPTER")]
    pub adapter: PathBuf,
    /// The format to write.
    #[arg(long, value_enum)]
    pub to: FormatChoice,
    /// Folder of the converted adapter, which must not exist or be empty; for GGUF also a file.
    #[arg(long, value_name = "DIR|FILE.gguf")]
    pub output: PathBuf,
    /// The base model, where the adapter's own is elsewhere or not named.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
}

/// Formats of adapters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    /// Hugging Face PEFT.
    Peft,
    /// A GGUF file for llama.cpp.
    Gguf,
    /// Apple's MLX.
    Mlx,
}

/// An adapter and what is known of its base.
struct Opened {
    peft: PeftConfig,
    weights: AdapterWeights,
    /// Where a PEFT folder was read: its base may be named relative to it.
    folder: Option<PathBuf>,
}

/// Converts.
pub(super) fn convert(
    arguments: &ConvertArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let mut opened = Opened::read(arguments, network)?;
    let output = &arguments.output;
    let word = match arguments.to {
        FormatChoice::Peft => None,
        FormatChoice::Gguf => Some("GGUF"),
        FormatChoice::Mlx => Some("MLX"),
    };
    if let (Some(folder), Some(word)) = (&opened.folder, word) {
        refuse_rope_scaling(folder, word)?;
    }
    let written = match arguments.to {
        FormatChoice::Peft => {
            if let Some(base) = &arguments.base {
                opened.peft.base_model_name_or_path = Some(base.clone());
            }
            let sources: Vec<_> = opened.folder.iter().cloned().collect();
            write_peft(output, &opened.peft, &opened.weights, &sources)?;
            output.clone()
        }
        FormatChoice::Gguf => {
            let base = opened.base(arguments, network)?;
            let file = gguf_file(output)?;
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            write_gguf_adapter(&file, (&opened.peft, &opened.weights), &base, &name)?;
            file
        }
        FormatChoice::Mlx => {
            let base = opened.base(arguments, network)?;
            let layers = base.config()["num_hidden_layers"].as_u64().unwrap_or_default() as usize;
            let folder = PartialFolder::beside(output, Existing::Refuse)?;
            write_mlx_adapter(folder.path(), (&opened.peft, &opened.weights), layers)?;
            folder.finish()?;
            output.clone()
        }
    };
    let count = opened.weights.modules.len();
    printer.status(&format!("converted: {}, {count} modules", written.display()));
    Ok(ExitStatus::Success)
}

/// The file itself, or `adapter.gguf` in a folder; what exists is not replaced.
fn gguf_file(output: &Path) -> anyhow::Result<PathBuf> {
    let is_file = output.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
    let file = if is_file { output.to_owned() } else { output.join("adapter.gguf") };
    if file.exists() {
        let message = format!("`{}` exists", file.display());
        return Err(UserError::new(message, "choose another `--output`, or remove it").into());
    }
    Ok(file)
}

impl Opened {
    fn read(arguments: &ConvertArgs, network: Network) -> anyhow::Result<Self> {
        let path = &arguments.adapter;
        let is_gguf = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"));
        if is_gguf {
            let base = base_given(arguments, network)?;
            let (mut peft, weights) = read_gguf_adapter(path, &base)?;
            peft.base_model_name_or_path.clone_from(&arguments.base);
            return Ok(Self { peft, weights, folder: None });
        }
        if is_mlx_adapter(path) {
            let (peft, weights) = read_mlx_adapter(path)?;
            return Ok(Self { peft, weights, folder: Some(path.clone()) });
        }
        let (folder, peft, weights) = open(path)?;
        Ok(Self { peft, weights, folder: Some(folder) })
    }

    fn base(&self, arguments: &ConvertArgs, network: Network) -> anyhow::Result<ModelFiles> {
        match &self.folder {
            Some(folder) => {
                Ok(base_of(folder, &self.peft, arguments.base.as_deref(), network)?.files)
            }
            None => base_given(arguments, network),
        }
    }
}

fn base_given(arguments: &ConvertArgs, network: Network) -> anyhow::Result<ModelFiles> {
    let base = arguments.base.as_deref().ok_or_else(|| {
        let message = format!("`{}` does not name its base model", arguments.adapter.display());
        UserError::new(message, "name the base model's folder or file with `--base`")
    })?;
    Ok(ModelFiles::open(base, network)?)
}
