//! Row formats: what the columns of a row mean, and how they become a [`Sample`].

mod alpaca;
mod columns;
mod completion;
mod fill_in_the_middle;
mod messages;
mod sharegpt;
mod text;
mod tokens;

use serde_json::{Map, Value};

pub(crate) use columns::{Columns, Mapping, quoted};

use crate::config::{FormatName, LossOn};
use crate::conversation::Conversation;
use crate::error::RowProblem;

/// One way to lay out a row.
pub(crate) trait DatasetFormat: Sync {
    /// Its name in recipes.
    fn name(&self) -> FormatName;
    /// Columns it needs, by which it is recognised.
    fn required(&self) -> &'static [&'static str];
    /// Columns it reads where they are there.
    fn optional(&self) -> &'static [&'static str] {
        &[]
    }
    /// What its samples need beyond the tokenizer's vocabulary.
    fn needs(&self) -> Needs;
    /// Values of `loss_on` that mean something for it.
    fn loss_on(&self) -> &'static [LossOn] {
        &[LossOn::Assistant, LossOn::LastMessage, LossOn::All]
    }
    /// What the row means.
    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem>;
}

/// What the samples of a format need to become tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Needs {
    ChatTemplate,
    EndOfSequence,
    Sentinels,
    Nothing,
}

/// What a row means, before any token exists.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Sample {
    /// Turns that a chat template renders.
    Conversation(Conversation),
    /// A text without loss, and one with it that follows.
    Completion {
        /// Read only.
        prompt: String,
        /// Learned.
        completion: String,
    },
    /// A text, all of it learned.
    Text(String),
    /// A text that is cut in three, or stays whole.
    Source(String),
    /// A text in three parts.
    FillInTheMiddle {
        /// Its beginning.
        prefix: String,
        /// What is filled in.
        middle: String,
        /// Its end.
        suffix: String,
    },
    /// Tokens as they are.
    Tokens {
        /// Ids.
        token_ids: Vec<u32>,
        /// Ids where they carry loss, else [`crate::IGNORED`].
        labels: Vec<i32>,
    },
}

/// Every format that can be trained on.
///
/// To add one: write `format/<format>.rs`, give it a [`FormatName`], then list it here.
const FORMATS: &[&dyn DatasetFormat] = &[
    &messages::Messages,
    &sharegpt::Sharegpt,
    &alpaca::Alpaca,
    &completion::Completion,
    &text::Text,
    &tokens::Tokens,
    &fill_in_the_middle::FillInTheMiddle,
];

/// Formats that recipes may name and that are refused, with the columns that give them away.
const NOT_AVAILABLE: &[(FormatName, &[&str])] =
    &[(FormatName::Preference, &["chosen", "rejected"])];

/// The format of this name, unless it is one of those to come.
pub(crate) fn by_name(name: FormatName) -> Option<&'static dyn DatasetFormat> {
    FORMATS.iter().find(|format| format.name() == name).copied()
}

/// Names of the formats that work.
pub(crate) fn available() -> String {
    FORMATS.iter().map(|format| format.name().as_str()).collect::<Vec<_>>().join(", ")
}

/// What the columns of a row say about its format.
pub(crate) enum Detected {
    /// Exactly one format fits.
    One(&'static dyn DatasetFormat),
    /// A format that is refused.
    NotAvailable(FormatName),
    /// None fits, or several do: the reason.
    Unclear(String),
}

/// The format whose required columns a row has, `columns` mapped.
pub(crate) fn detect(row: &Map<String, Value>, columns: &Mapping) -> Detected {
    let has = |column: &&str| row.contains_key(columns.name_in_file(column));
    if let Some((name, _)) = NOT_AVAILABLE.iter().find(|(_, columns)| columns.iter().all(has)) {
        return Detected::NotAvailable(*name);
    }
    let fits = |format: &&&dyn DatasetFormat| format.required().iter().all(has);
    let fitting: Vec<_> = FORMATS.iter().filter(fits).collect();
    match fitting.as_slice() {
        [format] => Detected::One(**format),
        [] => Detected::Unclear(format!("no format fits; {}", needs_of(FORMATS))),
        several => {
            let several: Vec<_> = several.iter().map(|format| **format).collect();
            Detected::Unclear(format!("several formats fit; {}", needs_of(&several)))
        }
    }
}

fn needs_of(formats: &[&dyn DatasetFormat]) -> String {
    let need = |format: &&dyn DatasetFormat| {
        format!("`{}` needs {}", format.name().as_str(), quoted(format.required()))
    };
    formats.iter().map(need).collect::<Vec<_>>().join(", ")
}

impl FormatName {
    /// As written in a recipe.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Messages => "messages",
            Self::Sharegpt => "sharegpt",
            Self::Alpaca => "alpaca",
            Self::Completion => "completion",
            Self::Text => "text",
            Self::Tokens => "tokens",
            Self::Preference => "preference",
            Self::FillInTheMiddle => "fill_in_the_middle",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    /// The sample of one row given as JSON, its columns named as the format does.
    pub(crate) fn sample(format: &dyn DatasetFormat, row: &Value) -> Result<Sample, String> {
        let mapping = Mapping::new(&BTreeMap::new());
        let row = row.as_object().unwrap();
        format.sample(&Columns::new(row, &mapping)).map_err(|problem| problem.to_string())
    }

    fn detected(row: &Value) -> String {
        let mapping = Mapping::new(&BTreeMap::new());
        match detect(row.as_object().unwrap(), &mapping) {
            Detected::One(format) => format.name().as_str().to_owned(),
            Detected::NotAvailable(name) => format!("refused {}", name.as_str()),
            Detected::Unclear(reason) => reason,
        }
    }

    #[test]
    fn names_in_recipes_are_those_that_serde_reads() {
        for format in FORMATS {
            assert_eq!(json!(format.name()), json!(format.name().as_str()));
        }
        for (name, _) in NOT_AVAILABLE {
            assert_eq!(json!(name), json!(name.as_str()));
            assert!(by_name(*name).is_none());
        }
    }

    #[test]
    fn columns_tell_the_format() {
        for (row, expected) in [
            (json!({"messages": [], "id": 1}), "messages"),
            (json!({"conversations": []}), "sharegpt"),
            (json!({"instruction": "", "input": "", "output": ""}), "alpaca"),
            (json!({"prompt": "", "completion": ""}), "completion"),
            (json!({"text": ""}), "text"),
            (json!({"input_ids": [], "labels": []}), "tokens"),
            (json!({"prefix": "", "middle": "", "suffix": ""}), "fill_in_the_middle"),
            (json!({"prompt": "", "chosen": "", "rejected": ""}), "refused preference"),
        ] {
            assert_eq!(detected(&row), expected);
        }
    }

    #[test]
    fn unclear_columns_list_what_would_be_needed() {
        let reason = detected(&json!({"question": "", "answer": ""}));
        assert!(
            reason.contains("no format fits") && reason.contains("`completion` needs"),
            "{reason}"
        );
        let reason = detected(&json!({"text": "", "messages": []}));
        assert_eq!(reason, "several formats fit; `messages` needs `messages`, `text` needs `text`");
    }
}
