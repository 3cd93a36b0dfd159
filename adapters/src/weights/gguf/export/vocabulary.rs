//! The vocabulary of a `tokenizer.json` as GGUF lists it.

use std::collections::HashMap;

use serde_json::Value;

use super::{outline::text_name, unsupported};
use crate::weights::gguf::head_writer::Flag;
use crate::weights::gguf::tokenizer::pre_tokenizer;
use crate::weights::{ModelFiles, WeightsError};

const FILE: &str = "tokenizer.json";

/// Token types of the format.
const NORMAL: i32 = 1;
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

pub(super) struct Vocabulary {
    pub(super) kind: Kind,
    /// One for each row of the embedding.
    pub(super) tokens: Vec<String>,
    pub(super) types: Vec<i32>,
    /// Whether BOS and EOS are put around a text, as the file's post-processor says.
    pub(super) frame: (Flag, Flag),
    ids: HashMap<String, u32>,
}

pub(super) enum Kind {
    /// BPE over bytes written as printable characters.
    ByteLevel { pre: &'static str, merges: Vec<String> },
    /// `SentencePiece` BPE: the pair whose union has the highest score is joined first.
    SentencePiece { scores: Vec<f32>, space_prefix: Flag },
}

impl Vocabulary {
    pub(super) fn read(base: &ModelFiles) -> Result<Self, WeightsError> {
        let bytes = base.side_file(FILE)?.ok_or_else(|| WeightsError::MissingFile {
            folder: base.location().to_owned(),
            wanted: FILE.to_owned(),
            found: "no tokenizer".to_owned(),
        })?;
        let damaged = |problem: String| WeightsError::damaged(base.location(), FILE, problem);
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.to_string()))?;
        let model = &json["model"];
        let model_type = model["type"].as_str().unwrap_or("none");
        if model_type != "BPE" {
            return Err(unsupported(base, "tokenizer in GGUF output", model_type, "BPE"));
        }
        let rows = embedding_rows(base)?;
        let mut ids = HashMap::new();
        let words = model["vocab"].as_object().ok_or_else(|| damaged("no `vocab`".to_owned()))?;
        for (word, id) in words {
            ids.insert(word.clone(), checked_id(id, rows).map_err(damaged)?);
        }
        let mut tokens: Vec<String> = (0..rows).map(|id| format!("[PAD{id}]")).collect();
        let mut types = vec![UNUSED; rows];
        let is_sentencepiece = model["byte_fallback"] == Value::Bool(true);
        let unknown = model["unk_token"].as_str();
        for (word, &id) in &ids {
            tokens[id as usize].clone_from(word);
            types[id as usize] = match word.as_str() {
                word if is_sentencepiece && is_byte(word) => BYTE,
                _ => NORMAL,
            };
        }
        for added in json["added_tokens"].as_array().into_iter().flatten() {
            let id = checked_id(&added["id"], rows).map_err(damaged)?;
            let content = added["content"].as_str().unwrap_or_default();
            ids.insert(content.to_owned(), id);
            content.clone_into(&mut tokens[id as usize]);
            types[id as usize] = match added["special"].as_bool() {
                _ if is_sentencepiece && Some(content) == unknown => UNKNOWN,
                Some(true) => CONTROL,
                _ => USER_DEFINED,
            };
        }
        let merges = merges(model).map_err(damaged)?;
        let kind = if is_sentencepiece {
            let scores = scores(&merges, &ids, rows);
            Kind::SentencePiece { scores, space_prefix: space_prefix(&json) }
        } else {
            let pre = pre_tokenizer::recognise(&json).ok_or_else(|| unknown_words(base, &json))?;
            let lines = merges.into_iter().map(|(left, right)| format!("{left} {right}"));
            Kind::ByteLevel { pre, merges: lines.collect() }
        };
        Ok(Self { kind, tokens, types, frame: frame(&json["post_processor"]), ids })
    }

    pub(super) fn pre(&self) -> &'static str {
        match self.kind {
            Kind::ByteLevel { pre, .. } => pre,
            Kind::SentencePiece { .. } => "default",
        }
    }

    pub(super) fn id_of(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }
}

