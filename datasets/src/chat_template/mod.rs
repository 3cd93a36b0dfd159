//! Renders conversations as the base model was trained on them, and finds which tokens the model
//! writes itself.
//!
//! Templates are rendered the way `transformers` does it, so the text of a row is the text that
//! `apply_chat_template` gives, tokenized once as a whole. Which tokens carry loss is found from
//! the template's own output ([`spans`]), so templates need no `{% generation %}` marks.

mod builtin;
pub(crate) mod engine;
pub(crate) mod json;
mod load;
pub(crate) mod python;
mod select;
mod spans;
mod turn;
mod turn_parts;

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::LossOn;
use crate::conversation::Conversation;
use crate::error::DatasetError;
use crate::example::IGNORED;
use crate::tokenizer::{Tokenizer, TokenizerError};
pub use builtin::{BUILTIN_TEMPLATES, BuiltinTemplate};
use engine::Engine;
use turn::Turns;
pub use turn_parts::{Frame, SystemPlace, TurnParts};

/// Whether a rendering ends with the opening of an assistant turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// The model is to answer next.
    Add,
    /// The conversation stands as it is.
    Omit,
}

/// What is wrong with a chat template, or between it and a conversation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TemplateError {
    /// Jinja that does not parse.
    #[error("chat template {template} does not parse: {problem}")]
    Syntax {
        /// Name or path, in backticks.
        template: String,
        /// What the parser met, with the line.
        problem: String,
    },
    /// The template refused the conversation, or failed on it.
    #[error("chat template {template} cannot render this conversation: {problem}")]
    Render {
        /// Name or path, in backticks.
        template: String,
        /// What it said, with the line.
        problem: String,
    },
    /// The text that belongs to a turn could not be told from the rest.
    #[error(
        "chat template {template}: which text belongs to turn {turn} (counting from 0) cannot be \
         found: {problem}"
    )]
    Unlocated {
        /// Name or path, in backticks.
        template: String,
        /// Index of the message.
        turn: usize,
        /// What stood in the way.
        problem: &'static str,
    },
    /// `train = true` on a turn that the model does not write.
    #[error("turn {turn} (counting from 0) has `train` = true, and its role is `{role}`")]
    NotAssistant {
        /// Index of the message.
        turn: usize,
        /// Its role.
        role: String,
    },
    /// Neither a built-in template nor a file.
    #[error("`{name}` is no built-in chat template and no file; known are {known}")]
    UnknownName {
        /// As written in the recipe.
        name: String,
        /// Every built-in name, and the base model's.
        known: String,
    },
    /// A base with named templates, none of which is the usual one.
    #[error("the base model has no chat template named `default`, only {names}")]
    NoDefault {
        /// The names there are.
        names: String,
    },
    /// A template file that cannot be used.
    #[error("chat template file `{path}` cannot be used: {problem}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said, or what is wrong with the file.
        problem: String,
    },
    /// `chat_template` of the tokenizer config in a shape that no tokenizer has.
    #[error("`chat_template` in `tokenizer_config.json` {problem}")]
    BadConfig {
        /// What was found and expected.
        problem: String,
    },
}

impl TemplateError {
    /// What to type next.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Unlocated { .. } => Some(
                "put `{% generation %}` and `{% endgeneration %}` around what the model writes in \
                 a copy of the template, and name the copy in `chat_template`"
                    .to_owned(),
            ),
            Self::NotAssistant { .. } => Some(
                "`train = true` works on assistant turns; `loss_on = \"all\"` trains on \
                      every token"
                    .to_owned(),
            ),
            Self::NoDefault { .. } => {
                Some("set `chat_template` of this dataset to one of these names".to_owned())
            }
            Self::Syntax { .. } | Self::BadConfig { .. } => {
                Some("set `chat_template` of this dataset to a Jinja file or a built-in".to_owned())
            }
            Self::Render { .. } | Self::UnknownName { .. } | Self::Unreadable { .. } => None,
        }
    }
}

/// A chat template together with the special tokens of a tokenizer.
#[derive(Debug, Clone)]
pub struct ChatTemplate(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Name or path in backticks, for messages.
    name: String,
    source: String,
    engine: Engine,
    /// Takes the place of `engine` where a conversation has tools.
    with_tools: Option<Engine>,
    /// `bos_token`, `eos_token`, ... as the template sees them.
    tokens: BTreeMap<String, String>,
}

