//! What a training step keeps in memory, from the model's shape alone.

use std::time::Instant;

use adapters::WholeSelection;
use adapters::weights::ModelFiles;
use burn::tensor::{DType, Device, Tensor};
use datasets::BatchConfig;
use serde::Serialize;

use crate::base_model::{
    BaseFormat, BaseStorage, DecoderConfig, HEAD_CHUNK_BYTES, Recompute, linear_layers,
};
use crate::config::{GradientCheckpointing, OptimizerConfig};

/// Bytes that one block keeps for its backward pass per token, adapters left out (f32).
pub fn saved_bytes_per_token(config: &DecoderConfig) -> u64 {
    let head_dim = config.latent.map_or(config.head_dim, |latent| latent.padded_dim());
    let queries = config.heads * head_dim;
    let keys = config.kv_heads * head_dim;
    let latent =
        config.latent.map_or(0, |latent| latent.query_rank.unwrap_or(0) + latent.key_value_rank);
    // Input and middle of the residual stream, and both halves' outputs where norms follow them;
    // q, k, v, output and one number a head of attention, and the rows that they came out of; what
    // the activation stands behind.
    let elements = (2 + config.output_norms()) * config.hidden_size
        + 2 * queries
        + 2 * keys
        + config.heads
        + latent
        + config.feed_forward_width();
    4 * elements as u64
}

/// Memory that a plan may fill, in bytes; nothing is said of what is not known.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FreeMemory {
    /// Of the device that computes.
    pub device: Option<u64>,
    /// Of the host, where the device has memory of its own: block inputs may wait there.
    pub parking: Option<u64>,
}

impl FreeMemory {
    /// What plans may count on: other programs grow, and what is predicted is not exact.
    fn budget(bytes: u64) -> u64 {
        bytes - bytes / 8
    }
}

/// The cheapest way that fits: every block that can keeps its values, and block inputs leave a GPU
/// only where nothing else helps.
fn choose_recompute(request: &PlanRequest, tokens: u64, free: FreeMemory) -> Recompute {
    let Some(device) = free.device.map(FreeMemory::budget) else { return Recompute::Nothing };
    let blocks = request.config.layers();
    let fits = |choice: &Recompute| plan_of_tokens(request, tokens, *choice).peak_bytes <= device;
    // The last block's values are the first to be wanted: running it again would save nothing.
    (0..blocks.max(1))
        .map(Recompute::First)
        .find(fits)
        .or_else(|| {
            let parking = free.parking.map(FreeMemory::budget)?;
            let input = request.hidden_bytes(tokens);
            (1..=blocks)
                .take_while(|&count| count as u64 * input <= parking)
                .map(Recompute::Parked)
                .find(fits)
        })
        .unwrap_or(Recompute::Blocks)
}

/// Bytes of the frozen weights in a format.
pub fn base_bytes(config: &DecoderConfig, format: BaseFormat, files: &ModelFiles) -> u64 {
    let dense = if format.dtype == DType::BF16 { 2 } else { 4 };
    let head = config.names.head;
    let linears = linear_layers(config);
    let quantised: u64 = linears
        .iter()
        .filter(|linear| linear.name != head)
        .map(|linear| (linear.d_in * linear.d_out) as u64)
        .sum();
    let rows: u64 =
        linears.iter().filter(|linear| linear.name != head).map(|linear| linear.d_out as u64).sum();
    let rest = config.parameters().saturating_sub(quantised) * dense;
    match format.storage {
        BaseStorage::Dense => config.parameters() * dense,
        BaseStorage::Int8 => quantised + 4 * rows + rest,
        // Half a byte a weight, a byte for 64 of them, 4 for 256 of those.
        BaseStorage::Nf4 => quantised / 2 + quantised / 64 + quantised / 4096 + rest,
        BaseStorage::AsStored => {
            let entries = files.weights().entries().values();
            entries
                .map(|entry| {
                    let elements: usize = entry.shape.iter().product();
                    let dtype = entry.dtype;
                    if dtype.is_quantised() {
                        (elements / dtype.block_elements() * dtype.block_bytes()) as u64
                    } else {
                        elements as u64 * dense
                    }
                })
                .sum()
        }
    }
}

/// The largest matrix that a GPU expands to use it once; the processor expands a panel at a time.
pub fn scratch_bytes(config: &DecoderConfig, format: BaseFormat) -> u64 {
    let head = config.names.head;
    let layers = linear_layers(config);
    let matrices = layers.iter().filter(|linear| linear.name != head);
    let largest = matrices.map(|linear| (linear.d_in * linear.d_out) as u64).max().unwrap_or(0);
    match format.storage {
        BaseStorage::Dense => 0,
        BaseStorage::Int8 | BaseStorage::Nf4 | BaseStorage::AsStored => {
            largest * format.dtype.size() as u64
        }
    }
}

