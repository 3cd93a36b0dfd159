//! Finds which text of a rendering the model writes itself, from the template's output alone.
//!
//! A template is a program; nothing in it says which text is whose. But it can be asked: render
//! the conversation again with a mark at the end of one turn, and the text after the mark is what
//! follows that turn. Three such questions locate turn `i`:
//!
//! - *Where does the turn before it end?* A mark at its end, in the whole conversation.
//! - *What stands between that end and the first token the model writes?* The same mark, in the
//!   conversation cut off before turn `i` and rendered as a prompt. Where the whole conversation
//!   goes on with this text, the turn begins after it. Nothing else is compared, so templates may
//!   rewrite earlier turns (Qwen3 takes out their thinking) and put text of their own before the
//!   content (its empty thinking block, which the model has to learn to write).
//! - *Where does the turn end?* A mark at its own end; the first special token that follows closes
//!   the turn and belongs to it.
//!
//! Where the answers do not agree the row is an error, because a guess would train on the wrong
//! text without a word.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::Range;

use super::turn::{Turns, beginning_with, ending_in};
use super::{GenerationPrompt, TemplateError};
use crate::conversation::Message;
use crate::error::DatasetError;
use crate::tokenizer::Tokenizer;

/// Noncharacters that may mark a place; one that the rendering does not hold is taken.
const MARKS: std::ops::RangeInclusive<char> = '\u{fdd2}'..='\u{fdef}';

/// Text that the model writes in one turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) range: Range<usize>,
    /// Whether text of the template (an end-of-turn token) closes the turn.
    pub(super) ended: bool,
}

/// Locates turns in one rendering.
pub(super) struct Locator<'a> {
    turns: &'a Turns<'a>,
    full: &'a str,
    tokenizer: &'a Tokenizer,
    mark: char,
    /// Where the rendered text of a turn ends, for turns asked about before.
    ends: RefCell<BTreeMap<usize, Option<usize>>>,
}

impl<'a> Locator<'a> {
    pub(super) fn new(
        turns: &'a Turns<'a>,
        full: &'a str,
        tokenizer: &'a Tokenizer,
    ) -> Result<Self, DatasetError> {
        let mark = MARKS.into_iter().find(|mark| !full.contains(*mark));
        let mark = mark.ok_or_else(|| {
            unlocated(turns, 0, "the text holds every character that could mark a place")
        })?;
        Ok(Self { turns, full, tokenizer, mark, ends: RefCell::default() })
    }

    /// Text that the model writes in turn `index`.
    pub(super) fn generated(&self, index: usize) -> Result<Span, DatasetError> {
        let text_end = self.text_end(index)?.ok_or_else(|| {
            self.unlocated(index, "changing the turn does not change the rendering")
        })?;
        let start = self.start(index, text_end)?;
        if start > text_end {
            return Err(self.unlocated(index, "its text would end before it begins"));
        }
        let (end, ended) = self.turn_end(index, text_end)?;
        Ok(Span { range: start..end, ended })
    }

    /// Text of the content of any turn.
    pub(super) fn content(&self, index: usize) -> Result<Range<usize>, DatasetError> {
        let end = self.text_end(index)?;
        match (self.content_start(index)?, end) {
            (Some(start), Some(end)) if start <= end => Ok(start..end),
            _ => Err(self.unlocated(index, "its content does not show in the rendering")),
        }
    }

    /// Where the text of a turn ends in the whole rendering, before what the template adds.
    fn text_end(&self, index: usize) -> Result<Option<usize>, DatasetError> {
        if let Some(end) = self.ends.borrow().get(&index) {
            return Ok(*end);
        }
        let end = self.text_end_in(self.full, self.turns.messages.len(), Prompt::Omit, index)?;
        self.ends.borrow_mut().insert(index, end);
        Ok(end)
    }

    /// The same in `text`, the rendering of the first `count` turns.
    fn text_end_in(
        &self,
        text: &str,
        count: usize,
        prompt: Prompt,
        index: usize,
    ) -> Result<Option<usize>, TemplateError> {
        let mut last = None;
        for changed in self.message(index).map(|m| ending_in(m, self.mark)).unwrap_or_default() {
            let other = self.turns.render_changed(count, prompt, index, &changed)?;
            if other.contains(self.mark) {
                last = last.max(Some(text.len() - common_suffix(text, &other)));
            }
        }
        Ok(last)
    }

