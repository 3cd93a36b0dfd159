//! Writes the HF tokenizer files that a GGUF file's metadata stands for.
//!
//! The ids must be those the model was trained with, so a vocabulary whose way of splitting text
//! is not known exactly is refused by name.

mod byte_level;
pub(super) mod pre_tokenizer;
mod sentencepiece;

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::metadata::Metadata;
use crate::weights::WeightsError;

const MODEL: &str = "tokenizer.ggml.model";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";

/// Token types of the GGUF format.
const NORMAL: i64 = 1;
const UNKNOWN: i64 = 2;
const CONTROL: i64 = 3;
const USER_DEFINED: i64 = 4;

/// The files that [`file`] makes.
pub(in crate::weights) const FILES: &[&str] = &[
    "generation_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];

/// Content of one of [`FILES`]; `None` for another name, or where the GGUF has no tokenizer.
pub(in crate::weights) fn file(
    metadata: &Metadata,
    name: &str,
    context_length: u64,
) -> Result<Option<Vec<u8>>, WeightsError> {
    let Some(vocabulary) = Vocabulary::read(metadata)? else { return Ok(None) };
    let value = match name {
        "tokenizer.json" => tokenizer_json(&vocabulary)?,
        "tokenizer_config.json" => tokenizer_config(&vocabulary, context_length)?,
        "special_tokens_map.json" => Value::Object(vocabulary.named_tokens()),
        "generation_config.json" => generation_config(&vocabulary),
        _ => return Ok(None),
    };
    let mut bytes = serde_json::to_vec_pretty(&value)
        .map_err(|error| metadata.damaged(TOKENS, error.to_string()))?;
    bytes.push(b'\n');
    Ok(Some(bytes))
}

/// Whether the file brings a tokenizer.
pub(in crate::weights) fn exists(metadata: &Metadata) -> bool {
    metadata.contains(TOKENS)
}

/// The two kinds of vocabulary that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// `gpt2`: BPE over bytes written as printable characters.
    ByteLevel,
    /// `llama`: `SentencePiece` BPE with scores and byte fall-back.
    SentencePiece,
}

/// What the metadata says of the tokenizer, checked.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    kind: Kind,
    tokens: Vec<&'a str>,
    ids: HashMap<&'a str, usize>,
    types: Vec<i64>,
    special: SpecialIds,
}

/// Ids with a role; each lies in the vocabulary.
#[derive(Default)]
struct SpecialIds {
    bos: Option<usize>,
    eos: Option<usize>,
    unknown: Option<usize>,
    padding: Option<usize>,
    /// Further ids that end a turn.
    end_of_turn: Vec<usize>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Option<Self>, WeightsError> {
        let Some(tokens) = metadata.strings(TOKENS)? else { return Ok(None) };
        let kind = match metadata.string(MODEL)? {
            Some("gpt2") => Kind::ByteLevel,
            Some("llama") => Kind::SentencePiece,
            other => {
                return Err(metadata.unsupported(
                    "GGUF tokenizer",
                    other.unwrap_or("none"),
                    "gpt2, llama",
                ));
            }
        };
        let ids = ids_of(metadata, &tokens)?;
        let types = metadata.integers(TYPES)?.unwrap_or_else(|| vec![NORMAL; tokens.len()]);
        if types.len() != tokens.len() {
            let problem = format!("{} types for {} tokens", types.len(), tokens.len());
            return Err(metadata.damaged(TYPES, problem));
        }
        let special = SpecialIds::read(metadata, tokens.len())?;
        Ok(Some(Self { metadata, kind, tokens, ids, types, special }))
    }

