//! Log-likelihoods of continuations after contexts.
//!
//! Requests are sorted by their tokens and laid out as a tree ([`TokenTree`]), so what they begin
//! with in common (the question of several choices, the examples of several questions) is
//! computed once and nothing is padded. Logits exist only where a token is scored.

use super::error::EvaluateError;
use crate::base_model::{Decoder, Sharing, TokenTree, shared};

/// Tokens that go through the model at once, unless one request has more.
const TOKENS_PER_PASS: usize = 2048;

/// Rows of keys that the branches of one pass may see together: they are gathered by copying.
const KEY_ROWS_PER_PASS: usize = 32_768;

/// A continuation to score and the tokens before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// At least one token.
    pub context: Vec<u32>,
    /// At least one token.
    pub continuation: Vec<u32>,
}

/// How probable a continuation is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LogLikelihood {
    /// Natural logarithm of its probability.
    pub sum: f64,
    /// Whether greedy decoding would give it.
    pub is_greedy: bool,
    /// Its tokens.
    pub tokens: usize,
}

/// The tokens a request needs run, and where among them its continuation is predicted.
struct Input {
    tokens: Vec<u32>,
    first_scored: usize,
}

impl Input {
    /// As lm-eval cuts it: what does not fit falls off on the left, the last token is not run.
    fn new(request: &Request, max_length: usize) -> Result<Self, EvaluateError> {
        let Request { context, continuation } = request;
        if continuation.is_empty() || context.is_empty() {
            return Err(EvaluateError::Model(
                "a continuation has no token of its own: choices must not be empty, and must not \
                 merge with the end of the prompt"
                    .into(),
            ));
        }
        if continuation.len() > max_length {
            return Err(EvaluateError::Model(format!(
                "a continuation has {} tokens, the model takes {max_length}",
                continuation.len()
            )));
        }
        let length = context.len() + continuation.len() - 1;
        let cut = length.saturating_sub(max_length);
        let mut tokens: Vec<u32> = context.iter().chain(continuation).skip(cut).copied().collect();
        tokens.pop();
        let first_scored = tokens.len() - continuation.len();
        Ok(Self { tokens, first_scored })
    }
}

/// Scores requests; results stand in the order of the requests.
///
/// `done` is told how many are scored after every pass.
pub fn log_likelihoods(
    decoder: &Decoder,
    requests: &[Request],
    max_length: usize,
    done: &mut dyn FnMut(u64),
) -> Result<Vec<LogLikelihood>, EvaluateError> {
    let inputs: Vec<Input> =
        requests.iter().map(|request| Input::new(request, max_length)).collect::<Result<_, _>>()?;
    let mut order: Vec<usize> = (0..inputs.len()).collect();
    order.sort_by(|&a, &b| inputs[a].tokens.cmp(&inputs[b].tokens));
    let unknown = LogLikelihood { sum: f64::NAN, is_greedy: false, tokens: 0 };
    let (mut results, mut finished) = (vec![unknown; requests.len()], 0);
    for pass in passes(&order, &inputs) {
        let scores = score_pass(decoder, pass, &inputs, requests);
        for (&index, score) in pass.iter().zip(scores) {
            results[index] = score;
        }
        finished += pass.len() as u64;
        done(finished);
    }
    Ok(results)
}

/// Cuts the sorted requests into passes of bounded size.
fn passes<'a>(order: &'a [usize], inputs: &[Input]) -> Vec<&'a [usize]> {
    let (mut passes, mut first, mut tokens, mut keys) = (Vec::new(), 0, 0, 0);
    for (place, &index) in order.iter().enumerate() {
        let text = &inputs[index].tokens;
        let before = (place > first).then(|| &inputs[order[place - 1]].tokens);
        let new = text.len() - before.map_or(0, |before| shared(before, text));
        let full = tokens + new > TOKENS_PER_PASS || keys + text.len() > KEY_ROWS_PER_PASS;
        if full && place > first {
            passes.push(&order[first..place]);
            (first, tokens, keys) = (place, text.len(), text.len());
        } else {
            tokens += new;
            keys += if new > 0 { text.len() } else { 0 };
        }
    }
    if first < order.len() {
        passes.push(&order[first..]);
    }
    passes
}

