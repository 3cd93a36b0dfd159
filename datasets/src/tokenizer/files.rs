//! Reads the files of a tokenizer: the model itself, and which tokens begin and end a sequence.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{Inner, TokenizerError, panics};

const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const SPECIAL_TOKENS_MAP: &str = "special_tokens_map.json";
const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";

/// Special tokens that chat templates see as variables.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// Bytes of the files around a tokenizer, as they lie in a model folder.
#[derive(Debug, Clone, Default)]
pub struct TokenizerFiles {
    /// `tokenizer.json`.
    pub tokenizer_json: Vec<u8>,
    /// `tokenizer_config.json`.
    pub tokenizer_config_json: Option<Vec<u8>>,
    /// `special_tokens_map.json`: names special tokens that the tokenizer config leaves out.
    pub special_tokens_map_json: Option<Vec<u8>>,
    /// `chat_template.jinja`.
    pub chat_template_jinja: Option<String>,
    /// `additional_chat_templates/NAME.jinja`, by name.
    pub additional_chat_templates: BTreeMap<String, String>,
    /// The model's `config.json`: ids of the begin and end tokens where no other file names them.
    pub config_json: Option<Vec<u8>>,
    /// `generation_config.json`: further ids that end a generation.
    pub generation_config_json: Option<Vec<u8>>,
}

pub(super) fn read(files: &TokenizerFiles) -> Result<Inner, TokenizerError> {
    let mut model = panics::caught(|| tokenizers::Tokenizer::from_bytes(&files.tokenizer_json))
        .map_err(|problem| TokenizerError::BadFile { file: TOKENIZER, problem })?;
    let config = object(TOKENIZER_CONFIG, files.tokenizer_config_json.as_deref())?;
    let map = object(SPECIAL_TOKENS_MAP, files.special_tokens_map_json.as_deref())?;
    let named = named_tokens(&config, &map)?;
    let ids = [
        (GENERATION_CONFIG, object(GENERATION_CONFIG, files.generation_config_json.as_deref())?),
        (CONFIG, object(CONFIG, files.config_json.as_deref())?),
    ];
    let bos_ids = find_ids("bos_token", &model, &named, &config, &ids)?;
    let eos_ids = find_ids("eos_token", &model, &named, &config, &ids)?;
    let bos = bos_ids.first().copied();
    let adds_bos = bos.is_some_and(|bos| adds_bos(&model, &config, bos));
    plain(&mut model)?;
    let mut stop_ids = eos_ids.clone();
    for (file, object) in &ids {
        stop_ids.extend(ids_of(file, object, "eos_token_id")?);
    }
    stop_ids.sort_unstable();
    stop_ids.dedup();
    let highest = model.get_vocab(true).into_values().max();
    Ok(Inner {
        special: special_tokens(&model, &named),
        named,
        chat_template: chat_template(files, &config),
        chat_template_file: files
            .chat_template_jinja
            .clone()
            .filter(|_| files.additional_chat_templates.is_empty()),
        bos,
        eos: eos_ids.first().copied(),
        stop_ids,
        vocab_size: highest.map_or(0, |id| id as usize + 1),
        adds_bos,
        fingerprint: fingerprint(files),
        model,
    })
}

/// SHA-256 over all files, each as a byte that says whether it is there, its length and its bytes.
fn fingerprint(files: &TokenizerFiles) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for file in [
        Some(files.tokenizer_json.as_slice()),
        files.tokenizer_config_json.as_deref(),
        files.special_tokens_map_json.as_deref(),
        files.chat_template_jinja.as_deref().map(str::as_bytes),
        files.config_json.as_deref(),
        files.generation_config_json.as_deref(),
    ] {
        hasher.update([u8::from(file.is_some())]);
        let bytes = file.unwrap_or_default();
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    }
    for (name, source) in &files.additional_chat_templates {
        for text in [name, source] {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    hasher.finalize().into()
}

/// The template or templates of a base, apart from a `chat_template.jinja` that stands alone.
///
/// As in `transformers`, files take the place of whatever the tokenizer config says.
fn chat_template(files: &TokenizerFiles, config: &Map<String, Value>) -> Option<Value> {
    let (default, named) = (&files.chat_template_jinja, &files.additional_chat_templates);
    match (default, named.is_empty()) {
        (None, true) => config.get("chat_template").filter(|value| !value.is_null()).cloned(),
        (Some(_), true) => None,
        (_, false) => {
            let default = default.iter().map(|text| ("default", text));
            let named = named.iter().map(|(name, text)| (name.as_str(), text));
            let pair =
                |(name, text): (&str, &String)| (name.to_owned(), Value::from(text.as_str()));
            Some(default.chain(named).map(pair).collect())
        }
    }
}

/// Switches off what would add, cut or pad tokens, or move their offsets.
fn plain(model: &mut tokenizers::Tokenizer) -> Result<(), TokenizerError> {
    model.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
    model.with_padding(None);
    model
        .with_truncation(None)
        .map_err(|error| TokenizerError::BadFile { file: TOKENIZER, problem: error.to_string() })?;
    Ok(())
}

fn object(file: &'static str, bytes: Option<&[u8]>) -> Result<Map<String, Value>, TokenizerError> {
    let Some(bytes) = bytes else { return Ok(Map::new()) };
    serde_json::from_slice(bytes)
        .map_err(|error| TokenizerError::BadFile { file, problem: error.to_string() })
}

fn named_tokens(
    config: &Map<String, Value>,
    map: &Map<String, Value>,
) -> Result<BTreeMap<&'static str, String>, TokenizerError> {
    let mut named = BTreeMap::new();
    for key in NAMED {
        // A null in the tokenizer config is an answer (no such token), not a gap.
        let (file, value) = match config.get(key) {
            Some(value) => (TOKENIZER_CONFIG, value),
            None => (SPECIAL_TOKENS_MAP, map.get(key).unwrap_or(&Value::Null)),
        };
        if let Some(text) = token_text(file, key, value)? {
            named.insert(key, text);
        }
    }
    Ok(named)
}

