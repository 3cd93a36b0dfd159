//! How byte-level vocabularies split text before merging, by the name GGUF gives the way.

use serde_json::{Value, json};

use super::Metadata;
use crate::weights::WeightsError;

const PRE: &str = "tokenizer.ggml.pre";

/// One way of splitting.
pub(super) struct PreTokenizer {
    /// Values of `tokenizer.ggml.pre` that mean it.
    names: &'static [&'static str],
    steps: &'static [Step],
    pub(super) merges: Merges,
    /// Whether a text alone gets a BOS where the metadata does not say.
    pub(super) adds_bos: bool,
    /// Whether text is composed (Unicode NFC) first.
    pub(super) normalizer: Normalizer,
}

/// Which words are built by merges.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Merges {
    Always,
    /// A word that is a token of its own is that token, whatever the merges would make of it.
    UnlessWholeToken,
}

#[derive(Clone, Copy)]
pub(super) enum Normalizer {
    None,
    Nfc,
}

#[derive(Clone, Copy)]
enum Step {
    /// Every digit is a word.
    Digits,
    /// Each match is a word, and so is what lies between matches.
    Split(&'static str),
    /// GPT-2's own words.
    Gpt2,
}

const LLAMA_3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN_2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// `DeepSeek` V3 and R1.
const DEEPSEEK_3: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^"##,
    "\r\n",
    r"\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[",
    "\r\n",
    r"]*|\s*[",
    "\r\n",
    r"]+|\s+(?!\S)|\s+",
);
const CHINESE_AND_JAPANESE: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
const LINE_BREAKS: &str = "[\r\n]";
/// `DeepSeek` V2 and before: one range of scripts without case.
const CASELESS: &str = "[\u{4e00}-\u{9fa5}\u{800}-\u{4e00}\u{ac00}-\u{d7ff}]+";
const DEEPSEEK_PUNCTUATION: &str = concat!(
    r"\s?[!-/:-~",
    "\u{ff01}-\u{ff0f}\u{ff1a}-\u{ff5e}\u{2018}-\u{201f}\u{3000}-\u{3002}]+",
);
/// Letters with case, as numbers: some look like others.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[A-Za-z",
    "\u{b5}\u{c0}-\u{d6}\u{d8}-\u{f6}\u{f8}-\u{1ba}\u{1bc}-\u{1bf}\u{1c4}-\u{293}",
    "\u{295}-\u{2af}\u{370}-\u{373}\u{376}\u{377}\u{37b}-\u{37d}\u{37f}\u{386}",
    "\u{388}-\u{38a}\u{38c}\u{38e}-\u{3a1}\u{3a3}-\u{3f5}\u{3f7}-\u{481}",
    "\u{48a}-\u{52f}\u{531}-\u{556}\u{10a0}-\u{10c5}\u{13a0}-\u{13f5}",
    "\u{13f8}-\u{13fd}\u{1c90}-\u{1cba}\u{1cbd}-\u{1cbf}\u{1d00}-\u{1d2b}",
    "\u{1d6b}-\u{1d77}\u{1d79}-\u{1d9a}\u{1e00}-\u{1f15}\u{1f18}-\u{1f1d}",
    "\u{1f20}-\u{1f45}\u{1f48}-\u{1f4d}\u{1f50}-\u{1f57}\u{1f59}\u{1f5b}\u{1f5d}",
    "\u{1f5f}-\u{1f7d}\u{1f80}-\u{1fb4}\u{1fb6}-\u{1fbc}\u{1fbe}\u{1fc2}-\u{1fc4}",
    "\u{1fc6}-\u{1fcc}\u{1fd0}-\u{1fd3}\u{1fd6}-\u{1fdb}\u{1fe0}-\u{1fec}",
    "\u{1ff2}-\u{1ff4}\u{1ff6}-\u{1ffc}\u{2102}\u{2107}\u{210a}-\u{2113}\u{2115}",
    "\u{2119}-\u{211d}\u{2124}\u{2126}\u{2128}\u{212a}-\u{212d}\u{212f}-\u{2134}",
    "\u{2139}\u{213c}-\u{213f}\u{2145}-\u{2149}\u{214e}\u{2183}\u{2184}",
    "\u{2c00}-\u{2c7b}\u{2c7e}-\u{2ce4}\u{2ceb}-\u{2cee}\u{2cf2}\u{2cf3}",
    "\u{a640}-\u{a66d}\u{a680}-\u{a69b}\u{a722}-\u{a76f}\u{a771}-\u{a787}",
    "\u{a78b}-\u{a78e}\u{ab70}-\u{abbf}\u{fb00}-\u{fb06}\u{fb13}-\u{fb17}",
    "\u{ff21}-\u{ff3a}\u{ff41}-\u{ff5a}\u{10400}-\u{1044f}\u{104b0}-\u{104d3}",
    "\u{104d8}-\u{104fb}\u{10c80}-\u{10cb2}\u{10cc0}-\u{10cf2}\u{118a0}-\u{118df}",
    "\u{1e900}-\u{1e943}",
    "]+",
);

