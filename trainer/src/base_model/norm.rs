//! Norms of the residual stream, and of queries and keys.

use burn::tensor::Tensor;

use super::config::{DecoderConfig, NormKind, QueryKeyNorm};

/// A norm with its frozen weights.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    measure: Measure,
    epsilon: f64,
}

/// What rows are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Their root mean square.
    RootMeanSquare,
    /// Their standard deviation, after their mean is taken off.
    Deviation,
}

impl Norm {
    /// `weight` as the checkpoint has it.
    pub(super) fn new(config: &DecoderConfig, weight: Tensor<1>, bias: Option<Tensor<1>>) -> Self {
        let (weight, measure) = match config.norm {
            NormKind::Rms => (weight, Measure::RootMeanSquare),
            NormKind::RmsOnePlus => (weight + 1.0, Measure::RootMeanSquare),
            NormKind::Layer | NormKind::LayerWithoutBias => (weight, Measure::Deviation),
        };
        Self { weight, bias, measure, epsilon: config.norm_epsilon }
    }

    /// The norm of a latent row: by the root mean square, with an epsilon that no key sets.
    pub(super) fn latent(weight: Tensor<1>) -> Self {
        Self { weight, bias: None, measure: Measure::RootMeanSquare, epsilon: 1e-6 }
    }

    /// # Shapes
    /// - `x`: `[rows, width]`, returns the same
    pub fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        match self.measure {
            Measure::RootMeanSquare => kernels::rms_norm(x, &self.weight, self.epsilon),
            Measure::Deviation => {
                kernels::layer_norm(x, &self.weight, self.bias.as_ref(), self.epsilon)
            }
        }
    }

    /// Gradient of the input, added to `sum`.
    pub fn backward(&self, sum: Option<Tensor<2>>, dy: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        match self.measure {
            Measure::RootMeanSquare => {
                kernels::rms_norm_gradient(sum, dy, x, &self.weight, self.epsilon)
            }
            Measure::Deviation => {
                kernels::layer_norm_gradient(sum, dy, x, &self.weight, self.epsilon)
            }
        }
    }
}

/// The norms of queries and keys.
#[derive(Debug, Clone)]
pub struct QueryKeyNorms {
    pub(super) query: Norm,
    pub(super) key: Norm,
    /// What is normalised at once: a head, or all.
    pub(super) width: NormWidth,
}

/// What is normalised at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormWidth {
    Head(usize),
    All,
}

impl NormWidth {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        match config.query_key_norm {
            QueryKeyNorm::Width | QueryKeyNorm::Absent => Self::All,
            QueryKeyNorm::Head | QueryKeyNorm::HeadOwnWeights | QueryKeyNorm::HeadUnweighted => {
                Self::Head(config.head_dim)
            }
        }
    }

    /// Rows as the norm wants them.
    fn split(self, x: &Tensor<2>) -> Tensor<2> {
        let [rows, width] = x.dims();
        match self {
            Self::Head(head) => x.clone().reshape([rows * width / head, head]),
            Self::All => x.clone(),
        }
    }

    /// Norms of the heads of every token.
    ///
    /// # Shapes
    /// - `x`: `[tokens, heads * head_dim]`, returns the same
    pub(super) fn forward(self, norm: &Norm, x: &Tensor<2>) -> Tensor<2> {
        norm.forward(&self.split(x)).reshape(x.dims())
    }

    /// Gradient of [`NormWidth::forward`]'s input.
    pub(super) fn backward(self, norm: &Norm, dy: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        norm.backward(None, &self.split(dy), &self.split(x)).reshape(x.dims())
    }
}
