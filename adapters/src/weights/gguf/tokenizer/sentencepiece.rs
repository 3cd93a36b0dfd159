//! `SentencePiece` BPE (`tokenizer.ggml.model = llama`), written as HF's BPE.
//!
//! `SentencePiece` joins the neighbours whose union has the highest score. HF's BPE wants that as a
//! list of pairs: every way to cut a token into two tokens, the best-scored token first.

use std::cmp::Ordering;

use serde_json::{Value, json};

use super::{NORMAL, Pipeline, USER_DEFINED, Vocabulary};
use crate::weights::WeightsError;

const SCORES: &str = "tokenizer.ggml.scores";
const SPACE: &str = "▁";
/// Real pieces have at most some dozens; a vocabulary of longer ones would take quadratic time.
const LONGEST_PIECE_BYTES: usize = 1024;

pub(super) fn pipeline(vocabulary: &Vocabulary) -> Result<Pipeline, WeightsError> {
    let metadata = vocabulary.metadata;
    if metadata.contains("tokenizer.ggml.precompiled_charsmap") {
        return Err(metadata.unsupported(
            "metadata",
            "tokenizer.ggml.precompiled_charsmap",
            "SentencePiece vocabularies without a character map",
        ));
    }
    let merges = match metadata.strings("tokenizer.ggml.merges")? {
        Some(lines) => listed_merges(vocabulary, &lines)?,
        None => merges_from_scores(vocabulary)?,
    };
    let space = json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE});
    let prefix = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let normalizer = if prefix {
        let prepend = json!({"type": "Prepend", "prepend": SPACE});
        json!({"type": "Sequence", "normalizers": [prepend, space]})
    } else {
        space
    };
    Ok(Pipeline {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: decoder(if prefix { Prefix::Added } else { Prefix::None }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": vocabulary.special.unknown.map(|id| vocabulary.token(id)),
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocabulary.vocab_json(),
            "merges": vocabulary.merges_json(merges)?,
        }),
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Prefix {
    Added,
    None,
}

fn decoder(prefix: Prefix) -> Value {
    let mut steps = vec![
        json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix == Prefix::Added {
        steps.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    json!({"type": "Sequence", "decoders": steps})
}

fn listed_merges<'a>(
    vocabulary: &Vocabulary<'a>,
    lines: &[&'a str],
) -> Result<Vec<(&'a str, &'a str)>, WeightsError> {
    let split = |line: &&'a str| {
        let problem =
            || vocabulary.metadata.damaged("tokenizer.ggml.merges", format!("`{line}` is no pair"));
        line.split_once(' ').ok_or_else(problem)
    };
    lines.iter().map(split).collect()
}

/// A way to join two tokens, with what orders it.
struct Cut<'a> {
    left: &'a str,
    right: &'a str,
    score: f32,
}

fn merges_from_scores<'a>(
    vocabulary: &Vocabulary<'a>,
) -> Result<Vec<(&'a str, &'a str)>, WeightsError> {
    let metadata = vocabulary.metadata;
    let scores = metadata.floats(SCORES)?.ok_or_else(|| metadata.damaged(SCORES, "missing"))?;
    if scores.len() != vocabulary.tokens.len() {
        let problem = format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len());
        return Err(metadata.damaged(SCORES, problem));
    }
    let mut cuts = Vec::new();
    let pieces = vocabulary.tokens.iter().zip(&vocabulary.types).zip(&scores);
    // Only text is merged: control tokens and bytes never come from joining pieces.
    let text = pieces.filter(|((_, kind), _)| matches!(**kind, NORMAL | USER_DEFINED));
    for ((token, _), &score) in text {
        if !score.is_finite() || token.len() > LONGEST_PIECE_BYTES {
            let problem = format!("token `{}` has score {score}", token.escape_debug());
            return Err(metadata.damaged(SCORES, problem));
        }
        cuts.extend(cuts_of(vocabulary, token, score));
    }
    cuts.sort_by(best_first);
    Ok(cuts.into_iter().map(|cut| (cut.left, cut.right)).collect())
}

fn cuts_of<'a>(vocabulary: &Vocabulary<'a>, token: &'a str, score: f32) -> Vec<Cut<'a>> {
    let borders = token.char_indices().map(|(at, _)| at).filter(|&at| at > 0);
    let cut = |at: usize| {
        let (left, right) = token.split_at(at);
        Cut { left, right, score }
    };
    let known = |part: &str| vocabulary.ids.contains_key(part);
    borders.map(cut).filter(|cut| known(cut.left) && known(cut.right)).collect()
}

/// Higher scores first. Equal scores keep the vocabulary's order, longer left parts before shorter.
fn best_first(a: &Cut, b: &Cut) -> Ordering {
    let characters = |text: &str| text.chars().count();
    b.score
        .total_cmp(&a.score)
        .then_with(|| characters(b.left).cmp(&characters(a.left)))
        .then_with(|| characters(b.right).cmp(&characters(a.right)))
}
