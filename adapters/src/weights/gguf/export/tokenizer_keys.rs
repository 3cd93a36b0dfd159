//! The tokenizer's metadata, from the files beside an HF model.

use serde_json::{Map, Value};

use super::vocabulary::{Kind, Vocabulary};
use crate::weights::gguf::head_writer::{Flag, HeadWriter};
use crate::weights::{ModelFiles, WeightsError};

/// (key in GGUF, key of the tokenizer's files, key of the configuration)
const ROLES: &[(&str, &str, &str)] = &[
    ("bos", "bos_token", "bos_token_id"),
    ("eos", "eos_token", "eos_token_id"),
    ("unknown", "unk_token", "unk_token_id"),
    ("padding", "pad_token", "pad_token_id"),
];

pub(super) fn write(head: &mut HeadWriter, base: &ModelFiles) -> Result<(), WeightsError> {
    let vocabulary = Vocabulary::read(base)?;
    let model = match vocabulary.kind {
        Kind::ByteLevel { .. } => "gpt2",
        Kind::SentencePiece { .. } => "llama",
    };
    head.string("tokenizer.ggml.model", model);
    head.string("tokenizer.ggml.pre", vocabulary.pre());
    head.strings("tokenizer.ggml.tokens", vocabulary.tokens.iter().map(String::as_str));
    match &vocabulary.kind {
        Kind::ByteLevel { merges, .. } => {
            head.i32s("tokenizer.ggml.token_type", &vocabulary.types);
            head.strings("tokenizer.ggml.merges", merges.iter().map(String::as_str));
        }
        Kind::SentencePiece { scores, space_prefix } => {
            head.f32s("tokenizer.ggml.scores", scores);
            head.i32s("tokenizer.ggml.token_type", &vocabulary.types);
            head.flag("tokenizer.ggml.add_space_prefix", *space_prefix);
        }
    }
    let files = TokenizerFiles::read(base)?;
    write_roles(head, base, &files, &vocabulary);
    write_frame(head, &files, &vocabulary);
    write_templates(head, base, &files)
}

/// The JSON files beside `tokenizer.json` that name tokens and templates.
struct TokenizerFiles {
    config: Map<String, Value>,
    special: Map<String, Value>,
    generation: Map<String, Value>,
}

impl TokenizerFiles {
    fn read(base: &ModelFiles) -> Result<Self, WeightsError> {
        let object = |name: &str| match base.side_file(name)? {
            None => Ok(Map::new()),
            Some(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| WeightsError::damaged(base.location(), name, error.to_string())),
        };
        Ok(Self {
            config: object("tokenizer_config.json")?,
            special: object("special_tokens_map.json")?,
            generation: object("generation_config.json")?,
        })
    }

    /// The text of a named token. A null in the tokenizer's configuration says that there is none.
    fn named(&self, key: &str) -> Option<&str> {
        let value = self.config.get(key).or_else(|| self.special.get(key))?;
        value.as_str().or_else(|| value.get("content")?.as_str())
    }
}

fn write_roles(
    head: &mut HeadWriter,
    base: &ModelFiles,
    files: &TokenizerFiles,
    vocabulary: &Vocabulary,
) {
    for (role, token, id) in ROLES {
        let configured = ids(base.config().get(*id)).first().copied();
        let named = files.named(token).and_then(|text| vocabulary.id_of(text));
        let is_denied = files.config.get(*token) == Some(&Value::Null);
        let found = named.or(configured.filter(|_| !is_denied));
        if let Some(id) = found.filter(|&id| (id as usize) < vocabulary.tokens.len()) {
            head.u32(&format!("tokenizer.ggml.{role}_token_id"), id);
        }
    }
    let eos = files.named("eos_token").and_then(|text| vocabulary.id_of(text));
    let ends = ids(files.generation.get("eos_token_id"));
    let others = ends.into_iter().filter(|&id| Some(id) != eos);
    let mut others: Vec<u32> =
        others.filter(|&id| (id as usize) < vocabulary.tokens.len()).collect();
    // An end of message lets the model go on after a tool's answer; other ends close the turn.
    let is_message = |id: &u32| vocabulary.tokens[*id as usize].contains("eom");
    if let Some(place) = others.iter().position(is_message) {
        head.u32("tokenizer.ggml.eom_token_id", others.remove(place));
    }
    let is_turn = |id: &&u32| vocabulary.tokens[**id as usize].contains("eot");
    if let Some(&id) = others.iter().find(is_turn).or(others.first()) {
        head.u32("tokenizer.ggml.eot_token_id", id);
    }
}

/// Token ids of a configuration: one, several, or none.
fn ids(value: Option<&Value>) -> Vec<u32> {
    let values = match value {
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
        None => &[],
    };
    values.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect()
}

/// What is put around a text that stands alone.
fn write_frame(head: &mut HeadWriter, files: &TokenizerFiles, vocabulary: &Vocabulary) {
    let asked = |key: &str| files.config.get(key).and_then(Value::as_bool);
    let (bos, eos) = vocabulary.frame;
    head.flag("tokenizer.ggml.add_bos_token", asked("add_bos_token").map_or(bos, Flag::from));
    let adds_eos = asked("add_eos_token").map_or(eos, Flag::from);
    if adds_eos == Flag::Yes {
        head.flag("tokenizer.ggml.add_eos_token", adds_eos);
    }
}

/// The default chat template, and others under their names.
fn write_templates(
    head: &mut HeadWriter,
    base: &ModelFiles,
    files: &TokenizerFiles,
) -> Result<(), WeightsError> {
    const KEY: &str = "tokenizer.chat_template";
    if let Some(bytes) = base.side_file("chat_template.jinja")? {
        head.string(KEY, &String::from_utf8_lossy(&bytes));
        return Ok(());
    }
    match files.config.get("chat_template") {
        Some(Value::String(template)) => head.string(KEY, template),
        Some(Value::Array(templates)) => {
            let text = |row: &Value, key: &str| Some(row.get(key)?.as_str()?.to_owned());
            let pair = |row: &Value| Some((text(row, "name")?, text(row, "template")?));
            let rows: Vec<(String, String)> = templates.iter().filter_map(pair).collect();
            let (default, others): (Vec<_>, Vec<_>) =
                rows.into_iter().partition(|(name, _)| name == "default");
            if let Some((_, template)) = default.first() {
                head.string(KEY, template);
            }
            if !others.is_empty() {
                head.strings("tokenizer.chat_templates", others.iter().map(|row| row.0.as_str()));
            }
            for (name, template) in &others {
                head.string(&format!("{KEY}.{name}"), template);
            }
        }
        _ => {}
    }
    Ok(())
}
