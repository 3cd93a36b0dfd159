//! Decides which turns carry loss, and gathers the text they stand for.

use std::ops::Range;

use super::TemplateError;
use super::spans::{Locator, Span};
use super::turn::{Rendered, Turns};
use crate::config::LossOn;
use crate::conversation::Message;
use crate::error::DatasetError;
use crate::tokenizer::Tokenizer;

/// Text that carries loss.
pub(super) struct Selected {
    /// Ascending and disjoint.
    pub(super) ranges: Vec<Range<usize>>,
    /// Turns among them that nothing closes.
    pub(super) without_end: usize,
}

pub(super) fn trained_text(
    turns: &Turns,
    rendered: &Rendered,
    tokenizer: &Tokenizer,
    loss_on: LossOn,
) -> Result<Selected, DatasetError> {
    if loss_on == LossOn::All {
        return all_but_untrained(turns, rendered, tokenizer);
    }
    let wanted = wanted_turns(turns.messages, loss_on)?;
    let spans = match &rendered.generated {
        Some(marked) => marked_spans(turns, marked, &wanted)?,
        None if wanted.is_empty() => Vec::new(),
        None => {
            let locator = Locator::new(turns, &rendered.text, tokenizer)?;
            wanted.iter().map(|&turn| locator.generated(turn)).collect::<Result<_, _>>()?
        }
    };
    disjoint(turns, spans, &wanted)
}

/// Indices of the turns that carry loss.
fn wanted_turns(messages: &[Message], loss_on: LossOn) -> Result<Vec<usize>, TemplateError> {
    let last = messages.iter().rposition(Message::is_assistant);
    let mut wanted = Vec::new();
    for (turn, message) in messages.iter().enumerate() {
        let by_default =
            message.is_assistant() && (loss_on == LossOn::Assistant || last == Some(turn));
        if !message.train.unwrap_or(by_default) {
            continue;
        }
        if !message.is_assistant() {
            return Err(TemplateError::NotAssistant { turn, role: message.role.clone() });
        }
        wanted.push(turn);
    }
    Ok(wanted)
}

/// Spans of the wanted turns among those that the template marks.
fn marked_spans(
    turns: &Turns,
    marked: &[Range<usize>],
    wanted: &[usize],
) -> Result<Vec<Span>, TemplateError> {
    let span = |range: &Range<usize>| Span { range: range.clone(), ended: true };
    let assistants: Vec<usize> = (0..turns.messages.len())
        .filter(|turn| turns.messages.get(*turn).is_some_and(Message::is_assistant))
        .collect();
    if wanted.len() == assistants.len() {
        return Ok(marked.iter().map(span).collect());
    }
    if marked.len() != assistants.len() {
        return Err(TemplateError::Unlocated {
            template: turns.template.name.clone(),
            turn: wanted.first().copied().unwrap_or_default(),
            problem: "the template has not one `{% generation %}` block for each assistant turn",
        });
    }
    let pairs = assistants.iter().zip(marked);
    Ok(pairs.filter(|(turn, _)| wanted.contains(turn)).map(|(_, range)| span(range)).collect())
}

fn disjoint(turns: &Turns, spans: Vec<Span>, wanted: &[usize]) -> Result<Selected, DatasetError> {
    let without_end = spans.iter().filter(|span| !span.ended).count();
    let mut ranges: Vec<Range<usize>> = Vec::with_capacity(spans.len());
    for (number, span) in spans.into_iter().enumerate() {
        if ranges.last().is_some_and(|before| before.end > span.range.start) {
            return Err(TemplateError::Unlocated {
                template: turns.template.name.clone(),
                turn: wanted.get(number).copied().unwrap_or(number),
                problem: "its text overlaps that of an earlier turn",
            }
            .into());
        }
        ranges.push(span.range);
    }
    Ok(Selected { ranges, without_end })
}

/// The whole text without the turns that have `train = false`.
fn all_but_untrained(
    turns: &Turns,
    rendered: &Rendered,
    tokenizer: &Tokenizer,
) -> Result<Selected, DatasetError> {
    let mut ranges = Vec::new();
    let mut from = 0;
    let untrained: Vec<usize> = (0..turns.messages.len())
        .filter(|turn| turns.messages.get(*turn).is_some_and(|m| m.train == Some(false)))
        .collect();
    if !untrained.is_empty() {
        let locator = Locator::new(turns, &rendered.text, tokenizer)?;
        let mut left_out = Vec::new();
        for turn in untrained {
            let assistant = turns.messages.get(turn).is_some_and(Message::is_assistant);
            left_out.push(if assistant {
                locator.generated(turn)?.range
            } else {
                locator.content(turn)?
            });
        }
        left_out.sort_by_key(|range| range.start);
        for range in left_out {
            ranges.push(from..range.start.max(from));
            from = from.max(range.end);
        }
    }
    ranges.push(from..rendered.text.len());
    ranges.retain(|range| !range.is_empty());
    Ok(Selected { ranges, without_end: 0 })
}
