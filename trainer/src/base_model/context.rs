//! What all blocks of a pass share: positions, and who sees whom.

use std::ops::Range;

use adapters::Pass;
use burn::tensor::{DType, Device, Tensor};
use kernels::Segments;

use super::config::{BlockConfig, DecoderConfig, Temperature};
use super::rope::{Angles, RopeConfig};

/// What all blocks of a pass share.
#[derive(Debug, Clone)]
pub struct BlockContext {
    /// Angles of the tokens, one entry for each rotary embedding of the model.
    pub angles: Vec<Angles>,
    /// Training or inference.
    pub pass: Pass,
    sights: Sights,
    /// What a row's probability of each expert costs by the auxiliary loss: known once all layers
    /// have run.
    pub(super) auxiliary: Option<Vec<f32>>,
    /// Factors of late queries: `[tokens, 1]`, f32; `None`: all are 1.
    temperature: Option<Tensor<2>>,
}

/// Who sees whom, in blocks that see their whole segment and in those that see a chunk of it.
#[derive(Debug, Clone)]
pub(super) struct Sights {
    whole: Segments,
    chunked: Option<Segments>,
}

impl Sights {
    /// From what a chunk's size makes of the segments. All chunks of a model have one size.
    pub(super) fn of(config: &DecoderConfig, segments: impl Fn(Option<usize>) -> Segments) -> Self {
        let chunk = config.blocks.iter().find_map(|block| block.chunk);
        Self { whole: segments(None), chunked: chunk.map(|chunk| segments(Some(chunk))) }
    }
}

impl BlockContext {
    /// Of segments that begin at `starts`; positions count from 0 in each.
    pub(super) fn of_segments(
        config: &DecoderConfig,
        starts: &[usize],
        pass: Pass,
        device: &Device,
    ) -> Self {
        let sights = Sights::of(config, |chunk| match chunk {
            None => Segments::of_tokens(starts),
            Some(chunk) => Segments::of_tokens(&chunk_starts(starts, chunk)),
        });
        let positions = starts.windows(2).map(|segment| 0..segment[1] - segment[0]);
        Self { pass, ..Self::of_positions(config, &positions, sights, device) }
    }

    /// Of inference on stretches of positions, end to end.
    pub(super) fn of_positions(
        config: &DecoderConfig,
        stretches: &(impl Iterator<Item = Range<usize>> + Clone),
        sights: Sights,
        device: &Device,
    ) -> Self {
        let angles = |rope: &RopeConfig| rope.angles_of(stretches.clone(), device);
        let temperature = config.blocks.iter().find_map(|block| block.temperature);
        let temperature =
            temperature.and_then(|temperature| factors(temperature, stretches.clone(), device));
        let angles = config.ropes.iter().map(angles).collect();
        Self { angles, pass: Pass::Inference, sights, auxiliary: None, temperature }
    }

    /// Who sees whom in a block.
    pub(super) fn segments(&self, block: &BlockConfig) -> &Segments {
        let chunked = self.sights.chunked.as_ref().filter(|_| block.chunk.is_some());
        chunked.unwrap_or(&self.sights.whole)
    }

    /// Queries of a block, or their gradients, times the factors of their positions.
    pub(super) fn heated(&self, q: Tensor<2>, block: &BlockConfig) -> Tensor<2> {
        match &self.temperature {
            Some(factors) if block.temperature.is_some() => {
                let factors = factors.clone().cast(q.dtype());
                q * factors
            }
            _ => q,
        }
    }
}

fn factors(
    temperature: Temperature,
    stretches: impl Iterator<Item = Range<usize>>,
    device: &Device,
) -> Option<Tensor<2>> {
    let factors: Vec<f32> =
        stretches.flatten().map(|position| temperature.factor(position)).collect();
    let shape = [factors.len(), 1];
    let differs = factors.iter().any(|&factor| factor != 1.0);
    differs.then(|| kernels::from_f32(factors, shape, DType::F32, device))
}

/// Starts of segments, and of the chunks in them.
fn chunk_starts(starts: &[usize], chunk: usize) -> Vec<usize> {
    let chunks = starts.windows(2).flat_map(|segment| (segment[0]..segment[1]).step_by(chunk));
    chunks.chain(starts.last().copied()).collect()
}

/// Positions cut at the borders of chunks, each piece with its chunk's first position; the whole,
/// which sees everything from 0 on, where there are no chunks.
pub(super) fn pieces(positions: Range<usize>, chunk: Option<usize>) -> Vec<(usize, Range<usize>)> {
    let Some(chunk) = chunk else { return vec![(0, positions)] };
    let mut pieces = Vec::new();
    let mut start = positions.start;
    while start < positions.end {
        let first = start / chunk * chunk;
        let end = positions.end.min(first + chunk);
        pieces.push((first, start..end));
        start = end;
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_end_at_their_borders() {
        assert_eq!(chunk_starts(&[0, 5, 7], 2), [0, 2, 4, 5, 7]);
        assert_eq!(pieces(3..9, Some(4)), [(0, 3..4), (4, 4..8), (8, 8..9)]);
        assert_eq!(pieces(3..9, None), [(0, 3..9)]);
        assert_eq!(pieces(4..4, Some(4)), []);
    }

    #[test]
    fn late_positions_are_heated() {
        let temperature = Temperature { floor: 4.0, scale: 0.1 };
        let factors: Vec<f32> = [0, 2, 3, 11].map(|p| temperature.factor(p)).to_vec();
        let expected = [1.0, 1.0, 1.0 + 0.1 * 2.0_f32.ln(), 1.0 + 0.1 * 4.0_f32.ln()];
        for (factor, expected) in factors.iter().zip(expected) {
            assert!((factor - expected).abs() < 1e-6, "{factor} {expected}");
        }
    }
}
