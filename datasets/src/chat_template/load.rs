//! Finds a chat template: the base model's own, a built-in or a file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::engine::MOST_BYTES;
use super::{BUILTIN_TEMPLATES, Engine, Inner, TemplateError};
use crate::tokenizer::Tokenizer;

/// Name of the template that stands in for `default` where a conversation has tools.
const WITH_TOOLS: &str = "tool_use";

pub(super) fn of_base(tokenizer: &Tokenizer) -> Result<Option<Inner>, TemplateError> {
    if let Some(source) = tokenizer.template_file() {
        return from_source("`chat_template.jinja` of the base model", source, tokenizer).map(Some);
    }
    let name = "of the base model";
    match tokenizer.config_template() {
        None => Ok(None),
        Some(Value::String(source)) => from_source(name, source, tokenizer).map(Some),
        Some(several) => {
            let named = named_templates(several)?;
            let Some(source) = named.get("default") else {
                let names = named.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                return Err(TemplateError::NoDefault { names });
            };
            let mut inner = from_source(name, source, tokenizer)?;
            if let Some(source) = named.get(WITH_TOOLS) {
                inner.with_tools = Some(Engine::new(source).map_err(|problem| {
                    TemplateError::Syntax { template: format!("`{WITH_TOOLS}` {name}"), problem }
                })?);
            }
            Ok(Some(inner))
        }
    }
}

/// Several templates: a list of `{"name", "template"}`, or an object from name to template.
fn named_templates(value: &Value) -> Result<BTreeMap<String, String>, TemplateError> {
    let pairs: Option<BTreeMap<String, String>> = match value {
        Value::Array(list) => list
            .iter()
            .map(|entry| {
                let text = |key| entry.get(key).and_then(Value::as_str).map(str::to_owned);
                Some((text("name")?, text("template")?))
            })
            .collect(),
        Value::Object(object) => object
            .iter()
            .map(|(name, source)| Some((name.clone(), source.as_str()?.to_owned())))
            .collect(),
        _ => None,
    };
    pairs.ok_or_else(|| {
        bad_config(
            "is neither a template nor a list of `{\"name\", \"template\"}` objects".to_owned(),
        )
    })
}

/// The base's templates that have names.
fn templates_of_base(tokenizer: &Tokenizer) -> Result<BTreeMap<String, String>, TemplateError> {
    match tokenizer.config_template() {
        None | Some(Value::String(_)) => Ok(BTreeMap::new()),
        Some(several) => named_templates(several),
    }
}

fn bad_config(problem: String) -> TemplateError {
    TemplateError::BadConfig { problem }
}

pub(super) fn named_or_file(name: &str, tokenizer: &Tokenizer) -> Result<Inner, TemplateError> {
    if let Some(builtin) = BUILTIN_TEMPLATES.iter().find(|builtin| builtin.name == name) {
        return from_source(&format!("`{name}`"), builtin.source, tokenizer);
    }
    let of_base = templates_of_base(tokenizer)?;
    if let Some(source) = of_base.get(name) {
        return from_source(&format!("`{name}` of the base model"), source, tokenizer);
    }
    let path = Path::new(name);
    if !path.exists() {
        let builtins = BUILTIN_TEMPLATES.iter().map(|builtin| format!("`{}`", builtin.name));
        let of_base = of_base.keys().map(|name| format!("`{name}` of the base model"));
        return Err(TemplateError::UnknownName {
            name: name.to_owned(),
            known: builtins.chain(of_base).collect::<Vec<_>>().join(", "),
        });
    }
    let unreadable = |problem| TemplateError::Unreadable { path: path.to_owned(), problem };
    let source = read(path).map_err(unreadable)?;
    from_source(&format!("`{name}`"), &source, tokenizer)
}

fn read(path: &Path) -> Result<String, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    // One more than allowed is enough to see that it is too long.
    file.take(MOST_BYTES as u64 + 1).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    String::from_utf8(bytes)
        .map_err(|error| format!("byte {} is not UTF-8", error.utf8_error().valid_up_to()))
}

pub(super) fn from_source(
    name: &str,
    source: &str,
    tokenizer: &Tokenizer,
) -> Result<Inner, TemplateError> {
    let engine = Engine::new(source)
        .map_err(|problem| TemplateError::Syntax { template: name.to_owned(), problem })?;
    Ok(Inner {
        name: name.to_owned(),
        source: source.to_owned(),
        engine,
        with_tools: None,
        tokens: tokens(tokenizer),
    })
}

/// Special tokens as template variables. Where only a model config knows them by id, their text
/// comes from the vocabulary, so that built-in templates work for such bases too.
fn tokens(tokenizer: &Tokenizer) -> BTreeMap<String, String> {
    let mut tokens: BTreeMap<String, String> = tokenizer
        .named_tokens()
        .iter()
        .map(|(name, text)| ((*name).to_owned(), text.clone()))
        .collect();
    for (name, id) in [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())] {
        if let Some(text) = id.and_then(|id| tokenizer.token_text(id)) {
            tokens.entry(name.to_owned()).or_insert(text);
        }
    }
    tokens
}
