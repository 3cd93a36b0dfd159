//! `{"messages": [{"role", "content"}], "tools"}`: chat as the APIs write it.

use serde_json::{Map, Value};

use super::columns::{Columns, quoted, wrong_type};
use super::{DatasetFormat, Needs, Sample};
use crate::config::FormatName;
use crate::conversation::{Conversation, Message};
use crate::error::RowProblem;

/// Turns with `role`, `content`, `tool_calls` and whatever else the chat template reads.
pub(super) struct Messages;

const MESSAGES: &str = "a list of messages `{\"role\": ..., \"content\": ...}`";
const TOOLS: &str = "a list of tool descriptions";
const CONTENT: &str = "a string, or a list of `{\"type\": \"text\", \"text\": ...}`";

impl DatasetFormat for Messages {
    fn name(&self) -> FormatName {
        FormatName::Messages
    }

    fn required(&self) -> &'static [&'static str] {
        &["messages"]
    }

    fn optional(&self) -> &'static [&'static str] {
        &["tools"]
    }

    fn needs(&self) -> Needs {
        Needs::ChatTemplate
    }

    fn sample(&self, row: &Columns) -> Result<Sample, RowProblem> {
        let name = row.name_in_file("messages");
        let turns = row.list("messages", MESSAGES)?;
        if turns.is_empty() {
            return Err(row.wrong_type("messages", &Value::Array(Vec::new()), MESSAGES));
        }
        let messages = turns
            .iter()
            .enumerate()
            .map(|(index, turn)| message(&format!("{name}[{index}]"), turn))
            .collect::<Result<_, _>>()?;
        Ok(Sample::Conversation(Conversation { messages, tools: tools(row)? }))
    }
}

/// The `tools` column of a conversation.
pub(super) fn tools(row: &Columns) -> Result<Option<Value>, RowProblem> {
    if matches!(row.get("tools"), Some(Value::String(text)) if text.trim().is_empty()) {
        return Ok(None);
    }
    let tools = row.optional_list("tools", TOOLS)?;
    Ok(tools.filter(|tools| !tools.is_empty()).map(|tools| Value::Array(tools.into_owned())))
}

fn message(place: &str, turn: &Value) -> Result<Message, RowProblem> {
    let Value::Object(fields) = turn else {
        return Err(wrong_type(place, turn, "an object with `role` and `content`"));
    };
    let mut fields = without_nulls(fields);
    let role = match fields.remove("role") {
        Some(Value::String(role)) => role,
        Some(other) => return Err(wrong_type(&format!("{place}.role"), &other, "a string")),
        None => {
            return Err(RowProblem::Missing {
                field: format!("{place}.role"),
                expected: "a string such as \"user\" or \"assistant\"",
                present: present(&fields, None),
            });
        }
    };
    let tool_calls = tool_calls(place, &mut fields)?;
    let content = match fields.remove("content") {
        Some(content) => Some(checked_content(place, content)?),
        None if tool_calls.is_some() => turn.get("content").cloned(),
        None => {
            return Err(RowProblem::Missing {
                field: format!("{place}.content"),
                expected: CONTENT,
                present: present(&fields, Some("role")),
            });
        }
    };
    let train = train(place, &mut fields)?;
    Ok(Message { role, content, tool_calls, train, extra: fields })
}

/// Names of the fields, for messages, with that of one taken out already.
fn present(fields: &Map<String, Value>, taken: Option<&str>) -> String {
    quoted(&taken.into_iter().chain(fields.keys().map(String::as_str)).collect::<Vec<_>>())
}

/// Tables give every row every field, null where it has none.
pub(super) fn without_nulls(fields: &Map<String, Value>) -> Map<String, Value> {
    let present = fields.iter().filter(|(_, value)| !value.is_null());
    present.map(|(name, value)| (name.clone(), value.clone())).collect()
}

fn tool_calls(place: &str, fields: &mut Map<String, Value>) -> Result<Option<Value>, RowProblem> {
    match fields.remove("tool_calls") {
        None => Ok(None),
        Some(Value::Array(calls)) if calls.is_empty() => Ok(None),
        Some(calls @ Value::Array(_)) => Ok(Some(calls)),
        Some(other) => Err(wrong_type(&format!("{place}.tool_calls"), &other, "a list of calls")),
    }
}

fn checked_content(place: &str, content: Value) -> Result<Value, RowProblem> {
    match &content {
        Value::String(_) => {}
        Value::Array(parts) => {
            for (index, part) in parts.iter().enumerate() {
                let field = || format!("{place}.content[{index}]");
                let kind = part.get("type").and_then(Value::as_str);
                if kind.is_some_and(|kind| kind != "text") {
                    return Err(RowProblem::WrongType {
                        field: field(),
                        found: "a part of another type than text".to_owned(),
                        expected: "text parts: images, audio and video are not available yet",
                    });
                }
                if kind.is_none() || !part.get("text").is_some_and(Value::is_string) {
                    return Err(wrong_type(
                        &field(),
                        part,
                        "`{\"type\": \"text\", \"text\": ...}`",
                    ));
                }
            }
        }
        other => return Err(wrong_type(&format!("{place}.content"), other, CONTENT)),
    }
    Ok(content)
}