    fn token(&self, id: usize) -> &'a str {
        self.tokens.get(id).copied().unwrap_or_default()
    }

    /// Whether text that spells the token stands for it, and whether it is no part of the text.
    fn added_token(&self, id: usize) -> Option<Added> {
        let special = &self.special;
        let has_role = [special.bos, special.eos, special.unknown, special.padding]
            .into_iter()
            .flatten()
            .chain(special.end_of_turn.iter().copied())
            .any(|role| role == id);
        match self.types.get(id).copied().unwrap_or(NORMAL) {
            UNKNOWN | CONTROL => Some(Added::Special),
            _ if has_role => Some(Added::Special),
            USER_DEFINED => Some(Added::Plain),
            _ => None,
        }
    }

    fn named_tokens(&self) -> Map<String, Value> {
        let special = &self.special;
        let named = [
            ("bos_token", special.bos),
            ("eos_token", special.eos),
            ("unk_token", special.unknown),
            ("pad_token", special.padding),
        ];
        let present = named
            .into_iter()
            .filter_map(|(name, id)| id.map(|id| (name.to_owned(), Value::from(self.token(id)))));
        present.collect()
    }

    /// What is put around a text that stands alone.
    fn frame(&self) -> Result<(Option<usize>, Option<usize>), WeightsError> {
        let adds = |key: &str, usual: bool| {
            Ok::<_, WeightsError>(
                self.metadata.bool(&format!("tokenizer.ggml.{key}"))?.unwrap_or(usual),
            )
        };
        let usually_bos = match self.kind {
            Kind::SentencePiece => true,
            Kind::ByteLevel => pre_tokenizer::find(self.metadata)?.adds_bos,
        };
        let bos = if adds("add_bos_token", usually_bos)? { self.special.bos } else { None };
        let eos = if adds("add_eos_token", false)? { self.special.eos } else { None };
        Ok((bos, eos))
    }

    fn added_tokens(&self) -> impl Iterator<Item = (usize, Value)> + '_ {
        (0..self.tokens.len()).filter_map(|id| {
            let added = self.added_token(id)?;
            let content = self.token(id);
            (!content.is_empty()).then(|| {
                let token = json!({
                    "content": content,
                    "single_word": false,
                    "lstrip": false,
                    "rstrip": false,
                    "normalized": false,
                    "special": added == Added::Special,
                });
                (id, token)
            })
        })
    }

    fn vocab_json(&self) -> Value {
        let pairs = self.tokens.iter().enumerate();
        Value::Object(pairs.map(|(id, token)| ((*token).to_owned(), id.into())).collect())
    }

    /// Merges as `tokenizer.json` lists them; every part and product must be a token.
    fn merges_json(&self, merges: Vec<(&str, &str)>) -> Result<Value, WeightsError> {
        let mut product = String::new();
        let mut rows = Vec::with_capacity(merges.len());
        for (left, right) in merges {
            product.clear();
            product.push_str(left);
            product.push_str(right);
            if let Some(missing) =
                [left, right, &product].into_iter().find(|part| !self.ids.contains_key(*part))
            {
                let problem =
                    format!("merge `{left} {right}`: `{missing}` is not in the vocabulary");
                return Err(self.metadata.damaged("tokenizer.ggml.merges", problem));
            }
            rows.push(json!([left, right]));
        }
        Ok(Value::Array(rows))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Added {
    Special,
    Plain,
}

fn ids_of<'a>(
    metadata: &Metadata,
    tokens: &[&'a str],
) -> Result<HashMap<&'a str, usize>, WeightsError> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(*token, id) {
            let problem =
                format!("`{}` is both token {first} and token {id}", token.escape_debug());
            return Err(metadata.damaged(TOKENS, problem));
        }
    }
    Ok(ids)
}

impl SpecialIds {
    fn read(metadata: &Metadata, tokens: usize) -> Result<Self, WeightsError> {
        let id = |name: &str| {
            let key = format!("tokenizer.ggml.{name}_token_id");
            match metadata.u64(&key)? {
                None => Ok(None),
                Some(id) => match usize::try_from(id) {
                    Ok(id) if id < tokens => Ok(Some(id)),
                    // -1 as an unsigned number: "none".
                    _ if id == u64::from(u32::MAX) => Ok(None),
                    _ => {
                        Err(metadata.damaged(&key, format!("{id}, but there are {tokens} tokens")))
                    }
                },
            }
        };
        let end_of_turn = ["eot", "eom"].into_iter().map(id).collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            bos: id("bos")?,
            eos: id("eos")?,
            unknown: id("unknown")?,
            padding: id("padding")?,
            end_of_turn: end_of_turn.into_iter().flatten().collect(),
        })
    }
}

