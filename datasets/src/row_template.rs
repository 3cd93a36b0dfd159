//! Texts and values made from the columns of a row, as the task files of lm-eval make them.
//!
//! A template is the name of a column, which stands for the column itself, or Jinja text. Unlike
//! chat templates, tags leave white space alone and an unknown name is an error.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior, Value};
use serde_json::{Map, Value as Json};

use crate::chat_template::{engine, json, python};

/// A template that cannot be parsed, or a row it cannot be rendered with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct RowTemplateError(pub String);

/// Instructions that one row may take.
const MOST_INSTRUCTIONS: u64 = 1_000_000;

/// A template over the columns of a row.
#[derive(Debug, Clone)]
pub struct RowTemplate {
    source: String,
    /// The expression alone, where the template is nothing but `{{ expression }}`.
    expression: Option<String>,
    environment: Arc<Environment<'static>>,
}

impl RowTemplate {
    /// Parses a template.
    pub fn new(source: &str) -> Result<Self, RowTemplateError> {
        engine::check_source(source).map_err(RowTemplateError)?;
        let environment = engine::with_room(|| environment(source))
            .map_err(|error| RowTemplateError(engine::describe(error)))?;
        let expression = expression(source).map(|inner| format!("({inner}) | tojson"));
        Ok(Self { source: source.to_owned(), expression, environment: Arc::new(environment) })
    }

    /// As it was written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is the name of one of these columns.
    pub fn is_column(&self, fields: &Map<String, Json>) -> bool {
        fields.contains_key(&self.source)
    }

    /// The text for a row.
    pub fn text(&self, fields: &Map<String, Json>) -> Result<String, RowTemplateError> {
        match fields.get(&self.source) {
            Some(Json::String(text)) => Ok(text.clone()),
            Some(other) => Ok(python::text(&json::value(other))),
            None => self.render(fields),
        }
    }

    /// The value for a row: a column, or what an expression gives; of any other template, a text.
    pub fn value(&self, fields: &Map<String, Json>) -> Result<Json, RowTemplateError> {
        if let Some(column) = fields.get(&self.source) {
            return Ok(column.clone());
        }
        let Some(expression) = &self.expression else {
            return Ok(Json::String(self.render(fields)?));
        };
        let written = engine::with_room(|| {
            let expression = self.environment.compile_expression(expression)?;
            expression.eval(context(fields))
        });
        let written = written.map_err(|error| self.failed(error))?;
        serde_json::from_str(written.as_str().unwrap_or_default())
            .map_err(|_| RowTemplateError(format!("`{}` gives no value", self.source)))
    }

    fn render(&self, fields: &Map<String, Json>) -> Result<String, RowTemplateError> {
        let rendered =
            engine::with_room(|| self.environment.get_template(NAME)?.render(context(fields)));
        rendered.map_err(|error| self.failed(error))
    }

    fn failed(&self, error: Error) -> RowTemplateError {
        let text: String = self.source.chars().take(60).collect();
        RowTemplateError(format!("template `{text}`: {}", engine::describe(error)))
    }
}

const NAME: &str = "row";

fn environment(source: &str) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let mut syntax = SyntaxConfig::builder();
    syntax.keep_trailing_newline(true);
    environment.set_syntax(syntax.build()?);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(MOST_INSTRUCTIONS));
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", json::tojson);
    environment.add_filter("trim", python::trim);
    environment.add_filter("string", python::string);
    environment.add_filter("regex_replace", regex_replace);
    environment.set_formatter(python::write);
    environment.add_template_owned(NAME, source.to_owned())?;
    Ok(environment)
}

fn context(fields: &Map<String, Json>) -> Value {
    Value::from_pairs(fields.iter().map(|(name, field)| (name.as_str(), json::value(field))))
}

/// The inside of a template that is one `{{ ... }}` and nothing else.
fn expression(source: &str) -> Option<&str> {
    let inner = source.trim().strip_prefix("{{")?.strip_suffix("}}")?;
    let inner = inner.trim_start_matches('-').trim_end_matches('-');
    (!inner.contains("{{") && !inner.contains("}}") && !inner.contains("{%")).then_some(inner)
}

/// Patterns that were used before; templates of a task use few of them, on every row.
static PATTERNS: Mutex<BTreeMap<String, Arc<fancy_regex::Regex>>> = Mutex::new(BTreeMap::new());

