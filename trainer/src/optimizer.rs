//! AdamW over what an adapter trains, and its state on disk.

use std::borrow::Cow;
use std::collections::BTreeMap;

use adapters::{Decay, LoraGradients};
use burn::tensor::{DType, Device, Tensor};
use kernels::{AdamwStep, EightBitMoments, EightBitParts};

use crate::base_model::{Decoder, WholeGradients};
use crate::config::OptimizerConfig;
use crate::gradients::StepGradients;

/// First and second moment of one factor.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "one kind fills almost all of a run's")]
enum Moments {
    Wide { first: Tensor<2>, second: Tensor<2> },
    EightBit(EightBitMoments),
}

/// Factors of fewer numbers keep their moments in f32, as in bitsandbytes.
const FEWEST_8BIT: usize = 4096;

impl Moments {
    fn zeros(like: &Tensor<2>, config: &OptimizerConfig) -> Self {
        let numbers = like.shape().num_elements();
        match config {
            OptimizerConfig::Adamw8bit(_) if numbers >= FEWEST_8BIT => {
                Self::EightBit(EightBitMoments::zeros(numbers))
            }
            _ => {
                let zeros = || Tensor::zeros(like.dims(), (&like.device(), DType::F32));
                Self::Wide { first: zeros(), second: zeros() }
            }
        }
    }
}

/// AdamW and its moments.
#[derive(Debug, Clone)]
pub struct Optimizer {
    config: OptimizerConfig,
    /// Learning rate of `B` and of magnitudes over that of `A` (LoRA+, Hayou et al. 2024,
    /// arXiv 2402.12354).
    rate_ratio: f64,
    /// By the name of what is trained: `<module>.lora_A`, ...
    moments: BTreeMap<String, Moments>,
    updates: u64,
}

/// One tensor of the optimizer's state: name, shape and values.
pub struct StateTensor {
    /// `<module>.lora_A.first`, `.second`, and the same for `lora_B` and `lora_magnitude_vector`; in
    /// 8 bits `.first_scale` and `.second_scale` beside them.
    pub name: String,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Row by row.
    pub values: StateValues,
}

/// Numbers of the optimizer's state.
pub enum StateValues {
    /// Moments, or scales of moments in 8 bits.
    Floats(Vec<f32>),
    /// Codes of moments in 8 bits.
    Codes(Vec<u8>),
}

impl StateValues {
    fn floats(self) -> Option<Vec<f32>> {
        match self {
            Self::Floats(values) => Some(values),
            Self::Codes(_) => None,
        }
    }
}

/// State by name.
type ByName = BTreeMap<String, ([usize; 2], StateValues)>;

impl Moments {
    fn state(&self, name: &str, tensors: &mut Vec<StateTensor>) {
        let mut push = |part: &str, shape, values| {
            tensors.push(StateTensor { name: format!("{name}.{part}"), shape, values });
        };
        match self {
            Self::Wide { first, second } => {
                for (part, tensor) in [("first", first), ("second", second)] {
                    push(part, tensor.dims(), StateValues::Floats(kernels::to_f32(tensor)));
                }
            }
            Self::EightBit(moments) => {
                let EightBitParts { first, second, first_scales, second_scales } = moments.parts();
                let mut codes = |part, codes: Cow<[u8]>| {
                    push(part, [1, codes.len()], StateValues::Codes(codes.into_owned()));
                };
                codes("first", first);
                codes("second", second);
                let mut floats = |part, scales: Cow<[f32]>| {
                    push(part, [1, scales.len()], StateValues::Floats(scales.into_owned()));
                };
                floats("first_scale", first_scales);
                floats("second_scale", second_scales);
            }
        }
    }

    fn take(name: &str, state: &mut ByName, device: &Device) -> Option<Self> {
        let mut part = |part: &str| state.remove(&format!("{name}.{part}"));
        let (first, second) = (part("first")?, part("second")?);
        match (first, second) {
            ((first_shape, StateValues::Floats(first)), (shape, StateValues::Floats(second))) => {
                let tensor = |values, shape| kernels::from_f32(values, shape, DType::F32, device);
                let (first, second) = (tensor(first, first_shape), tensor(second, shape));
                Some(Self::Wide { first, second })
            }
            ((_, StateValues::Codes(first)), (_, StateValues::Codes(second))) => {
                let first_scales = part("first_scale")?.1.floats()?;
                let second_scales = part("second_scale")?.1.floats()?;
                let parts = EightBitParts {
                    first: first.into(),
                    second: second.into(),
                    first_scales: first_scales.into(),
                    second_scales: second_scales.into(),
                };
                EightBitMoments::from_parts(parts).map(Self::EightBit)
            }
            _ => None,
        }
    }
}

