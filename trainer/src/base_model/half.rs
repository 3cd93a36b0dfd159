//! The feed-forward half of a block: one network for all tokens, or experts.

use adapters::{AdaptedLinear, InputGradient, LoraGradients, Pass};
use burn::tensor::Tensor;

use super::balance::Load;
use super::context::BlockContext;
use super::experts::{Experts, SavedExperts};
use super::feed_forward::{FeedForward, SavedFeedForward};

/// The feed-forward half with its frozen weights and its adapters.
#[derive(Debug, Clone)]
pub enum Half {
    /// One network for all tokens.
    Dense(Box<FeedForward>),
    /// Many, of which each token uses a few.
    Experts(Box<Experts>),
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub enum SavedHalf {
    /// Of [`Half::Dense`].
    Dense(Box<SavedFeedForward>),
    /// Of [`Half::Experts`].
    Experts(Box<SavedExperts>),
}

impl SavedHalf {
    /// How the tokens fell on experts, where there are any.
    pub(super) fn load(&self) -> Option<Load> {
        match self {
            Self::Dense(_) => None,
            Self::Experts(saved) => Some(saved.load()),
        }
    }
}

impl Half {
    /// Its linear layers, in the order of the forward pass.
    pub(super) fn linears(&self) -> Box<dyn Iterator<Item = &AdaptedLinear> + '_> {
        match self {
            Self::Dense(dense) => Box::new(dense.linears()),
            Self::Experts(experts) => Box::new(experts.linears()),
        }
    }

    /// [`Half::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> Box<dyn Iterator<Item = &mut AdaptedLinear> + '_> {
        match self {
            Self::Dense(dense) => Box::new(dense.linears_mut()),
            Self::Experts(experts) => Box::new(experts.linears_mut()),
        }
    }

    /// The output, added to `residual` where one is given.
    ///
    /// # Shapes
    /// - `x`, `residual`: `[tokens, hidden]`, returns the same
    pub(super) fn forward(
        &self,
        residual: Option<&Tensor<2>>,
        x: &Tensor<2>,
        pass: Pass,
    ) -> (Tensor<2>, SavedHalf) {
        match self {
            Self::Dense(dense) => {
                let (y, saved) = dense.forward(residual, x, pass);
                (y, SavedHalf::Dense(Box::new(saved)))
            }
            Self::Experts(experts) => {
                let (y, saved) = experts.forward(residual, x, pass);
                (y, SavedHalf::Experts(Box::new(saved)))
            }
        }
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`Half::linears`].
    pub(super) fn backward(
        &self,
        sum: (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedHalf,
        context: &BlockContext,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        match (self, saved) {
            (Self::Dense(dense), SavedHalf::Dense(saved)) => {
                dense.backward(sum, dy, x, saved, context.pass)
            }
            (Self::Experts(experts), SavedHalf::Experts(saved)) => {
                experts.backward(sum, dy, x, saved, context)
            }
            _ => unreachable!("a block's saved tensors are its own"),
        }
    }
}