/// The filter `regex_replace(pattern, replacement)`: Python's `re.sub`.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template filter")]
fn regex_replace(text: String, pattern: String, replacement: String) -> Result<String, Error> {
    let failed = |problem: String| {
        Error::new(ErrorKind::InvalidOperation, format!("regex_replace: {problem}"))
    };
    let mut patterns = PATTERNS.lock().unwrap_or_else(PoisonError::into_inner);
    let regex = match patterns.get(&pattern) {
        Some(regex) => Arc::clone(regex),
        None => {
            let regex = fancy_regex::Regex::new(&pattern).map_err(|e| failed(e.to_string()))?;
            let regex = Arc::new(regex);
            patterns.insert(pattern, Arc::clone(&regex));
            regex
        }
    };
    drop(patterns);
    let replacement = python_replacement(&replacement);
    let replaced = regex.try_replacen(&text, 0, replacement.as_str());
    replaced.map(Cow::into_owned).map_err(|error| failed(error.to_string()))
}

/// `\\1` and `\\g<name>` as `${1}` and `${name}`; a dollar sign stands for itself.
fn python_replacement(replacement: &str) -> String {
    let mut text = String::new();
    let mut rest = replacement;
    while let Some(letter) = rest.chars().next() {
        let after = &rest[letter.len_utf8()..];
        rest = after;
        match (letter, after.chars().next()) {
            ('$', _) => text.push_str("$$"),
            ('\\', Some(digit)) if digit.is_ascii_digit() => {
                text.extend(["${", &after[..1], "}"]);
                rest = &after[1..];
            }
            ('\\', Some('g')) if after.starts_with("g<") && after.contains('>') => {
                let end = after.find('>').unwrap_or(2);
                text.extend(["${", &after[2..end], "}"]);
                rest = &after[end + 1..];
            }
            ('\\', Some('n')) => {
                text.push('\n');
                rest = &after[1..];
            }
            ('\\', Some('\\')) => {
                text.push('\\');
                rest = &after[1..];
            }
            _ => text.push(letter),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn row() -> Map<String, Json> {
        let row = json!({
            "question": " Why? ", "number": 3, "answerKey": "B",
            "choices": {"text": ["x", "y"], "label": ["A", "B"]},
            "sentence": "The cat_ sat _ down.", "endings": [" a [b] c", "d  e"], "list": [1.5, "q"],
        });
        row.as_object().unwrap().clone()
    }

    fn text(source: &str) -> String {
        RowTemplate::new(source).unwrap().text(&row()).unwrap()
    }

    fn value(source: &str) -> Json {
        RowTemplate::new(source).unwrap().value(&row()).unwrap()
    }

    #[test]
    fn texts_keep_their_white_space() {
        assert_eq!(
            text("Q: {{question.strip()}}\n{% if number %}\nA:{% endif %}\n"),
            "Q: Why?\n\nA:\n"
        );
        assert_eq!(text("{{question}}"), " Why? ");
        assert_eq!(text("question"), " Why? ");
        assert_eq!(text("no column"), "no column");
        assert_eq!(text("list"), "[1.5, 'q']");
    }

    #[test]
    fn expressions_give_values() {
        assert_eq!(value("{{choices.text}}"), json!(["x", "y"]));
        assert_eq!(value("{{choices.label.index(answerKey)}}"), json!(1));
        assert_eq!(value("number"), json!(3));
        assert_eq!(value("{{number}} apples"), json!("3 apples"));
        assert_eq!(value("{{sentence.split('_')[0]}}"), json!("The cat"));
        assert_eq!(value("{{sentence[sentence.index('_')+1:].strip()}}"), json!("sat _ down."));
    }

    #[test]
    fn patterns_replace_as_in_python() {
        assert_eq!(
            value(
                "{{ endings | map('regex_replace', '\\[.*?\\]', '') | map('replace', '  ', ' ') | list }}"
            ),
            json!([" a c", "d e"])
        );
        assert_eq!(text("{{ question | regex_replace('(W)(h)', '\\\\2$\\\\1') }}"), " h$Wy? ");
    }

    #[test]
    fn unknown_names_and_endless_loops_are_errors_that_name_the_template() {
        let error = RowTemplate::new("{{ nothing }}").unwrap().text(&row()).unwrap_err();
        assert!(error.0.contains("`{{ nothing }}`") && error.0.contains("undefined"), "{error}");
        let error = RowTemplate::new("{{ choices.label.index('Z') }}").unwrap();
        assert!(error.value(&row()).unwrap_err().0.contains("index"));
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(RowTemplate::new(endless).unwrap().text(&row()).is_err());
        assert!(RowTemplate::new("{% if %}").is_err());
    }
}
