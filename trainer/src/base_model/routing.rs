//! Which experts a token uses, with which weights, and the gradient of the router's logits.
//!
//! With scores `s` of the logits (softmax, or a sigmoid each) and sums over the chosen, a token's
//! weights are `w = c * s`, or `w = c * s / Σ s`. From the gradient `dw` of the weights,
//! `ds = c * dw`, or `ds = (c * dw - Σ w dw) / Σ s`, for the chosen and 0 for the others; then
//! `dl = s * (ds - Σ s ds)` over all experts for softmax, `dl = s * (1 - s) * ds` for sigmoid.

use super::balance::Load;
use super::experts_config::{ExpertGroups, ExpertsConfig, RouterScores, RouterWeights, Routing};

/// Keeps a sum of scores away from 0.
const TINY: f32 = 1e-20;

/// The tokens of one expert and its weight for each.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Route {
    pub(super) tokens: Vec<usize>,
    pub(super) weights: Vec<f32>,
}

/// The routes of some tokens.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Routes {
    /// One for each expert.
    pub(super) routes: Vec<Route>,
    /// `[tokens, experts]`
    scores: Vec<f32>,
}

/// Sends every token to its experts.
///
/// # Shapes
/// - `logits`: `[tokens, experts]`, `bias`: `[experts]`
pub(super) fn route(logits: &[f32], bias: Option<&[f32]>, config: &ExpertsConfig) -> Routes {
    let ExpertsConfig { count, per_token, routing, .. } = *config;
    let mut routes = vec![Route::default(); count];
    let mut all_scores = Vec::with_capacity(logits.len());
    for (token, logits) in logits.chunks_exact(count).enumerate() {
        let scores = scores(logits, routing.scores);
        let chosen = match bias {
            Some(bias) => {
                let biased: Vec<f32> = scores.iter().zip(bias).map(|(s, b)| s + b).collect();
                largest(&biased, per_token, routing.groups)
            }
            // The order of the scores, which may be equal where logits are not.
            None => largest(logits, per_token, routing.groups),
        };
        let factor = factor(&scores, &chosen, routing);
        for expert in chosen {
            routes[expert].tokens.push(token);
            routes[expert].weights.push(scores[expert] * factor);
        }
        all_scores.extend(scores);
    }
    Routes { routes, scores: all_scores }
}

/// What scores become weights by.
fn factor(scores: &[f32], chosen: &[usize], routing: Routing) -> f32 {
    let scale = routing.scale as f32;
    match routing.weights {
        RouterWeights::OfAll => scale,
        RouterWeights::OfChosen => {
            scale / (chosen.iter().map(|&expert| scores[expert]).sum::<f32>() + TINY)
        }
    }
}

fn scores(logits: &[f32], kind: RouterScores) -> Vec<f32> {
    match kind {
        RouterScores::Sigmoid => logits.iter().map(|logit| 1.0 / (1.0 + (-logit).exp())).collect(),
        RouterScores::Softmax => {
            let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let powers: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
            let total: f32 = powers.iter().sum();
            powers.iter().map(|power| power / total).collect()
        }
    }
}

/// The places of the largest values, in the best groups where there are groups.
fn largest(values: &[f32], wanted: usize, groups: Option<ExpertGroups>) -> Vec<usize> {
    let candidates = match groups {
        None => (0..values.len()).collect(),
        Some(groups) => {
            let size = values.len() / groups.count;
            let judgement = |members: &[f32]| -> f32 {
                let best = descending((0..size).collect(), members);
                best.iter().take(groups.judged_by).map(|&member| members[member]).sum()
            };
            let judgements: Vec<f32> = values.chunks_exact(size).map(judgement).collect();
            let best = descending((0..groups.count).collect(), &judgements);
            let best = best.into_iter().take(groups.chosen);
            best.flat_map(|group| group * size..(group + 1) * size).collect()
        }
    };
    let mut order = descending(candidates, values);
    order.truncate(wanted);
    order
}

