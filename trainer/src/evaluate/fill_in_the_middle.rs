//! Text between a beginning and an end, as code models fill it in: exact match and edit similarity.

use datasets::{NoSentinels, PartOrder, SentinelIds, Sentinels};
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
    order: PartOrder,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
}

impl FillInTheMiddle {
    fn sentinels(&self, model: &Model) -> Result<SentinelIds, EvaluateError> {
        SentinelIds::of(model.tokenizer, self.sentinels.as_ref()).map_err(|error| match error {
            NoSentinels::Unknown(text) => EvaluateError::definition(
                "sentinels",
                format!("names `{text}`, which the tokenizer does not have"),
            ),
            NoSentinels::OfNoKnownModel => EvaluateError::Model(format!(
                "{error}; name them in `sentinels = {{ prefix, suffix, middle }}` if the model was \
                 trained with others"
            )),
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
        let (mut requests, mut expected) = (Vec::new(), Vec::new());
        for row in &items.rows {
            let prefix = model.tokenizer.encode(&self.prefix.text(row)?)?;
            let suffix = model.tokenizer.encode(&self.suffix.text(row)?)?;
            let mut prompt: Vec<u32> = Vec::new();
            prompt.extend(model.tokenizer.bos().filter(|_| model.tokenizer.adds_bos()));
            prompt.extend(sentinels.prompt(self.order, &prefix, &suffix));
            let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
            requests.push(GenerationRequest { prompt, sampling });
            expected.push(self.middle.text(row)?);
        }
        let mut stop_ids = model.tokenizer.stop_ids();
        stop_ids.extend(sentinels.stop_ids());
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
