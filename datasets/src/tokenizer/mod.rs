//! Text to token ids and back, as the base model's own tokenizer files say.
//!
//! Post-processing is left out on purpose: special tokens come from a chat template or from the
//! format of a row, never from the tokenizer behind their back, so a row cannot get two
//! begin-of-sequence tokens. [`Tokenizer::adds_bos`] says what the tokenizer would have done.

mod files;
pub(crate) mod panics;
mod stream;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::Value;

use crate::error::DatasetError;
pub use files::TokenizerFiles;
pub use stream::TextStream;

/// Whether decoded text shows special tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpecialTokens {
    /// They stand in the text.
    Keep,
    /// They are left out.
    Skip,
}

/// What is wrong with a tokenizer's files, or what it could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file that is not JSON, or whose JSON is no tokenizer.
    #[error("`{file}` cannot be read: {problem}")]
    BadFile {
        /// Name of the file.
        file: &'static str,
        /// What the reader met, with line and column where it is known.
        problem: String,
    },
    /// A special token that the vocabulary does not have.
    #[error("`{key}` in `{file}` is `{token}`, which `tokenizer.json` does not have")]
    UnknownSpecialToken {
        /// Name of the file.
        file: &'static str,
        /// `bos_token` or `eos_token`.
        key: &'static str,
        /// What it names.
        token: String,
    },
    /// The tokenizer refused a text or a list of ids.
    #[error("the tokenizer cannot {action}: {problem}")]
    Failed {
        /// `encode a text` or `decode tokens`.
        action: &'static str,
        /// What it said.
        problem: String,
    },
}

impl TokenizerError {
    /// What to type next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::BadFile { file, .. } => Some(format!("fetch the base model's `{file}` again")),
            Self::UnknownSpecialToken { file, .. } => Some(format!(
                "use `tokenizer.json` and `{file}` of the same model, from one download"
            )),
            Self::Failed { .. } => None,
        }
    }
}

/// The base model's tokenizer.
#[derive(Debug, Clone)]
pub struct Tokenizer(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    model: tokenizers::Tokenizer,
    /// `bos_token`, `eos_token`, ... as chat templates see them.
    named: BTreeMap<&'static str, String>,
    /// Special tokens by text, the longest first.
    special: Vec<(String, u32)>,
    chat_template: Option<Value>,
    chat_template_file: Option<String>,
    bos: Option<u32>,
    eos: Option<u32>,
    stop_ids: Vec<u32>,
    vocab_size: usize,
    adds_bos: bool,
    fingerprint: [u8; 32],
}

impl Tokenizer {
    /// Reads a tokenizer from the bytes of its files.
    pub fn from_files(files: &TokenizerFiles) -> Result<Self, DatasetError> {
        Ok(Self(Arc::new(files::read(files)?)))
    }

    /// Token ids of a text. Special tokens that stand in the text are recognised, as
    /// `transformers` does; none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, DatasetError> {
        let encoding = panics::caught(|| self.0.model.encode_fast(text, false))
            .map_err(|problem| failed("encode a text", problem))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Token ids of a text, each with the range of bytes it stands for.
    ///
    /// Ranges never reach beyond the text. Tokens that share one character (bytes of an emoji)
    /// share its range, and a token that stands for nothing in the text has an empty one.
    pub fn encode_with_offsets(
        &self,
        text: &str,
    ) -> Result<Vec<(u32, Range<usize>)>, DatasetError> {
        let encoding = panics::caught(|| self.0.model.encode(text, false))
            .map_err(|problem| failed("encode a text", problem))?;
        let offsets = encoding.get_offsets().iter().map(|&(start, end)| {
            let start = start.min(text.len());
            start..end.clamp(start, text.len())
        });
        Ok(encoding.get_ids().iter().copied().zip(offsets).collect())
    }

    /// Text of token ids. Ids that the vocabulary does not have are left out.
    pub fn decode(&self, ids: &[u32], special: SpecialTokens) -> Result<String, DatasetError> {
        let skip = special == SpecialTokens::Skip;
        panics::caught(|| self.0.model.decode(ids, skip))
            .map_err(|problem| failed("decode tokens", problem))
    }

    /// Text that grows token by token, for generation.
    pub fn stream(&self, special: SpecialTokens) -> TextStream {
        TextStream::new(self.clone(), special)
    }

