//! Decodes tokens one by one without breaking characters.
//!
//! A character may be spread over several tokens, and the text of a token may depend on the one
//! before it. So each step decodes a short window of tokens and hands out what is new and whole.

use super::{SpecialTokens, Tokenizer};
use crate::error::DatasetError;

/// Most tokens held back for a character that is not whole; no encoding needs more.
const MOST_HELD_BACK: usize = 8;

/// Tokens at the end that may be the beginning of a character: its bytes.
const CHARACTER: usize = 4;

/// Text that grows token by token.
#[derive(Debug, Clone)]
pub struct TextStream {
    tokenizer: Tokenizer,
    special: SpecialTokens,
    ids: Vec<u32>,
    /// Tokens before this one are known as text; they are context for the rest.
    known: usize,
}

impl TextStream {
    pub(super) fn new(tokenizer: Tokenizer, special: SpecialTokens) -> Self {
        Self { tokenizer, special, ids: Vec::new(), known: 0 }
    }

    /// Adds a token and returns the text that became whole, often empty.
    pub fn push(&mut self, id: u32) -> Result<String, DatasetError> {
        self.ids.push(id);
        let held_back = self.ids.len() - self.known;
        let text = self.new_text()?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && held_back < MOST_HELD_BACK {
            return Ok(String::new());
        }
        let whole =
            if text.ends_with(char::REPLACEMENT_CHARACTER) { self.whole(&text)? } else { None };
        let (handed_out, text) = whole.unwrap_or((held_back, text));
        // The tokens handed out now stay as context, those before them go.
        self.ids.drain(..self.known);
        self.known = handed_out;
        Ok(text)
    }

    /// Where a text is full of replacement characters of its own: the longest beginning of the
    /// new `text` that does not reach into the last character, and its tokens.
    fn whole(&self, text: &str) -> Result<Option<(usize, String)>, DatasetError> {
        let held_back = self.ids.len() - self.known;
        for count in (1..=held_back.saturating_sub(CHARACTER)).rev() {
            let beginning = self.text_of(self.known + count)?;
            if text.starts_with(&beginning) {
                return Ok(Some((count, beginning)));
            }
        }
        Ok(None)
    }

    /// What is left at the end: replacement characters where a character never became whole.
    pub fn finish(mut self) -> Result<String, DatasetError> {
        let text = self.new_text()?;
        self.ids.clear();
        Ok(text)
    }

    fn new_text(&self) -> Result<String, DatasetError> {
        self.text_of(self.ids.len())
    }

    /// Text of the tokens from the known ones to `end`.
    fn text_of(&self, end: usize) -> Result<String, DatasetError> {
        let known = self.ids.get(..self.known).unwrap_or_default();
        let before = self.tokenizer.decode(known, self.special)?;
        let all = self.tokenizer.decode(&self.ids[..end], self.special)?;
        Ok(all.strip_prefix(before.as_str()).map_or(all.clone(), str::to_owned))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::tokenizer::tests::byte_tokenizer;

    proptest! {
        #[test]
        fn streamed_pieces_are_the_whole_text(text in "(\\PC|<s>){0,30}") {
            let tokenizer = byte_tokenizer(&["<s>"], &json!({}));
            let ids = tokenizer.encode(&text).unwrap();
            let mut stream = tokenizer.stream(SpecialTokens::Keep);
            let mut pieces = String::new();
            for id in ids {
                pieces.push_str(&stream.push(id).unwrap());
            }
            pieces.push_str(&stream.finish().unwrap());
            prop_assert_eq!(pieces, text);
        }
    }

    #[test]
    fn replacement_characters_of_the_text_itself_do_not_break_the_next() {
        let tokenizer = byte_tokenizer(&[], &json!({}));
        for text in
            ["\u{fffd}\u{fffd}\u{1aa0}", "\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{fffd}\u{1f600}a"]
        {
            let mut stream = tokenizer.stream(SpecialTokens::Keep);
            let mut pieces = String::new();
            for id in tokenizer.encode(text).unwrap() {
                pieces.push_str(&stream.push(id).unwrap());
            }
            pieces.push_str(&stream.finish().unwrap());
            assert_eq!(pieces, text);
        }
    }

    #[test]
    fn half_a_character_is_held_back_and_shown_at_the_end() {
        let tokenizer = byte_tokenizer(&[], &json!({}));
        let mut stream = tokenizer.stream(SpecialTokens::Keep);
        assert_eq!(stream.push(0xc3).unwrap(), "");
        assert_eq!(stream.push(0xa9).unwrap(), "é");
        assert_eq!(stream.push(0xc3).unwrap(), "");
        assert_eq!(stream.finish().unwrap(), "\u{fffd}");
    }
}
