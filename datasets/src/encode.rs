//! Turns what a row means into tokens and labels.
//!
//! - A conversation goes through the chat template, which also finds the tokens that carry loss.
//! - A completion: begin-of-sequence where the tokenizer adds one, the prompt, the completion, the
//!   end-of-sequence token. Prompt and completion are tokenized apart, so that no token stands
//!   across their border; at inference the prompt is tokenized alone as well.
//! - A text: begin-of-sequence where the tokenizer adds one, the text, end-of-sequence; all of it
//!   carries loss.
//! - Parts to fill in: begin-of-sequence where the tokenizer adds one, sentinels and parts, each
//!   tokenized by itself, the token that ends the middle; all of it carries loss.
//! - Tokens stay as they are.

use crate::chat_template::ChatTemplate;
use crate::config::{LossOn, OnOverlong};
use crate::error::RowProblem;
use crate::example::IGNORED;
use crate::fill_in_the_middle::{Cutter, PartOrder};
use crate::format::Sample;
use crate::tokenizer::Tokenizer;

/// What turns the samples of one dataset into tokens.
pub(crate) struct Encoder<'a> {
    pub(crate) tokenizer: &'a Tokenizer,
    /// Is there for every format whose samples are conversations.
    pub(crate) template: Option<ChatTemplate>,
    pub(crate) loss_on: LossOn,
    /// Tokens that the model knows.
    pub(crate) vocab_size: usize,
    /// Is there for formats whose texts are cut in three.
    pub(crate) cutter: Option<Cutter>,
    /// Tokens of a row, and what becomes of longer ones.
    pub(crate) rows: (usize, OnOverlong),
}

/// Tokens and labels of one row, before it is cut.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Encoded {
    pub(crate) token_ids: Vec<u32>,
    pub(crate) labels: Vec<i32>,
    /// Turns that carry loss and end in no token of the template.
    pub(crate) turns_without_end: usize,
    /// Tokens of the row that are not among them.
    pub(crate) left_out: usize,
}

/// Tokens that sentinels, borders and ends may add to those of a whole text.
const SLACK: usize = 24;

