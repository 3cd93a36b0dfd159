//! A feed-forward half of many experts, of which each token uses a few (Shazeer et al. 2017,
//! arXiv 1701.06538).
//!
//! Tokens are grouped by expert: an expert computes the rows of its own tokens and nothing else.
//! With `p = softmax(x · routerᵀ)`, a token's weights `w` are the largest of `p`, or these divided
//! by their sum. Gradient of the logits, with `dw` that of the weights and sums over the chosen:
//! divided by their sum, `w * (dw - Σ w dw)` for the chosen; else `p * (dw - Σ p dw)` for all, with
//! `dw = 0` for the others.

use adapters::{AdaptedLinear, InputGradient, LoraGradients, Pass};
use burn::tensor::{DType, Tensor};
use kernels::Weight;

use super::config::{ExpertsConfig, RouterWeights};
use super::feed_forward::{FeedForward, SavedFeedForward};

/// Experts and their router, frozen but for adapters on the experts.
#[derive(Debug, Clone)]
pub struct Experts {
    /// `[experts, hidden]`
    router: Weight,
    config: ExpertsConfig,
    experts: Vec<FeedForward>,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct SavedExperts {
    routes: Vec<Route>,
    /// `[tokens, experts]`, where weights are shares of all experts.
    probabilities: Vec<f32>,
    saved: Vec<Option<SavedFeedForward>>,
}

/// The tokens of one expert and its weight for each.
#[derive(Debug, Clone, Default, PartialEq)]
struct Route {
    tokens: Vec<usize>,
    weights: Vec<f32>,
}

impl Experts {
    pub(super) fn new(router: Weight, config: ExpertsConfig, experts: Vec<FeedForward>) -> Self {
        Self { router, config, experts }
    }

    /// Linear layers, expert by expert.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.experts.iter().flat_map(FeedForward::linears)
    }

    /// [`Experts::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.experts.iter_mut().flat_map(FeedForward::linears_mut)
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
    ) -> (Tensor<2>, SavedExperts) {
        let logits = kernels::to_f32(&kernels::linear(x, &self.router));
        let (routes, probabilities) = route(&logits, self.config);
        let mut y = residual.map_or_else(|| x.zeros_like(), Clone::clone);
        let mut saved = Vec::with_capacity(self.experts.len());
        for (expert, route) in self.experts.iter().zip(&routes) {
            if route.tokens.is_empty() {
                saved.push(None);
                continue;
            }
            let rows = kernels::gather_rows(x, &route.tokens);
            let (output, kept) = expert.forward(None, &rows, pass);
            y = kernels::add_rows(y, &output, &route.tokens, &route.weights);
            saved.push(Some(kept));
        }
        (y, SavedExperts { routes, probabilities, saved })
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`Experts::linears`].
    pub(super) fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedExperts,
        pass: Pass,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        let tokens = x.dims()[0];
        let mut gradients = Vec::new();
        let mut dx = sum.unwrap_or_else(|| x.zeros_like());
        let mut d_weights = vec![0.0; tokens * self.experts.len()];
        let parts = self.experts.iter().zip(&saved.routes).zip(&saved.saved).enumerate();
        for (index, ((expert, route), kept)) in parts {
            let Some(kept) = kept else {
                gradients.extend(expert.no_gradients());
                continue;
            };
            let rows = kernels::gather_rows(x, &route.tokens);
            let d_output = kernels::weighted_rows(dy, &route.tokens, &route.weights);
            let half = expert.backward_down(&d_output, kept, pass);
            if wanted == InputGradient::Needed {
                // `dy · output`, found where the gradient has passed the last layer: it is linear.
                let dots = (half.d_active.clone() * half.active.clone()).sum_dim(1);
                let dots = kernels::values(dots.cast(DType::F32));
                for ((&token, &weight), dot) in route.tokens.iter().zip(&route.weights).zip(dots) {
                    let slope = if weight > 0.0 { dot / weight } else { 0.0 };
                    d_weights[token * self.experts.len() + index] = slope;
                }
            }
            let (d_rows, of_expert) =
                expert.backward_inputs((None, wanted), half, &rows, kept, pass);
            if let Some(d_rows) = d_rows {
                dx = kernels::add_rows(dx, &d_rows, &route.tokens, &vec![1.0; route.tokens.len()]);
            }
            gradients.extend(of_expert);
        }
        if wanted == InputGradient::Skipped {
            return (None, gradients);
        }
        let d_logits = self.logits_gradient(&d_weights, saved);
        let shape = [tokens, self.experts.len()];
        let d_logits = kernels::from_f32(d_logits, shape, x.dtype(), &x.device());
        (Some(kernels::linear_input_gradient(Some(dx), &d_logits, &self.router)), gradients)
    }

    /// Gradient of the router's logits: `[tokens, experts]`.
    fn logits_gradient(&self, d_weights: &[f32], saved: &SavedExperts) -> Vec<f32> {
        let experts = self.experts.len();
        let shares = match self.config.weights {
            RouterWeights::OfAll => saved.probabilities.clone(),
            RouterWeights::OfChosen => {
                let mut weights = vec![0.0; d_weights.len()];
                for (index, route) in saved.routes.iter().enumerate() {
                    for (&token, &weight) in route.tokens.iter().zip(&route.weights) {
                        weights[token * experts + index] = weight;
                    }
                }
                weights
            }
        };
        let mut d_logits = Vec::with_capacity(shares.len());
        for (shares, slopes) in shares.chunks_exact(experts).zip(d_weights.chunks_exact(experts)) {
            let mean: f32 = shares.iter().zip(slopes).map(|(share, slope)| share * slope).sum();
            d_logits.extend(shares.iter().zip(slopes).map(|(share, slope)| share * (slope - mean)));
        }
        d_logits
    }
}

