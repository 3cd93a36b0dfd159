//! Names of a checkpoint's tensors, and the linear layers that follow from them.

use adapters::LinearLayer;

use super::config::{
    Bias, BlockConfig, DecoderConfig, FeedForwardHalf, Head, NormKind, QueryKeyNorm,
};
use super::experts_config::ExpertsConfig;
use super::latent_config::LatentConfig;

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
    /// Layers around narrow rows.
    Latent(LatentNames),
}

/// Layers and norms of latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LatentNames {
    pub(crate) query: QueryNames,
    /// To the narrow row of keys and values.
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) up: &'static str,
}

/// Layers that make the queries of latent attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueryNames {
    /// The one layer, where queries have no narrow row.
    pub(crate) direct: &'static str,
    pub(crate) down: &'static str,
    pub(crate) norm: &'static str,
    pub(crate) up: &'static str,
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
    /// Layers of one.
    pub(crate) layers: ExpertLayers,
    /// The router's bias, whole name.
    pub(crate) bias: Option<&'static str>,
    /// Prefix of the network that every token uses, with layers called as [`GATED`].
    pub(crate) shared: Option<&'static str>,
}

/// Layers of an expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ExpertLayers {
    /// Gate, up and down.
    Separate([&'static str; 3]),
    /// Gate and up in one, and down, each stored `[d_in, d_out]`.
    Together([&'static str; 2]),
}

/// Gate, up and down, as most families call them.
pub(crate) const GATED: [&str; 3] = ["gate_proj", "up_proj", "down_proj"];

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
    pub(super) storage: Storage,
}

/// The linear layers of a block's attention, in the order the forward pass uses them.
pub(super) fn attention_linears(config: &DecoderConfig) -> Vec<Linear> {
    let hidden = config.hidden_size;
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let (bias, storage) = (config.biases.query_key_value, config.names.storage);
    let input =
        |name: &str, d_out| Linear { name: name.to_owned(), d_in: hidden, d_out, bias, storage };
    let mut linears = match config.names.projections {
        ProjectionNames::Separate([query, key, value]) => {
            vec![input(query, queries), input(key, keys), input(value, keys)]
        }
        ProjectionNames::Fused(name) | ProjectionNames::FusedByHead(name) => {
            vec![input(name, queries + 2 * keys)]
        }
        ProjectionNames::Latent(names) => {
            config.latent.map_or_else(Vec::new, |latent| latent_linears(config, &names, latent))
        }
    };
    let (name, bias) = (config.names.attention_output.to_owned(), config.biases.attention_output);
    let d_in = config.latent.map_or(queries, |latent| config.heads * latent.value_dim);
    linears.push(Linear { name, d_in, d_out: hidden, bias, storage });
    linears
}

/// The layers of latent attention before its output.
fn latent_linears(
    config: &DecoderConfig,
    names: &LatentNames,
    latent: LatentConfig,
) -> Vec<Linear> {
    let (hidden, heads) = (config.hidden_size, config.heads);
    let storage = Storage::OutIn;
    let linear = |name: &str, d_in, d_out, bias| Linear {
        name: name.to_owned(),
        d_in,
        d_out,
        bias,
        storage,
    };
    let bias = config.biases.query_key_value;
    let queries = heads * latent.query_dim();
    let LatentConfig { key_value_rank, content_dim, position_dim, value_dim, .. } = latent;
    let mut linears = match latent.query_rank {
        None => vec![linear(names.query.direct, hidden, queries, Bias::Absent)],
        Some(rank) => vec![
            linear(names.query.down, hidden, rank, bias),
            linear(names.query.up, rank, queries, Bias::Absent),
        ],
    };
    linears.push(linear(names.down, hidden, key_value_rank + position_dim, bias));
    let both = heads * (content_dim + value_dim);
    linears.push(linear(names.up, key_value_rank, both, Bias::Absent));
    linears
}

/// Names and widths of the norms of latent attention, in the order of the forward pass.
pub(super) fn latent_norms(config: &DecoderConfig) -> Vec<(&'static str, usize)> {
    let (ProjectionNames::Latent(names), Some(latent)) = (&config.names.projections, config.latent)
    else {
        return Vec::new();
    };
    let of_query = latent.query_rank.map(|rank| (names.query.norm, rank));
    of_query.into_iter().chain([(names.norm, latent.key_value_rank)]).collect()
}

/// The linear layers of a block's feed-forward half, in the order the forward pass uses them.
pub(super) fn feed_forward_linears(config: &DecoderConfig) -> Vec<Linear> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (bias, storage) = (config.biases.feed_forward, config.names.storage);
    let input =
        |name: &str, d_out| Linear { name: name.to_owned(), d_in: hidden, d_out, bias, storage };
    let mut linears = match config.names.feed_forward {
        FeedForwardNames::Gated([gate, up]) => vec![input(gate, inner), input(up, inner)],
        FeedForwardNames::GatedFused(name) => vec![input(name, 2 * inner)],
        FeedForwardNames::Plain(name) => vec![input(name, inner)],
    };
    let name = config.names.down.to_owned();
    linears.push(Linear { name, d_in: inner, d_out: hidden, bias, storage });
    linears
}

/// The linear layers of one expert, in the order the forward pass uses them.
pub(super) fn expert_linears(
    config: &DecoderConfig,
    names: &ExpertNames,
    experts: ExpertsConfig,
    expert: usize,
) -> Vec<Linear> {
    let prefix = format!("{}.{expert}", names.experts);
    match names.layers {
        ExpertLayers::Separate(layers) => {
            gated_linears(config, layers, &prefix, experts.intermediate_size)
        }
        ExpertLayers::Together(layers) => {
            let (hidden, inner) = (config.hidden_size, experts.intermediate_size);
            let [both, down] = layers.map(|layer| format!("{prefix}.{layer}"));
            let (bias, storage) = (Bias::Absent, Storage::InOut);
            vec![
                Linear { name: both, d_in: hidden, d_out: 2 * inner, bias, storage },
                Linear { name: down, d_in: inner, d_out: hidden, bias, storage },
            ]
        }
    }
}

/// The linear layers of the network that every token uses, where there is one.
pub(super) fn shared_linears(
    config: &DecoderConfig,
    names: &ExpertNames,
    experts: ExpertsConfig,
) -> Vec<Linear> {
    match names.shared {
        Some(prefix) if experts.shared_size > 0 => {
            gated_linears(config, GATED, prefix, experts.shared_size)
        }
        _ => Vec::new(),
    }
}

fn gated_linears(
    config: &DecoderConfig,
    layers: [&str; 3],
    prefix: &str,
    inner: usize,
) -> Vec<Linear> {
    let (hidden, bias, storage) = (config.hidden_size, Bias::Absent, Storage::OutIn);
    let [gate, up, down] = layers.map(|layer| format!("{prefix}.{layer}"));
    vec![
        Linear { name: gate, d_in: hidden, d_out: inner, bias, storage },
        Linear { name: up, d_in: hidden, d_out: inner, bias, storage },
        Linear { name: down, d_in: inner, d_out: hidden, bias, storage },
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
            linears.extend(shared_linears(config, names, experts));
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

/// Whether a tensor is of a block behind the last one.
pub(super) fn is_extra(config: &DecoderConfig, name: &str) -> bool {
    let rest = name.strip_prefix(config.names.blocks).and_then(|rest| rest.strip_prefix('.'));
    let index = rest.and_then(|rest| rest.split('.').next()).and_then(|i| i.parse::<usize>().ok());
    let extra = config.layers()..config.layers() + config.extra_blocks;
    index.is_some_and(|index| extra.contains(&index))
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
        tensors.extend(experts.bias.map(|name| (format!("{prefix}.{name}"), vec![count])));
    }
    let latent = latent_norms(config).into_iter();
    tensors.extend(latent.map(|(name, width)| (format!("{prefix}.{name}.weight"), vec![width])));
    for linear in block_linears(config, block) {
        let name = format!("{prefix}.{}", linear.name);
        if linear.bias == Bias::Present {
            tensors.push((format!("{name}.bias"), vec![linear.d_out]));
        }
        let shape = match linear.storage {
            Storage::OutIn => vec![linear.d_out, linear.d_in],
            Storage::InOut => vec![linear.d_in, linear.d_out],
        };
        tensors.push((format!("{name}.weight"), shape));
    }
    for (name, heads) in names.query_key_norms.iter().zip([config.heads, config.kv_heads]) {
        let shape = match config.query_key_norm {
            QueryKeyNorm::Absent | QueryKeyNorm::HeadUnweighted => continue,
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
