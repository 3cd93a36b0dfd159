//! AdamW over what an adapter trains, and its state on disk.

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
    /// Learning rate of `B` and of magnitudes over that of `A` (LoRA+, Hayou et al. 2024,
    /// arXiv 2402.12354).
    rate_ratio: f64,
    /// By the name of what is trained: `<module>.lora_A`, ...
    moments: BTreeMap<String, Moments>,
    updates: u64,
}

/// One tensor of the optimizer's state: name, shape and values.
pub struct StateTensor {
    /// `<module>.lora_A.first`, `.second`, and the same for `lora_B` and `lora_magnitude_vector`.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row by row.
    pub values: Vec<f32>,
}

const FIRST: &str = ".first";
const SECOND: &str = ".second";

impl Optimizer {
    /// Moments of zero. `rate_ratio` is 1 but for LoRA+.
    pub fn new(config: AdamwConfig, rate_ratio: f64) -> Self {
        Self { config, rate_ratio, moments: BTreeMap::new(), updates: 0 }
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
        let fast = AdamwStep { learning_rate: learning_rate * self.rate_ratio, ..step };
        for (name, lora) in decoder.adapters_mut() {
            let Some(LoraGradients { a, b, magnitude }) = gradients.get(name) else { continue };
            self.update(format!("{name}.lora_A"), &mut lora.a, a, &step);
            self.update(format!("{name}.lora_B"), &mut lora.b, b, &fast);
            if let (Some(values), Some(gradient)) = (&mut lora.magnitude, magnitude) {
                let name = format!("{name}.lora_magnitude_vector");
                self.update(name, &mut values.values, gradient, &fast);
            }
        }
        decoder.refresh_adapters();
    }

    fn update(
        &mut self,
        name: String,
        weight: &mut Tensor<2>,
        gradient: &Tensor<2>,
        step: &AdamwStep,
    ) {
        let moments = self.moments.entry(name).or_insert_with(|| Moments::zeros(weight));
        update(weight, moments, gradient, step);
    }

    /// All moments, in the order of their names.
    pub fn state(&self) -> Vec<StateTensor> {
        let tensor = |name: &str, ending: &str, tensor: &Tensor<2>| StateTensor {
            name: format!("{name}{ending}"),
            shape: tensor.dims(),
            values: kernels::to_f32(tensor),
        };
        let pair = |(name, moments): (&String, &Moments)| {
            [tensor(name, FIRST, &moments.first), tensor(name, SECOND, &moments.second)]
        };
        self.moments.iter().flat_map(pair).collect()
    }

    /// Takes up the state of a checkpoint; `None` where one moment of a pair is missing.
    #[must_use]
    pub fn restored(self, updates: u64, state: Vec<StateTensor>, device: &Device) -> Option<Self> {
        let mut by_name: BTreeMap<String, Tensor<2>> = state
            .into_iter()
            .map(|t| (t.name, kernels::from_f32(t.values, t.shape, DType::F32, device)))
            .collect();
        let names: Vec<String> =
            by_name.keys().filter_map(|name| name.strip_suffix(FIRST).map(str::to_owned)).collect();
        let mut moments = BTreeMap::new();
        for name in names {
            let first = by_name.remove(&format!("{name}{FIRST}"))?;
            let second = by_name.remove(&format!("{name}{SECOND}"))?;
            moments.insert(name, Moments { first, second });
        }
        by_name.is_empty().then_some(Self { moments, updates, ..self })
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
