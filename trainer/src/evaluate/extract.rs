//! What of a generated text is compared, and how: lm-eval's filters and its `exact_match`.

use fancy_regex::Regex;
use serde::Deserialize;

use super::encode::is_space;
use super::error::EvaluateError;

/// A pattern of a task definition.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Pattern(Regex);

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Regex::new(&text).map(Self).map_err(|error| format!("the pattern `{text}`: {error}"))
    }
}

/// Which of several matches counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Occurrence {
    /// The first.
    #[default]
    First,
    /// The last.
    Last,
}

/// One way to find the answer in a text.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Extraction {
    /// Its name, shown with the figure.
    pub(super) name: String,
    /// Its first group that took part is the answer, or the whole match where it has no group.
    pub(super) pattern: Pattern,
    /// Which match.
    #[serde(default)]
    pub(super) take: Occurrence,
}

impl Extraction {
    /// The answer in a text; `None` where the pattern finds none.
    pub(super) fn apply(&self, text: &str) -> Result<Option<String>, EvaluateError> {
        let mut found = None;
        for captures in self.pattern.0.captures_iter(text) {
            let captures = captures.map_err(|error| {
                EvaluateError::definition(
                    "extract.pattern",
                    format!("gave up on an answer: {error}"),
                )
            })?;
            let groups = || captures.iter().skip(1).flatten().map(|group| group.as_str());
            found = Some(match captures.len() {
                1 => captures.get(0).map(|whole| whole.as_str().to_owned()),
                2 => Some(groups().next().unwrap_or_default().to_owned()),
                _ => groups().find(|group| !group.is_empty()).map(str::to_owned),
            });
            if self.take == Occurrence::First {
                break;
            }
        }
        Ok(found.flatten().map(|text| text.trim_matches(is_space).to_owned()))
    }
}

/// What does not count when an answer is compared.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "independent switches, named as lm-eval's")]
pub(super) struct Comparison {
    /// Removed from both first, in order.
    #[serde(default)]
    pub(super) ignore_patterns: Vec<Pattern>,
    /// Upper and lower case are the same.
    #[serde(default)]
    pub(super) ignore_case: bool,
    /// ASCII punctuation is left out.
    #[serde(default)]
    pub(super) ignore_punctuation: bool,
    /// ASCII digits are left out.
    #[serde(default)]
    pub(super) ignore_numbers: bool,
    /// White space at both ends is left out.
    #[serde(default)]
    pub(super) strip: bool,
}

impl Comparison {
    /// A text without what does not count.
    pub(super) fn normalised(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for Pattern(pattern) in &self.ignore_patterns {
            text = pattern.replace_all(&text, "").into_owned();
        }
        if self.strip {
            text = text.trim_matches(is_space).to_owned();
        }
        if self.ignore_case {
            text = text.to_lowercase();
        }
        text.retain(|letter| {
            !(self.ignore_punctuation && letter.is_ascii_punctuation()
                || self.ignore_numbers && letter.is_ascii_digit())
        });
        text
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn extraction(pattern: &str, take: &str) -> Extraction {
        let config = json!({"name": "x", "pattern": pattern, "take": take});
        serde_json::from_value(config).unwrap()
    }

    #[test]
    fn gsm8k_is_extracted_strictly_and_flexibly() {
        let strict = extraction(r"#### (\-?[0-9\.\,]+)", "first");
        let flexible = extraction(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", "last");
        let text = "He has 3 + 4 = 7 and $1,200.\n#### 1,200\n";
        assert_eq!(strict.apply(text).unwrap().as_deref(), Some("1,200"));
        assert_eq!(flexible.apply("so 12 or 7").unwrap().as_deref(), Some("7"));
        assert_eq!(flexible.apply("pays $18.").unwrap().as_deref(), Some("$18."));
        assert_eq!(strict.apply("none").unwrap(), None);
    }

    #[test]
    fn comparison_leaves_out_what_does_not_count() {
        let config =
            json!({"ignore_case": true, "ignore_patterns": [",", r"\$", r"(?s).*#### ", r"\.$"]});
        let gsm8k: Comparison = serde_json::from_value(config).unwrap();
        assert_eq!(gsm8k.normalised("a\nb #### $1,200."), "1200");
        let all =
            Comparison { ignore_punctuation: true, ignore_numbers: true, strip: true, ..gsm8k };
        assert_eq!(all.normalised(" A!b1 "), "ab");
        let bad = serde_json::from_value::<Pattern>(json!("(")).unwrap_err().to_string();
        assert!(bad.contains("`(`"), "{bad}");
    }
}
