//! The tasks that need no task file: perplexity of a text, loss of training rows.

use std::num::NonZeroUsize;
use std::path::Path;

use datasets::{BatchConfig, DatasetConfig, LoadRequest, OnOverlong};
use serde_json::json;
use trainer::base_model::Decoder;
use trainer::evaluate::statistics::{Aggregate, Better};
use trainer::evaluate::{Measured, Metric, Model};

use super::tasks::Windows;
use crate::diagnostics::UserError;
use crate::named::BaseParts;

/// Perplexity of a plain text: in windows, and as lm-eval counts it.
pub(super) fn perplexity(
    base: &BaseParts,
    decoder: &Decoder,
    (path, windows): (&Path, &Windows),
    done: &mut dyn FnMut(u64),
) -> anyhow::Result<Measured> {
    let text = read(path)?;
    let window = windows.length.get();
    let (mut ids, mut end) = (Vec::new(), 0);
    let most = windows.limit.map_or(usize::MAX, |limit| limit.get().saturating_mul(window));
    for (id, bytes) in base.tokenizer.encode_with_offsets(&text)?.into_iter().take(most) {
        ids.push(id);
        end = end.max(bytes.end);
    }
    let all = ids.len() == base.tokenizer.encode(&text)?.len();
    let text = if all { text } else { text.get(..end).unwrap_or_default().to_owned() };
    base.check_ids(&ids)?;
    let measured = trainer::evaluate::perplexity(decoder, &ids, window, done);
    let mut measured = measured.map_err(|error| {
        let message = format!("`{}`: {error}", path.display());
        UserError::new(message, "give `--data` a longer text and `--sequence-length` at least 2")
    })?;
    let model = Model { decoder, tokenizer: &base.tokenizer, chat: None, runner: None };
    let texts = [text];
    let scores = trainer::evaluate::text_perplexity(&model, &texts, &mut |_| {})?;
    let rolling = trainer::evaluate::text_figures(&scores, &texts);
    measured.metrics.extend(rolling.metrics);
    for (name, count) in rolling.counts {
        measured.counts.entry(name).or_insert(count);
    }
    Ok(measured)
}

pub(super) fn read(path: &Path) -> anyhow::Result<String> {
    let bytes = std::fs::read(path).map_err(|error| {
        let message = format!("cannot read `{}`: {error}", path.display());
        UserError::new(message, "give `--data` a text file")
    })?;
    String::from_utf8(bytes).map_err(|error| {
        let place = error.utf8_error().valid_up_to();
        let message = format!("`{}` is not UTF-8 at byte {place}", path.display());
        UserError::new(message, "convert the file to UTF-8").into()
    })
}

/// Mean loss over the rows' trained tokens, rows in file order.
pub(super) fn loss(
    base: &BaseParts,
    decoder: &Decoder,
    (path, windows): (&Path, &Windows),
) -> anyhow::Result<Measured> {
    let config: DatasetConfig = serde_json::from_value(json!({ "path": path }))?;
    let batch = BatchConfig {
        sequence_length: windows.length.max(NonZeroUsize::new(2048).expect("not zero")),
        on_overlong: OnOverlong::Error,
        shuffle: false,
        ..BatchConfig::default()
    };
    let dataset = datasets::load(&LoadRequest {
        datasets: std::slice::from_ref(&config),
        validation: None,
        batch: &batch,
        seed: 0,
        tokenizer: &base.tokenizer,
        vocab_size: base.config.vocab_size,
        cache_dir: None,
        row_limit: windows.limit.map(NonZeroUsize::get),
    })?;
    let (mut items, mut ids) = (Vec::new(), Vec::new());
    for batch in datasets::validation_batches(&dataset.train, &batch) {
        items.extend(trainer::evaluate::segment_losses(decoder, &batch));
        ids.extend(batch.token_ids);
    }
    let tokens: f64 = items.iter().map(|item| item[1]).sum();
    let metric = Metric {
        name: "loss_per_token".to_owned(),
        aggregate: Aggregate::Ratio,
        better: Better::Lower,
        items,
    };
    Ok(Measured {
        metrics: vec![metric],
        counts: [
            ("tokens".to_owned(), tokens as u64),
            ("rows".to_owned(), dataset.train.len() as u64),
        ]
        .into(),
        identity: trainer::evaluate::identity(ids.into_iter()),
        ..Measured::default()
    })
}
