//! The whole network: embedding, blocks, head; forward, backward and cached forward.

use std::collections::BTreeMap;

use adapters::{
    AdaptedLinear, AdapterWeights, InputGradient, Lora, LoraGradients, Pass, PeftConfig, Trained,
};
use burn::tensor::{Device, Tensor};
use datasets::MicroBatch;
use kernels::{Parked, TokenScore};
use sha2::{Digest, Sha256};

use super::balance::Load;
use super::block::{Block, Saved};
use super::cache::KeyValueCache;
use super::config::DecoderConfig;
use super::context::{BlockContext, Sights};
use super::embedding::Embedding;
use super::head::OutputHead;
use super::recompute::{Keep, Recompute};
use super::trained::WholeGradients;
use super::tree::TokenTree;

/// A base model with its adapters.
#[derive(Debug, Clone)]
pub struct Decoder {
    pub(super) config: DecoderConfig,
    pub(super) embedding: Embedding,
    pub(super) blocks: Vec<Block>,
    pub(super) head: OutputHead,
    /// Tensors of the base that are trained themselves.
    pub(super) trained: Vec<Trained>,
    /// Whether one of them stands where only the gradient of the lowest block's input reaches it.
    pub(super) needs_whole_backward: bool,
}

/// Gradients of all adapters, by module name.
pub type Gradients = BTreeMap<String, LoraGradients>;

/// Which micro-batch of the run this is: the key of dropout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepPlace {
    /// Optimizer step, from 0.
    pub step: u32,
    /// Micro-batch within the step, from 0.
    pub micro_batch: u32,
}

/// What one forward and backward pass gives.
#[derive(Debug)]
pub struct MicroBatchResult {
    /// Sum over the trained tokens, in nats.
    pub loss_sum: f64,
    /// The loss that spreads tokens over experts, without its factor, where it is on.
    pub router_aux_loss: Option<f64>,
    /// Gradients of `factor * loss_sum`, and of the auxiliary loss by this micro-batch's share of
    /// trained tokens.
    pub gradients: Gradients,
    /// The same of tensors of the base that are trained.
    pub whole_gradients: WholeGradients,
}

/// First 8 bytes of SHA-256 of `tunesmith/dropout/v1`, the seed (8 bytes, little-endian) and the
/// module's name, as two little-endian words.
fn dropout_key(seed: u64, module: &str) -> [u32; 2] {
    let mut hash = Sha256::new();
    hash.update(b"tunesmith/dropout/v1");
    hash.update(seed.to_le_bytes());
    hash.update(module.as_bytes());
    let digest: [u8; 32] = hash.finalize().into();
    let word = |at: usize| {
        u32::from_le_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]])
    };
    [word(0), word(4)]
}

/// What a forward pass left for the backward pass.
enum Kept {
    Saved(Box<Saved>),
    Input(Box<Tensor<2>>),
    Parked(Parked),
}