    /// The token as the vocabulary spells it (`Ġthe`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.0.model.id_to_token(id)
    }

    /// Id of a token as the vocabulary spells it.
    pub fn token_id(&self, text: &str) -> Option<u32> {
        self.0.model.token_to_id(text)
    }

    /// SHA-256 over the files it was read from: equal fingerprints tokenize and render equally.
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.0.fingerprint
    }

    /// Highest id + 1, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.0.vocab_size
    }

    /// Begin-of-sequence token.
    pub fn bos(&self) -> Option<u32> {
        self.0.bos
    }

    /// End-of-sequence token.
    pub fn eos(&self) -> Option<u32> {
        self.0.eos
    }

    /// Every token that ends a generation: the end-of-sequence tokens of the tokenizer, the
    /// generation config and the model config, ascending.
    pub fn stop_ids(&self) -> Vec<u32> {
        self.0.stop_ids.clone()
    }

    /// Whether `transformers` puts a begin-of-sequence token before a plain text.
    pub fn adds_bos(&self) -> bool {
        self.0.adds_bos
    }

    /// Whether the token is a special one (added and marked so, or named in the tokenizer config).
    pub fn is_special(&self, id: u32) -> bool {
        self.0.special.iter().any(|(_, special)| *special == id)
    }

    /// The first special token in a text: its range of bytes and its id.
    pub(crate) fn find_special(&self, text: &str) -> Option<(Range<usize>, u32)> {
        let longest_first = self.0.special.iter();
        longest_first
            .filter_map(|(special, id)| text.find(special).map(|at| (at, special.len(), *id)))
            // `min_by_key` keeps the first of equals, which is the longest.
            .min_by_key(|&(at, _, _)| at)
            .map(|(at, length, id)| (at..at + length, id))
    }

    /// `bos_token`, `eos_token`, `pad_token`, ... with their texts.
    pub(crate) fn named_tokens(&self) -> &BTreeMap<&'static str, String> {
        &self.0.named
    }

    /// `chat_template` of the tokenizer config.
    pub(crate) fn config_template(&self) -> Option<&Value> {
        self.0.chat_template.as_ref()
    }

    /// Text of `chat_template.jinja`.
    pub(crate) fn template_file(&self) -> Option<&str> {
        self.0.chat_template_file.as_deref()
    }
}

