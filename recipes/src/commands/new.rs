//! `tunesmith new`: a commented recipe to start from.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;

use crate::diagnostics::{ExitStatus, UserError};
use crate::printer::Printer;
use crate::recipe::Recipe;

/// Flags of `tunesmith new`.
#[derive(Debug, Clone, Args)]
pub struct NewArgs {
    /// File to write; an existing one is left alone.
    #[arg(value_name = "RECIPE", default_value = "recipe.toml")]
    pub recipe: PathBuf,
    /// Base model: folder, `.gguf` file or hub id.
    #[arg(long, value_name = "MODEL", default_value = "models/SmolLM2-135M-Instruct")]
    pub base: String,
    /// Rows to train on: file, glob or folder.
    #[arg(long, value_name = "PATH", default_value = "data/train.jsonl")]
    pub data: String,
    /// Format of the rows; found from the first row where it is not given.
    #[arg(long, value_name = "NAME")]
    pub format: Option<String>,
    /// Folder of the run; `runs/` and the name of the recipe where it is not given.
    #[arg(long, value_name = "DIR")]
    pub output: Option<String>,
}

/// Writes the recipe.
pub fn new(arguments: &NewArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let path = &arguments.recipe;
    let text = starter(arguments);
    // Flags end up in the recipe; what would not load again is refused before it is written.
    Recipe::parse("the new recipe", &text)?;
    write_new(path, &text)?;
    printer.status(&format!("wrote `{}`", path.display()));
    printer.status(&format!("next: tunesmith check {}", path.display()));
    Ok(ExitStatus::Success)
}

fn write_new(path: &Path, text: &str) -> anyhow::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))
        .with_context(|| format!("cannot write `{}`", path.display()))?;
    file.write_all(text.as_bytes()).context("cannot write the recipe")?;
    file.persist_noclobber(path).map(drop).map_err(|error| {
        if error.error.kind() == std::io::ErrorKind::AlreadyExists {
            let message = format!("`{}` exists already", path.display());
            UserError::new(message, "give another name, or delete it first").into()
        } else {
            anyhow::Error::new(error.error).context(format!("cannot write `{}`", path.display()))
        }
    })
}

fn starter(arguments: &NewArgs) -> String {
    let stem = arguments.recipe.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = stem.unwrap_or_else(|| "run".to_owned());
    let output = arguments.output.clone().unwrap_or_else(|| format!("runs/{name}"));
    let format = match &arguments.format {
        Some(format) => format!("format = {}\n", quoted(format)),
        None => "# format = \"messages\"        # found from the first row where it is not given\n"
            .to_owned(),
    };
    let recipe = arguments.recipe.display().to_string().replace(char::is_control, " ");
    let (base, data) = (quoted(&arguments.base), quoted(&arguments.data));
    let output = quoted(&output);
    format!(
        r#"# A LoRA fine-tune. Check it with `tunesmith check {recipe}`.
# Every key that is left out has a default; `tunesmith schema` describes all keys.

base_model = {base}   # folder, .gguf file or hub id
output_dir = {output}   # checkpoints, metrics and the finished adapter
seed = 42

[[dataset]]                     # one or more, mixed by weight
path = {data}   # file, glob or folder
{format}loss_on = "assistant"           # assistant | last_message | all
{TAIL}"#
    )
}

/// The part of the recipe that no flag changes.
const TAIL: &str = r#"
[validation]                    # rows that are scored and never trained on
fraction = 0.02

[batch]
sequence_length = 1024          # memory grows with it
packing = true                  # several examples in a row, none sees another
on_overlong = "error"           # error | drop | truncate | split
sequences_per_micro_batch = 1
micro_batches_per_step = 8      # more than 32 sequences a step teach LoRA less

[adapter.lora]
rank = 16                       # 8 to 64 is usual; more data can use more
alpha = 32.0                    # the update is scaled by alpha / rank
target_modules = "all-linear"   # attention alone learns less

[objective.sft]

[optimizer.adamw]
learning_rate = 2e-4            # about ten times that of full fine-tuning

[schedule.cosine]
warmup_steps = 10

[train]
epochs = 1                      # or: steps = 200

[checkpoint]
every_steps = 100
keep_last = 2
"#;

/// A TOML string.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_of_a_flag_survives_the_recipe() {
        let base = "models/a \"b\"\\c {data}\t#";
        let arguments = NewArgs {
            recipe: "x.toml".into(),
            base: base.into(),
            data: "d'ata/*.jsonl".into(),
            format: Some("text".into()),
            output: None,
        };
        let recipe = Recipe::parse("x.toml", &starter(&arguments)).unwrap();
        assert_eq!(recipe.base_model, base);
        assert_eq!(recipe.dataset[0].path, "d'ata/*.jsonl");
        assert_eq!(recipe.output_dir, PathBuf::from("runs/x"));
    }
}