fn tokenizer_json(vocabulary: &Vocabulary) -> Result<Value, WeightsError> {
    let pipeline = match vocabulary.kind {
        Kind::ByteLevel => byte_level::pipeline(vocabulary)?,
        Kind::SentencePiece => sentencepiece::pipeline(vocabulary)?,
    };
    let added: Vec<Value> = vocabulary
        .added_tokens()
        .map(|(id, token)| {
            let mut entry = Map::new();
            entry.insert("id".to_owned(), id.into());
            entry.extend(token.as_object().cloned().unwrap_or_default());
            Value::Object(entry)
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": pipeline.normalizer,
        "pre_tokenizer": pipeline.pre_tokenizer,
        "post_processor": post_processor(vocabulary)?,
        "decoder": pipeline.decoder,
        "model": pipeline.model,
    }))
}

/// The parts of `tokenizer.json` that differ from kind to kind.
struct Pipeline {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
}

fn post_processor(vocabulary: &Vocabulary) -> Result<Value, WeightsError> {
    let (bos, eos) = vocabulary.frame()?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let special = |id: usize, type_id: u32| json!({"SpecialToken": {"id": vocabulary.token(id), "type_id": type_id}});
    let framed = |sequence: &str, type_id: u32| {
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        let bos = bos.map(|id| special(id, type_id));
        let eos = eos.map(|id| special(id, type_id));
        bos.into_iter().chain([text]).chain(eos).collect::<Vec<Value>>()
    };
    let mut tokens = Map::new();
    for id in bos.into_iter().chain(eos) {
        let token = vocabulary.token(id);
        tokens.insert(token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}));
    }
    let pair: Vec<Value> = framed("A", 0).into_iter().chain(framed("B", 1)).collect();
    Ok(json!({
        "type": "TemplateProcessing",
        "single": framed("A", 0),
        "pair": pair,
        "special_tokens": tokens,
    }))
}

fn tokenizer_config(vocabulary: &Vocabulary, context_length: u64) -> Result<Value, WeightsError> {
    let (bos, eos) = vocabulary.frame()?;
    let decoder: Map<String, Value> =
        vocabulary.added_tokens().map(|(id, token)| (id.to_string(), token)).collect();
    let mut config = Map::new();
    config.insert("add_bos_token".to_owned(), bos.is_some().into());
    config.insert("add_eos_token".to_owned(), eos.is_some().into());
    config.insert("added_tokens_decoder".to_owned(), Value::Object(decoder));
    config.extend(vocabulary.named_tokens());
    if let Some(template) = chat_template(vocabulary.metadata)? {
        config.insert("chat_template".to_owned(), template);
    }
    config.insert("clean_up_tokenization_spaces".to_owned(), false.into());
    config.insert("model_max_length".to_owned(), context_length.into());
    config.insert("tokenizer_class".to_owned(), "PreTrainedTokenizerFast".into());
    Ok(Value::Object(config))
}

/// One template as text, several as a list of names.
fn chat_template(metadata: &Metadata) -> Result<Option<Value>, WeightsError> {
    const KEY: &str = "tokenizer.chat_template";
    let default = metadata.string(KEY)?;
    let names = metadata.strings("tokenizer.chat_templates")?.unwrap_or_default();
    if names.is_empty() {
        return Ok(default.map(Value::from));
    }
    let mut templates = Vec::new();
    if let Some(default) = default {
        templates.push(json!({"name": "default", "template": default}));
    }
    for name in names {
        let key = format!("{KEY}.{name}");
        let template = metadata.string(&key)?.ok_or_else(|| metadata.damaged(&key, "missing"))?;
        templates.push(json!({"name": name, "template": template}));
    }
    Ok(Some(Value::Array(templates)))
}

fn generation_config(vocabulary: &Vocabulary) -> Value {
    let special = &vocabulary.special;
    let mut config = Map::new();
    if let Some(bos) = special.bos {
        config.insert("bos_token_id".to_owned(), bos.into());
    }
    let mut ends: Vec<usize> = special.eos.into_iter().collect();
    for &id in &special.end_of_turn {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    match ends.as_slice() {
        [] => {}
        [only] => drop(config.insert("eos_token_id".to_owned(), (*only).into())),
        several => drop(config.insert("eos_token_id".to_owned(), several.into())),
    }
    if let Some(padding) = special.padding {
        config.insert("pad_token_id".to_owned(), padding.into());
    }
    Value::Object(config)
}
