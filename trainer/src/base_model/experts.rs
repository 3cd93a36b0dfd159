//! A feed-forward half of many experts, of which each token uses a few (Shazeer et al. 2017,
//! arXiv 1701.06538), and of one that all tokens share where the family has it.
//!
//! Tokens are grouped by expert: an expert computes the rows of its own tokens and nothing else.
//! How tokens find their experts stands in [`super::routing`].

use adapters::{AdaptedLinear, InputGradient, LoraGradients, Pass};
use burn::tensor::{DType, Tensor};
use kernels::Weight;

use super::balance::Load;
use super::context::BlockContext;
use super::experts_config::{ExpertsConfig, Weighted};
use super::feed_forward::{DownGradient, FeedForward, SavedFeedForward};
use super::routing::{Route, Routes, route};

/// Experts and their router, frozen but for adapters on the experts.
#[derive(Debug, Clone)]
pub struct Experts {
    router: Router,
    config: ExpertsConfig,
    experts: Vec<FeedForward>,
    shared: Option<FeedForward>,
}

/// What finds a token's experts.
#[derive(Debug, Clone)]
pub struct Router {
    /// `[experts, hidden]`
    pub weight: Weight,
    /// Added to the scores for the choice: `[experts]`.
    pub bias: Option<Vec<f32>>,
}

/// What the backward pass needs.
#[derive(Debug, Clone)]
pub struct SavedExperts {
    routes: Routes,
    saved: Vec<Option<SavedFeedForward>>,
    shared: Option<SavedFeedForward>,
}

impl SavedExperts {
    /// How the tokens fell on the experts.
    pub(super) fn load(&self) -> Load {
        self.routes.load()
    }
}

impl Experts {
    /// `shared` is the network that every token uses.
    pub(super) fn new(
        router: Router,
        config: ExpertsConfig,
        experts: Vec<FeedForward>,
        shared: Option<FeedForward>,
    ) -> Self {
        Self { router, config, experts, shared }
    }

    /// Linear layers, expert by expert, the shared one's last.
    pub(super) fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.experts.iter().chain(&self.shared).flat_map(FeedForward::linears)
    }

    /// [`Experts::linears`], to put adapters on.
    pub(super) fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.experts.iter_mut().chain(&mut self.shared).flat_map(FeedForward::linears_mut)
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
        let logits = kernels::to_f32(&kernels::linear(x, &self.router.weight));
        let routes = route(&logits, self.router.bias.as_deref(), &self.config);
        let (mut y, shared) = match &self.shared {
            Some(network) => {
                let (y, saved) = network.forward(residual, x, pass);
                (y, Some(saved))
            }
            None => (residual.map_or_else(|| x.zeros_like(), Clone::clone), None),
        };
        let mut saved = Vec::with_capacity(self.experts.len());
        for (expert, route) in self.experts.iter().zip(&routes.routes) {
            if route.tokens.is_empty() {
                saved.push(None);
                continue;
            }
            let (output, kept) = expert.forward(None, &self.rows_in(x, route), pass);
            y = kernels::add_rows(y, &output, &route.tokens, &self.factors_out(route));
            saved.push(Some(kept));
        }
        (y, SavedExperts { routes, saved, shared })
    }

    /// What an expert is given.
    fn rows_in(&self, x: &Tensor<2>, route: &Route) -> Tensor<2> {
        match self.config.routing.weighted {
            Weighted::Output => kernels::gather_rows(x, &route.tokens),
            Weighted::Input => kernels::weighted_rows(x, &route.tokens, &route.weights),
        }
    }

    /// What an expert's rows are multiplied by.
    fn factors_out(&self, route: &Route) -> Vec<f32> {
        match self.config.routing.weighted {
            Weighted::Output => route.weights.clone(),
            Weighted::Input => vec![1.0; route.weights.len()],
        }
    }

    /// Gradient of the input, added to `sum`, and of the adapters in the order of
    /// [`Experts::linears`].
    pub(super) fn backward(
        &self,
        (sum, wanted): (Option<Tensor<2>>, InputGradient),
        dy: &Tensor<2>,
        x: &Tensor<2>,
        saved: &SavedExperts,
        context: &BlockContext,
    ) -> (Option<Tensor<2>>, Vec<Option<LoraGradients>>) {
        let pass = context.pass;
        let mut gradients = Vec::new();
        let (sum, of_shared) = match (&self.shared, &saved.shared) {
            (Some(shared), Some(kept)) => shared.backward((sum, wanted), dy, x, kept, pass),
            _ => (sum, Vec::new()),
        };
        let mut dx = sum.unwrap_or_else(|| x.zeros_like());
        let mut d_weights = vec![0.0; x.dims()[0] * self.experts.len()];
        let parts = self.experts.iter().zip(&saved.routes.routes).zip(&saved.saved).enumerate();
        for (index, ((expert, route), kept)) in parts {
            let Some(kept) = kept else {
                gradients.extend(expert.no_gradients());
                continue;
            };
            let rows = self.rows_in(x, route);
            let d_output = kernels::weighted_rows(dy, &route.tokens, &self.factors_out(route));
            let half = expert.backward_down(&d_output, kept, pass);
            // `dy · output`, found where the gradient has passed the last layer: it is linear.
            let of_output =
                self.wants(Weighted::Output, wanted).then(|| row_products(&half, &route.weights));
            let (d_rows, of_expert) =
                expert.backward_inputs((None, wanted), half, &rows, kept, pass);
            gradients.extend(of_expert);
            let Some(d_rows) = d_rows else { continue };
            let slopes = of_output.unwrap_or_else(|| {
                let inputs = kernels::gather_rows(x, &route.tokens);
                sums_of_rows(d_rows.clone() * inputs)
            });
            for (&token, slope) in route.tokens.iter().zip(slopes) {
                d_weights[token * self.experts.len() + index] = slope;
            }
            let factors = match self.config.routing.weighted {
                Weighted::Output => vec![1.0; route.tokens.len()],
                Weighted::Input => route.weights.clone(),
            };
            dx = kernels::add_rows(dx, &d_rows, &route.tokens, &factors);
        }
        gradients.extend(of_shared);
        if wanted == InputGradient::Skipped {
            return (None, gradients);
        }
        let d_logits = saved.routes.logits_gradient(
            &d_weights,
            self.config.routing,
            context.auxiliary.as_deref(),
        );
        (Some(self.router_gradient(dx, d_logits)), gradients)
    }

    /// Whether a weight's slope is read where `place` says.
    fn wants(&self, place: Weighted, wanted: InputGradient) -> bool {
        wanted == InputGradient::Needed && self.config.routing.weighted == place
    }

    /// Adds what goes through the router to the gradient of the input.
    fn router_gradient(&self, dx: Tensor<2>, d_logits: Vec<f32>) -> Tensor<2> {
        let shape = [dx.dims()[0], self.experts.len()];
        let d_logits = kernels::from_f32(d_logits, shape, dx.dtype(), &dx.device());
        kernels::linear_input_gradient(Some(dx), &d_logits, &self.router.weight)
    }
}

/// Slope of each row's weight, from the gradient of the weighted output.
fn row_products(half: &DownGradient, weights: &[f32]) -> Vec<f32> {
    let dots = sums_of_rows(half.d_active.clone() * half.active.clone());
    let slope = |(dot, &weight): (f32, &f32)| if weight > 0.0 { dot / weight } else { 0.0 };
    dots.into_iter().zip(weights).map(slope).collect()
}

fn sums_of_rows(x: Tensor<2>) -> Vec<f32> {
    kernels::values(x.sum_dim(1).cast(DType::F32))
}
