//! Fill in the middle: a text cut in three, its end shown before its middle.
//!
//! Whether a text is cut, in which order its parts stand and where the cuts are is drawn from the
//! text itself, so that neither the order of files nor the number of threads matters. The key of a
//! draw is SHA-256 of `"tunesmith/fill-in-the-middle/v1\0"`, the recipe's seed as a 64-bit
//! little-endian integer, and the text's bytes; it seeds `ChaCha` with 8 rounds (block counter and
//! nonce 0), whose output is read as 64-bit little-endian words `w`. The first gives the share
//! `(w >> 11) / 2^53`, below `rate` the text is cut; the second in the same way the order, below
//! `spm_rate` suffix first; the next two give the cuts, each before character
//! `(w * (characters + 1)) >> 64`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::tokenizer::Tokenizer;

const DOMAIN: &[u8] = b"tunesmith/fill-in-the-middle/v1\0";

/// How texts are cut: `[dataset.fill_in_the_middle]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FillInTheMiddleConfig {
    /// Share of the texts that are cut; the others stay as they are.
    #[serde(default = "half")]
    pub rate: f64,
    /// Share of the cut ones whose suffix stands first.
    #[serde(default = "half")]
    pub spm_rate: f64,
    /// The tokens around the parts, where the base has none of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sentinels: Option<Sentinels>,
}

impl Default for FillInTheMiddleConfig {
    fn default() -> Self {
        Self { rate: half(), spm_rate: half(), sentinels: None }
    }
}

fn half() -> f64 {
    0.5
}

/// Texts of the tokens that mark the parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Sentinels {
    /// Before the beginning.
    pub prefix: String,
    /// Before the end.
    pub suffix: String,
    /// Before the middle.
    pub middle: String,
}

/// Sentinels of published models, tried in order.
const KNOWN: &[[&str; 3]] = &[
    // Qwen2.5-Coder, CodeGemma
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite code
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // SantaCoder
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    // DeepSeek-Coder: the hole stands where the middle goes
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    // CodeLlama
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    // Codestral and the like have another order and are not here.
];

/// Ends what Code Llama fills in, in place of end-of-sequence.
const END_OF_INFILLING: &str = "▁<EOT>";

/// Tokenizer and model have no sentinels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSentinels {
    /// None of a published model.
    #[error("the tokenizer has no fill-in-the-middle tokens of a known model")]
    OfNoKnownModel,
    /// One that was named.
    #[error("the tokenizer has no token `{0}`")]
    Unknown(String),
}

/// Ids of the tokens that mark the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentinelIds {
    prefix: u32,
    suffix: u32,
    middle: u32,
    end: Option<u32>,
}

/// Which part stands first.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
pub enum PartOrder {
    /// Prefix, suffix, middle.
    #[default]
    #[serde(rename = "psm")]
    PrefixFirst,
    /// Suffix, prefix, middle.
    #[serde(rename = "spm")]
    SuffixFirst,
}

impl SentinelIds {
    /// Those that are named, else those of a published model that the tokenizer has.
    pub fn of(tokenizer: &Tokenizer, named: Option<&Sentinels>) -> Result<Self, NoSentinels> {
        let id = |text: &str| tokenizer.token_id(text);
        if let Some(Sentinels { prefix, suffix, middle }) = named {
            let known = |text: &String| id(text).ok_or_else(|| NoSentinels::Unknown(text.clone()));
            let (prefix, suffix, middle) = (known(prefix)?, known(suffix)?, known(middle)?);
            return Ok(Self { prefix, suffix, middle, end: tokenizer.eos() });
        }
        let found = KNOWN.iter().find_map(|texts| {
            let [prefix, suffix, middle] = texts.map(id);
            Some((prefix?, suffix?, middle?))
        });
        let (prefix, suffix, middle) = found.ok_or(NoSentinels::OfNoKnownModel)?;
        let end = id(END_OF_INFILLING).or(tokenizer.eos());
        Ok(Self { prefix, suffix, middle, end })
    }

    /// Tokens that a model reads before it fills in the middle; after them comes the middle.
    ///
    /// Suffix first is as `StarCoder` and Code Llama were trained: both sentinels, the suffix, then
    /// the middle's sentinel and the prefix.
    pub fn prompt(&self, order: PartOrder, prefix: &[u32], suffix: &[u32]) -> Vec<u32> {
        match order {
            PartOrder::PrefixFirst => {
                [&[self.prefix], prefix, &[self.suffix], suffix, &[self.middle]].concat()
            }
            PartOrder::SuffixFirst => {
                [&[self.prefix, self.suffix], suffix, &[self.middle], prefix].concat()
            }
        }
    }

