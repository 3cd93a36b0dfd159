//! Whether a model goes on with training rows word for word (Carlini et al. 2022, arXiv
//! 2202.07646): it reads the beginning of a row and the next tokens are compared.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::encode::Encoder;
use super::error::EvaluateError;
use super::generation::{GenerationRequest, Limits, generate_all};
use super::statistics::{Aggregate, Better};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};
use crate::base_model::shared;
use crate::generate::Sampling;

pub(super) const KIND: Kind = Kind { name: "memorisation", read: read::<Memorisation> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Memorisation {
    /// A training row as text.
    text: Template,
    /// Tokens that the model reads.
    #[serde(default = "fifty")]
    prefix_tokens: usize,
    /// Tokens that it must give.
    #[serde(default = "fifty")]
    suffix_tokens: usize,
}

fn fifty() -> usize {
    50
}

impl Task for Memorisation {
    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        if self.prefix_tokens == 0 || self.suffix_tokens == 0 {
            let problem = "and `suffix_tokens` must be above 0";
            return Err(EvaluateError::definition("prefix_tokens", problem));
        }
        let encoder = Encoder::new(model.tokenizer, model.decoder)?;
        let (mut requests, mut suffixes, mut rows) = (Vec::new(), Vec::new(), Vec::new());
        for (index, row) in items.rows.iter().enumerate() {
            let ids = encoder.encode(&self.text.text(row)?)?;
            let whole = self.prefix_tokens + self.suffix_tokens;
            // Rows that are too short have nothing to compare; they are counted.
            if let Some(ids) = ids.get(..whole) {
                let (prompt, suffix) = ids.split_at(self.prefix_tokens);
                let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 };
                requests.push(GenerationRequest { prompt: prompt.to_vec(), sampling });
                suffixes.push(suffix.to_vec());
                rows.push(index);
            }
        }
        if requests.is_empty() {
            return Err(EvaluateError::definition(
                "prefix_tokens",
                "and `suffix_tokens` are together more than any row has",
            ));
        }
        let limits =
            Limits { max_tokens: self.suffix_tokens, stop: Vec::new(), stop_ids: Vec::new() };
        let generated = generate_all(model.decoder, model.tokenizer, &requests, &limits, done)?;
        let alike: Vec<usize> = generated
            .iter()
            .zip(&suffixes)
            .map(|(one, suffix)| shared(&one.token_ids, suffix))
            .collect();
        let lower = |name: &str, value: &dyn Fn(usize) -> f64| Metric {
            name: name.to_owned(),
            aggregate: Aggregate::Mean,
            better: Better::Lower,
            items: alike.iter().map(|&alike| vec![value(alike)]).collect(),
        };
        let all = self.suffix_tokens;
        let samples = rows.iter().zip(&generated).zip(&alike);
        done(items.rows.len() as u64);
        Ok(Measured {
            metrics: vec![
                lower("memorised", &|alike| f64::from(u8::from(alike == all))),
                lower("tokens_alike", &|alike| alike as f64),
            ],
            counts: [("too_short".to_owned(), (items.rows.len() - rows.len()) as u64)].into(),
            samples: samples
                .map(|((row, one), alike)| json!({"item": row, "generated": one.text, "tokens_alike": alike}))
                .collect(),
            ..Measured::default()
        })
    }
}