fn score_pass(
    decoder: &Decoder,
    pass: &[usize],
    inputs: &[Input],
    requests: &[Request],
) -> Vec<LogLikelihood> {
    let texts: Vec<&[u32]> = pass.iter().map(|&index| inputs[index].tokens.as_slice()).collect();
    let longest = texts.iter().map(|text| text.len()).max().unwrap_or(0);
    // Where angles depend on the length of the whole text, a beginning is not the same in two texts.
    let depends = decoder.config().ropes.iter().any(|rope| rope.switches_between(0, longest));
    let sharing = if depends { Sharing::Nothing } else { Sharing::Beginnings };
    let (tree, rows) = TokenTree::of_texts(&texts, sharing);
    let hidden = decoder.hidden_of_tree(&tree);
    let mut wanted = Vec::new();
    for (&index, rows) in pass.iter().zip(&rows) {
        let scored = &rows[inputs[index].first_scored..];
        wanted.extend(scored.iter().copied().zip(requests[index].continuation.iter().copied()));
    }
    let scores = decoder.token_scores(&hidden, &wanted);
    let mut scores = scores.iter();
    pass.iter()
        .map(|&index| {
            let tokens = requests[index].continuation.len();
            let (mut sum, mut is_greedy) = (0.0, true);
            for score in scores.by_ref().take(tokens) {
                sum += score.log_probability;
                is_greedy &= score.is_best;
            }
            LogLikelihood { sum, is_greedy, tokens }
        })
        .collect()
}

/// A long text as requests whose continuations are its tokens, each once, as lm-eval's rolling
/// windows: each window predicts as much as fits, after the prefix token or what stood before.
pub fn rolling_requests(token_ids: &[u32], prefix: u32, max_length: usize) -> Vec<Request> {
    let first = token_ids.len().min(max_length);
    let mut requests = Vec::new();
    if first > 0 {
        requests.push(Request { context: vec![prefix], continuation: token_ids[..first].to_vec() });
    }
    let mut predicted = first;
    while predicted < token_ids.len() {
        let count = max_length.min(token_ids.len() - predicted);
        let end = predicted + count;
        let start = end.saturating_sub(max_length + 1);
        requests.push(Request {
            context: token_ids[start..predicted].to_vec(),
            continuation: token_ids[predicted..end].to_vec(),
        });
        predicted = end;
    }
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_falls_off_on_the_left() {
        let request = Request { context: vec![1, 2, 3, 4], continuation: vec![5, 6] };
        let input = Input::new(&request, 8).unwrap();
        assert_eq!((input.tokens.as_slice(), input.first_scored), (&[1, 2, 3, 4, 5][..], 3));
        let input = Input::new(&request, 3).unwrap();
        assert_eq!((input.tokens.as_slice(), input.first_scored), (&[3, 4, 5][..], 1));
        assert!(Input::new(&request, 1).is_err());
        assert!(Input::new(&Request { context: vec![1], continuation: vec![] }, 9).is_err());
    }

    #[test]
    fn rolling_windows_predict_every_token_once() {
        let tokens: Vec<u32> = (10..17).collect();
        let windows = rolling_requests(&tokens, 1, 3);
        let pairs: Vec<(Vec<u32>, Vec<u32>)> =
            windows.into_iter().map(|request| (request.context, request.continuation)).collect();
        assert_eq!(
            pairs,
            [
                (vec![1], vec![10, 11, 12]),
                (vec![12], vec![13, 14, 15]),
                (vec![13, 14, 15], vec![16]),
            ]
        );
        assert!(rolling_requests(&[], 1, 3).is_empty());
    }
}
