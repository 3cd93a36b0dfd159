//! Chat templates, token ids and masks against what `transformers` makes of the same conversations
//! (`scripts/make_chat_fixtures.py`), with real tokenizers where they are there
//! (`scripts/fetch_test_material.sh`).

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};

use datasets::{
    ChatTemplate, Conversation, GenerationPrompt, IGNORED, LossOn, Message, SpecialTokens,
    Tokenizer, TokenizerFiles,
};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// One conversation, and what `transformers` makes of it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Value>,
    text_sha256: String,
    prompt_sha256: String,
    /// Bytes of the text that the model writes, in turns that carry loss.
    spans: Vec<Range2>,
    ids: Vec<u32>,
    /// Indices of the tokens that carry loss.
    mask: Vec<Range2>,
}

type Range2 = (usize, usize);

impl Case {
    fn conversation(&self) -> Conversation {
        Conversation { messages: self.messages.clone(), tools: self.tools.clone() }
    }

    fn masks(&self) -> Vec<bool> {
        let within = |index| self.mask.iter().any(|&(start, end)| (start..end).contains(&index));
        (0..self.ids.len()).map(within).collect()
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn fixture(name: &str) -> Value {
    let path = root().join("tests/fixtures/chat").join(name);
    serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap()
}

fn cases(name: &str) -> Vec<Case> {
    let cases = fixture(name)["cases"].take();
    serde_json::from_value(cases).unwrap()
}

/// A file of the test material; `None` (with a line that says so) where it was not fetched.
fn material(name: &str) -> Option<Vec<u8>> {
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL")
        .map_or_else(|| root().join("target/test-material"), PathBuf::from);
    if let Ok(bytes) = std::fs::read(folder.join(name)) {
        return Some(bytes);
    }
    let missing =
        format!("no `{name}` in {}; run scripts/fetch_test_material.sh", folder.display());
    assert!(std::env::var_os("CI").is_none(), "{missing}");
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("SKIPPED: {missing}");
    }
    None
}

fn tokenizer(folder: &str) -> Option<Tokenizer> {
    let files = TokenizerFiles {
        tokenizer_json: material(&format!("{folder}/tokenizer.json"))?,
        tokenizer_config_json: Some(material(&format!("{folder}/tokenizer_config.json"))?),
        ..TokenizerFiles::default()
    };
    Some(Tokenizer::from_files(&files).unwrap())
}

fn sha256(text: &str) -> String {
    let digest = Sha256::digest(text.as_bytes());
    let digits = digest.iter().flat_map(|byte| [byte >> 4, byte & 15]);
    digits.filter_map(|digit| char::from_digit(u32::from(digit), 16)).collect()
}

fn assert_text(template: &ChatTemplate, case: &Case) -> String {
    let conversation = case.conversation();
    let text = template.render(&conversation, GenerationPrompt::Omit).unwrap();
    assert_eq!(sha256(&text), case.text_sha256, "{}: rendered {text:?}", case.name);
    let prompt = template.render(&conversation, GenerationPrompt::Add).unwrap();
    assert_eq!(sha256(&prompt), case.prompt_sha256, "{}: rendered {prompt:?}", case.name);
    text
}

/// Token by token: the ids are those of `transformers`, and so is the mask.
fn assert_masks(folder: &str, at_least: usize) {
    let Some(tokenizer) = tokenizer(folder) else { return };
    let template = ChatTemplate::of_base(&tokenizer).unwrap().unwrap();
    let cases = cases(&format!("{folder}.json"));
    assert!(cases.len() >= at_least);
    for case in cases {
        assert_text(&template, &case);
        let encoded = template.encode(&case.conversation(), &tokenizer, LossOn::Assistant).unwrap();
        assert_eq!(encoded.token_ids, case.ids, "{}", case.name);
        assert_eq!(encoded.turns_without_end, 0, "{}", case.name);
        let expected = case.masks();
        for (index, (&id, &label)) in encoded.token_ids.iter().zip(&encoded.labels).enumerate() {
            let label_expected = if expected[index] { id.cast_signed() } else { IGNORED };
            let token = tokenizer.decode(&[id], SpecialTokens::Keep).unwrap();
            assert_eq!(label, label_expected, "{}: token {index} {token:?}", case.name);
        }
    }
}

#[test]
fn llama_3_1_masks_are_those_of_transformers() {
    assert_masks("llama3_1", 12);
}

#[test]
fn qwen3_masks_are_those_of_transformers_with_tools_and_thinking() {
    assert_masks("qwen3", 18);
}

#[test]
fn deepseek_v3_masks_are_those_of_transformers() {
    assert_masks("deepseek_v3", 13);
}

#[test]
fn gemma_3_masks_are_those_of_transformers() {
    assert_masks("gemma3", 11);
}

/// The tokenizer of `SmolLM2` lies in a GGUF file, which another crate reads; the template is tested with
/// one token a byte.
#[test]
fn smollm2_renders_as_in_transformers_and_its_spans_are_found() {
    let Some(source) = material("smollm2/chat_template.jinja") else { return };
    let tokenizer = byte_tokenizer(&["<|endoftext|>", "<|im_start|>", "<|im_end|>"]);
    let source = String::from_utf8(source).unwrap();
    let template = ChatTemplate::from_source("smollm2", &source, &tokenizer).unwrap();
    for case in cases("smollm2.json") {
        let text = assert_text(&template, &case);
        let encoded = template.encode(&case.conversation(), &tokenizer, LossOn::Assistant).unwrap();
        let tokens = tokenizer.encode_with_offsets(&text).unwrap();
        for ((id, bytes), &label) in tokens.iter().zip(&encoded.labels) {
            let inside = case.spans.iter().any(|&(start, end)| (start..end).contains(&bytes.start));
            let expected = if inside { id.cast_signed() } else { IGNORED };
            assert_eq!(label, expected, "{}: bytes {bytes:?} of {text:?}", case.name);
        }
    }
}

/// A byte-level tokenizer without merges, with some special tokens; the last two are begin and end.
fn byte_tokenizer(special: &[&str]) -> Tokenizer {
    let mut next = 255_u32;
    let vocab: serde_json::Map<String, Value> = (0..256_u32)
        .map(|byte| {
            let printable = matches!(byte, 33..=126 | 161..=172 | 174..=255);
            next += u32::from(!printable);
            let letter = char::from_u32(if printable { byte } else { next }).unwrap();
            (letter.to_string(), Value::from(byte))
        })
        .collect();
    let added: Vec<Value> = special
        .iter()
        .zip(256..)
        .map(|(content, id)| {
            serde_json::json!({"id": id, "content": content, "special": true, "normalized": false,
                "single_word": false, "lstrip": false, "rstrip": false})
        })
        .collect();
    let level = serde_json::json!({"type": "ByteLevel", "add_prefix_space": false,
        "trim_offsets": true, "use_regex": true});
    let json = serde_json::json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": added, "normalizer": null, "pre_tokenizer": level, "post_processor": level,
        "decoder": level, "model": {"type": "BPE", "vocab": vocab, "merges": []}});
    let [.., bos, eos] = special else { panic!("at least two special tokens") };
    let config = serde_json::json!({"bos_token": bos, "eos_token": eos});
    Tokenizer::from_files(&TokenizerFiles {
        tokenizer_json: json.to_string().into_bytes(),
        tokenizer_config_json: Some(config.to_string().into_bytes()),
        ..TokenizerFiles::default()
    })
    .unwrap()
}