impl Encoder<'_> {
    /// The tokens of a sample, in several parts where a text is cut in three after it is cut to
    /// length: a middle without its end would teach nothing. None where there is no text at all.
    pub(crate) fn encode_parts(&self, sample: Sample) -> Result<Vec<Encoded>, RowProblem> {
        match (sample, &self.cutter) {
            (Sample::Source(text), Some(cutter)) => {
                let parts = self.source(&text, cutter)?;
                parts.iter().try_for_each(|part| self.check_vocabulary(part))?;
                Ok(parts)
            }
            (sample, _) => Ok(self.encode(sample)?.into_iter().collect()),
        }
    }

    /// The tokens of a sample; `None` where there is no text at all.
    pub(crate) fn encode(&self, sample: Sample) -> Result<Option<Encoded>, RowProblem> {
        let encoded = match sample {
            Sample::Conversation(conversation) => {
                let Some(template) = &self.template else { return Ok(None) };
                let encoded = template
                    .encode(&conversation, self.tokenizer, self.loss_on)
                    .map_err(|error| RowProblem::Encode(Box::new(error)))?;
                self.checked_start(Encoded {
                    token_ids: encoded.token_ids,
                    labels: encoded.labels,
                    turns_without_end: encoded.turns_without_end,
                    left_out: 0,
                })?
            }
            Sample::Completion { prompt, completion } => self.completion(&prompt, &completion)?,
            Sample::Text(text) | Sample::Source(text) if text.is_empty() => return Ok(None),
            Sample::Text(text) | Sample::Source(text) => self.text(&text)?,
            Sample::FillInTheMiddle { prefix, middle, suffix } => {
                let Some(cutter) = &self.cutter else { return Ok(None) };
                let order = cutter.order_of(&middle);
                self.filled(cutter, order, [&prefix, &middle, &suffix])?
            }
            Sample::Tokens { token_ids, labels } => {
                Encoded { token_ids, labels, turns_without_end: 0, left_out: 0 }
            }
        };
        self.check_vocabulary(&encoded)?;
        Ok(Some(encoded))
    }

    fn completion(&self, prompt: &str, completion: &str) -> Result<Encoded, RowProblem> {
        let mut token_ids = self.start();
        token_ids.extend(self.tokens(prompt)?);
        let read_only = match self.loss_on {
            LossOn::All => 0,
            LossOn::Assistant | LossOn::LastMessage => token_ids.len(),
        };
        token_ids.extend(self.tokens(completion)?);
        self.end(&mut token_ids);
        let mut labels = learned(&token_ids)?;
        labels.iter_mut().take(read_only).for_each(|label| *label = IGNORED);
        self.checked_start(Encoded { token_ids, labels, turns_without_end: 0, left_out: 0 })
    }

    fn text(&self, text: &str) -> Result<Encoded, RowProblem> {
        let mut token_ids = self.start();
        token_ids.extend(self.tokens(text)?);
        self.end(&mut token_ids);
        let labels = learned(&token_ids)?;
        self.checked_start(Encoded { token_ids, labels, turns_without_end: 0, left_out: 0 })
    }

    /// A text cut to length, then each part of it in three.
    fn source(&self, text: &str, cutter: &Cutter) -> Result<Vec<Encoded>, RowProblem> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let (length, on_overlong) = self.rows;
        let whole = self
            .tokenizer
            .encode_with_offsets(text)
            .map_err(|error| RowProblem::Encode(Box::new(error)))?;
        let room = length.saturating_sub(SLACK).max(1);
        let is_cut = matches!(on_overlong, OnOverlong::Split | OnOverlong::Truncate);
        if whole.len() <= room || !is_cut {
            return Ok(vec![self.cut_or_whole(text, cutter)?]);
        }
        let mut parts = Vec::new();
        let mut start = 0;
        for tokens in whole.chunks(room) {
            // A character may be several tokens: its bytes go with the last of them.
            let mut end = tokens.last().map_or(start, |(_, bytes)| bytes.end);
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let part = text.get(start..end).unwrap_or_default();
            start = start.max(end);
            if part.is_empty() {
                continue;
            }
            let encoded = self.cut_or_whole(part, cutter)?;
            // Borders cost more tokens than there is room for, rarely: then it stays whole.
            let fits = encoded.token_ids.len() <= length;
            parts.push(if fits { encoded } else { self.text(part)? });
            if on_overlong == OnOverlong::Truncate {
                break;
            }
        }
        if on_overlong == OnOverlong::Truncate
            && let Some(first) = parts.first_mut()
        {
            first.left_out = whole.len().saturating_sub(room);
        }
        Ok(parts)
    }

    fn cut_or_whole(&self, text: &str, cutter: &Cutter) -> Result<Encoded, RowProblem> {
        match cutter.cut(text) {
            Some(parts) => {
                self.filled(cutter, parts.order, [parts.prefix, parts.middle, parts.suffix])
            }
            None => self.text(text),
        }
    }

    fn filled(
        &self,
        cutter: &Cutter,
        order: PartOrder,
        [prefix, middle, suffix]: [&str; 3],
    ) -> Result<Encoded, RowProblem> {
        let mut token_ids = self.start();
        let (prefix, suffix) = (self.tokens(prefix)?, self.tokens(suffix)?);
        token_ids.extend(cutter.ids.prompt(order, &prefix, &suffix));
        token_ids.extend(self.tokens(middle)?);
        token_ids.extend(cutter.ids.end());
        let labels = learned(&token_ids)?;
        Ok(Encoded { token_ids, labels, turns_without_end: 0, left_out: 0 })
    }

    fn tokens(&self, text: &str) -> Result<Vec<u32>, RowProblem> {
        self.tokenizer.encode(text).map_err(|error| RowProblem::Encode(Box::new(error)))
    }

    fn start(&self) -> Vec<u32> {
        let adds = self.tokenizer.adds_bos();
        self.tokenizer.bos().filter(|_| adds).into_iter().collect()
    }

    /// Ends the tokens with end-of-sequence, unless the text did.
    fn end(&self, token_ids: &mut Vec<u32>) {
        if let Some(end) = self.tokenizer.eos().filter(|end| token_ids.last() != Some(end)) {
            token_ids.push(end);
        }
    }

    /// At most one begin-of-sequence token starts a row: models never saw two.
    fn checked_start(&self, encoded: Encoded) -> Result<Encoded, RowProblem> {
        match (self.tokenizer.bos(), encoded.token_ids.as_slice()) {
            (Some(bos), [first, second, ..]) if *first == bos && *second == bos => {
                Err(RowProblem::DoubleBos)
            }
            _ => Ok(encoded),
        }
    }

    fn check_vocabulary(&self, encoded: &Encoded) -> Result<(), RowProblem> {
        let outside = |field, index, allowed| RowProblem::OutsideVocabulary {
            field,
            index,
            vocab_size: self.vocab_size,
            allowed,
        };
        if let Some(index) = encoded.token_ids.iter().position(|&id| id as usize >= self.vocab_size)
        {
            return Err(outside("input_ids", index, ""));
        }
        let wrong = |&label: &i32| {
            label != IGNORED
                && usize::try_from(label).map_or(true, |label| label >= self.vocab_size)
        };
        match encoded.labels.iter().position(wrong) {
            Some(index) => Err(outside("labels", index, ", and is not -100 either")),
            None => Ok(()),
        }
    }
}

