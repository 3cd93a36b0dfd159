//! Whether what is asked stood in the training data: a score on rows that a model was trained on
//! says little.
//!
//! Texts are compared as words of letters and digits in lower case. A row overlaps where 13 words
//! in a row stand in the training data (the measure of GPT-3's report, arXiv 2005.14165); it is
//! there as a whole where one of its texts of at least [`LEAST_WORDS`] words is.

use std::collections::{HashMap, HashSet};

use datasets::SourceRow;
use serde_json::{Map, Value};

/// Words that must stand together.
const GRAM: usize = 13;

/// Words of the shortest text that counts as found: shorter ones stand everywhere.
const LEAST_WORDS: usize = 5;

/// Rows that are asked, and which of them the training data was found to hold.
#[derive(Debug, Default)]
pub struct Contamination {
    grams: HashMap<u64, Vec<usize>>,
    texts: HashMap<u64, Vec<usize>>,
    overlapping: HashSet<usize>,
    whole: HashSet<usize>,
}

impl Contamination {
    /// Looks for these rows.
    pub fn new(rows: &[SourceRow]) -> Self {
        let mut sought = Self::default();
        for (index, row) in rows.iter().enumerate() {
            for_each_text(&row.fields, &mut |words| {
                let remember = |map: &mut HashMap<u64, Vec<usize>>, hash| {
                    let rows = map.entry(hash).or_default();
                    if rows.last() != Some(&index) {
                        rows.push(index);
                    }
                };
                for gram in words.windows(GRAM) {
                    remember(&mut sought.grams, combined(gram));
                }
                if words.len() >= LEAST_WORDS {
                    remember(&mut sought.texts, combined(words));
                }
            });
        }
        sought
    }

    /// Looks through a training row.
    pub fn look_through(&mut self, fields: &Map<String, Value>) {
        let Self { grams, texts, overlapping, whole } = self;
        for_each_text(fields, &mut |words| {
            for gram in words.windows(GRAM) {
                overlapping.extend(grams.get(&combined(gram)).into_iter().flatten());
            }
            whole.extend(texts.get(&combined(words)).into_iter().flatten());
        });
    }

    /// Rows that share 13 words in a row with the training data.
    pub fn overlapping(&self) -> u64 {
        self.overlapping.len() as u64
    }

    /// Rows of which a whole text stands in the training data.
    pub fn whole(&self) -> u64 {
        self.whole.len() as u64
    }
}

/// Calls `take` with the hashed words of every text in a row, however deep it stands.
fn for_each_text(fields: &Map<String, Value>, take: &mut dyn FnMut(&[u64])) {
    fields.values().for_each(|value| for_each_text_of(value, take));
}

fn for_each_text_of(value: &Value, take: &mut dyn FnMut(&[u64])) {
    match value {
        Value::String(text) => take(&words(text)),
        Value::Array(values) => values.iter().for_each(|value| for_each_text_of(value, take)),
        Value::Object(fields) => for_each_text(fields, take),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn words(text: &str) -> Vec<u64> {
    let lower = text.to_lowercase();
    let words = lower.split(|letter: char| !letter.is_alphanumeric());
    words.filter(|word| !word.is_empty()).map(|word| hash(word.bytes())).collect()
}

/// FNV-1a: texts are not chosen by an adversary, and 64 bits keep chance out.
fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn combined(words: &[u64]) -> u64 {
    hash(words.iter().flat_map(|word| word.to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use datasets::Place;
    use serde_json::json;

    use super::*;

    fn row(fields: &Value) -> SourceRow {
        let place = Place { path: "a".into(), line: 1 };
        SourceRow { place, fields: fields.as_object().unwrap().clone() }
    }

    #[test]
    fn overlaps_are_found_whatever_case_punctuation_and_nesting() {
        let long = "One two three four five six seven eight nine ten eleven twelve thirteen more.";
        let rows = [
            row(&json!({"question": long})),
            row(&json!({"question": "Where does the bear live?", "choices": {"text": ["here"]}})),
            row(&json!({"question": "Where is it?"})),
        ];
        let mut sought = Contamination::new(&rows);
        let other = json!({"text": "unrelated words that nobody asks for"});
        sought.look_through(other.as_object().unwrap());
        assert_eq!((sought.overlapping(), sought.whole()), (0, 0));
        let training = json!({"messages": [
            {"content": format!("xxx {} yyy", long.to_uppercase().replace(' ', ", "))},
            {"content": "where does the BEAR live"},
            {"content": "Where is it?"},
        ]});
        sought.look_through(training.as_object().unwrap());
        assert_eq!((sought.overlapping(), sought.whole()), (1, 1));
    }
}