/// Places by falling value; equal ones in order.
fn descending(mut places: Vec<usize>, values: &[f32]) -> Vec<usize> {
    places.sort_by(|&a, &b| values[b].total_cmp(&values[a]).then(a.cmp(&b)));
    places
}

impl Routes {
    /// How the tokens fell on the experts.
    pub(super) fn load(&self) -> Load {
        Load::of(self.routes.iter().map(|route| route.tokens.len()), &self.scores)
    }

    /// Gradient of the logits from that of the weights, which is 0 for experts not chosen.
    ///
    /// # Shapes
    /// - `d_weights`, returns: `[tokens, experts]`
    /// - `auxiliary`: what each expert's probability costs, `[experts]`
    pub(super) fn logits_gradient(
        &self,
        d_weights: &[f32],
        routing: Routing,
        auxiliary: Option<&[f32]>,
    ) -> Vec<f32> {
        let experts = self.routes.len();
        let mut d_scores = self.scores_gradient(d_weights, routing);
        if let Some(auxiliary) = auxiliary {
            for row in d_scores.chunks_exact_mut(experts) {
                row.iter_mut().zip(auxiliary).for_each(|(slope, cost)| *slope += cost);
            }
        }
        let tokens = self.scores.chunks_exact(experts).zip(d_scores.chunks_exact(experts));
        let mut d_logits = Vec::with_capacity(self.scores.len());
        for (scores, d_scores) in tokens {
            let pairs = scores.iter().zip(d_scores);
            match routing.scores {
                RouterScores::Softmax => {
                    let mean: f32 = pairs.clone().map(|(score, slope)| score * slope).sum();
                    d_logits.extend(pairs.map(|(score, slope)| score * (slope - mean)));
                }
                RouterScores::Sigmoid => {
                    d_logits.extend(pairs.map(|(score, slope)| score * (1.0 - score) * slope));
                }
            }
        }
        d_logits
    }

    fn scores_gradient(&self, d_weights: &[f32], routing: Routing) -> Vec<f32> {
        let experts = self.routes.len();
        let scale = routing.scale as f32;
        let mut d_scores: Vec<f32> = d_weights.iter().map(|slope| scale * slope).collect();
        if routing.weights == RouterWeights::OfAll {
            return d_scores;
        }
        // For each token the sum of scores and that of weight times slope, over its experts.
        let mut sums = vec![(TINY, 0.0); self.scores.len() / experts];
        for (expert, route) in self.routes.iter().enumerate() {
            for (&token, &weight) in route.tokens.iter().zip(&route.weights) {
                let place = token * experts + expert;
                sums[token].0 += self.scores[place];
                sums[token].1 += weight * d_weights[place];
            }
        }
        for (expert, route) in self.routes.iter().enumerate() {
            for &token in &route.tokens {
                let (total, mean) = sums[token];
                let slope = &mut d_scores[token * experts + expert];
                *slope = (*slope - mean) / total;
            }
        }
        d_scores
    }
}

#[cfg(test)]
mod tests {
    use super::super::experts_config::{AuxiliaryLoss, RouterBias, Weighted};
    use super::*;

    fn config(count: usize, routing: Routing) -> ExpertsConfig {
        let auxiliary = AuxiliaryLoss::Absent;
        let (per_token, intermediate_size, shared_size) = (2, 1, 0);
        ExpertsConfig { count, per_token, intermediate_size, shared_size, routing, auxiliary }
    }

    fn chosen(routes: &Routes) -> Vec<(usize, f32)> {
        let first = |route: &Route| route.weights.first().copied();
        let routes = routes.routes.iter().enumerate();
        routes.filter_map(|(expert, route)| Some((expert, first(route)?))).collect()
    }

