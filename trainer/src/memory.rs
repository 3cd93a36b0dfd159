//! What a training step keeps in memory, from the model's shape alone.

use std::time::Instant;

use adapters::weights::ModelFiles;
use burn::tensor::{DType, Device, Tensor};
use datasets::BatchConfig;
use serde::Serialize;

use crate::base_model::{
    BaseFormat, BaseStorage, DecoderConfig, HEAD_CHUNK_BYTES, Recompute, linear_layers,
};
use crate::config::{GradientCheckpointing, OptimizerConfig};
use crate::metrics::available_memory_bytes;

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

/// Tokens of the largest micro-batch.
pub fn micro_batch_tokens(batch: &BatchConfig) -> u64 {
    (batch.sequence_length.get() * batch.sequences_per_micro_batch.get()) as u64
}

/// Recomputes blocks where keeping everything would take over half of the free memory.
pub(crate) fn choose_recompute(
    config: &DecoderConfig,
    adapter_bytes_per_token: u64,
    batch: &BatchConfig,
) -> Recompute {
    let of_blocks = saved_bytes_per_token(config) * config.layers() as u64;
    let kept = (of_blocks + adapter_bytes_per_token) * micro_batch_tokens(batch);
    match available_memory_bytes() {
        Some(available) if kept > available / 2 => Recompute::Blocks,
        _ => Recompute::Nothing,
    }
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
    /// The program, the tokenizer and the data.
    pub program_bytes: u64,
    /// All of it.
    pub peak_bytes: u64,
    /// `keeps everything` or `recomputes blocks`.
    pub recompute: &'static str,
}

/// Resident set of the program with its tokenizer and a small dataset: measured, not derived.
const PROGRAM_BYTES: u64 = 120 << 20;

/// Peak memory of a training step, from shapes alone.
pub fn memory_plan(request: &PlanRequest) -> MemoryPlan {
    let row = if request.batch.packing {
        request.batch.sequence_length.get()
    } else {
        request.longest_example
    };
    let tokens = (row * request.batch.sequences_per_micro_batch.get()) as u64;
    let recompute = match request.checkpointing {
        GradientCheckpointing::On => Recompute::Blocks,
        GradientCheckpointing::Off => Recompute::Nothing,
        GradientCheckpointing::Auto => {
            choose_recompute(request.config, request.adapter_bytes_per_token, request.batch)
        }
    };
    plan_of_tokens(request, tokens, recompute)
}

/// The plan for a micro-batch of so many tokens.
fn plan_of_tokens(request: &PlanRequest, tokens: u64, recompute: Recompute) -> MemoryPlan {
    let (config, width) = (request.config, request.activation_width);
    let layers = config.layers() as u64;
    let hidden = width * tokens * config.hidden_size as u64;
    // Both are counted in f32.
    let of_adapters = request.adapter_bytes_per_token / 4 * width * tokens;
    let block = saved_bytes_per_token(config) / 4 * width * tokens;
    let (activation_bytes, recompute) = match recompute {
        Recompute::Nothing => (layers * block + of_adapters, "keeps everything"),
        Recompute::Blocks => {
            (layers * hidden + block + of_adapters / layers.max(1), "recomputes blocks")
        }
    };
    let base_bytes = request.base_bytes;
    let adapter_bytes = 8 * request.trained_parameters;
    let optimizer_bytes = request.optimizer.moment_bytes(request.trained_parameters);
    // SwiGLU's output and its two gradients, and a few rows of the residual stream.
    let workspace_bytes = width * tokens * 3 * config.intermediate_size as u64 + 4 * hidden;
    let loss_bytes = HEAD_CHUNK_BYTES as u64 + 3 * hidden;
    let program_bytes = PROGRAM_BYTES;
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
        recompute,
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
    let row = if request.batch.packing {
        request.batch.sequence_length.get()
    } else {
        request.longest_example.max(1)
    };
    Largest { sequences_per_micro_batch: low / row as u64, sequence_length: low / rows }
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
mod tests {
    use super::*;

    fn request<'a>(
        (config, optimizer): (&'a DecoderConfig, &'a OptimizerConfig),
        batch: &'a BatchConfig,
        checkpointing: GradientCheckpointing,
    ) -> PlanRequest<'a> {
        PlanRequest {
            config,
            base_bytes: 1 << 20,
            trained_parameters: 1000,
            adapter_bytes_per_token: 0,
            batch,
            longest_example: 0,
            activation_width: 2,
            optimizer,
            checkpointing,
        }
    }

    #[test]
    fn the_largest_micro_batch_fits_and_one_row_more_does_not() {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
            "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 512, "tie_word_embeddings": false,
            "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "max_position_embeddings": 512,
            "hidden_act": "silu",
        });
        let config = DecoderConfig::read(&config).expect("a Llama");
        let optimizer = OptimizerConfig::Adamw(crate::AdamwConfig::default());
        let available = PROGRAM_BYTES + (HEAD_CHUNK_BYTES as u64) + (64 << 20);
        for checkpointing in [GradientCheckpointing::On, GradientCheckpointing::Off] {
            let batch = |rows: u64| BatchConfig {
                packing: true,
                sequences_per_micro_batch: usize::try_from(rows)
                    .ok()
                    .and_then(std::num::NonZeroUsize::new)
                    .expect("some rows"),
                ..BatchConfig::default()
            };
            let peak = |rows: u64| {
                memory_plan(&request((&config, &optimizer), &batch(rows), checkpointing)).peak_bytes
            };
            let largest = largest_that_fits(
                &request((&config, &optimizer), &batch(1), checkpointing),
                available,
            );
            assert!(peak(largest.sequences_per_micro_batch) <= available);
            assert!(peak(largest.sequences_per_micro_batch + 1) > available);
        }
    }
}