/// Labels of tokens that all carry loss.
fn learned(token_ids: &[u32]) -> Result<Vec<i32>, RowProblem> {
    let label = |(index, &id): (usize, &u32)| {
        i32::try_from(id).map_err(|_| RowProblem::OutsideVocabulary {
            field: "input_ids",
            index,
            vocab_size: i32::MAX as usize,
            allowed: "",
        })
    };
    token_ids.iter().enumerate().map(label).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::conversation::{Conversation, Message};
    use crate::tokenizer::tests::byte_tokenizer;

    fn encode(tokenizer: &Tokenizer, sample: Sample) -> Result<Option<Encoded>, String> {
        let template = ChatTemplate::of_base(tokenizer).unwrap();
        let encoder = Encoder {
            tokenizer,
            template,
            loss_on: LossOn::Assistant,
            vocab_size: 258,
            cutter: None,
            rows: (64, OnOverlong::Error),
        };
        encoder.encode(sample).map_err(|problem| problem.to_string())
    }

    #[test]
    fn a_tokenizer_that_adds_no_begin_token_gets_none() {
        let tokenizer = byte_tokenizer(
            &["<s>", "</s>"],
            &json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": false}),
        );
        let text = encode(&tokenizer, Sample::Text("a".into())).unwrap().unwrap();
        assert_eq!(text.token_ids, [97, 257]);
        let own = encode(&tokenizer, Sample::Text("<s>a".into())).unwrap().unwrap();
        assert_eq!(own.token_ids, [256, 97, 257]);
    }

    #[test]
    fn turns_that_start_with_the_begin_token_are_no_doubled_start() {
        let tokenizer = byte_tokenizer(
            &["<|im_start|>", "<|im_end|>"],
            &json!({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>",
                "chat_template": "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}\
                    <|im_end|>{% endfor %}\
                    {% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"}),
        );
        let turns = vec![Message::new("user", "a"), Message::new("assistant", "b")];
        let sample = Sample::Conversation(Conversation::new(turns));
        let encoded = encode(&tokenizer, sample).unwrap().unwrap();
        assert_eq!(encoded.token_ids.iter().filter(|&&id| id == 256).count(), 2);
        let learned: Vec<_> = encoded.labels.into_iter().filter(|&label| label >= 0).collect();
        assert_eq!(learned, [98, 257]);
    }

    #[test]
    fn tokens_beyond_the_model_are_refused_with_their_place() {
        let tokenizer = byte_tokenizer(&["<s>", "</s>", "<x>"], &json!({"eos_token": "</s>"}));
        let error = encode(&tokenizer, Sample::Text("a<x>".into())).unwrap_err();
        assert_eq!(error, "`input_ids` 1 is outside the vocabulary of 258 tokens");
    }
}