impl Optimizer {
    /// Moments of zero. `rate_ratio` is 1 but for LoRA+.
    pub fn new(config: OptimizerConfig, rate_ratio: f64) -> Self {
        Self { config, rate_ratio, moments: BTreeMap::new(), updates: 0 }
    }

    /// Updates so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Updates everything of the decoder that has a gradient.
    pub(crate) fn step(
        &mut self,
        decoder: &mut Decoder,
        gradients: &StepGradients,
        learning_rate: f64,
        gradient_factor: f64,
    ) {
        self.updates += 1;
        let config = self.config.adamw();
        let step = AdamwStep {
            learning_rate,
            betas: config.betas,
            epsilon: config.epsilon,
            weight_decay: config.weight_decay,
            count: self.updates,
            gradient_factor,
        };
        let fast = AdamwStep { learning_rate: learning_rate * self.rate_ratio, ..step };
        for (name, lora) in decoder.adapters_mut() {
            let Some(LoraGradients { a, b, magnitude }) = gradients.adapters.get(name) else {
                continue;
            };
            self.update(format!("{name}.lora_A"), &mut lora.a, a, &step);
            self.update(format!("{name}.lora_B"), &mut lora.b, b, &fast);
            if let (Some(values), Some(gradient)) = (&mut lora.magnitude, magnitude) {
                let name = format!("{name}.lora_magnitude_vector");
                self.update(name, &mut values.values, gradient, &fast);
            }
        }
        self.step_whole(decoder, &gradients.whole, (&step, &fast));
        decoder.refresh_adapters();
    }

    /// Updates the tensors of the base that are trained. Vectors learn as fast as `B`, as in PEFT's
    /// LoRA+, which lets norms decay besides; here they never do. Those that got no gradient in this step, as an expert that no token used, got zeros.
    fn step_whole(
        &mut self,
        decoder: &mut Decoder,
        gradients: &WholeGradients,
        (step, fast): (&AdamwStep, &AdamwStep),
    ) {
        if gradients.is_empty() {
            return;
        }
        decoder.visit_trained(&mut |trained, value| {
            let step = if trained.is_vector() { fast } else { step };
            let step = match trained.decay {
                Decay::Usual => *step,
                Decay::Never => AdamwStep { weight_decay: 0.0, ..*step },
            };
            match gradients.get(&trained.name) {
                Some(gradient) => self.update(trained.name.clone(), value, gradient, &step),
                None => self.update(trained.name.clone(), value, &value.zeros_like(), &step),
            }
        });
    }

    fn update(
        &mut self,
        name: String,
        weight: &mut Tensor<2>,
        gradient: &Tensor<2>,
        step: &AdamwStep,
    ) {
        let config = &self.config;
        let moments = self.moments.entry(name).or_insert_with(|| Moments::zeros(weight, config));
        update(weight, moments, gradient, step);
    }

    /// All moments, in the order of their names.
    pub fn state(&self) -> Vec<StateTensor> {
        let mut tensors = Vec::new();
        for (name, moments) in &self.moments {
            moments.state(name, &mut tensors);
        }
        tensors
    }

    /// Takes up the state of a checkpoint; `None` where one moment of a pair is missing.
    #[must_use]
    pub fn restored(self, updates: u64, state: Vec<StateTensor>, device: &Device) -> Option<Self> {
        let mut by_name: ByName =
            state.into_iter().map(|t| (t.name, (t.shape, t.values))).collect();
        let names: Vec<String> = by_name
            .keys()
            .filter_map(|name| name.strip_suffix(".first").map(str::to_owned))
            .collect();
        let mut moments = BTreeMap::new();
        for name in names {
            let both = Moments::take(&name, &mut by_name, device)?;
            moments.insert(name, both);
        }
        by_name.is_empty().then_some(Self { moments, updates, ..self })
    }
}

fn update(weight: &mut Tensor<2>, moments: &mut Moments, gradient: &Tensor<2>, step: &AdamwStep) {
    // Taken out so that the kernel owns the memory and writes in place. What stands in their place
    // meanwhile is on the CPU: a GPU would launch a kernel to fill it.
    let take =
        |tensor: &mut Tensor<2>| std::mem::replace(tensor, Tensor::zeros([1, 1], &Device::flex()));
    match moments {
        Moments::Wide { first, second } => {
            let state = (take(weight), take(first), take(second));
            (*weight, *first, *second) = kernels::adamw(state, gradient, step);
        }
        Moments::EightBit(moments) => {
            *weight = kernels::adamw_8bit(take(weight), moments, gradient, step);
        }
    }
}
