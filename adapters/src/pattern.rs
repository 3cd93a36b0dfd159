//! Values for single modules by name pattern, matched as PEFT matches them.
//!
//! `rank_pattern` and `alpha_pattern` map a key to a value. A key applies to a module where
//! Python's `re.match(rf"(.*\.)?({key})$", module)` does: the key is the whole module path, or
//! its end after a dot, or a regular expression for either. The first key that matches wins.

use regex::{Regex, RegexBuilder};

/// One pattern may not compile to more than this many bytes.
const COMPILED_LIMIT_BYTES: usize = 1 << 20;

/// Values by name pattern, in the order in which they are tried.
#[derive(Debug, Clone)]
pub struct ModulePatterns<T> {
    entries: Vec<Entry<T>>,
}

#[derive(Debug, Clone)]
struct Entry<T> {
    key: String,
    matcher: Matcher,
    value: T,
}

#[derive(Debug, Clone)]
enum Matcher {
    /// A key of name characters and dots, which needs no regular expression. A dot matches any
    /// one character, as it does in the expression the key stands for.
    Plain,
    /// A module's name, of which the key is the escaped form.
    Name(String),
    Expression(Regex),
}

/// A key that is no regular expression this program can match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadPattern {
    /// The key as written.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl<T> Default for ModulePatterns<T> {
    fn default() -> Self {
        Self { entries: Vec::new() }
    }
}

impl<T: PartialEq> PartialEq for ModulePatterns<T> {
    fn eq(&self, other: &Self) -> bool {
        self.entries.len() == other.entries.len()
            && self
                .entries
                .iter()
                .zip(&other.entries)
                .all(|(a, b)| a.key == b.key && a.value == b.value)
    }
}

impl<T: Copy> ModulePatterns<T> {
    /// Prepares the patterns; every key that cannot be matched is in the error.
    pub fn new(entries: impl IntoIterator<Item = (String, T)>) -> Result<Self, Vec<BadPattern>> {
        let mut bad = Vec::new();
        let mut good = Vec::new();
        for (key, value) in entries {
            match Matcher::of(&key) {
                Ok(matcher) => good.push(Entry { key, matcher, value }),
                Err(reason) => bad.push(BadPattern { key, reason }),
            }
        }
        if bad.is_empty() { Ok(Self { entries: good }) } else { Err(bad) }
    }

    /// Patterns of modules by their names, whatever characters these hold.
    pub fn of_names(entries: impl IntoIterator<Item = (String, T)>) -> Self {
        let entry = |(name, value): (String, T)| {
            if is_plain(&name) {
                return Entry { key: name, matcher: Matcher::Plain, value };
            }
            Entry { key: regex::escape(&name), matcher: Matcher::Name(name), value }
        };
        Self { entries: entries.into_iter().map(entry).collect() }
    }

    /// These, and others for what they do not match.
    #[must_use]
    pub fn followed_by(mut self, others: &Self) -> Self {
        self.entries.extend(others.entries.iter().cloned());
        self
    }

    /// The value of the first key that matches `module`.
    pub fn get(&self, module: &str) -> Option<T> {
        self.entries.iter().find(|entry| entry.matches(module)).map(|entry| entry.value)
    }

    /// Keys and values in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, T)> {
        self.entries.iter().map(|entry| (entry.key.as_str(), entry.value))
    }

    /// The same patterns with other values.
    #[must_use]
    pub fn map(&self, change: impl Fn(T) -> T) -> Self {
        let entry = |entry: &Entry<T>| Entry { value: change(entry.value), ..entry.clone() };
        Self { entries: self.entries.iter().map(entry).collect() }
    }

    /// Whether there is no pattern.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Keys that match none of `modules`.
    pub fn unmatched(&self, modules: &[&str]) -> Vec<String> {
        let idle = |entry: &&Entry<T>| !modules.iter().any(|module| entry.matches(module));
        self.entries.iter().filter(idle).map(|entry| entry.key.clone()).collect()
    }
}

impl<T> Entry<T> {
    fn matches(&self, module: &str) -> bool {
        match &self.matcher {
            Matcher::Plain => matches_plain(&self.key, module),
            Matcher::Name(name) => names_module(name, module),
            Matcher::Expression(regex) => regex.is_match(module),
        }
    }
}

impl Matcher {
    fn of(key: &str) -> Result<Self, String> {
        if is_plain(key) {
            return Ok(Self::Plain);
        }
        RegexBuilder::new(&format!(r"\A(?:(.*\.)?({key})$)"))
            .size_limit(COMPILED_LIMIT_BYTES)
            .build()
            .map(Self::Expression)
            .map_err(|error| explain(&error))
    }
}