    /// Where the content of a turn begins in the whole rendering.
    fn content_start(&self, index: usize) -> Result<Option<usize>, TemplateError> {
        let mut first: Option<usize> = None;
        let changed = self.message(index).map(|m| beginning_with(m, self.mark));
        for changed in changed.unwrap_or_default() {
            let count = self.turns.messages.len();
            let other = self.turns.render_changed(count, Prompt::Omit, index, &changed)?;
            if other.contains(self.mark) {
                let at = common_prefix(self.full, &other);
                first = Some(first.map_or(at, |first| first.min(at)));
            }
        }
        Ok(first)
    }

    /// Where the model begins to write turn `index`.
    fn start(&self, index: usize, text_end: usize) -> Result<usize, DatasetError> {
        let prompt = self.turns.render_first(index, Prompt::Add);
        // Most templates only ever append: then the prompt is where the turn begins, and the
        // questions that follow would give the same answer.
        if let Ok(prompt) = &prompt
            && index > 0
            && self.full.starts_with(prompt)
        {
            return Ok(prompt.len());
        }
        for before in (0..index).rev() {
            let Some(end) = self.text_end(before)? else { continue };
            let prompt = prompt.as_deref().map_err(|_| {
                self.unlocated(index, "the turns before it cannot be rendered as a prompt")
            })?;
            let Some(prompt_end) = self.text_end_in(prompt, index, Prompt::Add, before)? else {
                continue;
            };
            let opening = prompt.get(prompt_end..).unwrap_or_default();
            return self.after_opening(index, end, opening);
        }
        self.start_of_first(index, text_end)
    }

    /// The place after `opening`, which follows the turn before at `from`.
    fn after_opening(
        &self,
        index: usize,
        from: usize,
        opening: &str,
    ) -> Result<usize, DatasetError> {
        let rest = self.full.get(from..).unwrap_or_default();
        if rest.starts_with(opening) {
            return Ok(from + opening.len());
        }
        // The prompt may end in text that the template leaves out of finished turns, as the
        // `<think>` of reasoning models. Whole tokens are compared: two tokens may begin alike.
        let shared = self.shared_tokens(rest, opening)?;
        let start = from + shared;
        let only_calls = self.message(index).is_some_and(|message| {
            message.tool_calls.is_some() && message.text().is_none_or(str::is_empty)
        });
        if shared > 0 && (only_calls || self.content_start(index)? == Some(start)) {
            return Ok(start);
        }
        Err(self.unlocated(index, "it is opened otherwise than the template's own prompt opens it"))
    }

    /// Bytes of the tokens that both texts begin with.
    fn shared_tokens(&self, text: &str, opening: &str) -> Result<usize, DatasetError> {
        // A little more than the opening is enough to see its tokens in context.
        let mut length = text.len().min(opening.len() + 64);
        while !text.is_char_boundary(length) {
            length += 1;
        }
        let left = self.tokenizer.encode_with_offsets(text.get(..length).unwrap_or(text))?;
        let right = self.tokenizer.encode_with_offsets(opening)?;
        let shared = left.iter().zip(&right).take_while(|(left, right)| left == right);
        Ok(shared.last().map_or(0, |((_, range), _)| range.end))
    }

    /// Start of a turn that no other text comes before but the template's own.
    fn start_of_first(&self, index: usize, text_end: usize) -> Result<usize, DatasetError> {
        let no_opening = || self.unlocated(index, "no turn of the conversation comes before it");
        let probe = [Message::new("user", "a")];
        let with = self.turns.render_others(&probe, Prompt::Add).map_err(|_| no_opening())?;
        let without = self.turns.render_others(&probe, Prompt::Omit).map_err(|_| no_opening())?;
        let opening = with.strip_prefix(without.as_str()).filter(|opening| !opening.is_empty());
        let opening = opening.ok_or_else(no_opening)?;
        let until = self.content_start(index)?.unwrap_or(text_end);
        let before = self.full.get(..until).unwrap_or_default();
        before.rfind(opening).map(|at| at + opening.len()).ok_or_else(no_opening)
    }