fn failed(action: &'static str, problem: String) -> DatasetError {
    TokenizerError::Failed { action, problem }.into()
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// A byte-level tokenizer without merges: one token a byte, and the special tokens given.
    pub(crate) fn byte_tokenizer(special: &[&str], config: &Value) -> Tokenizer {
        Tokenizer::from_files(&TokenizerFiles {
            tokenizer_json: byte_level(special).to_string().into_bytes(),
            tokenizer_config_json: Some(config.to_string().into_bytes()),
            ..TokenizerFiles::default()
        })
        .unwrap()
    }

    pub(crate) fn byte_level(special: &[&str]) -> Value {
        let mut vocab = serde_json::Map::new();
        for (id, letter) in byte_letters().into_iter().enumerate() {
            vocab.insert(letter.to_string(), json!(id));
        }
        let added: Vec<Value> = special
            .iter()
            .enumerate()
            .map(|(index, content)| {
                json!({"id": 256 + index, "content": content, "special": true, "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false})
            })
            .collect();
        let pre = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true,
            "use_regex": true});
        json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 4,
                "strategy": "LongestFirst", "stride": 0},
            "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": pre,
            "post_processor": pre, "decoder": pre,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}})
    }

    /// The letters that byte-level vocabularies spell the bytes 0 to 255 with.
    fn byte_letters() -> Vec<char> {
        let printable = |byte: u32| matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let mut next = 256;
        (0..256_u32)
            .map(|byte| {
                let code = if printable(byte) {
                    byte
                } else {
                    next += 1;
                    next - 1
                };
                char::from_u32(code).unwrap()
            })
            .collect()
    }

    fn chat_tokenizer() -> Tokenizer {
        byte_tokenizer(
            &["<s>", "</s>"],
            &json!({"bos_token": "<s>", "eos_token":
            {"content": "</s>", "special": true}, "add_bos_token": true}),
        )
    }

    #[test]
    fn special_tokens_in_a_text_are_recognised_and_none_added() {
        let tokenizer = chat_tokenizer();
        assert_eq!(tokenizer.encode("<s>a b").unwrap(), [256, 97, 32, 98]);
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(256), Some(257)));
        assert_eq!(tokenizer.stop_ids(), [257]);
        assert!(tokenizer.adds_bos());
        assert!(tokenizer.is_special(257) && !tokenizer.is_special(97));
        assert_eq!(tokenizer.vocab_size(), 258);
        assert_eq!(tokenizer.token_id("</s>"), Some(257));
        assert_eq!(tokenizer.token_text(32).as_deref(), Some("Ġ"));
    }

    #[test]
    fn offsets_keep_the_space_that_a_post_processor_would_trim() {
        let offsets = chat_tokenizer().encode_with_offsets("a é</s>").unwrap();
        let expected = [(97, 0..1), (32, 1..2), (0xc3, 2..4), (0xa9, 2..4), (257, 4..8)];
        assert_eq!(offsets, expected);
    }

    #[test]
    fn the_first_special_token_is_found_and_the_longest_wins() {
        let tokenizer = byte_tokenizer(&["<e>", "<e><e>"], &json!({}));
        assert_eq!(tokenizer.find_special("x<e><e>"), Some((1..7, 257)));
        assert_eq!(tokenizer.find_special("x<e>"), Some((1..4, 256)));
        assert_eq!(tokenizer.find_special("x"), None);
    }

    #[test]
    fn broken_files_are_errors_that_name_the_file() {
        let whole = byte_level(&["<s>"]).to_string();
        let read = |json: &[u8], config: Option<&[u8]>| {
            Tokenizer::from_files(&TokenizerFiles {
                tokenizer_json: json.to_vec(),
                tokenizer_config_json: config.map(<[u8]>::to_vec),
                ..TokenizerFiles::default()
            })
        };
        for length in (0..whole.len()).step_by(97) {
            let error = read(&whole.as_bytes()[..length], None).unwrap_err();
            assert!(error.to_string().contains("`tokenizer.json`"), "{error}");
        }
        let error = read(whole.as_bytes(), Some(b"{\"bos_token\": 3}")).unwrap_err().to_string();
        assert!(error.contains("`bos_token`") && error.contains("a number"), "{error}");
        let error = read(whole.as_bytes(), Some(br#"{"eos_token": "<x>"}"#)).unwrap_err();
        assert_eq!(
            error.to_string(),
            "`eos_token` in `tokenizer_config.json` is `<x>`, which `tokenizer.json` does not have"
        );
        let error = read(whole.as_bytes(), Some(b"[]")).unwrap_err().to_string();
        assert!(error.contains("`tokenizer_config.json`"), "{error}");
    }

    #[test]
    fn ids_of_the_model_config_fill_what_the_tokenizer_config_leaves_open() {
        let mut files = TokenizerFiles {
            tokenizer_json: byte_level(&["<s>", "</s>", "<end>"]).to_string().into_bytes(),
            config_json: Some(br#"{"bos_token_id": 256, "eos_token_id": [257, 258]}"#.to_vec()),
            ..TokenizerFiles::default()
        };
        let tokenizer = Tokenizer::from_files(&files).unwrap();
        assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(256), Some(257)));
        assert_eq!(tokenizer.stop_ids(), [257, 258]);
        files.tokenizer_config_json = Some(br#"{"bos_token": null}"#.to_vec());
        assert_eq!(Tokenizer::from_files(&files).unwrap().bos(), None);
    }

    proptest! {
        #[test]
        fn decode_takes_encode_back(text in any::<String>()) {
            let tokenizer = chat_tokenizer();
            let ids = tokenizer.encode(&text).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids, SpecialTokens::Keep).unwrap(), text);
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0_usize..4000, byte in any::<u8>()) {
            let mut json = byte_level(&["<s>"]).to_string().into_bytes();
            let at = at % json.len();
            json[at] = byte;
            let read = Tokenizer::from_files(
                &TokenizerFiles { tokenizer_json: json, ..TokenizerFiles::default() });
            if let Ok(tokenizer) = read {
                let _ = tokenizer.encode("a text <s> é");
            }
        }
    }
}
