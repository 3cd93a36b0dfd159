//! A `Modelfile` for Ollama: the GGUF file, the chat template in Go's template language, where turns
//! stop, and the licence.

use datasets::{ChatTemplate, Frame, SystemPlace, Tokenizer, TurnParts};
use serde_json::Value;

/// What a Modelfile is made of.
pub(crate) struct ModelfileFacts<'a> {
    /// The GGUF file beside it.
    pub(crate) gguf: &'a str,
    /// The model's tokenizer.
    pub(crate) tokenizer: &'a Tokenizer,
    /// The model's chat template.
    pub(crate) template: Option<&'a ChatTemplate>,
    /// `generation_config.json`.
    pub(crate) generation_config: Option<&'a Value>,
    /// Texts of licences.
    pub(crate) licences: &'a [String],
}

/// The text, and what could not be said in it.
pub(crate) fn modelfile(facts: &ModelfileFacts) -> (String, Option<String>) {
    let mut lines = vec![format!("FROM ./{}", facts.gguf)];
    let bos = facts.tokenizer.bos().filter(|_| facts.tokenizer.adds_bos());
    let bos = bos.and_then(|id| facts.tokenizer.token_text(id));
    let parts = facts.template.and_then(|template| template.turn_parts(bos.as_deref()));
    let problem = match (facts.template, &parts) {
        (None, _) => Some("the model has no chat template, so the Modelfile has none"),
        (Some(_), None) => Some(
            "the chat template does more than frame turns, which Ollama's templates are made \
             for: the Modelfile has none, and Ollama will look for one it knows",
        ),
        _ => None,
    };
    lines.extend(parts.iter().map(|parts| format!("TEMPLATE \"\"\"{}\"\"\"", go_template(parts))));
    let stops = stops(facts.tokenizer, parts.as_ref());
    lines.extend(stops.iter().map(|stop| format!("PARAMETER stop {}", quoted(stop))));
    lines.extend(sampling(facts.generation_config));
    // Three quotes would end the text.
    let plain = |text: &String| text.replace("\"\"\"", "'''");
    lines.extend(facts.licences.iter().map(|text| format!("LICENSE \"\"\"{}\"\"\"", plain(text))));
    (lines.join("\n") + "\n", problem.map(str::to_owned))
}

/// The parts as a Go template over `.Messages`. Texts are string constants: they keep their white
/// space, and braces in them mean nothing.
fn go_template(parts: &TurnParts) -> String {
    let mut pieces = vec![constant(&parts.head)];
    if let (Some(default), SystemPlace::Turn(frame)) = (&parts.default_system, &parts.system) {
        let whole = constant(&format!("{}{default}{}", frame.prefix, frame.suffix));
        pieces.push(format!("{{{{- if not .System }}}}{whole}{{{{- end }}}}"));
    }
    pieces.push("{{- range $i, $_ := .Messages }}".to_owned());
    let (mut word, mut inner) = ("if", String::new());
    match &parts.system {
        SystemPlace::Turn(frame) => {
            pieces.push(format!("{{{{- if eq .Role \"system\" }}}}{}", framed(frame, "")));
            word = "else if";
        }
        // A system message is the first of the messages, so the first user turn is one of two.
        SystemPlace::FirstUser(frame) => {
            inner = format!(
                "{{{{- if and $.System (le $i 1) }}}}{}{{{{- $.System }}}}{}{{{{- end }}}}",
                constant(&frame.prefix),
                constant(&frame.suffix)
            );
        }
        SystemPlace::None => {}
    }
    pieces.push(format!("{{{{- {word} eq .Role \"user\" }}}}{}", framed(&parts.user, &inner)));
    let assistant = framed(&parts.assistant, "");
    pieces.push(format!("{{{{- else if eq .Role \"assistant\" }}}}{assistant}"));
    pieces.push("{{- end }}{{- end }}".to_owned());
    pieces.push(constant(&parts.generation));
    pieces.concat()
}

fn framed(frame: &Frame, inner: &str) -> String {
    format!("{}{inner}{{{{- .Content }}}}{}", constant(&frame.prefix), constant(&frame.suffix))
}

fn constant(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{{{{- {} }}}}", quoted(text)) }
}

/// A string constant of Go, and of a Modelfile.
fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

