//! A Jinja engine set up as `transformers` sets up its own.
//!
//! Blocks are trimmed, `break` and `continue` work, values have the methods that Python's have,
//! and `raise_exception`, `strftime_now` and `tojson` are there. Work is bounded, because a
//! template is a program from a download.
//!
//! `strftime_now` always gives 26 July 2024, the date that Llama 3's own template falls back to:
//! rows that hold the date of the day they were made could not be made again.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::{json, python};

/// Marks in a rendering for the borders of a `{% generation %}` block: noncharacters, which no
/// text holds.
pub(super) const GENERATION_START: char = '\u{fdd0}';
/// See [`GENERATION_START`].
pub(super) const GENERATION_END: char = '\u{fdd1}';

const TEMPLATE: &str = "chat_template";
const START: &str = "generation_start";
const END: &str = "generation_end";

/// Instructions a rendering may take; a conversation of a thousand turns takes a tenth of it.
const MOST_INSTRUCTIONS: u64 = 2_000_000;

/// Longest template; the longest known ones have 20 KB.
pub(super) const MOST_BYTES: usize = 1 << 18;

/// Most characters in one tag that are not in a text: they bound how deep expressions nest.
const MOST_IN_A_TAG: usize = 4096;

/// Stack for parsing and rendering: deep enough for whatever [`MOST_BYTES`] and
/// [`MOST_INSTRUCTIONS`] can nest. Only what is used of it takes memory.
const STACK_BYTES: usize = 1 << 28;

/// Runs `work` where nesting cannot overflow the stack.
pub(crate) fn with_room<T>(work: impl FnOnce() -> T) -> T {
    stacker::grow(STACK_BYTES, work)
}

/// A parsed template.
#[derive(Debug)]
pub(super) struct Engine {
    environment: Environment<'static>,
    pub(super) marks_generation: bool,
}

impl Engine {
    /// Parses a template; the error names the line.
    pub(super) fn new(source: &str) -> Result<Self, String> {
        check_source(source)?;
        with_room(|| Self::parse(source))
    }

    fn parse(source: &str) -> Result<Self, String> {
        let mut environment = Environment::new();
        let mut syntax = SyntaxConfig::builder();
        syntax.trim_blocks(true).lstrip_blocks(true);
        environment.set_syntax(syntax.build().map_err(describe)?);
        environment.set_fuel(Some(MOST_INSTRUCTIONS));
        environment.set_unknown_method_callback(python::method);
        environment.add_filter("tojson", json::tojson);
        environment.add_filter("trim", python::trim);
        environment.add_filter("string", python::string);
        environment.add_test("sequence", python::is_sequence);
        environment.set_formatter(python::write);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        let marked = mark_generation(source);
        let marks_generation = marked.is_some();
        if marks_generation {
            environment
                .add_template_owned(START, GENERATION_START.to_string())
                .map_err(describe)?;
            environment.add_template_owned(END, GENERATION_END.to_string()).map_err(describe)?;
        }
        let source = marked.unwrap_or_else(|| source.to_owned());
        environment.add_template_owned(TEMPLATE, source).map_err(describe)?;
        Ok(Self { environment, marks_generation })
    }

    /// Renders; the error names the line. Deep values need [`with_room`] around this.
    pub(super) fn render(&self, context: Value) -> Result<String, String> {
        let template = self.environment.get_template(TEMPLATE).map_err(describe)?;
        template.render(context).map_err(describe)
    }
}

/// Refuses templates that are too large to be parsed.
pub(crate) fn check_source(source: &str) -> Result<(), String> {
    if source.len() > MOST_BYTES {
        return Err(format!("it is longer than {MOST_BYTES} bytes, the most a template may have"));
    }
    match overlong_tag(source) {
        None => Ok(()),
        Some(line) => Err(format!(
            "a tag holds more than {MOST_IN_A_TAG} characters besides its texts (line {line} of \
             the template)"
        )),
    }
}

/// Line of the first tag with more than [`MOST_IN_A_TAG`] characters outside quotes.
fn overlong_tag(source: &str) -> Option<usize> {
    let mut from = 0;
    while let Some(at) = source.get(from..)?.find(['{']).map(|at| from + at) {
        let tag = source.get(at + 1..)?;
        from = at + 1;
        let (end, quotes) = match tag.chars().next() {
            Some('{') => ("}}", ['\'', '"'].as_slice()),
            Some('%') => ("%}", ['\'', '"'].as_slice()),
            Some('#') => ("#}", [].as_slice()),
            _ => continue,
        };
        let (length, counted) = tag_length(tag.get(1..)?, end, quotes);
        if !quotes.is_empty() && counted > MOST_IN_A_TAG {
            return Some(source.get(..at)?.matches('\n').count() + 1);
        }
        from += 1 + length;
    }
    None
}

/// Bytes of a tag up to its end, and its characters outside quotes.
fn tag_length(tag: &str, end: &str, quotes: &[char]) -> (usize, usize) {
    let mut quote = None;
    let mut escaped = false;
    let mut counted = 0;
    for (at, letter) in tag.char_indices() {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if letter == '\\' => escaped = true,
            Some(open) if letter == open => quote = None,
            Some(_) => {}
            None if tag.get(at..).is_some_and(|rest| rest.starts_with(end)) => {
                return (at, counted);
            }
            None => {
                quote = quotes.contains(&letter).then_some(letter);
                counted += 1;
            }
        }
    }
    (tag.len(), counted)
}

