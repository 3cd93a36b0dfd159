//! `tunesmith merge --importance`: what the errors of quantising are weighed by.

use std::path::{Path, PathBuf};

use adapters::merge::{Importance, MergePlan, MergedWeights};
use burn::tensor::{DType, Device};
use serde::Serialize;
use trainer::base_model::ModelLoader;
use trainer::importance::{MOST_TOKENS, importance};

use super::gguf::GgufOutput;
use super::{MergeArgs, Source};
use crate::diagnostics::UserError;
use crate::named::{dataset_cache, load_request};
use crate::printer::Printer;
use crate::recipe;
use crate::target::run_of_adapter;

/// Tokens that go through the model together.
const LENGTH: usize = 512;

/// What was measured, and on what.
pub(super) struct MeasuredImportance {
    pub(super) importance: Importance,
    /// For the report; never the text itself.
    text: &'static str,
}

/// What `merge_report.json` says of it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct ImportanceFacts {
    text: &'static str,
    tokens: u64,
    modules: usize,
}

impl MeasuredImportance {
    pub(super) fn facts(&self) -> ImportanceFacts {
        let Importance { columns, tokens } = &self.importance;
        ImportanceFacts { text: self.text, tokens: *tokens, modules: columns.len() }
    }
}

/// Measures with the merged weights as they are before they are quantised.
pub(super) fn measure(
    arguments: &MergeArgs,
    source: &Source,
    (plan, output): (&MergePlan, Option<&GgufOutput>),
    printer: &mut Printer,
) -> anyhow::Result<Option<MeasuredImportance>> {
    let Some(given) = &arguments.importance else { return Ok(None) };
    if !output.is_some_and(|output| output.file_type.is_quantised()) {
        let message = "`--importance` weighs what quantising loses, and nothing is quantised";
        let hint = "leave it out, or take a type such as `--quantize q4_k_m`";
        return Err(UserError::new(message, hint).into());
    }
    let (text, ids) = match given {
        None => ("validation data of the run", validation(arguments, source)?),
        Some(path) => ("a text file", vec![of_file(path, source)?]),
    };
    let texts = cut(ids, source);
    if texts.is_empty() {
        let message = "the text of `--importance` has fewer than 2 tokens";
        return Err(UserError::new(message, "give it a longer file").into());
    }
    let tokens: usize = texts.iter().map(Vec::len).sum();
    printer.status(&format!("importance: {tokens} tokens of {text}"));
    let view = MergedWeights::of(plan);
    let loader = ModelLoader::of_weights(&source.base.files, &view, &Device::flex(), DType::F32)?;
    let importance = importance(&loader, &texts)?;
    Ok(Some(MeasuredImportance { importance, text }))
}

fn of_file(path: &Path, source: &Source) -> anyhow::Result<Vec<u32>> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        let message = format!("cannot read `{}`: {error}", path.display());
        UserError::new(message, "give `--importance` a file of plain UTF-8 text")
    })?;
    Ok(source.base.tokenizer.encode(&text)?)
}

/// The examples that the run held back, as training saw them.
fn validation(arguments: &MergeArgs, source: &Source) -> anyhow::Result<Vec<Vec<u32>>> {
    let missing = |what: &str| {
        UserError::new(
            format!("`--importance` without a file needs {what}"),
            "name a text: `--importance FILE`",
        )
    };
    let run = match arguments.adapters.as_slice() {
        [one] => run_of_adapter(one),
        _ => None,
    };
    let recipe: PathBuf = run.ok_or_else(|| missing("one run folder"))?.join("recipe.toml");
    let loaded = recipe::load(&recipe, &[])?;
    let cache = dataset_cache();
    let dataset = datasets::load(&load_request(&loaded.recipe, &source.base, cache.as_deref()))?;
    if dataset.validation.is_empty() {
        return Err(missing("a run with a `[validation]` table").into());
    }
    Ok(dataset.validation.into_iter().map(|example| example.token_ids).collect())
}

/// Pieces that the model can see at once, up to the limit in all.
fn cut(texts: Vec<Vec<u32>>, source: &Source) -> Vec<Vec<u32>> {
    let config = &source.base.config;
    let length = config.position_limit().unwrap_or(LENGTH).min(LENGTH);
    let mut left = MOST_TOKENS;
    let mut pieces = Vec::new();
    for mut text in texts {
        text.retain(|&id| (id as usize) < config.vocab_size);
        for piece in text.chunks(length) {
            let piece = &piece[..piece.len().min(left)];
            if piece.len() > 1 {
                left -= piece.len();
                pieces.push(piece.to_vec());
            }
        }
    }
    pieces
}
