//! First values of an adapter, a pure function of base, seed and module name.
//!
//! Most ways begin with `B·A = 0`, so that training starts from the base model. [`pissa`] and
//! [`olora`] begin with a part of the weight itself: what they put into the adapter is taken out of
//! the base ([`AdapterWeights::starts`]), the sum is the base model again, and the files that are
//! written hold the difference to that start, at twice the rank, so that they fit the base as it is.

mod kaiming;
mod olora;
mod orthogonal;
mod pissa;
pub(crate) mod random;
pub(crate) mod svd;

use rayon::prelude::*;

use crate::config::{Initialization, LoraConfig};
use crate::error::{AdapterError, TensorProblem};
use crate::peft::{AdapterWeights, LoraFactors, transposed};
use crate::target::Target;
use crate::weights::ModelFiles;

/// Fresh factors for every target; only ways that begin with the weight read `base`.
pub fn initial_factors(
    targets: &[Target],
    config: &LoraConfig,
    seed: u64,
    base: &ModelFiles,
) -> Result<AdapterWeights, AdapterError> {
    let init = config.init.unwrap_or_default();
    let of_target = |target: &Target| -> Result<LoraFactors, TensorProblem> {
        match init {
            Initialization::KaimingUniform => Ok(kaiming::factors(target, seed)),
            Initialization::Gaussian => Ok(orthogonal::gaussian(target, seed)),
            Initialization::Orthogonal => orthogonal::factors(target, seed),
            Initialization::Pissa | Initialization::Olora => {
                from_weight(target, config, seed, base)
            }
        }
    };
    let found: Vec<_> =
        targets.par_iter().map(|target| (target.name.clone(), of_target(target))).collect();
    let mut weights = AdapterWeights::default();
    let mut problems = Vec::new();
    for (name, factors) in found {
        match factors {
            Ok(factors) => _ = weights.modules.insert(name, factors),
            Err(problem) => problems.push(problem),
        }
    }
    if !problems.is_empty() {
        return Err(AdapterError::Start { problems });
    }
    if init.is_part_of_the_base() {
        weights.starts = weights.modules.clone();
    }
    Ok(weights)
}

fn from_weight(
    target: &Target,
    config: &LoraConfig,
    seed: u64,
    base: &ModelFiles,
) -> Result<LoraFactors, TensorProblem> {
    let problem = |reason: String| TensorProblem::new(&target.name, reason);
    let Target { rank, d_in, d_out, scale, .. } = *target;
    let full = d_in.min(d_out);
    if rank > full {
        return Err(problem(format!("has rank {rank}, its weight {full} at most")));
    }
    let name = format!("{}.weight", target.name);
    let mut values = base.weights().read_f32(&name).map_err(|error| problem(error.to_string()))?;
    base.weights().release(&name);
    if base.stores_transposed(&name) {
        values = transposed(&values, d_out);
    }
    let weight = svd::matrix(&values, [d_out, d_in]);
    drop(values);
    let factors = match (config.init, config.pissa_iterations) {
        (Some(Initialization::Olora), _) => Some(olora::factors(&weight, rank)),
        (_, None) => pissa::exact(&weight, rank, scale),
        (_, Some(iterations)) => {
            let key = random::key("tunesmith/pissa/v1", seed, &target.name);
            pissa::fast(&weight, (rank, scale), iterations.get(), key)
        }
    };
    let factors = factors.filter(|factors| factors.fault().is_none());
    factors.ok_or_else(|| problem("has a weight that cannot be decomposed".to_owned()))
}
