//! AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101), with PyTorch's order of operations.

use burn::tensor::{DType, Tensor};
use rayon::prelude::*;

use crate::host;
use crate::launch::{self, Operation};
use crate::math::{sum_by, vectorised};

/// Settings of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamwStep {
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Decay of the first and second moment.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub epsilon: f64,
    /// Decay of the weights, times the learning rate.
    pub weight_decay: f64,
    /// Updates so far, this one included: 1 at the first.
    pub count: u64,
    /// Factor of the gradients before anything else: below 1 where they are clipped.
    pub gradient_factor: f64,
}

const CHUNK: usize = 1 << 14;

/// Updates `weight` and its moments: `(weight, first, second)`. All are f32 of one shape.
pub fn adamw(
    (weight, first, second): (Tensor<2>, Tensor<2>, Tensor<2>),
    gradient: &Tensor<2>,
    step: &AdamwStep,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let Some(gradient_host) = host::host_f32(gradient) else {
        let mut state = (weight, first, second);
        if let Some(gpu) = launch::gpu(Operation::Adamw) {
            match launch::adamw(&gpu, state, gradient, &Factors::new(step)) {
                Ok(updated) => return updated,
                Err(given_back) => state = given_back,
            }
        }
        return reference(state, gradient, step);
    };
    let on_cpu = "weight and moments are f32 on the gradient's device";
    let mut weight = host::take_f32(weight).expect(on_cpu);
    let mut first = host::take_f32(first).expect(on_cpu);
    let mut second = host::take_f32(second).expect(on_cpu);
    let factors = Factors::new(step);
    let state = host::write(&mut first)
        .par_chunks_mut(CHUNK)
        .zip(host::write(&mut second).par_chunks_mut(CHUNK));
    host::write(&mut weight)
        .par_chunks_mut(CHUNK)
        .zip(state)
        .zip(host::read(&gradient_host).par_chunks(CHUNK))
        .for_each(|((weight, (first, second)), gradient)| {
            vectorised(
                #[inline(always)]
                || factors.update(weight, first, second, gradient),
            );
        });
    (host::give(weight), host::give(first), host::give(second))
}

/// The step's constants in f32.
pub(crate) struct Factors {
    pub(crate) decay: f32,
    pub(crate) beta1: f32,
    pub(crate) beta2: f32,
    pub(crate) step_size: f32,
    pub(crate) root_correction: f32,
    pub(crate) epsilon: f32,
    pub(crate) gradient: f32,
}

impl Factors {
    pub(crate) fn new(step: &AdamwStep) -> Self {
        let [beta1, beta2] = step.betas;
        let count = step.count.min(i32::MAX as u64) as i32;
        Self {
            decay: (1.0 - step.learning_rate * step.weight_decay) as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            step_size: (step.learning_rate / (1.0 - beta1.powi(count))) as f32,
            root_correction: (1.0 - beta2.powi(count)).sqrt() as f32,
            epsilon: step.epsilon as f32,
            gradient: step.gradient_factor as f32,
        }
    }

    #[inline(always)]
    pub(crate) fn update(
        &self,
        weight: &mut [f32],
        first: &mut [f32],
        second: &mut [f32],
        gradient: &[f32],
    ) {
        let n = gradient.len();
        let (weight, first, second) = (&mut weight[..n], &mut first[..n], &mut second[..n]);
        for i in 0..n {
            let g = gradient[i] * self.gradient;
            first[i] += (g - first[i]) * (1.0 - self.beta1);
            second[i] = second[i] * self.beta2 + g * g * (1.0 - self.beta2);
            let denominator = second[i].sqrt() / self.root_correction + self.epsilon;
            weight[i] = weight[i] * self.decay - self.step_size * (first[i] / denominator);
        }
    }
}

/// [`adamw`] in plain tensor operations.
fn reference(
    (weight, first, second): (Tensor<2>, Tensor<2>, Tensor<2>),
    gradient: &Tensor<2>,
    step: &AdamwStep,
) -> (Tensor<2>, Tensor<2>, Tensor<2>) {
    let f = Factors::new(step);
    let g = gradient.clone().cast(DType::F32) * f.gradient;
    let first = first.clone() + (g.clone() - first) * (1.0 - f.beta1);
    let second = second * f.beta2 + g.square() * (1.0 - f.beta2);
    let denominator = second.clone().sqrt() / f.root_correction + f.epsilon;
    let weight = weight * f.decay - first.clone() / denominator * f.step_size;
    (weight, first, second)
}

/// Sum of the squares of a tensor's elements.
pub fn sum_of_squares(x: &Tensor<2>) -> f64 {
    match host::host_f32(x) {
        Some(host) => {
            let partial: Vec<f64> = host::read(&host)
                .par_chunks(CHUNK)
                .map(|chunk| {
                    f64::from(vectorised(
                        #[inline(always)]
                        || {
                            sum_by(
                                chunk.len(),
                                #[inline(always)]
                                |i| chunk[i] * chunk[i],
                            )
                        },
                    ))
                })
                .collect();
            partial.iter().sum()
        }
        None => {
            // One dimension after the other: a sum over both at once adds in no fixed order on a GPU.
            let squares = x.clone().cast(DType::F32).square();
            f64::from(host::values(squares.sum_dim(1).sum_dim(0))[0])
        }
    }
}
