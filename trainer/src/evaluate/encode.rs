//! Texts as tokens for scoring, exactly as lm-eval's `HFLM` makes them.

use datasets::{SpecialTokens, Tokenizer};

use super::error::EvaluateError;
use super::likelihood::Request;
use crate::base_model::Decoder;

/// Encodes texts of a task for one model.
#[derive(Debug)]
pub struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// What stands before a text that has no context: BOS, else EOS.
    prefix: u32,
    prefix_text: String,
    vocab: usize,
}

impl<'a> Encoder<'a> {
    /// For a tokenizer and the model that reads its tokens.
    pub fn new(tokenizer: &'a Tokenizer, decoder: &Decoder) -> Result<Self, EvaluateError> {
        let prefix = tokenizer.bos().or(tokenizer.eos()).ok_or_else(|| {
            EvaluateError::Model(
                "the tokenizer names neither a begin- nor an end-of-sequence token, and scoring \
                 starts from one"
                    .into(),
            )
        })?;
        let prefix_text = tokenizer.decode(&[prefix], SpecialTokens::Keep)?;
        Ok(Self { tokenizer, prefix, prefix_text, vocab: decoder.config().vocab_size })
    }

    /// The token before a text that has no context.
    pub fn prefix(&self) -> u32 {
        self.prefix
    }

    /// A text, with the begin-of-sequence token where the tokenizer adds one and the text does not
    /// have it already.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EvaluateError> {
        let mut ids = self.encode_bare(text)?;
        let bos = self.tokenizer.bos().filter(|_| self.tokenizer.adds_bos());
        if let Some(bos) = bos.filter(|_| !text.starts_with(&self.prefix_text)) {
            ids.insert(0, bos);
        }
        Ok(ids)
    }

    fn encode_bare(&self, text: &str) -> Result<Vec<u32>, EvaluateError> {
        let ids = self.tokenizer.encode(text)?;
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            None => Ok(ids),
            Some(id) => Err(EvaluateError::Model(format!(
                "the tokenizer gives token {id}, the model has {} rows; take tokenizer and \
                 weights from the same model",
                self.vocab
            ))),
        }
    }

    /// A context and what follows it.
    ///
    /// White space at the context's end moves to the continuation, and the border is where the
    /// context alone would end in tokens; an empty context is the prefix token.
    pub fn pair(&self, context: &str, continuation: &str) -> Result<Request, EvaluateError> {
        if context.is_empty() {
            let mut continuation = self.encode_bare(continuation)?;
            let context = match continuation.first() {
                Some(&first) if first == self.prefix => vec![continuation.remove(0)],
                _ => vec![self.prefix],
            };
            return Ok(Request { context, continuation });
        }
        let kept = context.trim_end_matches(is_space);
        let moved = context.get(kept.len()..).unwrap_or_default();
        let whole = self.encode(&format!("{kept}{moved}{continuation}"))?;
        let mut context = self.encode(kept)?;
        let continuation = whole.get(context.len()..).unwrap_or_default().to_vec();
        if context.is_empty() {
            // A context of white space alone.
            context.push(self.prefix);
        }
        Ok(Request { context, continuation })
    }
}

/// `str.isspace` of one character.
pub(crate) fn is_space(letter: char) -> bool {
    letter.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&letter)
}