/// Where a plan's run computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// The processor, in the memory of the program.
    Host,
    /// A GPU, in its own memory.
    Gpu {
        /// See [`scratch_bytes`].
        scratch_bytes: u64,
    },
}

/// Bytes of the frozen weights that tensors which are trained themselves take the place of.
///
/// Those of a head that parts from the embedding take no place, and quantised layers little.
pub fn frozen_bytes(config: &DecoderConfig, format: BaseFormat, whole: &WholeSelection) -> u64 {
    if whole.unties_head || whole.is_empty() || format.storage == BaseStorage::AsStored {
        return 0;
    }
    let dense = if format.dtype == DType::BF16 { 2 } else { 4 };
    let ends = [config.names.embedding, config.names.head];
    let is_dense = |name: &str| {
        format.storage == BaseStorage::Dense || ends.iter().any(|end| name.starts_with(end))
    };
    if whole.tensors.iter().all(|name| is_dense(name)) { dense * whole.parameters } else { 0 }
}

/// What a plan is made from.
pub struct PlanRequest<'a> {
    /// The model's shape.
    pub config: &'a DecoderConfig,
    /// Bytes of the frozen weights: [`base_bytes`].
    pub base_bytes: u64,
    /// Numbers in the adapter's factors.
    pub trained_parameters: u64,
    /// Bytes that adapters keep for the backward pass per token, in all blocks together.
    pub adapter_bytes_per_token: u64,
    /// Rows and packing.
    pub batch: &'a BatchConfig,
    /// Tokens of the longest example.
    pub longest_example: usize,
    /// Bytes of a number of the activations.
    pub activation_width: u64,
    /// What keeps the moments.
    pub optimizer: &'a OptimizerConfig,
    /// What the recipe says about recomputing.
    pub checkpointing: GradientCheckpointing,
    /// Where it computes.
    pub place: Place,
}

impl PlanRequest<'_> {
    /// Tokens of the largest micro-batch.
    fn tokens(&self) -> u64 {
        (self.row() * self.batch.sequences_per_micro_batch.get()) as u64
    }

    /// Tokens of the longest row.
    fn row(&self) -> usize {
        if self.batch.packing { self.batch.sequence_length.get() } else { self.longest_example }
    }

    /// Hidden states between two blocks.
    fn hidden_bytes(&self, tokens: u64) -> u64 {
        self.activation_width * tokens * self.config.hidden_size as u64
    }
}

/// Peak memory of a step, by what takes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Frozen weights.
    pub base_bytes: u64,
    /// Adapter factors and their gradients.
    pub adapter_bytes: u64,
    /// Two moments a factor.
    pub optimizer_bytes: u64,
    /// What blocks keep for the backward pass.
    pub activation_bytes: u64,
    /// Intermediate values of the block at work.
    pub workspace_bytes: u64,
    /// A chunk of logits and the gradient of the last hidden states.
    pub loss_bytes: u64,
    /// The program, the tokenizer and the data; on a GPU what the driver keeps there.
    pub program_bytes: u64,
    /// All of it.
    pub peak_bytes: u64,
    /// What `gradient_checkpointing` came to, in words.
    pub recompute: String,
    /// The same for the trainer.
    #[serde(skip)]
    pub choice: Recompute,
    /// Blocks that run again in the backward pass.
    pub recomputed_blocks: usize,
    /// Blocks whose inputs wait in the memory of the host.
    pub parked_blocks: usize,
}

/// Resident set of the program with its tokenizer and a small dataset: measured, not derived.
const PROGRAM_BYTES: u64 = 120 << 20;

/// What a process takes on a GPU before its first tensor: the driver's context, kernels and the
/// libraries' workspace. Usual figures, not measured with this program.
const GPU_PROGRAM_BYTES: u64 = 640 << 20;

/// Peak memory of a training step, from shapes alone; `free` decides what `auto` comes to.
pub fn memory_plan(request: &PlanRequest, free: FreeMemory) -> MemoryPlan {
    let tokens = request.tokens();
    let recompute = match request.checkpointing {
        GradientCheckpointing::On => Recompute::Blocks,
        GradientCheckpointing::Off => Recompute::Nothing,
        GradientCheckpointing::Auto => choose_recompute(request, tokens, free),
    };
    plan_of_tokens(request, tokens, recompute)
}