/// What ends a turn: the tokens that generation stops at, and what the template writes behind an
/// answer.
fn stops(tokenizer: &Tokenizer, parts: Option<&TurnParts>) -> Vec<String> {
    let ids = tokenizer.stop_ids();
    let mut stops: Vec<String> =
        ids.into_iter().filter_map(|id| tokenizer.token_text(id)).collect();
    let behind = parts.map(|parts| parts.assistant.suffix.trim().to_owned());
    stops.extend(behind.filter(|text| tokenizer.token_id(text).is_some()));
    stops.sort_unstable();
    stops.dedup();
    stops
}

/// The sampling that the model's authors recommend, where they do.
fn sampling(config: Option<&Value>) -> Vec<String> {
    let Some(config) = config.filter(|config| config["do_sample"] == Value::Bool(true)) else {
        return Vec::new();
    };
    let keys = ["temperature", "top_k", "top_p", "min_p"].into_iter();
    let line = |key: &str| Some(format!("PARAMETER {key} {}", config.get(key)?.as_f64()?));
    keys.filter_map(line).collect()
}

#[cfg(test)]
mod tests {
    use datasets::{BUILTIN_TEMPLATES, Conversation, GenerationPrompt, Message};
    use gtmpl::Value as Go;

    use super::*;

    const TURNS: [(&str, &str); 4] = [
        ("system", "Be {{ brief }}."),
        ("user", "Say \"hi\"\n"),
        ("assistant", "Hi"),
        ("user", "Bye"),
    ];

    fn tokenizer() -> Tokenizer {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny_llama");
        let read = |name: &str| std::fs::read(folder.join(name)).ok();
        Tokenizer::from_files(&datasets::TokenizerFiles {
            tokenizer_json: read("tokenizer.json").unwrap(),
            tokenizer_config_json: read("tokenizer_config.json"),
            ..datasets::TokenizerFiles::default()
        })
        .unwrap()
    }

    /// What Ollama would send, less the begin-of-sequence token.
    fn run(template: &str, turns: &[(&str, &str)]) -> String {
        let text = |text: &str| Go::String(text.to_owned());
        let message = |(role, content): &(&str, &str)| {
            let pairs = [("Role", text(role)), ("Content", text(content))];
            Go::Object(pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
        };
        let system = turns.iter().find(|turn| turn.0 == "system").map_or("", |turn| turn.1);
        let context = [
            ("Messages", Go::Array(turns.iter().map(message).collect())),
            ("System", text(system)),
        ];
        let context = context.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        gtmpl::template(template, Go::Object(context)).unwrap()
    }

    #[test]
    fn go_templates_write_what_the_builtin_templates_write() {
        let tokenizer = tokenizer();
        for builtin in BUILTIN_TEMPLATES {
            let Ok(template) = ChatTemplate::named_or_file(builtin.name, &tokenizer) else {
                panic!("{}", builtin.name)
            };
            let parts = template.turn_parts(None).unwrap();
            let go = go_template(&parts);
            for turns in [&TURNS[..], &TURNS[1..], &TURNS[..2], &TURNS[1..2]] {
                let trimmed: Vec<_> =
                    turns.iter().map(|(role, text)| (*role, text.trim())).collect();
                let messages = trimmed.iter().map(|(role, text)| Message::new(*role, *text));
                let conversation = Conversation::new(messages.collect());
                let expected = template.render(&conversation, GenerationPrompt::Add).unwrap();
                assert_eq!(run(&go, &trimmed), expected, "{}", builtin.name);
            }
        }
    }

    #[test]
    fn a_modelfile_names_file_template_stops_sampling_and_licence() {
        let tokenizer = tokenizer();
        let template = ChatTemplate::named_or_file("chatml", &tokenizer).unwrap();
        let config = serde_json::json!({"do_sample": true, "temperature": 0.6, "top_p": 0.95});
        let licences = vec!["Do as you \"\"\"like\"\"\".".to_owned()];
        let mut facts = ModelfileFacts {
            gguf: "model-q8_0.gguf",
            tokenizer: &tokenizer,
            template: Some(&template),
            generation_config: Some(&config),
            licences: &licences,
        };
        let (text, problem) = modelfile(&facts);
        assert_eq!(problem, None);
        insta::assert_snapshot!(text);
        facts.template = None;
        let (text, problem) = modelfile(&facts);
        assert!(!text.contains("TEMPLATE") && problem.unwrap().contains("no chat template"));
    }
}