#[expect(clippy::needless_pass_by_value, reason = "the shape that `map_err` wants")]
pub(crate) fn describe(error: Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "it does not come to an end".to_owned(),
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("{what} (line {line} of the template)"),
        None => what,
    }
}

#[expect(clippy::needless_pass_by_value, reason = "the shape of a template function")]
fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("the template says: {message}")))
}

/// `strftime` of 26 July 2024, a Friday, at midnight.
#[expect(clippy::needless_pass_by_value, reason = "the shape of a template function")]
fn strftime_now(format: String) -> Result<String, Error> {
    let mut text = String::new();
    let mut letters = format.chars();
    while let Some(letter) = letters.next() {
        if letter != '%' {
            text.push(letter);
            continue;
        }
        let code: String = match letters.next() {
            Some('-') => ['-'].into_iter().chain(letters.next()).collect(),
            code => code.into_iter().collect(),
        };
        text.push_str(date_part(&code).ok_or_else(|| {
            let problem = format!("`strftime_now` does not know `%{code}`");
            Error::new(ErrorKind::InvalidOperation, problem)
        })?);
    }
    Ok(text)
}

fn date_part(code: &str) -> Option<&'static str> {
    Some(match code {
        "Y" => "2024",
        "y" => "24",
        "m" => "07",
        "-m" => "7",
        "d" | "e" | "-d" => "26",
        "B" => "July",
        "b" | "h" => "Jul",
        "A" => "Friday",
        "a" => "Fri",
        "j" | "-j" => "208",
        "u" | "w" => "5",
        "H" | "M" | "S" => "00",
        "-H" | "-M" | "-S" => "0",
        "I" | "-I" => "12",
        "p" => "AM",
        "F" => "2024-07-26",
        "T" | "X" => "00:00:00",
        "%" => "%",
        _ => return None,
    })
}

/// Replaces `{% generation %}` and `{% endgeneration %}` by what puts marks into the output, with
/// the same whitespace control; `None` where there are none.
///
/// What such a block sets is not seen after it, as in `transformers`, so it becomes a `with`.
fn mark_generation(source: &str) -> Option<String> {
    let mut marked = String::new();
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        marked.push_str(before);
        let Some((left, word, right, after)) = split_tag(tag) else {
            marked.push_str("{%");
            rest = tag.get(2..).unwrap_or_default();
            continue;
        };
        let parts = match word {
            "generation" => ["{%", left, " include \"", START, "\" %}{% with ", right, "%}"],
            _ => ["{%", left, " endwith %}{% include \"", END, "\" ", right, "%}"],
        };
        marked.extend(parts);
        rest = after;
    }
    marked.push_str(rest);
    (marked.contains(START)).then_some(marked)
}

/// Splits `{%- generation -%}...` into its whitespace signs, its word and what follows.
fn split_tag(tag: &str) -> Option<(&str, &str, &str, &str)> {
    let inside = tag.strip_prefix("{%")?;
    let (inside, after) = inside.split_at(inside.find("%}")?);
    let after = after.get(2..)?;
    let left = sign(inside.chars().next());
    let inside = inside.get(left.len()..)?;
    let right = sign(inside.chars().next_back());
    let word = inside.get(..inside.len() - right.len())?.trim();
    matches!(word, "generation" | "endgeneration").then_some((left, word, right, after))
}

fn sign(letter: Option<char>) -> &'static str {
    match letter {
        Some('-') => "-",
        Some('+') => "+",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> Result<String, String> {
        Engine::new(source)?.render(context! { none_value => (), words => ["a", "b"] })
    }

    #[test]
    fn generation_blocks_leave_marks_and_keep_their_whitespace_control() {
        let source = "a\n{%- generation %}\n b{% set x = 1 %}{%endgeneration-%}\nc{{ x }}";
        assert_eq!(render(source).unwrap(), "a\u{fdd0} b\u{fdd1}c");
        assert!(!Engine::new("{% if true %}{% endif %}").unwrap().marks_generation);
    }

    #[test]
    fn the_date_never_changes() {
        assert_eq!(render("{{ strftime_now('%d %b %Y') }}").unwrap(), "26 Jul 2024");
        assert_eq!(render("{{ strftime_now('%Y-%m-%d') }}").unwrap(), "2024-07-26");
        let error = render("{{ strftime_now('%Q') }}").unwrap_err();
        assert_eq!(error, "`strftime_now` does not know `%Q` (line 1 of the template)");
    }

    #[test]
    fn errors_name_the_line_and_what_the_template_says() {
        let error = render("a\n{{ raise_exception('no tools') }}").unwrap_err();
        assert_eq!(error, "the template says: no tools (line 2 of the template)");
        assert!(render("{% if %}").unwrap_err().contains("line 1"));
        let endless =
            "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}";
        assert!(render(endless).unwrap_err().contains("does not come to an end"));
    }
}