/// What the blocks keep at most. It is largest at the end of the forward pass, or while the last of
/// those that run again has its values too: the others have been freed by then.
fn activation_bytes(request: &PlanRequest, tokens: u64, recompute: Recompute) -> u64 {
    let (width, blocks) = (request.activation_width, request.config.layers());
    // Both are counted in f32.
    let of_adapters = request.adapter_bytes_per_token / 4 * width * tokens;
    let of_block = saved_bytes_per_token(request.config) / 4 * width * tokens;
    let all = of_block * blocks as u64 + of_adapters;
    let again = recompute.recomputed(blocks);
    let inputs = (again - recompute.parked(blocks)) as u64 * request.hidden_bytes(tokens);
    let kept = all / blocks.max(1) as u64 * (blocks - again) as u64;
    let rebuilt = if again > 0 { all.div_ceil(blocks.max(1) as u64) } else { 0 };
    inputs + kept.max(rebuilt)
}

/// The plan for a micro-batch of so many tokens.
fn plan_of_tokens(request: &PlanRequest, tokens: u64, recompute: Recompute) -> MemoryPlan {
    let (config, width, blocks) =
        (request.config, request.activation_width, request.config.layers());
    let hidden = request.hidden_bytes(tokens);
    let activation_bytes = activation_bytes(request, tokens, recompute);
    let base_bytes = request.base_bytes;
    let adapter_bytes = 8 * request.trained_parameters;
    let optimizer_bytes = request.optimizer.moment_bytes(request.trained_parameters);
    let (program_bytes, scratch_bytes) = match request.place {
        Place::Host => (PROGRAM_BYTES, 0),
        Place::Gpu { scratch_bytes } => (GPU_PROGRAM_BYTES, scratch_bytes),
    };
    // SwiGLU's output and its two gradients, and a few rows of the residual stream.
    let workspace_bytes =
        width * tokens * 3 * config.intermediate_size as u64 + 4 * hidden + scratch_bytes;
    let loss_bytes = HEAD_CHUNK_BYTES as u64 + 3 * hidden;
    let peak_bytes = base_bytes
        + adapter_bytes
        + optimizer_bytes
        + activation_bytes
        + workspace_bytes
        + loss_bytes
        + program_bytes;
    MemoryPlan {
        base_bytes,
        adapter_bytes,
        optimizer_bytes,
        activation_bytes,
        workspace_bytes,
        loss_bytes,
        program_bytes,
        peak_bytes,
        recompute: recompute.words(blocks),
        choice: recompute,
        recomputed_blocks: recompute.recomputed(blocks),
        parked_blocks: recompute.parked(blocks),
    }
}

/// The most that a micro-batch may hold, one number changed and the other kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Largest {
    /// `batch.sequences_per_micro_batch` with rows as they are.
    pub sequences_per_micro_batch: u64,
    /// Tokens of a row with as many rows as there are.
    pub sequence_length: u64,
}

/// The largest micro-batches that fit, blocks recomputed unless the recipe forbids it.
pub fn largest_that_fits(request: &PlanRequest, available: u64) -> Largest {
    let recompute = match request.checkpointing {
        GradientCheckpointing::Off => Recompute::Nothing,
        GradientCheckpointing::On | GradientCheckpointing::Auto => Recompute::Blocks,
    };
    let fits = |tokens: u64| plan_of_tokens(request, tokens, recompute).peak_bytes <= available;
    // Memory grows with the tokens, so the border is found by halving.
    let (mut low, mut high) = (0_u64, 1_u64 << 32);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    let rows = request.batch.sequences_per_micro_batch.get() as u64;
    let row = request.row().max(1) as u64;
    Largest { sequences_per_micro_batch: low / row, sequence_length: low / rows }
}

/// Rate of f32 matrix products on this processor, from a measurement of about 0.2 s.
pub fn measured_operations_per_second() -> f64 {
    const SIZE: usize = 768;
    let device = Device::flex();
    let ones = || Tensor::<2>::ones([SIZE, SIZE], (&device, DType::F32));
    let (x, weight) = (ones(), ones());
    let operations = 2.0 * (SIZE as f64).powi(3);
    let mut best = 0.0_f64;
    for _ in 0..6 {
        let start = Instant::now();
        let product = kernels::linear(&x, &weight);
        let seconds = start.elapsed().as_secs_f64();
        drop(product);
        best = best.max(operations / seconds.max(1e-9));
    }
    best
}

#[cfg(test)]
mod tests;
