//! Tensors of the base that are trained themselves (`modules_to_save`, biases): where they are, and
//! what the optimizer and checkpoints see of them.

use std::collections::BTreeMap;

use adapters::{AdaptedLinear, BaseTensors, Trained, WholeTensor};
use burn::tensor::{Device, Tensor};
use kernels::Weight;

use super::block::Block;
use super::config::{DecoderConfig, Head};
use super::decoder::Decoder;
use super::names::expected_tensors;

/// Is shown a tensor that is trained; vectors as one row.
pub type Visit<'a> = dyn FnMut(&Trained, &mut Tensor<2>) + 'a;

/// Gradients of tensors of the base, by their names.
pub type WholeGradients = BTreeMap<String, Tensor<2>>;

/// The tensors of a model that can be trained as a whole.
///
/// Routers, learned positions and experts cannot: PEFT has no module for the last, and the others
/// are computed where no gradient passes.
pub fn base_tensors(config: &DecoderConfig) -> BaseTensors {
    let names = config.names;
    let experts = names.experts.as_ref();
    let is_left_out = |name: &str| {
        let is_positions = names.positions.is_some_and(|positions| name.starts_with(positions));
        let is_router = |router: &str| name.contains(&format!(".{router}."));
        let is_bias = |bias: &str| name.ends_with(bias);
        is_positions
            || name.contains(".experts.")
            || experts.is_some_and(|e| is_router(e.router) || e.bias.is_some_and(is_bias))
    };
    let mut tensors = expected_tensors(config);
    tensors.retain(|(name, _)| !is_left_out(name));
    let is_tied = config.head == Head::Tied;
    if is_tied {
        let shape = vec![config.vocab_size, config.hidden_size];
        tensors.push((format!("{}.weight", names.head), shape));
    }
    let (embedding, head) = (names.embedding.to_owned(), names.head.to_owned());
    BaseTensors { tensors, embedding, head, is_tied }
}

/// Shows a vector as one row.
pub(super) fn visit_vector(trained: &Trained, vector: &mut Tensor<1>, visit: &mut Visit) {
    // Taken out, so that the optimizer owns the memory.
    let values = std::mem::replace(vector, Tensor::zeros([1], &Device::flex()));
    let width = values.dims()[0];
    let mut row = values.reshape([1, width]);
    visit(trained, &mut row);
    *vector = row.reshape([width]);
}

pub(super) fn visit_matrix(trained: &Trained, weight: &mut Weight, visit: &mut Visit) {
    if let Weight::Dense(values) = weight {
        visit(trained, values);
    }
}

fn visit_linear(linear: &mut AdaptedLinear, visit: &mut Visit) {
    if let Some(trained) = &linear.trained.weight {
        visit_matrix(trained, &mut linear.weight, visit);
    }
    if let (Some(trained), Some(bias)) = (&linear.trained.bias, &mut linear.bias) {
        visit_vector(trained, bias, visit);
    }
}

impl Decoder {
    /// Shows every tensor of the base that is trained, in the order of the forward pass.
    pub fn visit_trained(&mut self, visit: &mut Visit) {
        if self.trained.is_empty() {
            return;
        }
        // One matrix in two places: with a second owner its memory could not be written to.
        let is_shared = self.shares_trained_head();
        if is_shared {
            self.head.linear.weight = Tensor::<2>::zeros([1, 1], &Device::flex()).into();
        }
        if let Some(trained) = &self.embedding.trained {
            visit_matrix(trained, &mut self.embedding.weight, visit);
        }
        for block in &mut self.blocks {
            block.linears_mut().for_each(|linear| visit_linear(linear, visit));
            block.norms_mut().for_each(|norm| norm.visit_trained(visit));
        }
        self.head.norm.visit_trained(visit);
        if is_shared {
            self.head.linear.weight = self.embedding.weight.clone();
        } else {
            visit_linear(&mut self.head.linear, visit);
        }
    }

    /// Whether head and embedding are one matrix that is trained.
    fn shares_trained_head(&self) -> bool {
        self.config.head == Head::Tied && self.embedding.trained.is_some()
    }

    /// Finds what is trained; called once the parts are together.
    pub(super) fn find_trained(&mut self) {
        let mut found = Vec::new();
        let marks =
            |linear: &AdaptedLinear| [linear.trained.weight.clone(), linear.trained.bias.clone()];
        found.extend(self.embedding.trained.clone());
        let in_blocks = self.blocks.iter().flat_map(Block::linears).flat_map(marks);
        found.extend(in_blocks.flatten());
        let mut is_norm_trained = false;
        for block in &mut self.blocks {
            for norm in block.norms_mut() {
                is_norm_trained |= norm.is_trained();
                found.extend(norm.trained());
            }
        }
        found.extend(self.head.norm.trained());
        if !self.shares_trained_head() {
            found.extend(marks(&self.head.linear).into_iter().flatten());
        }
        self.needs_whole_backward = is_norm_trained || self.embedding.trained.is_some();
        self.trained = found;
    }

    /// What the backward pass summed in the tensors that are trained, which begin anew.
    pub(super) fn take_whole_gradients(&self) -> WholeGradients {
        let gradient = |trained: &Trained| Some((trained.name.clone(), trained.take_gradient()?));
        self.trained.iter().filter_map(gradient).collect()
    }

    /// Copies the trained tensors of the base to the host.
    pub(super) fn whole_tensors(&self) -> BTreeMap<String, WholeTensor> {
        let mut whole = BTreeMap::new();
        // A copy shares every tensor.
        self.clone().visit_trained(&mut |trained, value| {
            whole.insert(trained.name.clone(), trained.to_file(value));
        });
        if self.shares_trained_head() {
            let of = |module: &str| format!("{module}.weight");
            let names = self.config.names;
            if let Some(tensor) = whole.get(&of(names.embedding)).cloned() {
                whole.insert(of(names.head), tensor);
            }
        }
        whole
    }

    pub(super) fn restore_whole(&mut self, saved: &BTreeMap<String, WholeTensor>) {
        self.visit_trained(&mut |trained, value| {
            if let Some(tensor) = saved.get(&trained.name) {
                *value = trained.of_file(tensor, value);
            }
        });
    }
}
