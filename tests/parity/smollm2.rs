//! The real model's tokenizer and template, read from its GGUF: which tokens carry loss.

use std::path::PathBuf;

use adapters::weights::{ModelFiles, Network};
use datasets::{ChatTemplate, Conversation, IGNORED, LossOn, Message, Tokenizer, TokenizerFiles};
use serde_json::Value;

use crate::fixture;

pub(crate) fn gguf() -> Option<ModelFiles> {
    let root = fixture::path("../../..");
    let folder = std::env::var_os("TUNESMITH_TEST_MATERIAL")
        .map_or_else(|| root.join("target/test-material"), PathBuf::from);
    let path = folder.join("smollm2/SmolLM2-135M-Instruct.Q4_1.gguf");
    if path.exists() {
        return Some(ModelFiles::open(path.to_str().unwrap(), Network::Offline).unwrap());
    }
    assert!(std::env::var_os("CI").is_none(), "`{}` is missing", path.display());
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    {
        eprintln!("SKIPPED: run scripts/fetch_test_material.sh for {}", path.display());
    }
    None
}

fn tokenizer(files: &ModelFiles) -> Tokenizer {
    let side = |name: &str| files.side_file(name).unwrap();
    Tokenizer::from_files(&TokenizerFiles {
        tokenizer_json: side("tokenizer.json").unwrap(),
        tokenizer_config_json: side("tokenizer_config.json"),
        special_tokens_map_json: side("special_tokens_map.json"),
        chat_template_jinja: side("chat_template.jinja").map(|b| String::from_utf8(b).unwrap()),
        config_json: Some(files.config().to_string().into_bytes()),
        generation_config_json: side("generation_config.json"),
        ..TokenizerFiles::default()
    })
    .unwrap()
}

#[test]
fn chat_masks_of_the_gguf_are_those_of_transformers() {
    let Some(files) = gguf() else { return };
    let tokenizer = tokenizer(&files);
    let template = ChatTemplate::of_base(&tokenizer).unwrap().unwrap();
    let path = fixture::path("../chat/smollm2.json");
    let cases: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let mut compared = 0;
    for case in cases["cases"].as_array().unwrap() {
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let tools = case.get("tools").filter(|tools| !tools.is_null()).cloned();
        let conversation = Conversation { messages, tools };
        let encoded = template.encode(&conversation, &tokenizer, LossOn::Assistant).unwrap();
        let name = case["name"].as_str().unwrap();
        assert_eq!(encoded.token_ids, fixture::ids(&case["ids"]), "{name}");
        let spans = case["mask"].as_array().unwrap();
        for (index, (&id, &label)) in encoded.token_ids.iter().zip(&encoded.labels).enumerate() {
            let within = |span: &Value| {
                (span[0].as_u64().unwrap()..span[1].as_u64().unwrap()).contains(&(index as u64))
            };
            let expected = if spans.iter().any(within) { id as i32 } else { IGNORED };
            assert_eq!(label, expected, "{name}: token {index}");
        }
        compared += 1;
    }
    assert!(compared >= 12);
}