#[test]
fn jinja_renders_as_in_transformers() {
    #[derive(Deserialize)]
    struct Snippet {
        snippet: String,
        text: Option<String>,
    }
    let mut fixture = fixture("jinja.json");
    let snippets: Vec<Snippet> = serde_json::from_value(fixture["snippets"].take()).unwrap();
    assert!(snippets.len() >= 50);
    let tokenizer = byte_tokenizer(&["<s>", "</s>"]);
    // The snippets see their variables as fields of a message, set by a prelude.
    let context = fixture["context"][0].take();
    let mut message = Message::new("user", "");
    let mut prelude = String::new();
    for (name, value) in context.as_object().unwrap() {
        message.extra.insert(name.clone(), value.clone());
        prelude.extend(["{%- set ", name, " = messages[0]['", name, "'] +%}"]);
    }
    let conversation = Conversation::new(vec![message]);
    let mut wrong = Vec::new();
    for Snippet { snippet, text } in snippets {
        let source = format!("{prelude}{snippet}");
        let rendered = ChatTemplate::from_source("snippet", &source, &tokenizer)
            .and_then(|template| template.render(&conversation, GenerationPrompt::Omit));
        match (rendered, text) {
            (Ok(rendered), Some(text)) if rendered == text => {}
            (Err(_), None) => {}
            (rendered, text) => wrong.push(format!("{snippet}\n  {rendered:?}\n  {text:?}")),
        }
    }
    assert!(wrong.is_empty(), "ours, then transformers':\n{}", wrong.join("\n"));
}