    /// End of a turn with the token that closes it, and whether something closes it.
    fn turn_end(&self, index: usize, text_end: usize) -> Result<(usize, bool), DatasetError> {
        let rest = self.full.get(text_end..).unwrap_or_default();
        let alone = self.turns.render_first(index + 1, Prompt::Omit)?;
        let alone_end = if self.full.starts_with(&alone) {
            Some(text_end)
        } else {
            self.text_end_in(&alone, index + 1, Prompt::Omit, index)?
        };
        let alone_rest = alone_end.and_then(|end| alone.get(end..)).unwrap_or_default();
        let closing = rest.get(..common_prefix(rest, alone_rest)).unwrap_or_default();
        if let Some(length) = self.closing_token(index, closing) {
            return Ok((text_end + length, true));
        }
        // Some templates close a turn only when another follows.
        let blank = rest.len() - rest.trim_start().len();
        if let Some((range, id)) = self.tokenizer.find_special(rest)
            && range.start == blank
            && self.tokenizer.stop_ids().contains(&id)
        {
            return Ok((text_end + range.end, true));
        }
        let closing = closing.trim_end();
        Ok((text_end + closing.len(), !closing.is_empty()))
    }

    /// Length of `closing` up to the end of the special token that closes the turn.
    fn closing_token(&self, index: usize, closing: &str) -> Option<usize> {
        let calls = self.message(index).is_some_and(|message| message.tool_calls.is_some());
        let stop_ids = self.tokenizer.stop_ids();
        let mut last = None;
        let mut from = 0;
        while let Some((range, id)) = self.tokenizer.find_special(closing.get(from..)?) {
            from += range.end;
            if Some(id) == self.tokenizer.bos() && Some(id) != self.tokenizer.eos() {
                continue;
            }
            last = Some(from);
            // Tool calls may end in special tokens of their own before the turn ends.
            if !calls || stop_ids.contains(&id) {
                break;
            }
        }
        last
    }

    fn message(&self, index: usize) -> Option<&Message> {
        self.turns.messages.get(index)
    }

    fn unlocated(&self, index: usize, problem: &'static str) -> DatasetError {
        unlocated(self.turns, index, problem).into()
    }
}

type Prompt = GenerationPrompt;

fn unlocated(turns: &Turns, turn: usize, problem: &'static str) -> TemplateError {
    TemplateError::Unlocated { template: turns.template.name.clone(), turn, problem }
}

/// Bytes compared at once.
const CHUNK: usize = 64;

/// Bytes of the whole characters that both texts begin with.
fn common_prefix(a: &str, b: &str) -> usize {
    let (left, right) = (a.as_bytes(), b.as_bytes());
    let chunks = left.chunks(CHUNK).zip(right.chunks(CHUNK)).take_while(|(a, b)| a == b).count();
    let whole = (chunks * CHUNK).min(left.len()).min(right.len());
    let rest = left.iter().zip(right).skip(whole).take_while(|(a, b)| a == b).count();
    a.floor_char_boundary(whole + rest)
}

/// Bytes of the whole characters that both texts end with.
fn common_suffix(a: &str, b: &str) -> usize {
    let (left, right) = (a.as_bytes(), b.as_bytes());
    let chunks = left.rchunks(CHUNK).zip(right.rchunks(CHUNK)).take_while(|(a, b)| a == b).count();
    let whole = (chunks * CHUNK).min(left.len()).min(right.len());
    let backwards = left.iter().rev().zip(right.iter().rev());
    let rest = backwards.skip(whole).take_while(|(a, b)| a == b).count();
    a.len() - a.ceil_char_boundary(a.len() - whole - rest)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shared_ends_are_those_of_a_comparison_by_characters(
            shared in "[aé😀]{0,90}", left in "[aéè😀]{0,5}", right in "[aéè😀]{0,5}",
        ) {
            let count = |a: &str, b: &str| -> usize {
                let equal = a.chars().zip(b.chars()).take_while(|(a, b)| a == b);
                equal.map(|(letter, _)| letter.len_utf8()).sum()
            };
            let reversed = |text: &str| text.chars().rev().collect::<String>();
            let (a, b) = (format!("{shared}{left}"), format!("{shared}{right}"));
            prop_assert_eq!(common_prefix(&a, &b), count(&a, &b));
            let (a, b) = (format!("{left}{shared}"), format!("{right}{shared}"));
            prop_assert_eq!(common_suffix(&a, &b), count(&reversed(&a), &reversed(&b)));
        }
    }
}
