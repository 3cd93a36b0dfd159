//! GPT-2: learned positions, norms with mean and bias, one layer for queries, keys and values, GELU
//! without a gate, and weights stored `[d_in, d_out]`.

use kernels::Gelu;
use serde_json::Value;

use super::ModelFamily;
use super::config::{Activation, Bias, Biases, DecoderConfig, Head, NormKind, Sizes};
use super::config_reader::{ConfigReader, bad};
use super::names::{
    BlockNormNames, FeedForwardNames, LLAMA_NAMES, ProjectionNames, Storage, TensorNames,
};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "gpt2", read };

const NAMES: TensorNames = TensorNames {
    embedding: "transformer.wte",
    positions: Some("transformer.wpe"),
    blocks: "transformer.h",
    norms: BlockNormNames {
        attention_input: Some("ln_1"),
        attention_output: None,
        feed_forward_input: Some("ln_2"),
        feed_forward_output: None,
    },
    projections: ProjectionNames::Fused("attn.c_attn"),
    attention_output: "attn.c_proj",
    feed_forward: FeedForwardNames::Plain("mlp.c_fc"),
    down: "mlp.c_proj",
    final_norm: "transformer.ln_f",
    storage: Storage::InOut,
    unused: &[".attn.bias", ".attn.masked_bias"],
    ..LLAMA_NAMES
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only_unset("add_cross_attention")?;
    let hidden = reader.required("n_embd")?;
    let heads = reader.required("n_head")?;
    if !hidden.is_multiple_of(heads) {
        let expected = format!("a divisor of `n_embd` = {hidden}");
        return Err(bad("n_head", &Value::from(heads), &expected));
    }
    let sizes = Sizes {
        hidden,
        intermediate: reader.count("n_inner")?.unwrap_or(4 * hidden),
        layers: reader.layers("n_layer")?,
        heads,
        kv_heads: heads,
        head_dim: hidden / heads,
        vocab: reader.required("vocab_size")?,
        max_positions: reader.count("n_positions")?.unwrap_or(1024),
    };
    let epsilon = reader.number("layer_norm_epsilon")?.unwrap_or(1e-5);
    let identity = (FAMILY.name, &NAMES);
    let mut decoder =
        DecoderConfig::of_sizes(identity, &sizes, (epsilon, reader.head(Head::Tied)?))?;
    decoder.norm = NormKind::Layer;
    decoder.activation = reader.gelu("activation_function", Gelu::Tanh).map(Activation::Gelu)?;
    decoder.biases = Biases {
        query_key_value: Bias::Present,
        attention_output: Bias::Present,
        feed_forward: Bias::Present,
    };
    scale_scores(&reader, &mut decoder)?;
    Ok(decoder)
}

/// Scores may go without `1 / √(head size)`, or be divided by the layer's number.
fn scale_scores(reader: &ConfigReader, decoder: &mut DecoderConfig) -> Result<(), LoadError> {
    if reader.flag("scale_attn_weights")? == Some(false) {
        decoder.scale_attention(1.0);
    }
    if reader.flag("scale_attn_by_inverse_layer_idx")? == Some(true) {
        for (index, block) in decoder.blocks.iter_mut().enumerate() {
            block.attention_scale /= (index + 1) as f64;
        }
    }
    Ok(())
}