    #[test]
    fn the_largest_logits_choose_and_share() {
        let logits = [1.0_f32.ln(), 2.0_f32.ln(), 1.0_f32.ln(), 0.0, 0.0, 3.0_f32.ln()];
        let routes = route(&logits, None, &config(3, Routing::softmax(RouterWeights::OfChosen)));
        let routes = routes.routes;
        assert_eq!(routes[0].tokens, [0, 1]);
        assert_eq!(
            (routes[1].tokens.as_slice(), routes[2].tokens.as_slice()),
            (&[0][..], &[1][..])
        );
        assert!((routes[1].weights[0] - 2.0 / 3.0).abs() < 1e-6);
        assert!((routes[2].weights[0] - 0.75).abs() < 1e-6);
        let routes = route(&logits, None, &config(3, Routing::softmax(RouterWeights::OfAll)));
        assert!((routes.routes[1].weights[0] - 0.5).abs() < 1e-6);
        assert!((routes.scores.iter().sum::<f32>() - 2.0).abs() < 1e-6);
    }

    fn sigmoid(groups: Option<ExpertGroups>) -> Routing {
        Routing {
            scores: RouterScores::Sigmoid,
            weights: RouterWeights::OfChosen,
            scale: 2.5,
            groups,
            bias: RouterBias::Present,
            weighted: Weighted::Output,
        }
    }

    #[test]
    fn a_bias_chooses_and_does_not_weigh() {
        let routes = route(&[0.0; 4], Some(&[0.0, 0.1, 0.0, 0.1]), &config(4, sigmoid(None)));
        assert_eq!(chosen(&routes), [(1, 1.25), (3, 1.25)]);
    }

    #[test]
    fn groups_are_chosen_first() {
        // The best expert stands in a group whose two best are worse than those of the other.
        let groups = Some(ExpertGroups { count: 2, chosen: 1, judged_by: 2 });
        let logits = [4.0, -9.0, -9.0, 2.0, 1.5, 1.0];
        let routes = route(&logits, Some(&[0.0; 6]), &config(6, sigmoid(groups)));
        assert_eq!(chosen(&routes).iter().map(|c| c.0).collect::<Vec<_>>(), [3, 4]);
        let groups = Some(ExpertGroups { count: 2, chosen: 1, judged_by: 1 });
        let routing = Routing { groups, ..Routing::softmax(RouterWeights::OfAll) };
        let routes = route(&logits, None, &config(6, routing));
        assert_eq!(chosen(&routes).iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1]);
    }

    /// Against differences of the weights themselves.
    #[test]
    fn gradients_of_logits_equal_differences() {
        let logits = [0.3_f32, -0.2, 0.9, 0.1, 0.7, -0.5];
        let slopes = [0.5_f32, -1.0, 2.0, 0.3, 1.1, -0.7];
        let bias = [0.0; 3];
        for routing in [
            Routing::softmax(RouterWeights::OfAll),
            Routing::softmax(RouterWeights::OfChosen),
            sigmoid(None),
            Routing { weights: RouterWeights::OfAll, ..sigmoid(None) },
        ] {
            let config = config(3, routing);
            let value = |logits: &[f32]| -> f32 {
                let routes = route(logits, Some(&bias), &config).routes;
                let of = |(expert, route): (usize, &Route)| -> f32 {
                    let pairs = route.tokens.iter().zip(&route.weights);
                    pairs.map(|(&token, weight)| weight * slopes[token * 3 + expert]).sum()
                };
                routes.iter().enumerate().map(of).sum()
            };
            let routes = route(&logits, Some(&bias), &config);
            let mut d_weights = vec![0.0; 6];
            for (expert, route) in routes.routes.iter().enumerate() {
                for &token in &route.tokens {
                    d_weights[token * 3 + expert] = slopes[token * 3 + expert];
                }
            }
            let gradient = routes.logits_gradient(&d_weights, routing, None);
            for place in 0..6 {
                let step = |by: f32| {
                    let mut moved = logits;
                    moved[place] += by;
                    value(&moved)
                };
                let difference = (step(1e-2) - step(-1e-2)) / 2e-2;
                assert!((difference - gradient[place]).abs() < 1e-3, "{routing:?} {place}");
            }
        }
    }
}
