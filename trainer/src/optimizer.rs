//! AdamW over the adapter's factors, and its state on disk.

use std::collections::BTreeMap;

use adapters::LoraGradients;
use burn::tensor::{DType, Device, Tensor};
use kernels::AdamwStep;

use crate::base_model::{Decoder, Gradients};
use crate::config::AdamwConfig;

/// First and second moment of one factor.
#[derive(Debug, Clone)]
struct Moments {
    first: Tensor<2>,
    second: Tensor<2>,
}

impl Moments {
    fn zeros(like: &Tensor<2>) -> Self {
        let zeros = || Tensor::zeros(like.dims(), (&like.device(), DType::F32));
        Self { first: zeros(), second: zeros() }
    }
}

/// AdamW and its moments.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: AdamwConfig,
    /// Moments of `A` and `B` of each module.
    moments: BTreeMap<String, [Moments; 2]>,
    updates: u64,
}

/// One tensor of the optimizer's state: name, shape and values.
pub struct StateTensor {
    /// `<module>.lora_A.first`, `.second`, and the same for `lora_B`.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row by row.
    pub values: Vec<f32>,
}

const SUFFIXES: [[&str; 2]; 2] =
    [["lora_A.first", "lora_A.second"], ["lora_B.first", "lora_B.second"]];

impl Optimizer {
    /// Moments of zero.
    pub fn new(config: AdamwConfig) -> Self {
        Self { config, moments: BTreeMap::new(), updates: 0 }
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates every adapter of the decoder that has a gradient.
    pub fn step(
        &mut self,
        decoder: &mut Decoder,
        gradients: &Gradients,
        learning_rate: f64,
        gradient_factor: f64,
    ) {
        self.updates += 1;
        let step = AdamwStep {
            learning_rate,
            betas: self.config.betas,
            epsilon: self.config.epsilon,
            weight_decay: self.config.weight_decay,
            count: self.updates,
            gradient_factor,
        };
        for (name, lora) in decoder.adapters_mut() {
            let Some(LoraGradients { a, b }) = gradients.get(name) else { continue };
            let moments = self
                .moments
                .entry(name.to_owned())
                .or_insert_with(|| [Moments::zeros(&lora.a), Moments::zeros(&lora.b)]);
            update(&mut lora.a, &mut moments[0], a, &step);
            update(&mut lora.b, &mut moments[1], b, &step);
        }
    }

    /// All moments, in the order of their names.
    pub fn state(&self) -> Vec<StateTensor> {
        let mut tensors = Vec::new();
        for (module, factors) in &self.moments {
            for (moments, [first, second]) in factors.iter().zip(SUFFIXES) {
                for (tensor, suffix) in [(&moments.first, first), (&moments.second, second)] {
                    tensors.push(StateTensor {
                        name: format!("{module}.{suffix}"),
                        shape: tensor.dims(),
                        values: kernels::to_f32(tensor),
                    });
                }
            }
        }
        tensors
    }

    /// Takes up the state of a checkpoint; `None` where a tensor of a module is missing.
    pub fn restore(
        config: AdamwConfig,
        updates: u64,
        state: Vec<StateTensor>,
        device: &Device,
    ) -> Option<Self> {
        let mut by_name: BTreeMap<String, Tensor<2>> = state
            .into_iter()
            .map(|t| (t.name, kernels::from_f32(t.values, t.shape, DType::F32, device)))
            .collect();
        let [[a_first, _], _] = SUFFIXES;
        let modules: Vec<String> = by_name
            .keys()
            .filter_map(|name| name.strip_suffix(a_first)?.strip_suffix('.').map(str::to_owned))
            .collect();
        let mut moments = BTreeMap::new();
        for module in modules {
            let mut take = |suffix: &str| by_name.remove(&format!("{module}.{suffix}"));
            let [[a1, a2], [b1, b2]] = SUFFIXES;
            let a = Moments { first: take(a1)?, second: take(a2)? };
            let b = Moments { first: take(b1)?, second: take(b2)? };
            moments.insert(module, [a, b]);
        }
        by_name.is_empty().then_some(Self { config, moments, updates })
    }
}

fn update(weight: &mut Tensor<2>, moments: &mut Moments, gradient: &Tensor<2>, step: &AdamwStep) {
    // Taken out so that the kernel owns the memory and writes in place. What stands in their place
    // meanwhile is on the CPU: a GPU would launch a kernel to fill it.
    let empty = || Tensor::zeros([1, 1], &Device::flex());
    let (none_a, none_b, none_c) = (empty(), empty(), empty());
    let state = (
        std::mem::replace(weight, none_a),
        std::mem::replace(&mut moments.first, none_b),
        std::mem::replace(&mut moments.second, none_c),
    );
    (*weight, moments.first, moments.second) = kernels::adamw(state, gradient, step);
}