    /// Tokens that end the middle, or begin another part.
    pub fn stop_ids(&self) -> Vec<u32> {
        [self.prefix, self.suffix, self.middle].into_iter().chain(self.end).collect()
    }

    /// The token that ends the middle.
    pub(crate) fn end(&self) -> Option<u32> {
        self.end
    }
}

/// A text in three parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    pub(crate) order: PartOrder,
    pub(crate) prefix: &'a str,
    pub(crate) middle: &'a str,
    pub(crate) suffix: &'a str,
}

/// Cuts texts.
#[derive(Debug, Clone)]
pub(crate) struct Cutter {
    pub(crate) ids: SentinelIds,
    pub(crate) config: FillInTheMiddleConfig,
    pub(crate) seed: u64,
}

impl Cutter {
    fn draws(&self, text: &str) -> impl FnMut() -> u64 {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(self.seed.to_le_bytes());
        hash.update(text);
        let mut random = ChaCha8Rng::from_seed(hash.finalize().into());
        move || random.next_u64()
    }

    /// The parts of a text; `None` where it stays whole.
    pub(crate) fn cut<'a>(&self, text: &'a str) -> Option<Parts<'a>> {
        let mut draw = self.draws(text);
        let is_cut = share(draw()) < self.config.rate;
        let order = self.order(draw());
        if !is_cut {
            return None;
        }
        let characters = text.chars().count() as u128;
        let mut place = || ((u128::from(draw()) * (characters + 1)) >> 64) as usize;
        let (one, other) = (place(), place());
        let byte = |place: usize| text.char_indices().nth(place).map_or(text.len(), |(at, _)| at);
        let (first, second) = (byte(one.min(other)), byte(one.max(other)));
        let (prefix, rest) = text.split_at(first);
        let (middle, suffix) = rest.split_at(second - first);
        Some(Parts { order, prefix, middle, suffix })
    }

    /// The order of parts that a row gives by themselves.
    pub(crate) fn order_of(&self, middle: &str) -> PartOrder {
        let mut draw = self.draws(middle);
        let _ = draw();
        self.order(draw())
    }

    fn order(&self, word: u64) -> PartOrder {
        if share(word) < self.config.spm_rate {
            PartOrder::SuffixFirst
        } else {
            PartOrder::PrefixFirst
        }
    }
}

/// A word as a number in [0, 1).
fn share(word: u64) -> f64 {
    (word >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cutter(rate: f64, spm_rate: f64) -> Cutter {
        let ids = SentinelIds { prefix: 1, suffix: 2, middle: 3, end: Some(0) };
        Cutter { ids, config: FillInTheMiddleConfig { rate, spm_rate, sentinels: None }, seed: 7 }
    }

    #[test]
    fn orders_are_those_of_published_models() {
        let ids = cutter(1.0, 0.0).ids;
        assert_eq!(ids.prompt(PartOrder::PrefixFirst, &[10], &[20]), [1, 10, 2, 20, 3]);
        assert_eq!(ids.prompt(PartOrder::SuffixFirst, &[10], &[20]), [1, 2, 20, 3, 10]);
    }

    #[test]
    fn parts_make_the_text_again_and_rates_are_kept() {
        let texts: Vec<String> =
            (0..2000).map(|i| format!("fn größe_{i}() -> u32 {{ {i} }}\n")).collect();
        let cutter = cutter(0.7, 0.25);
        let cuts: Vec<_> = texts.iter().map(|text| cutter.cut(text)).collect();
        for (text, parts) in texts.iter().zip(&cuts) {
            if let Some(Parts { prefix, middle, suffix, .. }) = parts {
                assert_eq!(&format!("{prefix}{middle}{suffix}"), text);
            }
        }
        let cut = cuts.iter().flatten().count() as f64;
        let suffix_first =
            cuts.iter().flatten().filter(|parts| parts.order == PartOrder::SuffixFirst).count();
        assert!((cut / 2000.0 - 0.7).abs() < 0.04, "{cut}");
        assert!((suffix_first as f64 / cut - 0.25).abs() < 0.05, "{suffix_first}");
        assert_eq!(cutter.cut(&texts[3]), cuts[3]);
    }

    #[test]
    fn rates_of_one_and_zero_are_exact() {
        assert!((0..100).all(|i| cutter(1.0, 0.5).cut(&i.to_string()).is_some()));
        assert!((0..100).all(|i| cutter(0.0, 0.5).cut(&i.to_string()).is_none()));
    }
}
