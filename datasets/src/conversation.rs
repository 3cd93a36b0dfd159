//! A conversation as a chat template sees it: messages in order, and the tools on offer.
//!
//! Templates reach into fields that no schema lists (`reasoning_content`, `name`, `tool_call_id`),
//! so a [`Message`] keeps every field it was read with. Fields whose value is null are left out,
//! because columnar files store an absent field as null and templates ask `'tool_calls' in message`;
//! `content` alone keeps the difference between null and absent.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// Messages in order, and the tools on offer.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Conversation {
    /// The turns, first to last.
    pub messages: Vec<Message>,
    /// JSON list of tool descriptions, handed to the template as `tools`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tools: Option<Value>,
}

impl Conversation {
    /// A conversation without tools.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, tools: None }
    }

    /// The same conversation with the tools on offer.
    #[must_use]
    pub fn with_tools(mut self, tools: Value) -> Self {
        self.tools = Some(tools);
        self
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Map<String, Value>", into = "Map<String, Value>")]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or whatever else the template knows.
    pub role: String,
    /// Text, a list of parts, or null (a turn that only calls tools); `None` where the field is
    /// absent.
    pub content: Option<Value>,
    /// JSON list of the calls an assistant turn makes.
    pub tool_calls: Option<Value>,
    /// Whether the turn carries loss: `false` never, `true` wherever `loss_on` is not `all`; where
    /// it is `None`, `loss_on` decides. Templates do not see it.
    pub train: Option<bool>,
    /// Every other field, as it was read.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Some(Value::String(content.into())), ..Self::default() }
    }

    /// Whether the model writes this turn.
    pub fn is_assistant(&self) -> bool {
        self.role == "assistant" || self.role == "model"
    }

    /// The content where it is plain text.
    pub fn text(&self) -> Option<&str> {
        self.content.as_ref().and_then(Value::as_str)
    }

    /// The fields a template sees: all but `train`.
    pub fn template_fields(&self) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("role".to_owned(), Value::String(self.role.clone()));
        if let Some(content) = &self.content {
            fields.insert("content".to_owned(), content.clone());
        }
        if let Some(calls) = &self.tool_calls {
            fields.insert("tool_calls".to_owned(), calls.clone());
        }
        for (name, value) in &self.extra {
            fields.insert(name.clone(), value.clone());
        }
        fields
    }
}

impl From<Message> for Map<String, Value> {
    fn from(message: Message) -> Self {
        let mut fields = message.template_fields();
        if let Some(train) = message.train {
            fields.insert("train".to_owned(), Value::Bool(train));
        }
        fields
    }
}

/// Why a JSON object is no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The field is not there, or null.
    #[error("a message without `role`; expected `system`, `user`, `assistant` or `tool`")]
    NoRole,
    /// The field holds another type than it must.
    #[error("`{field}` of a message is {found}, expected {expected}")]
    WrongType {
        /// Name of the field.
        field: &'static str,
        /// What it holds.
        found: &'static str,
        /// What it must hold.
        expected: &'static str,
    },
}

impl TryFrom<Map<String, Value>> for Message {
    type Error = MessageError;

    fn try_from(mut fields: Map<String, Value>) -> Result<Self, MessageError> {
        let role = match fields.remove("role") {
            Some(Value::String(role)) => role,
            None | Some(Value::Null) => return Err(MessageError::NoRole),
            Some(other) => return Err(wrong_type("role", &other, "a string")),
        };
        let content = fields.remove("content");
        if let Some(found @ (Value::Bool(_) | Value::Number(_) | Value::Object(_))) = &content {
            return Err(wrong_type("content", found, "a string, a list of parts or null"));
        }
        fields.retain(|_, value| !value.is_null());
        let tool_calls = fields.remove("tool_calls");
        if let Some(found) = tool_calls.as_ref().filter(|calls| !calls.is_array()) {
            return Err(wrong_type("tool_calls", found, "a list of calls"));
        }
        let train = match fields.remove("train") {
            None => None,
            Some(Value::Bool(train)) => Some(train),
            Some(other) => return Err(wrong_type("train", &other, "true or false")),
        };
        Ok(Self { role, content, tool_calls, train, extra: fields })
    }
}

fn wrong_type(field: &'static str, found: &Value, expected: &'static str) -> MessageError {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    MessageError::WrongType { field, found, expected }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn message(value: Value) -> Result<Message, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_message_keeps_fields_it_does_not_know() {
        let read = message(json!({"role": "tool", "content": "4", "tool_call_id": "x1"})).unwrap();
        assert_eq!(read.extra.get("tool_call_id"), Some(&json!("x1")));
        let written = serde_json::to_value(&read).unwrap();
        assert_eq!(written, json!({"role": "tool", "content": "4", "tool_call_id": "x1"}));
    }

    #[test]
    fn null_fields_are_absent_except_content() {
        let read = message(json!({"role": "assistant", "content": null, "tool_calls": null,
            "name": null, "train": null}))
        .unwrap();
        assert_eq!(read.content, Some(Value::Null));
        assert_eq!((read.tool_calls, read.train), (None, None));
        assert!(read.extra.is_empty());
        assert_eq!(message(json!({"role": "assistant"})).unwrap().content, None);
    }

    #[test]
    fn train_is_kept_but_hidden_from_templates() {
        let read = message(json!({"role": "assistant", "content": "a", "train": false})).unwrap();
        assert_eq!(read.train, Some(false));
        assert!(!read.template_fields().contains_key("train"));
        assert_eq!(serde_json::to_value(&read).unwrap()["train"], json!(false));
    }

    #[test]
    fn wrong_types_name_the_field_and_what_it_holds() {
        let error = message(json!({"content": "a"})).unwrap_err();
        assert!(error.contains("without `role`"), "{error}");
        let error = message(json!({"role": "user", "content": 3})).unwrap_err();
        assert_eq!(
            error,
            "`content` of a message is a number, expected a string, a list of parts or null"
        );
        let error = message(json!({"role": "user", "content": "a", "train": "no"})).unwrap_err();
        assert_eq!(error, "`train` of a message is a string, expected true or false");
        let error = message(json!({"role": "assistant", "tool_calls": {}})).unwrap_err();
        assert_eq!(error, "`tool_calls` of a message is an object, expected a list of calls");
    }
}