fn explain(error: &regex::Error) -> String {
    let text = error.to_string();
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("").trim();
    last.strip_prefix("error: ").unwrap_or(last).to_owned()
}

fn is_plain(key: &str) -> bool {
    key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.'))
}

fn matches_plain(key: &str, module: &str) -> bool {
    let mut rest = module.chars().rev();
    let ends_alike =
        key.chars().rev().all(|wanted| rest.next().is_some_and(|c| wanted == '.' || wanted == c));
    ends_alike && matches!(rest.next(), None | Some('.'))
}

/// Whether `entry` names `module` as PEFT's lists do: the whole path, or its end after a dot.
pub(crate) fn names_module(entry: &str, module: &str) -> bool {
    module.strip_suffix(entry).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn matches(key: &str, module: &str) -> bool {
        ModulePatterns::new([(key.to_owned(), 1)]).unwrap().get(module).is_some()
    }

    #[test]
    fn keys_match_as_python_re_match_does() {
        // Expected values are those of `re.match(rf"(.*\.)?({key})$", module)`.
        let q = "model.layers.0.self_attn.q_proj";
        for (key, module, expected) in [
            ("q_proj", q, true),
            ("self_attn.q_proj", q, true),
            (q, q, true),
            ("proj", q, false),
            ("_proj", q, false),
            ("attn.q_proj", q, false),
            ("model.layers.1.mlp.up_proj", "model.layers.11.mlp.up_proj", false),
            ("q.proj", q, true),
            (r"^model\.layers\.0\.self_attn\.q_proj", q, true),
            (r"model\.layers\.\d+\.self_attn\.(q|k)_proj", q, true),
            (r".*layers\.[1-9].*q_proj", q, false),
            (r".*q_proj", q, true),
            ("q_proj|k_proj", q, true),
            (r"layers\.0\..*", q, true),
            ("", q, false),
            ("lm_head", "lm_head", true),
        ] {
            assert_eq!(matches(key, module), expected, "{key} on {module}");
        }
    }

    #[test]
    fn the_first_matching_key_wins() {
        let patterns = [("q_proj".to_owned(), 4), ("layers.0.self_attn.q_proj".to_owned(), 8)];
        let patterns = ModulePatterns::new(patterns).unwrap();
        assert_eq!(patterns.get("model.layers.0.self_attn.q_proj"), Some(4));
        assert_eq!(patterns.unmatched(&["a.k_proj"]).len(), 2);
    }

    #[test]
    fn a_key_that_is_no_expression_is_named() {
        let bad = ModulePatterns::new([("(?=x)q".to_owned(), 1), ("q[".to_owned(), 2)]);
        let bad = bad.unwrap_err();
        assert_eq!(bad.iter().map(|b| b.key.as_str()).collect::<Vec<_>>(), ["(?=x)q", "q["]);
        assert!(bad[0].reason.contains("look-around"), "{}", bad[0].reason);
    }

    #[test]
    fn lists_name_whole_paths_or_ends_after_a_dot() {
        assert!(names_module("q_proj", "a.q_proj"));
        assert!(names_module("a.q_proj", "a.q_proj"));
        assert!(!names_module("proj", "a.q_proj"));
        assert!(!names_module("", "a.q_proj"));
    }

    proptest! {
        #[test]
        fn plain_keys_match_as_their_expression_does(key in "[a-c.]{1,6}", module in "[a-c.]{1,9}") {
            let expression = Regex::new(&format!(r"\A(?:(.*\.)?({key})$)")).unwrap();
            prop_assert_eq!(matches(&key, &module), expression.is_match(&module));
        }
    }

    #[test]
    fn names_match_themselves_whatever_they_hold() {
        let names = ["layers.0.q_proj", "odd[0.(v", "odd.*"];
        let patterns =
            ModulePatterns::of_names(names.iter().zip(1..).map(|(n, v)| ((*n).into(), v)));
        for (name, value) in names.iter().zip(1..) {
            assert_eq!(patterns.get(&format!("model.{name}")), Some(value));
        }
        assert_eq!(patterns.get("model.odd.k"), None);
        // What a file says of them is read back as the same.
        let keys = patterns.iter().map(|(key, value)| (key.to_owned(), value));
        let read = ModulePatterns::new(keys).unwrap();
        assert_eq!(read.get("model.odd[0.(v"), Some(2));
        let both = ModulePatterns::new([("k".to_owned(), 9)]).unwrap();
        assert_eq!(patterns.followed_by(&both).get("a.k"), Some(9));
    }
}
