//! The attention half of a block: heads of their own, or all out of latent rows.

use adapters::{AdaptedLinear, InputGradient, LoraGradients};
use burn::tensor::Tensor;

use super::attention::{Attention, SavedAttention};
use super::block::{CacheStep, LayerCache};
use super::context::BlockContext;
use super::latent_attention::{LatentAttention, SavedLatentAttention};
use super::norm::Norm;

/// The attention half with its frozen weights and its adapters.
#[derive(Debug, Clone)]
pub enum AttentionHalf {
    /// Queries, keys and values of heads.
    Heads(Box<Attention>),
    /// Out of latent rows.
    Latent(Box<LatentAttention>),
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub enum SavedAttentionHalf {
    /// Of [`AttentionHalf::Heads`].
    Heads(Box<SavedAttention>),
    /// Of [`AttentionHalf::Latent`].
    Latent(Box<SavedLatentAttention>),
}

impl AttentionHalf {
    /// Its linear layers, in the order of the forward pass.
    pub(super) fn linears(&self) -> Box<dyn Iterator<Item = &AdaptedLinear> + '_> {
        match self {
            Self::Heads(attention) => Box::new(attention.linears()),
            Self::Latent(attention) => Box::new(attention.linears()),
        }
    }

    /// [`AttentionHalf::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> Box<dyn Iterator<Item = &mut AdaptedLinear> + '_> {
        match self {
            Self::Heads(attention) => Box::new(attention.linears_mut()),
            Self::Latent(attention) => Box::new(attention.linears_mut()),
        }
    }

    /// Its norms.
    pub(super) fn norms_mut(&mut self) -> Box<dyn Iterator<Item = &mut Norm> + '_> {
        match self {
            Self::Heads(attention) => Box::new(attention.norms_mut()),
            Self::Latent(attention) => Box::new(attention.norms_mut()),
        }
    }

    /// The output, added to `residual` where one is given. With a cache, `x` are the positions
    /// that it does not hold yet.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[tokens, hidden]`, returns the same
    pub(super) fn forward(
        &self,
        residual: Option<&Tensor<2>>,
        x: &Tensor<2>,
        context: &BlockContext,
        cache: Option<(&mut LayerCache, &CacheStep)>,
    ) -> (Tensor<2>, SavedAttentionHalf) {
        match self {
            Self::Heads(attention) => {
                let (y, saved) = attention.forward(residual, x, context, cache);
                (y, SavedAttentionHalf::Heads(Box::new(saved)))
            }
            Self::Latent(attention) => {
                let (y, saved) = attention.forward(residual, x, context, cache);
                (y, SavedAttentionHalf::Latent(Box::new(saved)))
            }
        }
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`AttentionHalf::linears`].
    pub(super) fn backward(
        &self,
        sum: (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedAttentionHalf,
        context: &BlockContext,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        match (self, saved) {
            (Self::Heads(attention), SavedAttentionHalf::Heads(saved)) => {
                attention.backward(sum, dy, x, saved, context)
            }
            (Self::Latent(attention), SavedAttentionHalf::Latent(saved)) => {
                attention.backward(sum, dy, x, saved, context)
            }
            _ => unreachable!("a block's saved tensors are its own"),
        }
    }
}
