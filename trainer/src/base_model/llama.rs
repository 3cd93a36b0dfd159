//! Llama and its likes: RMS norms, rotary embedding, grouped queries, SwiGLU.

use serde_json::Value;

use super::ModelFamily;
use super::config::{ConfigReader, DecoderConfig, Head, bad};
use super::rope::RopeConfig;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "llama", read };

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    reader.only("hidden_act", &["silu", "swish"])?;
    let hidden_size = reader.required("hidden_size")?;
    let heads = reader.required("num_attention_heads")?;
    let kv_heads = reader.count("num_key_value_heads")?.unwrap_or(heads);
    let head_dim = reader.count("head_dim")?.unwrap_or(hidden_size / heads);
    if !heads.is_multiple_of(kv_heads) {
        let expected = format!("a divisor of `num_attention_heads` = {heads}");
        return Err(bad("num_key_value_heads", &Value::from(kv_heads), &expected));
    }
    if head_dim == 0 || !head_dim.is_multiple_of(2) {
        return Err(bad("head_dim", &Value::from(head_dim), "an even number"));
    }
    let max_positions = reader.count("max_position_embeddings")?.unwrap_or(2048);
    Ok(DecoderConfig {
        family: FAMILY.name,
        hidden_size,
        intermediate_size: reader.required("intermediate_size")?,
        layers: reader.required("num_hidden_layers")?,
        heads,
        kv_heads,
        head_dim,
        vocab_size: reader.required("vocab_size")?,
        norm_epsilon: reader.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope: RopeConfig::read(&reader, max_positions)?,
        head: match reader.flag("tie_word_embeddings")? {
            Some(true) => Head::Tied,
            _ => Head::Own,
        },
        attention_bias: reader.bias("attention_bias")?,
        feed_forward_bias: reader.bias("mlp_bias")?,
    })
}