/// A conversation as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedConversation {
    /// Ids of the tokens.
    pub token_ids: Vec<u32>,
    /// The token's id where it carries loss, else [`IGNORED`](crate::IGNORED); not shifted.
    pub labels: Vec<i32>,
    /// Turns that carry loss and end in no token of the template: a model trained on them does
    /// not learn to stop.
    pub turns_without_end: usize,
}

impl ChatTemplate {
    /// The base model's own template: `chat_template.jinja`, else the tokenizer config's.
    pub fn of_base(tokenizer: &Tokenizer) -> Result<Option<Self>, DatasetError> {
        Ok(load::of_base(tokenizer)?.map(|inner| Self(Arc::new(inner))))
    }

    /// A built-in template by its name, or a Jinja file by its path.
    pub fn named_or_file(name: &str, tokenizer: &Tokenizer) -> Result<Self, DatasetError> {
        Ok(Self(Arc::new(load::named_or_file(name, tokenizer)?)))
    }

    /// A template from its text; `name` stands for it in messages.
    pub fn from_source(
        name: &str,
        source: &str,
        tokenizer: &Tokenizer,
    ) -> Result<Self, DatasetError> {
        Ok(Self(Arc::new(load::from_source(&format!("`{name}`"), source, tokenizer)?)))
    }

    /// The Jinja text, for hashing and for copying into a model folder.
    pub fn source(&self) -> &str {
        &self.0.source
    }

    /// The conversation as text.
    pub fn render(
        &self,
        conversation: &Conversation,
        prompt: GenerationPrompt,
    ) -> Result<String, DatasetError> {
        let turns = Turns::new(&self.0, conversation);
        Ok(engine::with_room(|| turns.render(prompt))?.text)
    }

    /// The conversation as tokens, and which of them carry loss.
    ///
    /// A token carries loss where it begins inside text that the model writes: the content of an
    /// assistant turn, its tool calls as the template writes them, and the token that ends it.
    pub fn encode(
        &self,
        conversation: &Conversation,
        tokenizer: &Tokenizer,
        loss_on: LossOn,
    ) -> Result<EncodedConversation, DatasetError> {
        let turns = Turns::new(&self.0, conversation);
        let (rendered, selected) = engine::with_room(|| {
            let rendered = turns.render(GenerationPrompt::Omit)?;
            let selected = select::trained_text(&turns, &rendered, tokenizer, loss_on)?;
            Ok::<_, DatasetError>((rendered, selected))
        })?;
        let tokens = tokenizer.encode_with_offsets(&rendered.text)?;
        // A template that begins with the begin-of-sequence token, and a first turn that does too.
        let doubled = tokenizer.bos().is_some_and(|bos| {
            matches!(tokens.as_slice(), [(first, _), (second, _), ..] if (*first, *second) == (bos, bos))
        });
        let tokens = tokens.get(usize::from(doubled)..).unwrap_or_default();
        Ok(EncodedConversation {
            token_ids: tokens.iter().map(|(id, _)| *id).collect(),
            labels: labels(tokens, &selected.ranges)?,
            turns_without_end: selected.without_end,
        })
    }
}

/// Labels of tokens that begin inside one of the ranges, which are ascending and disjoint.
fn labels(
    tokens: &[(u32, Range<usize>)],
    ranges: &[Range<usize>],
) -> Result<Vec<i32>, TokenizerError> {
    let mut ranges = ranges.iter().peekable();
    let mut labels = Vec::with_capacity(tokens.len());
    for (id, bytes) in tokens {
        while ranges.next_if(|range| range.end <= bytes.start).is_some() {}
        let trained = ranges.peek().is_some_and(|range| range.contains(&bytes.start));
        labels.push(if trained { label(*id)? } else { IGNORED });
    }
    Ok(labels)
}

fn label(id: u32) -> Result<i32, TokenizerError> {
    i32::try_from(id).map_err(|_| TokenizerError::Failed {
        action: "encode a text",
        problem: format!("token id {id} is too large for a label"),
    })
}

#[cfg(test)]
mod tests;
