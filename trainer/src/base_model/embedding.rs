//! Token ids → residual stream: rows of the embedding, scaled, with learned positions on top.

use std::ops::Range;

use adapters::Trained;
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
    /// Is there where the weight is trained.
    pub(super) trained: Option<Trained>,
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

    /// Adds up the gradient of the rows of `token_ids`, where the weight is trained.
    ///
    /// # Shapes
    /// - `d_stream`: `[tokens, hidden]`
    pub(super) fn add_gradient(&self, d_stream: &Tensor<2>, token_ids: &[u32]) {
        let Some(trained) = &self.trained else { return };
        let rows: Vec<usize> = token_ids.iter().map(|&id| id as usize).collect();
        let factors = vec![self.scale as f32; rows.len()];
        let d_stream = d_stream.clone().cast(DType::F32);
        trained.accumulate(|sum| {
            let zeros = || Tensor::zeros(self.weight.dims(), (&self.device, DType::F32));
            kernels::add_rows(sum.unwrap_or_else(zeros), &d_stream, &rows, &factors)
        });
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
