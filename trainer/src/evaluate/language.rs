//! Whether a model answers in the language that is asked for.

use serde::Deserialize;
use serde_json::json;
use whatlang::Lang;

use super::definition::read;
use super::error::EvaluateError;
use super::prompted::{Answering, Asking, answer_tokens, ask};
use super::template::{Template, failed};
use super::{Items, Kind, Measured, Metric, Model, Task};

pub(super) const KIND: Kind = Kind { name: "language", read: read::<Language> };

/// Definition of such a task.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Language {
    description: Option<Template>,
    prompt: Template,
    /// ISO 639-3 code of the language asked for (`fra`), or a column of such codes.
    language: Template,
    #[serde(default)]
    stop: Vec<String>,
    #[serde(default = "answer_tokens")]
    max_tokens: usize,
    #[serde(default)]
    temperature: f64,
}

impl Task for Language {
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
        let mut expected = Vec::new();
        for row in &items.rows {
            let code = self.language.text(row)?;
            let language = Lang::from_code(&code).ok_or_else(|| {
                failed(row, "`language` is no ISO 639-3 code of a language that can be told")
            })?;
            expected.push(language);
        }
        let (max_tokens, temperature) = (self.max_tokens, self.temperature);
        let answering = Answering { max_tokens, stop: &self.stop, temperature };
        let (prompts, generated) = ask(model, items, (&asking, &self.prompt), &answering, done)?;
        let found: Vec<Option<Lang>> =
            generated.iter().map(|one| whatlang::detect_lang(&one.text)).collect();
        let right = found.iter().zip(&expected);
        let right = right.map(|(found, expected)| f64::from(u8::from(*found == Some(*expected))));
        let unknown = found.iter().filter(|found| found.is_none()).count() as u64;
        let samples = (0..generated.len()).map(|item| {
            json!({"item": item, "prompt": prompts[item], "generated": generated[item].text,
                "language": found[item].map(|language| language.code()), "asked": expected[item].code()})
        });
        Ok(Measured {
            metrics: vec![Metric::mean("in_language", right)],
            counts: [("language_not_found".to_owned(), unknown)].into(),
            samples: samples.collect(),
            ..Measured::default()
        })
    }
}
