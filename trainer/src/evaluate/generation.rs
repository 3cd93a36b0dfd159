//! Texts of many prompts at once: the sequences of a batch share each pass over the weights, and
//! a finished one makes room for the next.

use std::collections::VecDeque;

use datasets::{SpecialTokens, TextStream, Tokenizer};

use super::error::EvaluateError;
use crate::base_model::{Decoder, KeyValueCache};
use crate::generate::{Choice, Sampling};

/// Sequences that run together at most.
const MOST_SLOTS: usize = 32;

/// Bytes that keys and values of a batch may take.
const CACHE_BYTES: usize = 1 << 30;

/// Tokens of prompts that are read in one pass, unless one prompt has more.
const PROMPT_TOKENS: usize = 1024;

/// A text to go on with.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerationRequest {
    /// At least one token; what does not fit beside the answer falls off on the left.
    pub prompt: Vec<u32>,
    /// How tokens are chosen; each request draws for itself.
    pub sampling: Sampling,
}

/// When a text ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Tokens at most.
    pub max_tokens: usize,
    /// Texts that end it and do not belong to it.
    pub stop: Vec<String>,
    /// Tokens that end it.
    pub stop_ids: Vec<u32>,
}

/// A generated text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The text, without special tokens and what ended it.
    pub text: String,
    /// Its tokens, without a stop token.
    pub token_ids: Vec<u32>,
    /// What ended it.
    pub ending: Ended,
}

/// What ended a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// A stop token of the model.
    StopToken,
    /// A stop text of the task.
    StopText,
    /// The number of tokens.
    Length,
}

/// One sequence in progress.
struct Running {
    request: usize,
    slot: usize,
    choice: Choice,
    stream: TextStream,
    /// Text so far, for stop texts.
    text: String,
    token_ids: Vec<u32>,
}

/// Generates after every request; results stand in the order of the requests.
///
/// `done` is told how many are finished.
pub fn generate_all(
    decoder: &Decoder,
    tokenizer: &Tokenizer,
    requests: &[GenerationRequest],
    limits: &Limits,
    done: &mut dyn FnMut(u64),
) -> Result<Vec<Generated>, EvaluateError> {
    let most = decoder.config().max_positions;
    let room = most.checked_sub(limits.max_tokens).filter(|room| *room > 0).ok_or_else(|| {
        let problem =
            format!("= {} leaves no room for a prompt: the model takes {most}", limits.max_tokens);
        EvaluateError::definition("max_tokens", problem)
    })?;
    let prompts: Vec<&[u32]> = requests
        .iter()
        .map(|request| &request.prompt[request.prompt.len().saturating_sub(room)..])
        .collect();
    if prompts.iter().any(|prompt| prompt.is_empty()) {
        return Err(EvaluateError::Model("a prompt has no token".into()));
    }
    let longest = prompts.iter().map(|prompt| prompt.len()).max().unwrap_or(1);
    let capacity = longest + limits.max_tokens;
    let slots = slots(decoder, capacity).min(requests.len()).max(1);
    let mut batch = Batch {
        decoder,
        tokenizer,
        requests,
        limits,
        prompts: &prompts,
        waiting: waiting(&prompts),
        running: Vec::new(),
        free: (0..slots).rev().collect(),
        cache: decoder.new_cache_of(slots, capacity),
        results: vec![None; requests.len()],
    };
    while batch.step()? {
        done(batch.results.iter().flatten().count() as u64);
    }
    Ok(batch.results.into_iter().flatten().collect())
}

fn slots(decoder: &Decoder, capacity: usize) -> usize {
    let config = decoder.config();
    let position = config.blocks.len() * 2 * config.kv_heads * config.head_dim * 4;
    (CACHE_BYTES / (position * capacity).max(1)).clamp(1, MOST_SLOTS)
}

/// The longest prompts first: what is left at the end runs with few neighbours, so it is short.
fn waiting(prompts: &[&[u32]]) -> VecDeque<usize> {
    let mut order: Vec<usize> = (0..prompts.len()).collect();
    order.sort_by_key(|&request| std::cmp::Reverse(prompts[request].len()));
    order.into()
}

struct Batch<'a> {
    decoder: &'a Decoder,
    tokenizer: &'a Tokenizer,
    requests: &'a [GenerationRequest],
    limits: &'a Limits,
    prompts: &'a [&'a [u32]],
    waiting: VecDeque<usize>,
    running: Vec<Running>,
    free: Vec<usize>,
    cache: KeyValueCache,
    results: Vec<Option<Generated>>,
}

impl Batch<'_> {
    /// One pass: a token for every sequence, and the prompts of new ones. False at the end.
    fn step(&mut self) -> Result<bool, EvaluateError> {
        let old = self.running.len();
        self.start();
        if self.running.is_empty() {
            return Ok(false);
        }
        let parts: Vec<(usize, &[u32])> = self
            .running
            .iter()
            .enumerate()
            .map(|(place, running)| match running.token_ids.last() {
                Some(last) if place < old => (running.slot, std::slice::from_ref(last)),
                _ => (running.slot, self.prompts[running.request]),
            })
            .collect();
        let logits = kernels::to_f32(&self.decoder.advance(&parts, &mut self.cache));
        let vocab = logits.len() / parts.len();
        let running = std::mem::take(&mut self.running);
        for (mut sequence, logits) in running.into_iter().zip(logits.chunks_exact(vocab)) {
            let token = sequence.choice.choose(logits);
            match sequence.take(token, self.limits)? {
                None => self.running.push(sequence),
                Some(ending) => self.finish(sequence, ending)?,
            }
        }
        Ok(true)
    }

    /// Gives free slots to waiting requests.
    fn start(&mut self) {
        let mut tokens = 0;
        while let Some(&request) = self.waiting.front() {
            let length = self.prompts[request].len();
            if tokens > 0 && tokens + length > PROMPT_TOKENS {
                return;
            }
            let Some(slot) = self.free.pop() else { return };
            tokens += length;
            self.waiting.pop_front();
            self.cache.clear(slot);
            self.running.push(Running {
                request,
                slot,
                choice: Choice::new(self.requests[request].sampling.clone()),
                stream: self.tokenizer.stream(SpecialTokens::Skip),
                text: String::new(),
                token_ids: Vec::new(),
            });
        }
    }

    fn finish(&mut self, sequence: Running, ending: Ended) -> Result<(), EvaluateError> {
        let mut text = self.tokenizer.decode(&sequence.token_ids, SpecialTokens::Skip)?;
        for stop in self.limits.stop.iter().filter(|stop| !stop.is_empty()) {
            if let Some(at) = text.find(stop) {
                text.truncate(at);
            }
        }
        self.free.push(sequence.slot);
        let token_ids = sequence.token_ids;
        self.results[sequence.request] = Some(Generated { text, token_ids, ending });
        Ok(())
    }
}

impl Running {
    /// Adds a token; says what ends the text with it.
    fn take(&mut self, token: u32, limits: &Limits) -> Result<Option<Ended>, EvaluateError> {
        if limits.stop_ids.contains(&token) {
            return Ok(Some(Ended::StopToken));
        }
        self.token_ids.push(token);
        let new = self.stream.push(token)?;
        let longest = limits.stop.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(&new);
        let tail = &self.text[from..];
        if limits.stop.iter().any(|stop| !stop.is_empty() && tail.contains(stop.as_str())) {
            return Ok(Some(Ended::StopText));
        }
        Ok((self.token_ids.len() >= limits.max_tokens).then_some(Ended::Length))
    }
}
