//! Norms of the residual stream, and of queries and keys.

use adapters::Trained;
use burn::tensor::{DType, Tensor};

use super::config::{DecoderConfig, NormKind, QueryKeyNorm};
use super::trained::{Visit, visit_vector};

/// A norm with its weights, frozen unless [`Norm::train`] was called.
#[derive(Debug, Clone)]
pub struct Norm {
    weight: Tensor<1>,
    bias: Option<Tensor<1>>,
    measure: Measure,
    epsilon: f64,
    trained: Option<Box<TrainedNorm>>,
}

/// What of a norm is trained.
#[derive(Debug, Clone)]
struct TrainedNorm {
    weight: Option<Trained>,
    bias: Option<Trained>,
    /// The weight as the checkpoint has it; without what the norm adds to it.
    stored: Tensor<1>,
    added: f64,
}

/// What rows are divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measure {
    /// Their root mean square.
    RootMeanSquare,
    /// Their standard deviation, after their mean is taken off.
    Deviation,
}

impl Norm {
    /// `weight` as the checkpoint has it.
    pub(super) fn new(config: &DecoderConfig, weight: Tensor<1>, bias: Option<Tensor<1>>) -> Self {
        let (weight, measure) = match config.norm {
            NormKind::Rms => (weight, Measure::RootMeanSquare),
            NormKind::RmsOnePlus => (weight + 1.0, Measure::RootMeanSquare),
            NormKind::Layer | NormKind::LayerWithoutBias => (weight, Measure::Deviation),
        };
        Self { weight, bias, measure, epsilon: config.norm_epsilon, trained: None }
    }

    /// The norm of a latent row: by the root mean square, with an epsilon that no key sets.
    pub(super) fn latent(weight: Tensor<1>) -> Self {
        let measure = Measure::RootMeanSquare;
        Self { weight, bias: None, measure, epsilon: 1e-6, trained: None }
    }

    /// Has the weight or the bias trained. `stored` is the weight as the checkpoint has it.
    #[must_use]
    pub(super) fn train(
        mut self,
        config: &DecoderConfig,
        stored: Tensor<1>,
        (weight, bias): (Option<Trained>, Option<Trained>),
    ) -> Self {
        if weight.is_some() || bias.is_some() {
            let added = if config.norm == NormKind::RmsOnePlus { 1.0 } else { 0.0 };
            self.trained = Some(Box::new(TrainedNorm { weight, bias, stored, added }));
        }
        self
    }

    /// Whether anything of it is trained.
    pub(super) fn is_trained(&self) -> bool {
        self.trained.is_some()
    }

    /// What is.
    pub(super) fn trained(&self) -> impl Iterator<Item = Trained> + use<> {
        let marks = self.trained.as_ref().map(|t| [t.weight.clone(), t.bias.clone()]);
        marks.into_iter().flatten().flatten()
    }

    /// Shows what is trained.
    pub(super) fn visit_trained(&mut self, visit: &mut Visit) {
        let Some(trained) = &mut self.trained else { return };
        if let Some(weight) = &trained.weight {
            visit_vector(weight, &mut trained.stored, visit);
            self.weight = trained.stored.clone() + trained.added;
        }
        if let (Some(trained), Some(bias)) = (&trained.bias, &mut self.bias) {
            visit_vector(trained, bias, visit);
        }
    }

    fn add_gradients(&self, dy: &Tensor<2>, x: &Tensor<2>) {
        let Some(trained) = &self.trained else { return };
        let (of_weight, of_bias) = match self.measure {
            Measure::RootMeanSquare => {
                let of_weight = kernels::rms_norm_weight_gradient(dy, x, self.epsilon);
                (of_weight, dy.clone().cast(DType::F32).sum_dim(0))
            }
            Measure::Deviation => {
                let parts = self.weight.dims()[0] / x.dims()[1];
                kernels::layer_norm_weight_gradient(dy, x, parts, self.epsilon)
            }
        };
        if let Some(weight) = &trained.weight {
            weight.add(of_weight);
        }
        if let Some(bias) = &trained.bias {
            bias.add(of_bias);
        }
    }

    /// # Shapes
    /// - `x`: `[rows, width]`, returns the same
    pub fn forward(&self, x: &Tensor<2>) -> Tensor<2> {
        match self.measure {
            Measure::RootMeanSquare => kernels::rms_norm(x, &self.weight, self.epsilon),
            Measure::Deviation => {
                kernels::layer_norm(x, &self.weight, self.bias.as_ref(), self.epsilon)
            }
        }
    }

    /// Gradient of the input, added to `sum`; those of weights that are trained stay with these.
    pub fn backward(&self, sum: Option<Tensor<2>>, dy: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        self.add_gradients(dy, x);
        match self.measure {
            Measure::RootMeanSquare => {
                kernels::rms_norm_gradient(sum, dy, x, &self.weight, self.epsilon)
            }
            Measure::Deviation => {
                kernels::layer_norm_gradient(sum, dy, x, &self.weight, self.epsilon)
            }
        }
    }
}

/// The norms of queries and keys.
#[derive(Debug, Clone)]
pub struct QueryKeyNorms {
    pub(super) query: Norm,
    pub(super) key: Norm,
    /// What is normalised at once: a head, or all.
    pub(super) width: NormWidth,
}

/// What is normalised at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NormWidth {
    Head(usize),
    All,
}

impl NormWidth {
    pub(super) fn of(config: &DecoderConfig) -> Self {
        match config.query_key_norm {
            QueryKeyNorm::Width | QueryKeyNorm::Absent => Self::All,
            QueryKeyNorm::Head | QueryKeyNorm::HeadOwnWeights | QueryKeyNorm::HeadUnweighted => {
                Self::Head(config.head_dim)
            }
        }
    }

    /// Rows as the norm wants them.
    fn split(self, x: &Tensor<2>) -> Tensor<2> {
        let [rows, width] = x.dims();
        match self {
            Self::Head(head) => x.clone().reshape([rows * width / head, head]),
            Self::All => x.clone(),
        }
    }

    /// Norms of the heads of every token.
    ///
    /// # Shapes
    /// - `x`: `[tokens, heads * head_dim]`, returns the same
    pub(super) fn forward(self, norm: &Norm, x: &Tensor<2>) -> Tensor<2> {
        norm.forward(&self.split(x)).reshape(x.dims())
    }

    /// Gradient of [`NormWidth::forward`]'s input.
    pub(super) fn backward(self, norm: &Norm, dy: &Tensor<2>, x: &Tensor<2>) -> Tensor<2> {
        norm.backward(None, &self.split(dy), &self.split(x)).reshape(x.dims())
    }
}
