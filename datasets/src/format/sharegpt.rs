//! `{"conversations": [{"from", "value"}], "system", "tools"}`.
//!
//! Speakers become roles: `system` stays; `human` and `user` are `user`; `gpt`, `assistant`,
//! `model`, `chatgpt` and `bing` are `assistant`; `function_call` is an `assistant` turn that calls
//! tools, its value the JSON of one call or of a list of them; `observation`, `tool`,
//! `function` and `function_response` are `tool`. A `system` column comes before the turns.

use serde_json::{Map, Value, json};

use super::columns::{Columns, quoted, wrong_type};
use super::{DatasetFormat, Needs, Sample, messages};
use crate::config::FormatName;
use crate::conversation::{Conversation, Message};
use crate::error::RowProblem;

/// Turns with `from` and `value`.
pub(super) struct Sharegpt;

const TURNS: &str = "a list of turns `{\"from\": ..., \"value\": ...}`";

const SPEAKERS: &str = "one of `system`, `human`, `user`, `gpt`, `assistant`, `model`, `chatgpt`, \
                        `bing`, `function_call`, `observation`, `tool`, `function`, `function_response`";

impl DatasetFormat for Sharegpt {
    fn name(&self) -> FormatName {
        FormatName::Sharegpt
    }

    fn required(&self) -> &'static [&'static str] {
        &["conversations"]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["system", "tools"]
    }

    fn needs(&self) -> Needs {
        Needs::ChatTemplate
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        let name = row.name_in_file("conversations");
        let turns = row.list("conversations", TURNS)?;
        if turns.is_empty() {
            return Err(row.wrong_type("conversations", &Value::Array(Vec::new()), TURNS));
        }
        let system = row.optional_text("system")?.filter(|text| !text.is_empty());
        let mut conversation: Vec<_> =
            system.map(|text| Message::new("system", text)).into_iter().collect();
        for (index, turn) in turns.iter().enumerate() {
            conversation.push(message(&format!("{name}[{index}]"), turn)?);
        }
        let tools = messages::tools(row)?;
        Ok(Sample::Conversation(Conversation { messages: conversation, tools }))
    }
}

fn message(place: &str, turn: &Value) -> Result<Message, RowProblem> {
    let Value::Object(fields) = turn else {
        return Err(wrong_type(place, turn, "an object with `from` and `value`"));
    };
    if fields.contains_key("role") && !fields.contains_key("from") {
        return Err(RowProblem::WrongType {
            field: place.to_owned(),
            found: "a turn with `role`, the shape of format `messages`".to_owned(),
            expected: "`from` and `value`, or `format = \"messages\"` with \
                       `columns = { messages = \"conversations\" }`",
        });
    }
    let from = text(place, fields, "from", SPEAKERS)?;
    let value = text(place, fields, "value", "a string")?;
    let mut message = match from {
        "system" => Message::new("system", value),
        "human" | "user" => Message::new("user", value),
        "gpt" | "assistant" | "model" | "chatgpt" | "bing" => Message::new("assistant", value),
        "observation" | "tool" | "function" | "function_response" => Message::new("tool", value),
        "function_call" => Message {
            role: "assistant".to_owned(),
            content: Some(Value::String(String::new())),
            tool_calls: Some(calls(place, value)?),
            ..Message::default()
        },
        _ => {
            return Err(RowProblem::WrongType {
                field: format!("{place}.from"),
                found: "a speaker that is not known".to_owned(),
                expected: SPEAKERS,
            });
        }
    };
    message.train = messages::train(place, &mut messages::without_nulls(fields))?;
    Ok(message)
}

fn text<'a>(
    place: &str,
    fields: &'a Map<String, Value>,
    name: &str,
    expected: &'static str,
) -> Result<&'a str, RowProblem> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text),
        None | Some(Value::Null) => Err(RowProblem::Missing {
            field: format!("{place}.{name}"),
            expected,
            present: quoted(&fields.keys().map(String::as_str).collect::<Vec<_>>()),
        }),
        Some(other) => Err(wrong_type(&format!("{place}.{name}"), other, "a string")),
    }
}

/// The calls of a `function_call` turn in the shape that chat templates read.
fn calls(place: &str, value: &str) -> Result<Value, RowProblem> {
    let problem = || RowProblem::WrongType {
        field: format!("{place}.value"),
        found: "not the JSON of a call".to_owned(),
        expected: "`{\"name\": ..., \"arguments\": ...}` or a list of them",
    };
    let calls = match serde_json::from_str(value).map_err(|_| problem())? {
        Value::Array(calls) if !calls.is_empty() => calls,
        call @ Value::Object(_) => vec![call],
        _ => return Err(problem()),
    };
    let call = |call: Value| match call.get("name") {
        Some(Value::String(_)) => Ok(json!({"type": "function", "function": call})),
        _ => Err(problem()),
    };
    calls.into_iter().map(call).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;

    #[test]
    fn speakers_become_roles() {
        let row = json!({"system": "s", "tools": "[{\"name\": \"add\"}]", "conversations": [
            {"from": "human", "value": "a"},
            {"from": "function_call", "value": "{\"name\": \"add\", \"arguments\": {\"x\": 1}}"},
            {"from": "observation", "value": "b"},
            {"from": "gpt", "value": "c", "train": null, "weight": 0},
        ]});
        let Sample::Conversation(read) = sample(&Sharegpt, &row).unwrap() else { panic!() };
        let roles: Vec<_> = read.messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
        assert_eq!(
            read.messages[2].tool_calls,
            Some(json!([{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]))
        );
        assert_eq!(read.messages[4].train, Some(false));
        assert_eq!(read.tools, Some(json!([{"name": "add"}])));
    }

    #[test]
    fn errors_name_the_turn_and_not_its_content() {
        for (turn, expected) in [
            (json!({"from": "secret", "value": "a"}), "`conversations[0].from` is a speaker that"),
            (json!({"from": "human"}), "`conversations[0].value` is missing, expected a string"),
            (json!({"from": "human", "value": 3}), "`conversations[0].value` is a number"),
            (json!({"role": "user", "content": "secret"}), "the shape of format `messages`"),
            (json!({"from": "function_call", "value": "secret"}), "is not the JSON of a call"),
            (
                json!({"from": "gpt", "value": "", "train": 1}),
                "`conversations[0].train` is a number",
            ),
        ] {
            let error = sample(&Sharegpt, &json!({"conversations": [turn]})).unwrap_err();
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
    }
}
