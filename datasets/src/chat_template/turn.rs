//! A conversation as values of the template engine: rendered whole, in part, or with one turn
//! changed.

use std::ops::Range;

use minijinja::Value;
use serde_json::{Map, Value as Json};

use super::engine::{GENERATION_END, GENERATION_START};
use super::{GenerationPrompt, Inner, TemplateError, json};
use crate::conversation::{Conversation, Message};

/// Names that a message's reasoning goes by; templates read the first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// The turns of one conversation, ready for rendering.
pub(super) struct Turns<'a> {
    pub(super) template: &'a Inner,
    pub(super) messages: &'a [Message],
    values: Vec<Value>,
    tools: Value,
}

/// Text of a conversation.
pub(super) struct Rendered {
    pub(super) text: String,
    /// What stands between `{% generation %}` and `{% endgeneration %}`, where the template has
    /// such marks.
    pub(super) generated: Option<Vec<Range<usize>>>,
}

impl<'a> Turns<'a> {
    pub(super) fn new(template: &'a Inner, conversation: &'a Conversation) -> Self {
        Self {
            template,
            messages: &conversation.messages,
            values: conversation.messages.iter().map(value).collect(),
            tools: json::value(conversation.tools.as_ref().unwrap_or(&Json::Null)),
        }
    }

    /// The whole conversation.
    pub(super) fn render(&self, prompt: GenerationPrompt) -> Result<Rendered, TemplateError> {
        let marked = self.render_values(&self.values, prompt)?;
        Ok(if self.engine().marks_generation {
            let (text, ranges) = take_marks(&marked);
            Rendered { text, generated: Some(ranges) }
        } else {
            Rendered { text: marked, generated: None }
        })
    }

    /// The first `count` turns.
    pub(super) fn render_first(
        &self,
        count: usize,
        prompt: GenerationPrompt,
    ) -> Result<String, TemplateError> {
        self.render_values(self.values.get(..count).unwrap_or(&self.values), prompt)
    }

    /// The first `count` turns with `changed` in place of one of them.
    pub(super) fn render_changed(
        &self,
        count: usize,
        prompt: GenerationPrompt,
        index: usize,
        changed: &Message,
    ) -> Result<String, TemplateError> {
        let mut values = self.values.get(..count).unwrap_or(&self.values).to_vec();
        if let Some(place) = values.get_mut(index) {
            *place = value(changed);
        }
        self.render_values(&values, prompt)
    }

    /// Other turns under the same template, tools left out.
    pub(super) fn render_others(
        &self,
        messages: &[Message],
        prompt: GenerationPrompt,
    ) -> Result<String, TemplateError> {
        let conversation = Conversation::new(messages.to_vec());
        Turns::new(self.template, &conversation).render_first(messages.len(), prompt)
    }

    fn engine(&self) -> &super::Engine {
        let with_tools = self.template.with_tools.as_ref().filter(|_| self.tools.is_true());
        with_tools.unwrap_or(&self.template.engine)
    }

    fn render_values(
        &self,
        values: &[Value],
        prompt: GenerationPrompt,
    ) -> Result<String, TemplateError> {
        // What `transformers` hands over: absent tools and documents are none, not undefined.
        let mut context: Vec<(String, Value)> = vec![
            ("messages".to_owned(), Value::from(values.to_vec())),
            ("tools".to_owned(), self.tools.clone()),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(prompt == GenerationPrompt::Add)),
        ];
        for (name, text) in &self.template.tokens {
            context.push((name.clone(), Value::from(text.as_str())));
        }
        self.engine().render(Value::from_pairs(context)).map_err(|problem| TemplateError::Render {
            template: self.template.name.clone(),
            problem,
        })
    }
}

/// A message as the template sees it: reasoning has all its names, as in `transformers`.
fn value(message: &Message) -> Value {
    let mut fields = message.template_fields();
    let reasoning = REASONING.iter().find_map(|name| fields.get(*name)).cloned();
    if let Some(reasoning) = reasoning {
        fields.entry("thinking").or_insert_with(|| reasoning.clone());
        fields.insert("reasoning_content".to_owned(), reasoning);
    }
    json::value(&Json::Object(fields))
}

/// Takes the marks out of a rendering; a mark without its partner is dropped.
fn take_marks(marked: &str) -> (String, Vec<Range<usize>>) {
    let mut text = String::with_capacity(marked.len());
    let mut ranges = Vec::new();
    let mut start = None;
    for letter in marked.chars() {
        match letter {
            GENERATION_START => start = Some(text.len()),
            GENERATION_END => ranges.extend(start.take().map(|start| start..text.len())),
            letter => text.push(letter),
        }
    }
    (text, ranges)
}

/// Copies of a message that end in `mark`, each in another of the parts a template may render
/// last: its content, and its last tool call.
pub(super) fn ending_in(message: &Message, mark: char) -> Vec<Message> {
    let calls = marked_calls(message, mark);
    let content = match &message.content {
        Some(Json::String(text)) => Some(Json::String(format!("{text}{mark}"))),
        Some(Json::Array(parts)) => Some(marked_parts(parts, mark)),
        // A turn that only calls tools: content would change the layout of its calls.
        _ if calls.is_some() => None,
        _ => Some(Json::String(mark.to_string())),
    };
    let with_content = content.map(|content| Message { content: Some(content), ..message.clone() });
    let with_calls = calls.map(|calls| Message { tool_calls: Some(calls), ..message.clone() });
    with_content.into_iter().chain(with_calls).collect()
}

/// Copies of a message whose content begins with `mark`, or is nothing else.
pub(super) fn beginning_with(message: &Message, mark: char) -> Vec<Message> {
    let with = |text: String| Message { content: Some(Json::String(text)), ..message.clone() };
    match message.text() {
        Some(text) => vec![with(format!("{mark}{text}")), with(mark.to_string())],
        None => Vec::new(),
    }
}

fn marked_parts(parts: &[Json], mark: char) -> Json {
    let mut parts = parts.to_vec();
    let last = parts.iter_mut().rev().find_map(|part| part.get_mut("text"));
    if let Some(Json::String(text)) = last {
        text.push(mark);
    } else {
        parts.push(serde_json::json!({"type": "text", "text": mark.to_string()}));
    }
    Json::Array(parts)
}

fn marked_calls(message: &Message, mark: char) -> Option<Json> {
    let mut calls = message.tool_calls.clone()?;
    let last = calls.as_array_mut()?.last_mut()?.as_object_mut()?;
    let call = if last.contains_key("function") {
        last.get_mut("function")?.as_object_mut()?
    } else {
        last
    };
    match call.get_mut("arguments") {
        Some(Json::String(arguments)) => arguments.push(mark),
        Some(Json::Object(arguments)) => {
            arguments.insert(mark.to_string(), Json::String(mark.to_string()));
        }
        _ => mark_name(call, mark)?,
    }
    Some(calls)
}

fn mark_name(call: &mut Map<String, Json>, mark: char) -> Option<()> {
    match call.get_mut("name")? {
        Json::String(name) => name.push(mark),
        _ => return None,
    }
    Some(())
}
