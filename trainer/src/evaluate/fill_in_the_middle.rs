//! Text between a beginning and an end, as code models fill it in: exact match and edit similarity.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::encode::is_space;
use super::error::EvaluateError;
use super::generation::{GenerationRequest, Limits, generate_all};
use super::prompted::{answer_tokens, check_max_tokens};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};
use crate::generate::Sampling;

pub(super) const KIND: Kind = Kind { name: "fill_in_the_middle", read: read::<FillInTheMiddle> };

/// Tokens that mark beginning, end and middle.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sentinels {
    prefix: String,
    suffix: String,
    middle: String,
}

/// Sentinels of published models, tried in order.
const KNOWN: &[[&str; 3]] = &[
    // Qwen2.5-Coder, CodeGemma
    ["<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"],
    // StarCoder, Granite code, SmolLM
    ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"],
    // SantaCoder
    ["<fim-prefix>", "<fim-suffix>", "<fim-middle>"],
    // DeepSeek-Coder: the hole stands where the middle goes
    ["<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"],
    // CodeLlama
    ["▁<PRE>", "▁<SUF>", "▁<MID>"],
    // Codestral and the like have another order and are not here.
];

/// Whether the end stands after the beginning or before it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
enum Order {
    /// Prefix, suffix, middle.
    #[default]
    #[serde(rename = "psm")]
    PrefixFirst,
    /// Suffix, prefix, middle.
    #[serde(rename = "spm")]
    SuffixFirst,
}

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FillInTheMiddle {
    prefix: Template,
    suffix: Template,
    /// What belongs between them.
    middle: Template,
    /// The tokens around them, where they are not those of a published model.
    sentinels: Option<Sentinels>,
    #[serde(default)]
    order: Order,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
}

impl FillInTheMiddle {
    /// Ids of the sentinels.
    fn sentinels(&self, model: &Model) -> Result<[u32; 3], EvaluateError> {
        let id = |text: &str| model.tokenizer.token_id(text);
        if let Some(Sentinels { prefix, suffix, middle }) = &self.sentinels {
            let unknown = [prefix, suffix, middle].into_iter().find(|text| id(text).is_none());
            return match (unknown, id(prefix), id(suffix), id(middle)) {
                (None, Some(prefix), Some(suffix), Some(middle)) => Ok([prefix, suffix, middle]),
                (unknown, ..) => {
                    let unknown = unknown.map_or("", String::as_str);
                    let problem = format!("names `{unknown}`, which the tokenizer does not have");
                    Err(EvaluateError::definition("sentinels", problem))
                }
            };
        }
        let found = KNOWN.iter().find_map(|texts| {
            let [prefix, suffix, middle] = texts.map(id);
            Some([prefix?, suffix?, middle?])
        });
        found.ok_or_else(|| {
            EvaluateError::Model(
                "the tokenizer has no fill-in-the-middle tokens of a known model; name them in \
                 `sentinels = { prefix, suffix, middle }` if the model was trained with others"
                    .into(),
            )
        })
    }
}

impl Task for FillInTheMiddle {
    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        check_max_tokens(self.max_tokens)?;
        let sentinels = self.sentinels(model)?;
        let [before, after, middle] = sentinels;
        let (mut requests, mut expected) = (Vec::new(), Vec::new());
        for row in &items.rows {
            let prefix = model.tokenizer.encode(&self.prefix.text(row)?)?;
            let suffix = model.tokenizer.encode(&self.suffix.text(row)?)?;
            let mut prompt: Vec<u32> = Vec::new();
            prompt.extend(model.tokenizer.bos().filter(|_| model.tokenizer.adds_bos()));
            match self.order {
                Order::PrefixFirst => {
                    prompt.push(before);
                    prompt.extend(prefix);
                    prompt.push(after);
                    prompt.extend(suffix);
                    prompt.push(middle);
                }
                // As StarCoder and CodeLlama were trained: both sentinels, the end, then the
                // middle's sentinel and the beginning.
                Order::SuffixFirst => {
                    prompt.extend([before, after]);
                    prompt.extend(suffix);
                    prompt.push(middle);
                    prompt.extend(prefix);
                }
            }
            let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
            requests.push(GenerationRequest { prompt, sampling });
            expected.push(self.middle.text(row)?);
        }
        let mut stop_ids = model.tokenizer.stop_ids();
        stop_ids.extend(sentinels);
        let limits = Limits { max_tokens: self.max_tokens, stop: self.stop.clone(), stop_ids };
        let generated = generate_all(model.decoder, model.tokenizer, &requests, &limits, done)?;
        let pairs = || generated.iter().map(|one| one.text.as_str()).zip(expected.iter());
        let trimmed = |text: &str| text.trim_matches(is_space).to_owned();
        let exact =
            pairs().map(|(text, right)| f64::from(u8::from(trimmed(text) == trimmed(right))));
        let similar = pairs().map(|(text, right)| strsim::normalized_levenshtein(text, right));
        let samples = pairs()
            .enumerate()
            .map(|(item, (text, right))| json!({"item": item, "generated": text, "answer": right}));
        Ok(Measured {
            metrics: vec![
                Metric::mean("exact_match", exact),
                Metric::mean("edit_similarity", similar),
            ],
            samples: samples.collect(),
            ..Measured::default()
        })
    }
}