/// `train`, or `weight` (0 or 1), which means the same; a turn may not say both differently.
pub(super) fn train(
    place: &str,
    fields: &mut Map<String, Value>,
) -> Result<Option<bool>, RowProblem> {
    let train = match fields.remove("train") {
        None => None,
        Some(Value::Bool(train)) => Some(train),
        Some(other) => return Err(wrong_type(&format!("{place}.train"), &other, "true or false")),
    };
    let weight = match fields.remove("weight") {
        None => None,
        Some(value) => match value.as_f64() {
            Some(0.0) => Some(false),
            Some(1.0) => Some(true),
            _ => return Err(wrong_type(&format!("{place}.weight"), &value, "0 or 1")),
        },
    };
    match (train, weight) {
        (Some(train), Some(weight)) if train != weight => Err(RowProblem::WrongType {
            field: format!("{place}.weight"),
            found: "the opposite of `train`".to_owned(),
            expected: "one of the two, or the same in both",
        }),
        // A weight of 1 is the usual case in data that has the field on every turn, and means
        // nothing beyond `loss_on`.
        (train, weight) => Ok(train.or(weight.filter(|train| !train))),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::sample;
    use super::*;

    fn conversation(row: &Value) -> Conversation {
        match sample(&Messages, row).unwrap() {
            Sample::Conversation(conversation) => conversation,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn turns_keep_role_content_calls_and_unknown_fields() {
        let call = json!([{"function": {"name": "add"}}]);
        let read = conversation(&json!({"messages": [
            {"role": "user", "content": [{"type": "text", "text": "hi"}], "name": null},
            {"role": "assistant", "content": null, "tool_calls": call, "train": null},
            {"role": "tool", "content": "4", "tool_call_id": "x", "tool_calls": []},
            {"role": "assistant", "content": "", "train": false},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "assistant", "content": "a", "weight": 1.0},
        ]}));
        assert_eq!(read.messages[0].extra.len(), 0);
        assert_eq!(read.messages[1].tool_calls, Some(call));
        assert_eq!(read.messages[1].content, Some(Value::Null));
        assert_eq!(read.messages[2].extra["tool_call_id"], "x");
        assert_eq!(read.messages[2].tool_calls, None);
        let trained: Vec<_> = read.messages.iter().map(|message| message.train).collect();
        assert_eq!(trained, [None, None, None, Some(false), Some(false), None]);
    }

    #[test]
    fn tools_are_a_list_or_its_json_text() {
        let turns = json!([{"role": "user", "content": "a"}]);
        for tools in [json!([{"name": "add"}]), json!("[{\"name\": \"add\"}]")] {
            let read = conversation(&json!({"messages": turns, "tools": tools}));
            assert_eq!(read.tools, Some(json!([{"name": "add"}])));
        }
        for none in [json!(null), json!(""), json!([]), json!("[]")] {
            assert_eq!(conversation(&json!({"messages": turns, "tools": none})).tools, None);
        }
        let as_text = conversation(&json!({"messages": turns.to_string()}));
        assert_eq!(as_text.messages.len(), 1);
    }

    #[test]
    fn errors_name_the_field_and_its_shape_and_not_its_content() {
        for (row, expected) in [
            (json!({"chat": []}), "field `messages` is missing, expected a list of messages"),
            (
                json!({"messages": []}),
                "field `messages` is a list of 0, expected a list of messages",
            ),
            (
                json!({"messages": "secret"}),
                "field `messages` is a string that is not the JSON text",
            ),
            (
                json!({"messages": ["secret"]}),
                "field `messages[0]` is a string, expected an object",
            ),
            (json!({"messages": [{"content": "secret"}]}), "field `messages[0].role` is missing"),
            (json!({"messages": [{"role": "user"}]}), "field `messages[0].content` is missing"),
            (
                json!({"messages": [{"role": "user", "content": 3}]}),
                "`messages[0].content` is a number",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}),
                "field `messages[0].content[0]` is a part of another type than text",
            ),
            (
                json!({"messages": [{"role": "user", "content": "secret", "train": "secret"}]}),
                "field `messages[0].train` is a string, expected true or false",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a", "weight": 0.5}]}),
                "field `messages[0].weight` is a number, expected 0 or 1",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a", "weight": 0, "train": true}]}),
                "field `messages[0].weight` is the opposite of `train`",
            ),
            (
                json!({"messages": [{"role": "user", "content": "a"}], "tools": 3}),
                "field `tools` is a number, expected a list of tool descriptions",
            ),
        ] {
            let error = sample(&Messages, &row).unwrap_err();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
