//! How often a model ends its answer by itself: a tune that has not learnt to stop talks on.

use serde::Deserialize;
use serde_json::json;

use super::definition::read;
use super::error::EvaluateError;
use super::generation::Ended;
use super::prompted::{Answering, Asking, answer_tokens, ask};
use super::statistics::{Aggregate, Better};
use super::template::Template;
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "stop_rate", read: read::<StopRate> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct StopRate {
    description: Option<Template>,
    prompt: Template,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f64,
}

impl Task for StopRate {
    fn can_chat(&self) -> bool {
        true
    }

    fn run(
        &self,
        model: &Model,
        items: &Items,
        done: &mut dyn FnMut(u64),
    ) -> Result<Measured, EvaluateError> {
        let asking = Asking {
            description: self.description.as_ref(),
            few_shot: None,
            target_delimiter: "",
            example: &|_| Ok((String::new(), String::new())),
        };
        let (max_tokens, temperature) = (self.max_tokens, self.temperature);
        let answering = Answering { max_tokens, stop: &[], temperature };
        let (prompts, generated) = ask(model, items, (&asking, &self.prompt), &answering, done)?;
        let stopped = |ending| f64::from(u8::from(ending == Ended::StopToken));
        let rate = Metric::mean("stop_rate", generated.iter().map(|one| stopped(one.ending)));
        let tokens = Metric {
            name: "tokens_per_answer".to_owned(),
            aggregate: Aggregate::Mean,
            better: Better::Lower,
            items: generated.iter().map(|one| vec![one.token_ids.len() as f64]).collect(),
        };
        let sample = |(index, one): (usize, &super::Generated)| {
            json!({"item": index, "prompt": prompts[index], "generated": one.text,
                "stopped": one.ending == Ended::StopToken})
        };
        let samples = generated.iter().enumerate().map(sample).collect();
        Ok(Measured { metrics: vec![rate, tokens], samples, ..Measured::default() })
    }
}
