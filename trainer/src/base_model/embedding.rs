//! Token ids → residual stream: rows of the embedding, scaled, with learned positions on top.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use kernels::Weight;

/// The beginning of the network.
#[derive(Debug, Clone)]
pub struct Embedding {
    /// `[vocab, hidden]`
    pub(super) weight: Weight,
    /// `[positions, hidden]`
    pub(super) positions: Option<Weight>,
    pub(super) scale: f64,
    /// Number format of activations.
    pub(super) dtype: DType,
    pub(super) device: Device,
}

impl Embedding {
    /// The stream of segments that begin at `starts`; positions count from 0 in each.
    ///
    /// # Shapes
    /// - returns `[tokens, hidden]`
    pub fn forward(&self, token_ids: &[u32], starts: &[usize]) -> Tensor<2> {
        self.forward_at(token_ids, starts.windows(2).map(|pair| 0..pair[1] - pair[0]))
    }

    /// The stream of tokens at stretches of positions, end to end.
    pub fn forward_at(
        &self,
        token_ids: &[u32],
        stretches: impl IntoIterator<Item = Range<usize>>,
    ) -> Tensor<2> {
        self.at(token_ids, stretches.into_iter().flatten().map(|position| position as u32))
    }

    fn at(&self, token_ids: &[u32], positions: impl Iterator<Item = u32>) -> Tensor<2> {
        let mut x = kernels::embedding(&self.weight, token_ids, self.dtype, &self.device);
        if self.scale != 1.0 {
            x = x * self.scale;
        }
        if let Some(rows) = &self.positions {
            let positions: Vec<u32> = positions.collect();
            x = x + kernels::embedding(rows, &positions, self.dtype, &self.device);
        }
        x
    }
}
