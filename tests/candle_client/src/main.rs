//! Runs a merged folder with candle's own Llama: greedy tokens, and how clear each choice was.
//!
//! ```text
//! candle_client FOLDER (--text TEXT | --ids 1,2,3) [--tokens N]
//! candle_client FOLDER --expect GENERATED.json
//! ```
//!
//! With `--expect`, the file is what `tunesmith generate --json` wrote: its prompt is continued and
//! every choice compared, until one lies between two tokens whose logits are nearly equal.

mod compare;
mod model;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use compare::{Expected, Verdict, compare};
use model::Model;

const USAGE: &str = "usage: candle_client FOLDER (--text TEXT | --ids 1,2,3 | --expect FILE) \
                     [--tokens N]";

/// What the command line asks for.
struct Arguments {
    folder: PathBuf,
    prompt: Prompt,
    tokens: usize,
}

enum Prompt {
    Text(String),
    Ids(Vec<u32>),
    Expected(PathBuf),
}

fn main() -> ExitCode {
    match arguments().and_then(|arguments| run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn arguments() -> Result<Arguments> {
    let mut given = std::env::args().skip(1);
    let folder = PathBuf::from(given.next().context(USAGE)?);
    let (mut prompt, mut tokens) = (None, 32);
    while let Some(flag) = given.next() {
        let value = given.next().with_context(|| format!("`{flag}` needs a value; {USAGE}"))?;
        match flag.as_str() {
            "--text" => prompt = Some(Prompt::Text(value)),
            "--ids" => prompt = Some(Prompt::Ids(ids(&value)?)),
            "--expect" => prompt = Some(Prompt::Expected(PathBuf::from(value))),
            "--tokens" => tokens = value.parse().context("`--tokens` takes a number")?,
            _ => bail!("unknown flag `{flag}`; {USAGE}"),
        }
    }
    Ok(Arguments { folder, prompt: prompt.context(USAGE)?, tokens })
}

fn ids(text: &str) -> Result<Vec<u32>> {
    let id = |part: &str| part.trim().parse().with_context(|| format!("`{part}` is no token id"));
    text.split(',').map(id).collect()
}

fn run(arguments: &Arguments) -> Result<ExitCode> {
    let model = Model::load(&arguments.folder)?;
    let prompt = match &arguments.prompt {
        Prompt::Ids(ids) => ids.clone(),
        Prompt::Text(text) => encode(&arguments.folder, text)?,
        Prompt::Expected(path) => return check(&model, path),
    };
    let steps = model.greedy(&prompt, arguments.tokens)?;
    let ids: Vec<u32> = steps.iter().map(|step| step.id).collect();
    let gaps: Vec<f32> = steps.iter().map(|step| step.gap).collect();
    println!("{}", serde_json::json!({ "prompt_ids": prompt, "ids": ids, "gaps": gaps }));
    Ok(ExitCode::SUCCESS)
}

/// The tokens of a text, with what the tokenizer itself puts around it.
fn encode(folder: &Path, text: &str) -> Result<Vec<u32>> {
    let path = folder.join("tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(&path).map_err(anyhow::Error::from_boxed)?;
    let encoding = tokenizer.encode(text, true).map_err(anyhow::Error::from_boxed)?;
    Ok(encoding.get_ids().to_vec())
}

/// Continues the prompt of another program's answer and compares the two.
fn check(model: &Model, path: &Path) -> Result<ExitCode> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read `{}`", path.display()))?;
    let expected: Expected = serde_json::from_str(&text)
        .with_context(|| format!("`{}` is not what `generate --json` writes", path.display()))?;
    let choices = expected.choices();
    let steps = model.greedy(&expected.prompt_ids, choices.len())?;
    let verdict = compare(&choices, &steps);
    println!("{verdict}");
    Ok(match verdict {
        Verdict::Same { .. } | Verdict::Tie { .. } => ExitCode::SUCCESS,
        Verdict::Different { .. } => ExitCode::FAILURE,
    })
}
