//! Tensors of the base that are trained themselves: modules to save, biases, norms.
//!
//! They stand in every part of the network, and there are few of them, so each sums its gradient
//! where it is, as `.grad` does in PyTorch; the decoder collects the sums after a backward pass.

use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Tensor;

use crate::peft::{WholeTensor, transposed};

/// What the trainer knows of a tensor of the base that is trained: its name, how files hold it,
/// and the gradient so far. The values stay where the network reads them.
#[derive(Debug, Clone)]
pub struct Trained {
    /// Name of the tensor in the checkpoint: `lm_head.weight`.
    pub name: String,
    /// Sizes in the file.
    shape: Vec<usize>,
    storage: Storage,
    /// What weight decay does to it.
    pub decay: Decay,
    gradient: Arc<Mutex<Option<Tensor<2>>>>,
}

/// How a file holds a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// As it is computed with.
    Same,
    /// With its axes swapped.
    Transposed,
}

/// Whether weight decay pulls a tensor to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decay {
    /// It does.
    Usual,
    /// It does not: norms and biases, as in the trainer of transformers.
    Never,
}

impl Trained {
    /// A tensor without a gradient yet.
    pub fn new(name: &str, shape: Vec<usize>, storage: Storage, decay: Decay) -> Self {
        Self { name: name.to_owned(), shape, storage, decay, gradient: Arc::default() }
    }

    /// Whether it is no matrix.
    pub fn is_vector(&self) -> bool {
        self.shape.len() < 2
    }

    /// Changes the sum of the gradients; `sum` is `None` at first.
    pub fn accumulate(&self, add: impl FnOnce(Option<Tensor<2>>) -> Tensor<2>) {
        let mut gradient = self.gradient.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = gradient.take();
        *gradient = Some(add(sum));
    }

    /// Adds a gradient to the sum.
    pub fn add(&self, part: Tensor<2>) {
        self.accumulate(|sum| match sum {
            Some(sum) => sum + part,
            None => part,
        });
    }

    /// The sum so far, which begins anew.
    pub fn take_gradient(&self) -> Option<Tensor<2>> {
        self.gradient.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Values as files hold them.
    pub fn to_file(&self, value: &Tensor<2>) -> WholeTensor {
        let values = kernels::to_f32(value);
        let values = match self.storage {
            Storage::Same => values,
            Storage::Transposed => transposed(&values, value.dims()[1]),
        };
        WholeTensor { shape: self.shape.clone(), values }
    }

    /// Values as they are computed with, in the shape of `like`.
    pub fn of_file(&self, saved: &WholeTensor, like: &Tensor<2>) -> Tensor<2> {
        let values = match self.storage {
            Storage::Same => saved.values.clone(),
            Storage::Transposed => transposed(&saved.values, like.dims()[0]),
        };
        kernels::from_f32(values, like.dims(), like.dtype(), &like.device())
    }
}

/// The tensors of a linear layer that are trained themselves.
#[derive(Debug, Clone, Default)]
pub struct TrainedLinear {
    /// The weight.
    pub weight: Option<Trained>,
    /// The bias.
    pub bias: Option<Trained>,
}

impl TrainedLinear {
    /// Whether anything is.
    pub fn is_some(&self) -> bool {
        self.weight.is_some() || self.bias.is_some()
    }

    /// Adds what a batch gives.
    ///
    /// # Shapes
    /// - `dy`: `[tokens, d_out]`, `x`: `[tokens, d_in]`
    pub(crate) fn add_gradients(&self, dy: &Tensor<2>, x: &Tensor<2>) {
        if let Some(weight) = &self.weight {
            weight.accumulate(|sum| kernels::linear_weight_gradient_onto(sum, dy, x));
        }
        if let Some(bias) = &self.bias {
            bias.add(dy.clone().cast(burn::tensor::DType::F32).sum_dim(0));
        }
    }
}
