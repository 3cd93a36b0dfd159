//! Keys and values of sequences that grow token by token.
//!
//! Each sequence has a slot, a stretch of places in one tensor a layer, so that the sequences of a
//! batch need not have the same length and a finished one makes room for the next.

use std::ops::Range;

use kernels::{RowSpan, Segments};

use super::block::{CacheStep, LayerCache};
use super::context::pieces;

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

    /// Where new positions go.
    pub(super) fn step(&self, new: &[(usize, Range<usize>)]) -> CacheStep {
        let (mut spans, mut from) = (Vec::new(), 0);
        for (slot, positions) in new {
            let (to, count) = (slot * self.capacity + positions.start, positions.len());
            spans.push(RowSpan { from, to, count });
            from += count;
        }
        CacheStep { places: self.capacity * self.sequences.len(), spans }
    }

    /// What new positions see: their sequence, or of it the chunk of so many positions that they
    /// stand in.
    pub(super) fn segments(&self, new: &[(usize, Range<usize>)], chunk: Option<usize>) -> Segments {
        let of_slot = |(slot, positions): &(usize, Range<usize>)| {
            let first = slot * self.capacity;
            let pieces = pieces(positions.clone(), chunk).into_iter();
            pieces.map(move |(start, piece)| (piece.len(), first + start..first + piece.end))
        };
        Segments::over(&new.iter().flat_map(of_slot).collect::<Vec<_>>())
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
