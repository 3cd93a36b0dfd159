//! Keys and values of sequences that grow token by token.
//!
//! Each sequence has a slot, a stretch of places in one tensor a layer, so that the sequences of a
//! batch need not have the same length and a finished one makes room for the next.

use std::ops::Range;

use kernels::{RowSpan, Segments};

use super::block::{CacheStep, LayerCache};

/// Keys and values of the sequences of a batch.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    layers: Vec<LayerCache>,
    /// Places of a slot.
    capacity: usize,
    /// Tokens of each slot.
    sequences: Vec<Vec<u32>>,
}

impl KeyValueCache {
    pub(super) fn new(layers: usize, slots: usize, capacity: usize) -> Self {
        Self {
            layers: vec![LayerCache::default(); layers],
            capacity: capacity.max(1),
            sequences: vec![Vec::new(); slots],
        }
    }

    /// Positions of the first sequence.
    pub fn positions(&self) -> usize {
        self.sequences.first().map_or(0, Vec::len)
    }

    /// Forgets the sequence of a slot.
    pub fn clear(&mut self, slot: usize) {
        self.sequences[slot].clear();
    }

    /// Adds tokens to sequences: the slots and the positions to compute, from 0 where the cached
    /// ones are stale.
    pub(super) fn append(
        &mut self,
        parts: &[(usize, &[u32])],
        is_stale: impl Fn(usize, usize) -> bool,
    ) -> Vec<(usize, Range<usize>)> {
        let mut new = Vec::with_capacity(parts.len());
        for &(slot, ids) in parts {
            let first = self.sequences[slot].len();
            self.sequences[slot].extend_from_slice(ids);
            let end = first + ids.len();
            new.push((slot, if is_stale(first, end) { 0..end } else { first..end }));
        }
        self.grow(new.iter().map(|(_, positions)| positions.end).max().unwrap_or(0));
        new
    }

    /// Where new positions go, and what they see.
    pub(super) fn step(&self, new: &[(usize, Range<usize>)]) -> (CacheStep, Segments) {
        let (mut spans, mut segments, mut from) = (Vec::new(), Vec::new(), 0);
        for (slot, positions) in new {
            let first = slot * self.capacity;
            let count = positions.len();
            spans.push(RowSpan { from, to: first + positions.start, count });
            segments.push((count, first..first + positions.end));
            from += count;
        }
        let places = self.capacity * self.sequences.len();
        (CacheStep { places, spans }, Segments::over(&segments))
    }

    /// Tokens at some positions.
    pub(super) fn token_ids(&self, new: &[(usize, Range<usize>)]) -> Vec<u32> {
        let tokens = |(slot, positions): &(usize, Range<usize>)| {
            self.sequences[*slot][positions.clone()].to_vec()
        };
        new.iter().flat_map(tokens).collect()
    }

    fn grow(&mut self, positions: usize) {
        if positions <= self.capacity {
            return;
        }
        let capacity = positions.max(self.capacity * 2);
        let span = |(slot, sequence): (usize, &Vec<u32>)| RowSpan {
            from: slot * self.capacity,
            to: slot * capacity,
            count: sequence.len().min(self.capacity),
        };
        let spans: Vec<RowSpan> = self.sequences.iter().enumerate().map(span).collect();
        for layer in &mut self.layers {
            layer.regrow(capacity * self.sequences.len(), &spans);
        }
        self.capacity = capacity;
    }

    pub(super) fn layers_mut(&mut self) -> impl Iterator<Item = &mut LayerCache> {
        self.layers.iter_mut()
    }
}