impl Decoder {
    pub(super) fn new(
        config: DecoderConfig,
        embedding: Embedding,
        blocks: Vec<Block>,
        head: OutputHead,
    ) -> Self {
        let (trained, needs_whole_backward) = (Vec::new(), false);
        let mut decoder = Self { config, embedding, blocks, head, trained, needs_whole_backward };
        decoder.find_trained();
        decoder
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Device of the weights.
    pub fn device(&self) -> Device {
        self.embedding.device.clone()
    }

    /// Puts an adapter on the layers it names; names were checked against the model before.
    pub fn attach(&mut self, peft: &PeftConfig, weights: &AdapterWeights) {
        let device = self.device();
        for linear in self.linears_mut() {
            linear.attach(peft, weights, &device);
        }
    }

    /// Replaces the values of the attached adapter by those of a checkpoint.
    pub fn restore_factors(&mut self, weights: &AdapterWeights) {
        let device = self.device();
        self.restore_whole(&weights.whole);
        self.linears_mut().for_each(|linear| linear.restore(weights, &device));
    }

    /// Brings what is derived from the adapter's factors up to date after these changed.
    pub fn refresh_adapters(&mut self) {
        self.linears_mut().for_each(AdaptedLinear::refresh);
    }

    /// Turns dropout on for training, each layer under a key of its own.
    pub fn set_dropout(&mut self, probability: f64, seed: u64) {
        for (name, lora) in self.adapters_mut() {
            lora.dropout = probability;
            lora.dropout_key = dropout_key(seed, name);
        }
    }

    /// Bytes that adapters keep for the backward pass per token.
    pub fn adapter_bytes_per_token(&self) -> u64 {
        let elements = |linear: &AdaptedLinear| {
            let lora = linear.adapter.as_ref()?;
            let unscaled = lora.magnitude.as_ref().map_or(0, |_| linear.weight.dims()[0]);
            Some(lora.a.dims()[0] + unscaled)
        };
        4 * self.linears().filter_map(elements).sum::<usize>() as u64
    }

    /// Copies the adapter's factors to the host.
    pub fn adapter_weights(&self) -> AdapterWeights {
        let mut weights =
            AdapterWeights { whole: self.whole_tensors(), ..AdapterWeights::default() };
        for linear in self.linears() {
            let Some(lora) = &linear.adapter else { continue };
            weights.modules.insert(linear.name.clone(), lora.factors());
            if let Some(start) = &linear.start {
                weights.starts.insert(linear.name.clone(), start.factors());
            }
            if let Some(magnitude) = &lora.magnitude {
                let values = kernels::to_f32(&magnitude.values);
                weights.magnitudes.insert(linear.name.clone(), values);
            }
        }
        weights
    }

    /// Every adapter and the name of its layer, in the order of the forward pass.
    pub fn adapters_mut(&mut self) -> impl Iterator<Item = (&str, &mut Lora)> {
        self.linears_mut()
            .filter_map(|linear| linear.adapter.as_mut().map(|lora| (linear.name.as_str(), lora)))
    }

    fn linears(&self) -> impl Iterator<Item = &AdaptedLinear> {
        self.blocks.iter().flat_map(Block::linears).chain([&self.head.linear])
    }

    fn linears_mut(&mut self) -> impl Iterator<Item = &mut AdaptedLinear> {
        self.blocks.iter_mut().flat_map(Block::linears_mut).chain([&mut self.head.linear])
    }

    fn context(&self, starts: &[usize], pass: Pass) -> BlockContext {
        BlockContext::of_segments(&self.config, starts, pass, &self.device())
    }

    /// Last hidden states, before the final norm.
    ///
    /// # Shapes
    /// - returns `[tokens, hidden]`
    pub fn hidden(&self, token_ids: &[u32], segment_starts: &[usize]) -> Tensor<2> {
        let context = self.context(segment_starts, Pass::Inference);
        self.through_blocks(self.embedding.forward(token_ids, segment_starts), &context)
    }

    /// Last hidden states of texts that share beginnings, before the final norm.
    ///
    /// # Shapes
    /// - returns `[tokens, hidden]`
    pub fn hidden_of_tree(&self, tree: &TokenTree) -> Tensor<2> {
        let sights = Sights::of(&self.config, |chunk| tree.segments(chunk));
        let context =
            BlockContext::of_positions(&self.config, &tree.positions(), sights, &self.device());
        self.through_blocks(self.embedding.forward_at(&tree.token_ids, tree.positions()), &context)
    }

    fn through_blocks(&self, mut x: Tensor<2>, context: &BlockContext) -> Tensor<2> {
        for block in &self.blocks {
            x = block.forward(x, context).hidden;
        }
        x
    }

    /// How probable tokens are after some positions: rows of `hidden`, and the tokens.
    ///
    /// # Shapes
    /// - `hidden`: `[tokens, hidden]`
    pub fn token_scores(&self, hidden: &Tensor<2>, wanted: &[(usize, u32)]) -> Vec<TokenScore> {
        self.head.token_scores(hidden, wanted)
    }

    /// Logits of every position: for tests and short texts.
    ///
    /// # Shapes
    /// - returns `[tokens, vocab]`
    pub fn logits(&self, token_ids: &[u32], segment_starts: &[usize]) -> Tensor<2> {
        self.head.logits(&self.hidden(token_ids, segment_starts))
    }

    /// Sum of the losses of a micro-batch, without gradients, in nats.
    pub fn loss_sum(&self, batch: &MicroBatch) -> f64 {
        let hidden = self.hidden(&batch.token_ids, &batch.segment_starts);
        self.head.loss_sum(&hidden, &batch.targets)
    }

    /// Forward and backward pass of a micro-batch: gradients of `factor * loss_sum`.
    pub fn loss_and_gradients(
        &self,
        batch: &MicroBatch,
        factor: f64,
        place: StepPlace,
        recompute: Recompute,
    ) -> MicroBatchResult {
        let pass = Pass::Training { step: place.step, micro_batch: place.micro_batch };
        let mut context = self.context(&batch.segment_starts, pass);
        let auxiliary = self.config.experts.and_then(|experts| experts.auxiliary.factor());
        let mut load = Load::default();
        let lowest = self.lowest_trained_block();
        let mut x = self.embedding.forward(&batch.token_ids, &batch.segment_starts);
        let mut kept = Vec::with_capacity(self.blocks.len() - lowest);
        for (index, block) in self.blocks.iter().enumerate() {
            let input = match recompute.of_block(index) {
                _ if index < lowest => None,
                Keep::Everything => None,
                Keep::Input => Some(Kept::Input(Box::new(x.clone()))),
                Keep::InputOnHost => Some(Kept::Parked(kernels::park(&x))),
            };
            let output = block.forward(x, &context);
            x = output.hidden;
            if let Some(of_block) = auxiliary.and_then(|_| output.saved.load()) {
                load.add(&of_block);
            }
            if index >= lowest {
                kept.push(input.unwrap_or_else(|| Kept::Saved(Box::new(output.saved))));
            }
        }
        let end = self.head.loss_gradient(&x, &batch.targets, factor, pass);
        drop(x);
        // Of several micro-batches each has its share, as in the mean of the losses of tokens.
        let share = factor * batch.trained_tokens() as f64;
        context.auxiliary = auxiliary.map(|weight| load.slopes(weight * share));
        let mut gradients = Gradients::new();
        if let Some(of_head) = end.adapter {
            gradients.insert(self.head.linear.name.clone(), of_head);
        }
        if let Some(d_hidden) = end.d_hidden {
            let d_stream = self.backward_blocks(d_hidden, kept, &context, &mut gradients);
            if let Some(d_stream) = d_stream {
                self.embedding.add_gradient(&d_stream, &batch.token_ids);
            }
        }
        let router_aux_loss = auxiliary.and_then(|_| load.loss());
        let whole_gradients = self.take_whole_gradients();
        MicroBatchResult { loss_sum: end.loss_sum, router_aux_loss, gradients, whole_gradients }
    }

    /// Gradients of the blocks, and that of the first one's input where it is needed.
    fn backward_blocks(
        &self,
        d_hidden: Tensor<2>,
        mut kept: Vec<Kept>,
        context: &BlockContext,
        gradients: &mut Gradients,
    ) -> Option<Tensor<2>> {
        let lowest = self.lowest_trained_block();
        let mut d_hidden = Some(d_hidden);
        for (index, block) in self.blocks.iter().enumerate().skip(lowest).rev() {
            let saved = match kept.pop().expect("one entry a block") {
                Kept::Saved(saved) => *saved,
                Kept::Input(input) => block.forward(*input, context).saved,
                Kept::Parked(input) => block.forward(input.back(), context).saved,
            };
            let wanted = if index > lowest || self.needs_whole_backward {
                InputGradient::Needed
            } else {
                InputGradient::Skipped
            };
            let dy = d_hidden.take().expect("every block above gave its input's gradient");
            let (dx, of_block) = block.backward(dy, &saved, context, wanted);
            d_hidden = dx;
            for (linear, of_linear) in block.linears().zip(of_block) {
                if let Some(of_linear) = of_linear {
                    gradients.insert(linear.name.clone(), of_linear);
                }
            }
        }
        d_hidden
    }

    /// Index of the first block of which something is trained; below it nothing is kept or
    /// differentiated.
    fn lowest_trained_block(&self) -> usize {
        if self.needs_whole_backward {
            return 0;
        }
        let is_trained = |l: &AdaptedLinear| l.adapter.is_some() || l.trained.is_some();
        let adapted = |block: &Block| block.linears().any(is_trained);
        self.blocks.iter().position(adapted).unwrap_or(self.blocks.len())
    }

    /// An empty cache of one sequence, which grows.
    pub fn new_cache(&self) -> KeyValueCache {
        self.new_cache_of(1, 64)
    }

    /// An empty cache of `slots` sequences with room for `capacity` positions each, to begin with.
    pub fn new_cache_of(&self, slots: usize, capacity: usize) -> KeyValueCache {
        KeyValueCache::new(self.blocks.len(), slots, capacity)
    }

    /// Runs new positions of one sequence and gives the last one's logits: `[vocab]`.
    pub fn next_logits(&self, token_ids: &[u32], cache: &mut KeyValueCache) -> Vec<f32> {
        kernels::to_f32(&self.advance(&[(0, token_ids)], cache))
    }

    /// Runs new positions of some sequences, each named by its slot of the cache.
    ///
    /// # Shapes
    /// - returns logits of each part's last position: `[parts, vocab]`
    pub fn advance(&self, parts: &[(usize, &[u32])], cache: &mut KeyValueCache) -> Tensor<2> {
        let is_stale = |first: usize, end: usize| {
            // The keys in the cache were turned by other angles than those of a longer text.
            first > 0 && self.config.ropes.iter().any(|rope| rope.switches_between(first, end))
        };
        let new = cache.append(parts, is_stale);
        let step = cache.step(&new);
        let sights = Sights::of(&self.config, |chunk| cache.segments(&new, chunk));
        let token_ids = cache.token_ids(&new);
        let positions = new.iter().map(|(_, positions)| positions.clone());
        let context = BlockContext::of_positions(&self.config, &positions, sights, &self.device());
        let mut x = self.embedding.forward_at(&token_ids, positions);
        for (block, layer) in self.blocks.iter().zip(cache.layers_mut()) {
            x = block.forward_cached(x, &context, layer, &step);
        }
        let mut end = 0;
        let last = new.iter().map(|(_, positions)| {
            end += positions.len();
            end - 1
        });
        self.head.logits(&kernels::gather_rows(&x, &last.collect::<Vec<_>>()))
    }
}
