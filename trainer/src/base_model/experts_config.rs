//! The shape of a feed-forward half of experts, and how a token finds its own.

use serde_json::Value;

use super::config_reader::{ConfigReader, bad};
use crate::error::LoadError;

/// Experts of a feed-forward half.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// How many there are.
    pub count: usize,
    /// How many each token uses.
    pub per_token: usize,
    /// Width inside of one.
    pub intermediate_size: usize,
    /// Width inside of the network that every token uses besides; 0: there is none.
    pub shared_size: usize,
    /// How a token's experts are chosen and weighed.
    pub routing: Routing,
    /// The loss that spreads tokens over experts.
    pub auxiliary: AuxiliaryLoss,
}

/// The loss that spreads tokens over experts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum AuxiliaryLoss {
    /// The family trains without one.
    Absent,
    /// It has one, which enters the gradients with this factor; 0: off.
    Factor(f64),
}

impl AuxiliaryLoss {
    /// As `transformers` has it: on where the file asks for the router's logits.
    pub(super) fn read(reader: &ConfigReader) -> Result<Self, LoadError> {
        const KEY: &str = "router_aux_loss_coef";
        let factor = match reader.get(KEY) {
            None => 0.001,
            Some(value) => value
                .as_f64()
                .filter(|factor| factor.is_finite() && *factor >= 0.0)
                .ok_or_else(|| bad(KEY, value, "a number from 0 on"))?,
        };
        let is_on = reader.flag("output_router_logits")? == Some(true);
        Ok(Self::Factor(if is_on { factor } else { 0.0 }))
    }

    /// The factor, where the loss is on.
    pub(super) fn factor(self) -> Option<f64> {
        match self {
            Self::Factor(factor) if factor > 0.0 => Some(factor),
            _ => None,
        }
    }
}

/// How a token's experts are chosen and weighed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// What a router's logits become.
    pub scores: RouterScores,
    /// What a token's weights are shares of.
    pub weights: RouterWeights,
    /// Factor of the weights.
    pub scale: f64,
    /// Groups that are chosen before experts are.
    pub groups: Option<ExpertGroups>,
    /// Whether a bias is added to the scores, for the choice alone.
    pub bias: RouterBias,
    /// What is multiplied by a token's weights.
    pub weighted: Weighted,
}

impl Routing {
    /// Softmax, the largest, and nothing else.
    pub(super) const fn softmax(weights: RouterWeights) -> Self {
        Self {
            scores: RouterScores::Softmax,
            weights,
            scale: 1.0,
            groups: None,
            bias: RouterBias::Absent,
            weighted: Weighted::Output,
        }
    }
}

/// What a router's logits become.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterScores {
    /// Probabilities that sum to 1.
    Softmax,
    /// A sigmoid each.
    Sigmoid,
}

/// What the weights of a token's experts are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterWeights {
    /// The scores as they are.
    OfAll,
    /// The scores divided by the sum over the chosen: they sum to 1.
    OfChosen,
}

/// A bias that balances experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterBias {
    /// The checkpoint has one.
    Present,
    /// It has none.
    Absent,
}

/// What is multiplied by a token's weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weighted {
    /// What an expert gives.
    Output,
    /// What an expert is given.
    Input,
}

/// Experts in groups of one size, a few of which a token may choose from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExpertGroups {
    /// How many there are.
    pub count: usize,
    /// How many a token may use.
    pub chosen: usize,
    /// How many of its best experts a group is judged by.
    pub judged_by: usize,
}

/// Most experts that are believed: far above any model.
const MOST: usize = 1024;

impl ExpertsConfig {
    /// Refuses experts that cannot be: more for a token than there are, or more than are believed.
    pub(super) fn check(&self) -> Result<(), LoadError> {
        let (count, per_token) = (self.count, self.per_token);
        if count > MOST {
            return Err(bad("num_experts", &Value::from(count), &format!("at most {MOST}")));
        }
        if per_token > count {
            let expected = format!("at most the number of experts, {count}");
            return Err(bad("num_experts_per_tok", &Value::from(per_token), &expected));
        }
        self.routing.groups.map_or(Ok(()), |groups| self.check_groups(groups))
    }

    fn check_groups(&self, groups: ExpertGroups) -> Result<(), LoadError> {
        let size = self.count / groups.count;
        if !self.count.is_multiple_of(groups.count) || size < groups.judged_by {
            let expected = format!(
                "a divisor of the number of experts, {}, with {} or more in a group",
                self.count, groups.judged_by
            );
            return Err(bad("n_group", &Value::from(groups.count), &expected));
        }
        if groups.chosen > groups.count || groups.chosen * size < self.per_token {
            let expected = format!(
                "at most {} groups, with {} experts among them",
                groups.count, self.per_token
            );
            return Err(bad("topk_group", &Value::from(groups.chosen), &expected));
        }
        Ok(())
    }
}
