//! Names of a checkpoint's tensors, and the linear layers that follow from them.

use adapters::LinearLayer;

use super::config::{
    Bias, BlockConfig, DecoderConfig, ExpertsConfig, FeedForwardHalf, Head, NormKind, QueryKeyNorm,
};

/// Names of one family, without `.weight` and `.bias`. Those of a block follow its prefix.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TensorNames {
    pub(crate) embedding: &'static str,
    /// Learned positions.
    pub(crate) positions: Option<&'static str>,
    /// Prefix of the blocks, before `.0`.
    pub(crate) blocks: &'static str,
    pub(crate) norms: BlockNormNames,
    /// Norms of queries and keys, where the configuration has them.
    pub(crate) query_key_norms: [&'static str; 2],
    pub(crate) projections: ProjectionNames,
    pub(crate) attention_output: &'static str,
    pub(crate) feed_forward: FeedForwardNames,
    pub(crate) down: &'static str,
    /// Router and experts, in blocks that have them.
    pub(crate) experts: Option<ExpertNames>,
    pub(crate) final_norm: &'static str,
    pub(crate) head: &'static str,
    pub(crate) storage: Storage,
    /// Parts of names of tensors that the decoder leaves out: masks, frequencies, other networks.
    pub(crate) unused: &'static [&'static str],
}

/// Norms around the two halves of a block; which of them exist is where the family puts norms.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BlockNormNames {
    pub(crate) attention_input: Option<&'static str>,
    pub(crate) attention_output: Option<&'static str>,
    pub(crate) feed_forward_input: Option<&'static str>,
    pub(crate) feed_forward_output: Option<&'static str>,
}