fn unknown_words(base: &ModelFiles, json: &Value) -> WeightsError {
    let mut found = json["pre_tokenizer"].to_string();
    found.truncate(found.char_indices().nth(160).map_or(found.len(), |(at, _)| at));
    unsupported(
        base,
        "way of splitting text into words in GGUF output",
        found,
        &pre_tokenizer::known_names(),
    )
}

fn embedding_rows(base: &ModelFiles) -> Result<usize, WeightsError> {
    let architecture = super::architecture_of(base)?;
    let is_embedding = |name: &str| {
        let found = architecture.gguf_name(&text_name(name));
        found.as_deref() == Some("token_embd.weight")
    };
    let found = base.weights().entries().iter().find(|(name, _)| is_embedding(name));
    let (_, entry) = found.ok_or_else(|| {
        WeightsError::no_such_tensor(base.location(), "model.embed_tokens.weight")
    })?;
    Ok(entry.rows())
}

/// An id that has a row in the embedding.
fn checked_id(id: &Value, rows: usize) -> Result<u32, String> {
    let found = id.as_u64().and_then(|id| u32::try_from(id).ok());
    found
        .filter(|&id| (id as usize) < rows)
        .ok_or_else(|| format!("token id {id}, but the embedding has {rows} rows"))
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// Merges are pairs, or lines with a space between since before transformers 4.45.
fn merges(model: &Value) -> Result<Vec<(&str, &str)>, String> {
    let rows = model["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
    rows.iter().map(|row| pair(row).ok_or_else(|| format!("merge {row} is no pair"))).collect()
}

fn pair(row: &Value) -> Option<(&str, &str)> {
    match row {
        Value::String(line) => line.split_once(' '),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(left), Value::String(right)] => Some((left, right)),
            _ => None,
        },
        _ => None,
    }
}

/// Scores that order pieces as the list of merges does: a piece joined earlier has a higher score.
fn scores(merges: &[(&str, &str)], ids: &HashMap<String, u32>, rows: usize) -> Vec<f32> {
    // What no merge makes is never joined, so its score is of no account.
    let mut scores = vec![-(merges.len() as f32) - 1.0; rows];
    for (rank, (left, right)) in merges.iter().enumerate().rev() {
        if let Some(&id) = ids.get(&format!("{left}{right}")) {
            scores[id as usize] = -(rank as f32);
        }
    }
    scores
}

/// Whether a space is put before the text.
fn space_prefix(json: &Value) -> Flag {
    let normalizers = json["normalizer"]["normalizers"].as_array().into_iter().flatten();
    let prepends = normalizers.chain([&json["normalizer"]]).any(|step| step["type"] == "Prepend");
    let metaspace = &json["pre_tokenizer"];
    let prefixes = metaspace["type"] == "Metaspace"
        && (metaspace["add_prefix_space"] == Value::Bool(true)
            || matches!(metaspace["prepend_scheme"].as_str(), Some("always" | "first")));
    Flag::from(prepends || prefixes)
}

/// Whether the template of a single text begins and ends with a special token.
fn frame(post_processor: &Value) -> (Flag, Flag) {
    let steps = post_processor["processors"].as_array().into_iter().flatten();
    let template = steps
        .chain([post_processor])
        .find(|step| step["type"] == "TemplateProcessing")
        .and_then(|step| step["single"].as_array());
    let Some(parts) = template else { return (Flag::No, Flag::No) };
    let is_special = |part: Option<&Value>| {
        Flag::from(part.is_some_and(|part| part.get("SpecialToken").is_some()))
    };
    (is_special(parts.first()), is_special(parts.last()))
}