/// The tokens of each expert, and the probabilities of all where weights are shares of all.
fn route(logits: &[f32], config: ExpertsConfig) -> (Vec<Route>, Vec<f32>) {
    let ExpertsConfig { count, per_token, weights, .. } = config;
    let mut routes = vec![Route::default(); count];
    let mut probabilities = Vec::new();
    for (token, logits) in logits.chunks_exact(count).enumerate() {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
        let mut order: Vec<usize> = (0..count).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        order.truncate(per_token);
        let total: f32 = match weights {
            RouterWeights::OfAll => powers.iter().sum(),
            RouterWeights::OfChosen => order.iter().map(|&expert| powers[expert]).sum(),
        };
        if weights == RouterWeights::OfAll {
            probabilities.extend(powers.iter().map(|power| power / total));
        }
        for expert in order {
            routes[expert].tokens.push(token);
            routes[expert].weights.push(powers[expert] / total);
        }
    }
    (routes, probabilities)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(weights: RouterWeights) -> ExpertsConfig {
        ExpertsConfig { count: 3, per_token: 2, intermediate_size: 1, weights }
    }

    #[test]
    fn the_largest_logits_choose_and_share() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 1.0_f32.ln(), 0.0, 0.0, 3.0_f32.ln()];
        let (routes, _) = route(&logits, config(RouterWeights::OfChosen));
        assert_eq!(routes[0].tokens, [0, 1]);
        assert_eq!(
            (routes[1].tokens.as_slice(), routes[2].tokens.as_slice()),
            (&[0][..], &[1][..])
        );
        assert!((routes[1].weights[0] - 2.0 / 3.0).abs() < 1e-6);
        assert!((routes[2].weights[0] - 0.75).abs() < 1e-6);
        let (routes, probabilities) = route(&logits, config(RouterWeights::OfAll));
        assert!((routes[1].weights[0] - 0.5).abs() < 1e-6);
        assert!((probabilities.iter().sum::<f32>() - 2.0).abs() < 1e-6);
    }
}