/// Layers that make queries, keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProjectionNames {
    /// A layer each.
    Separate([&'static str; 3]),
    /// One layer: all queries, then all keys, then all values.
    Fused(&'static str),
    /// One layer: query, key and value of a head together.
    FusedByHead(&'static str),
}

/// Layers that the activation stands behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FeedForwardNames {
    /// Gate and up.
    Gated([&'static str; 2]),
    /// Gate and up in one layer, in this order.
    GatedFused(&'static str),
    /// One layer without a gate.
    Plain(&'static str),
}

/// Names of a block's router and experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ExpertNames {
    pub(crate) router: &'static str,
    /// Prefix of the experts, before `.0`.
    pub(crate) experts: &'static str,
    /// Gate, up and down of one.
    pub(crate) layers: [&'static str; 3],
}

/// How linear weights lie in the checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    /// `[d_out, d_in]`
    OutIn,
    /// `[d_in, d_out]`, except the head.
    InOut,
}

/// Names of Llama, which most families share.
pub(crate) const LLAMA_NAMES: TensorNames = TensorNames {
    embedding: "model.embed_tokens",
    positions: None,
    blocks: "model.layers",
    norms: BlockNormNames {
        attention_input: Some("input_layernorm"),
        attention_output: None,
        feed_forward_input: Some("post_attention_layernorm"),
        feed_forward_output: None,
    },
    query_key_norms: ["self_attn.q_norm", "self_attn.k_norm"],
    projections: ProjectionNames::Separate([
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
    ]),
    attention_output: "self_attn.o_proj",
    feed_forward: FeedForwardNames::Gated(["mlp.gate_proj", "mlp.up_proj"]),
    down: "mlp.down_proj",
    experts: None,
    final_norm: "model.norm",
    head: "lm_head",
    storage: Storage::OutIn,
    unused: &["rotary_emb.inv_freq"],
};

/// One linear layer of a block: its name in the checkpoint and its sizes.
pub(super) struct Linear {
    pub(super) name: String,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    pub(super) bias: Bias,
}

/// The linear layers of a block's attention, in the order the forward pass uses them.
pub(super) fn attention_linears(config: &DecoderConfig) -> Vec<Linear> {
    let hidden = config.hidden_size;
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let bias = config.biases.query_key_value;
    let input = |name: &str, d_out| Linear { name: name.to_owned(), d_in: hidden, d_out, bias };
    let mut linears = match config.names.projections {
        ProjectionNames::Separate([query, key, value]) => {
            vec![input(query, queries), input(key, keys), input(value, keys)]
        }
        ProjectionNames::Fused(name) | ProjectionNames::FusedByHead(name) => {
            vec![input(name, queries + 2 * keys)]
        }
    };
    let (name, bias) = (config.names.attention_output.to_owned(), config.biases.attention_output);
    linears.push(Linear { name, d_in: queries, d_out: hidden, bias });
    linears
}

/// The linear layers of a block's feed-forward half, in the order the forward pass uses them.
pub(super) fn feed_forward_linears(config: &DecoderConfig) -> Vec<Linear> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let bias = config.biases.feed_forward;
    let input = |name: &str, d_out| Linear { name: name.to_owned(), d_in: hidden, d_out, bias };
    let mut linears = match config.names.feed_forward {
        FeedForwardNames::Gated([gate, up]) => vec![input(gate, inner), input(up, inner)],
        FeedForwardNames::GatedFused(name) => vec![input(name, 2 * inner)],
        FeedForwardNames::Plain(name) => vec![input(name, inner)],
    };
    linears.push(Linear { name: config.names.down.to_owned(), d_in: inner, d_out: hidden, bias });
    linears
}

/// The linear layers of one expert, in the order the forward pass uses them.
pub(super) fn expert_linears(
    config: &DecoderConfig,
    names: &ExpertNames,
    experts: ExpertsConfig,
    expert: usize,
) -> Vec<Linear> {
    let (hidden, inner) = (config.hidden_size, experts.intermediate_size);
    let [gate, up, down] = names.layers.map(|layer| format!("{}.{expert}.{layer}", names.experts));
    let bias = Bias::Absent;
    vec![
        Linear { name: gate, d_in: hidden, d_out: inner, bias },
        Linear { name: up, d_in: hidden, d_out: inner, bias },
        Linear { name: down, d_in: inner, d_out: hidden, bias },
    ]
}

/// Names and sizes of a block's experts, where it has them.
pub(super) fn experts_of(
    config: &DecoderConfig,
    block: &BlockConfig,
) -> Option<(&'static ExpertNames, ExpertsConfig)> {
    let names = config.names.experts.as_ref().zip(config.experts);
    names.filter(|_| block.half == FeedForwardHalf::Experts)
}

/// The linear layers of a block, in the order the forward pass uses them.
fn block_linears(config: &DecoderConfig, block: &BlockConfig) -> Vec<Linear> {
    let mut linears = attention_linears(config);
    match experts_of(config, block) {
        None => linears.extend(feed_forward_linears(config)),
        Some((names, experts)) => {
            let of_expert = |expert| expert_linears(config, names, experts, expert);
            linears.extend((0..experts.count).flat_map(of_expert));
        }
    }
    linears
}

/// Every linear layer an adapter may sit on, in the order of the forward pass.
pub fn linear_layers(config: &DecoderConfig) -> Vec<LinearLayer> {
    let mut layers = Vec::new();
    for (index, block) in config.blocks.iter().enumerate() {
        let linears = block_linears(config, block);
        layers.extend(linears.into_iter().map(|linear| LinearLayer {
            name: format!("{}.{index}.{}", config.names.blocks, linear.name),
            d_in: linear.d_in,
            d_out: linear.d_out,
        }));
    }
    if config.head == Head::Own {
        layers.push(LinearLayer {
            name: config.names.head.to_owned(),
            d_in: config.hidden_size,
            d_out: config.vocab_size,
        });
    }
    layers
}

/// Names and shapes of all tensors of a model.
pub(super) fn expected_tensors(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let (names, hidden) = (config.names, config.hidden_size);
    let mut tensors =
        vec![(format!("{}.weight", names.embedding), vec![config.vocab_size, hidden])];
    if let Some(positions) = names.positions {
        tensors.push((format!("{positions}.weight"), vec![config.max_positions, hidden]));
    }
    for (index, block) in config.blocks.iter().enumerate() {
        block_tensors(config, block, &format!("{}.{index}", names.blocks), &mut tensors);
    }
    norm_tensors(config, names.final_norm, vec![hidden], &mut tensors);
    if config.head == Head::Own {
        tensors.push((format!("{}.weight", names.head), vec![config.vocab_size, hidden]));
    }
    tensors
}

fn block_tensors(
    config: &DecoderConfig,
    block: &BlockConfig,
    prefix: &str,
    tensors: &mut Vec<(String, Vec<usize>)>,
) {
    let names = config.names;
    if let Some((experts, ExpertsConfig { count, .. })) = experts_of(config, block) {
        let shape = vec![count, config.hidden_size];
        tensors.push((format!("{prefix}.{}.weight", experts.router), shape));
    }
    for linear in block_linears(config, block) {
        let name = format!("{prefix}.{}", linear.name);
        if linear.bias == Bias::Present {
            tensors.push((format!("{name}.bias"), vec![linear.d_out]));
        }
        let shape = match names.storage {
            Storage::OutIn => vec![linear.d_out, linear.d_in],
            Storage::InOut => vec![linear.d_in, linear.d_out],
        };
        tensors.push((format!("{name}.weight"), shape));
    }
    for (name, heads) in names.query_key_norms.iter().zip([config.heads, config.kv_heads]) {
        let shape = match config.query_key_norm {
            QueryKeyNorm::Absent => continue,
            QueryKeyNorm::Head => vec![config.head_dim],
            QueryKeyNorm::HeadOwnWeights => vec![heads, config.head_dim],
            QueryKeyNorm::Width => vec![heads * config.head_dim],
        };
        tensors.push((format!("{prefix}.{name}.weight"), shape));
    }
    let norms = &names.norms;
    for name in [
        norms.attention_input,
        norms.attention_output,
        norms.feed_forward_input,
        norms.feed_forward_output,
    ]
    .into_iter()
    .flatten()
    {
        norm_tensors(config, &format!("{prefix}.{name}"), vec![config.hidden_size], tensors);
    }
}

fn norm_tensors(
    config: &DecoderConfig,
    name: &str,
    shape: Vec<usize>,
    tensors: &mut Vec<(String, Vec<usize>)>,
) {
    if config.norm == NormKind::Layer {
        tensors.push((format!("{name}.bias"), shape.clone()));
    }
    tensors.push((format!("{name}.weight"), shape));
}