/// Text of a token that is written as a string, as an object with `content`, or not at all.
fn token_text(
    file: &'static str,
    key: &str,
    value: &Value,
) -> Result<Option<String>, TokenizerError> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        Value::Object(token) => match token.get("content") {
            Some(Value::String(text)) => Ok(Some(text.clone())),
            _ => Err(bad_token(file, key, "an object without `content`")),
        },
        Value::Bool(_) => Err(bad_token(file, key, "a boolean")),
        Value::Number(_) => Err(bad_token(file, key, "a number")),
        Value::Array(_) => Err(bad_token(file, key, "a list")),
    }
}

fn bad_token(file: &'static str, key: &str, found: &str) -> TokenizerError {
    let problem = format!("`{key}` is {found}, expected the text of a token");
    TokenizerError::BadFile { file, problem }
}

/// Ids of a named token: from its text, else from the model's configs.
fn find_ids(
    key: &'static str,
    model: &tokenizers::Tokenizer,
    named: &BTreeMap<&'static str, String>,
    config: &Map<String, Value>,
    ids: &[(&'static str, Map<String, Value>)],
) -> Result<Vec<u32>, TokenizerError> {
    if let Some(token) = named.get(key).filter(|token| !token.is_empty()) {
        let id = model.token_to_id(token).ok_or_else(|| TokenizerError::UnknownSpecialToken {
            file: if config.contains_key(key) { TOKENIZER_CONFIG } else { SPECIAL_TOKENS_MAP },
            key,
            token: token.clone(),
        })?;
        return Ok(vec![id]);
    }
    if config.contains_key(key) {
        return Ok(Vec::new());
    }
    for (file, object) in ids {
        let found = ids_of(file, object, &format!("{key}_id"))?;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Ok(Vec::new())
}

/// A token id of a model config: a number, a list of numbers, or nothing.
fn ids_of(
    file: &'static str,
    object: &Map<String, Value>,
    key: &str,
) -> Result<Vec<u32>, TokenizerError> {
    let values = match object.get(key) {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(values)) => values.as_slice(),
        Some(value) => std::slice::from_ref(value),
    };
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    values.iter().map(id).collect::<Option<Vec<u32>>>().ok_or_else(|| TokenizerError::BadFile {
        file,
        problem: format!("`{key}` is no token id and no list of token ids"),
    })
}

fn adds_bos(model: &tokenizers::Tokenizer, config: &Map<String, Value>, bos: u32) -> bool {
    if let Some(Value::Bool(adds)) = config.get("add_bos_token") {
        return *adds;
    }
    panics::caught(|| model.encode("a", true))
        .is_ok_and(|encoding| encoding.get_ids().first() == Some(&bos))
}

fn special_tokens(
    model: &tokenizers::Tokenizer,
    named: &BTreeMap<&'static str, String>,
) -> Vec<(String, u32)> {
    let added = model.get_added_tokens_decoder();
    let mut special: Vec<(String, u32)> = added
        .into_iter()
        .filter(|(_, token)| token.special)
        .map(|(id, token)| (token.content, id))
        .collect();
    // `unk_token` may be an ordinary word of the vocabulary; only the borders count here.
    for token in ["bos_token", "eos_token"].iter().filter_map(|key| named.get(key)) {
        special.extend(model.token_to_id(token).map(|id| (token.clone(), id)));
    }
    special.retain(|(text, _)| !text.is_empty());
    special.sort_by(|a, b| b.0.len().cmp(&a.0.len()).then_with(|| a.cmp(b)));
    special.dedup();
    special
}