/// Every known way. To add one: its names and steps, as the model's own `tokenizer.json` has them.
const PRE_TOKENIZERS: &[PreTokenizer] = &[
    PreTokenizer {
        names: &["gpt-2", "phi-2", "olmo", "mpt", "jais"],
        steps: &[Step::Gpt2],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"],
        steps: &[Step::Digits, Step::Gpt2],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
        ],
        steps: &[Step::Split(LLAMA_3)],
        merges: Merges::UnlessWholeToken,
        adds_bos: true,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["dbrx", "smaug-bpe"],
        steps: &[Step::Split(LLAMA_3)],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen"],
        steps: &[Step::Split(QWEN_2)],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::Nfc,
    },
    PreTokenizer {
        names: &["tekken"],
        steps: &[Step::Split(TEKKEN)],
        merges: Merges::UnlessWholeToken,
        adds_bos: true,
        normalizer: Normalizer::None,
    },
    // Phi-4-mini.
    PreTokenizer {
        names: &["gpt-4o"],
        steps: &[Step::Split(GPT_4O)],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["llama4"],
        steps: &[Step::Split(GPT_4O)],
        merges: Merges::UnlessWholeToken,
        adds_bos: true,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["deepseek-v3"],
        steps: &[
            Step::Split(r"\p{N}{1,3}"),
            Step::Split(CHINESE_AND_JAPANESE),
            Step::Split(DEEPSEEK_3),
        ],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["deepseek-llm"],
        steps: &[
            Step::Split(LINE_BREAKS),
            Step::Split(DEEPSEEK_LETTERS),
            Step::Split(DEEPSEEK_PUNCTUATION),
            Step::Split(r"\s+$"),
            Step::Split(CASELESS),
            Step::Digits,
        ],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["deepseek-coder"],
        steps: &[
            Step::Split(LINE_BREAKS),
            Step::Split(r"\s?\p{L}+"),
            Step::Split(r"\s?\p{P}+"),
            Step::Split(CASELESS),
            Step::Digits,
        ],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
    PreTokenizer {
        names: &["default"],
        steps: &[
            Step::Split(r"[\p{P}\$\+<=>\^~\|]+"),
            Step::Split(GPT_2),
            Step::Split(r"\p{N}+"),
            Step::Split("[0-9][0-9][0-9]"),
        ],
        merges: Merges::Always,
        adds_bos: false,
        normalizer: Normalizer::None,
    },
];

/// The way the file names.
pub(super) fn find(metadata: &Metadata) -> Result<&'static PreTokenizer, WeightsError> {
    let known = || {
        let names: Vec<&str> = PRE_TOKENIZERS.iter().flat_map(|row| row.names).copied().collect();
        names.join(", ")
    };
    let Some(name) = metadata.string(PRE)? else {
        // Readers that guess here give other ids than the model was trained with.
        return Err(metadata.unsupported(
            format!("missing metadata `{PRE}`"),
            "a file from before 2024-05",
            format!("files that name one of {}", known()),
        ));
    };
    let found = PRE_TOKENIZERS.iter().find(|row| row.names.contains(&name));
    found.ok_or_else(|| metadata.unsupported(format!("metadata `{PRE}`"), name, known()))
}

/// The name of the way that a `tokenizer.json` splits text.
///
/// Ways that differ in nothing but the name have several; the first is as good as the others.
pub(in crate::weights::gguf) fn recognise(tokenizer: &Value) -> Option<&'static str> {
    let steps = normal_steps(&tokenizer["pre_tokenizer"]);
    let whole_tokens = tokenizer["model"]["ignore_merges"] == Value::Bool(true);
    let composes = tokenizer["normalizer"]["type"] == "NFC";
    let fits = |row: &&PreTokenizer| {
        normal_steps(&row.to_json()) == steps
            && (row.merges == Merges::UnlessWholeToken) == whole_tokens
            && matches!(row.normalizer, Normalizer::Nfc) == composes
    };
    PRE_TOKENIZERS.iter().find(fits).and_then(|row| row.names.first().copied())
}

/// Every name that [`recognise`] can give.
pub(in crate::weights::gguf) fn known_names() -> String {
    let first = PRE_TOKENIZERS.iter().filter_map(|row| row.names.first().copied());
    first.collect::<Vec<_>>().join(", ")
}

/// The steps without what makes no difference to the words: offsets, and whether a single step
/// stands in a sequence.
fn normal_steps(pre_tokenizer: &Value) -> Vec<Value> {
    let steps = match pre_tokenizer["pretokenizers"].as_array() {
        Some(steps) => steps.as_slice(),
        None => std::slice::from_ref(pre_tokenizer),
    };
    let normal = |step: &Value| match step["type"].as_str() {
        Some("ByteLevel") => {
            let words = step["use_regex"].as_bool().unwrap_or(true);
            json!(["ByteLevel", words, step["add_prefix_space"].as_bool().unwrap_or(false)])
        }
        Some("Split") => json!(["Split", step["pattern"], step["behavior"], step["invert"]]),
        _ => step.clone(),
    };
    steps.iter().map(normal).collect()
}

impl PreTokenizer {
    pub(super) fn to_json(&self) -> Value {
        let mut steps: Vec<Value> = self.steps.iter().map(|step| step.to_json()).collect();
        if !self.steps.iter().any(|step| matches!(step, Step::Gpt2)) {
            steps.push(byte_level(Words::Given));
        }
        match steps.as_slice() {
            [only] => only.clone(),
            _ => json!({"type": "Sequence", "pretokenizers": steps}),
        }
    }
}

impl Step {
    fn to_json(self) -> Value {
        match self {
            Self::Digits => json!({"type": "Digits", "individual_digits": true}),
            Self::Split(regex) => json!({
                "type": "Split",
                "pattern": {"Regex": regex},
                "behavior": "Isolated",
                "invert": false,
            }),
            Self::Gpt2 => byte_level(Words::Gpt2),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Given,
    Gpt2,
}

fn byte_level(words: Words) -> Value {
    json!({
        "type": "ByteLevel",
        "add_prefix_space": false,
        "trim_offsets": true,
        "use_regex": words == Words::Gpt2,
    })
}
