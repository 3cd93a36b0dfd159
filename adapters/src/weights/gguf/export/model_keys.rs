//! The model's sizes and its rotary embedding, from `config.json`.

use serde_json::Value;

use super::unsupported;
use crate::weights::gguf::{
    architecture::Architecture, head_writer::HeadWriter, rope_factors::Llama3Scaling,
};
use crate::weights::{ModelFiles, WeightsError};

pub(super) fn write(
    head: &mut HeadWriter,
    base: &ModelFiles,
    architecture: &Architecture,
) -> Result<(), WeightsError> {
    let reader = Reader { base };
    let key = |name: &str| format!("{}.{name}", architecture.name);
    let heads = reader.required("num_attention_heads")?;
    let hidden = reader.required("hidden_size")?;
    head.u32(&key("block_count"), reader.required("num_hidden_layers")?);
    head.u32(&key("context_length"), reader.required("max_position_embeddings")?);
    head.u32(&key("embedding_length"), hidden);
    head.u32(&key("feed_forward_length"), reader.required("intermediate_size")?);
    head.u32(&key("attention.head_count"), heads);
    let kv_heads = reader.count("num_key_value_heads")?.unwrap_or(heads);
    head.u32(&key("attention.head_count_kv"), kv_heads);
    head.f32(&key("rope.freq_base"), reader.rope_base()? as f32);
    let epsilon = reader.number("rms_norm_eps")?;
    let epsilon = epsilon.ok_or_else(|| reader.bad("rms_norm_eps", "missing"))?;
    head.f32(&key("attention.layer_norm_rms_epsilon"), epsilon as f32);
    reader.check_window(architecture)?;
    let head_dim = reader.count("head_dim")?;
    if let Some(head_dim) = head_dim {
        head.u32(&key("attention.key_length"), head_dim);
        head.u32(&key("attention.value_length"), head_dim);
    }
    head.u32(&key("vocab_size"), reader.required("vocab_size")?);
    head.u32(&key("rope.dimension_count"), head_dim.unwrap_or(hidden / heads.max(1)));
    if let Scaling::Linear(factor) = reader.scaling()? {
        head.string(&key("rope.scaling.type"), "linear");
        head.f32(&key("rope.scaling.factor"), factor as f32);
    }
    Ok(())
}

/// The divisors of the rotary frequencies, where the model scales them one by one.
pub(super) fn rope_factors(
    base: &ModelFiles,
    head_dim: usize,
) -> Result<Option<Vec<f32>>, WeightsError> {
    let reader = Reader { base };
    let Scaling::Llama3(scaling) = reader.scaling()? else { return Ok(None) };
    let factors = scaling.factors(head_dim / 2, reader.rope_base()?);
    Ok(Some(factors.into_iter().map(|factor| factor as f32).collect()))
}

/// Scalings that the format can express.
enum Scaling {
    None,
    Linear(f64),
    Llama3(Llama3Scaling),
}

struct Reader<'a> {
    base: &'a ModelFiles,
}

impl Reader<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.base.config().get(key).filter(|value| !value.is_null())
    }

    fn bad(&self, key: &str, problem: impl Into<String>) -> WeightsError {
        WeightsError::damaged(self.base.location(), format!("`config.json`, `{key}`"), problem)
    }

    fn count(&self, key: &str) -> Result<Option<u32>, WeightsError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| u32::try_from(count).ok());
        let count = count.filter(|&count| count > 0);
        count.map(Some).ok_or_else(|| self.bad(key, format!("{value} is no size")))
    }

    fn required(&self, key: &str) -> Result<u32, WeightsError> {
        self.count(key)?.ok_or_else(|| self.bad(key, "missing"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>, WeightsError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.bad(key, format!("{value} is no number")))
    }

    /// The table of the rotary embedding: `rope_scaling`, or `rope_parameters` since
    /// transformers 5.
    fn rope_table(&self) -> Option<&Value> {
        self.get("rope_scaling").or_else(|| self.get("rope_parameters"))
    }

    fn rope_base(&self) -> Result<f64, WeightsError> {
        let inside = self.rope_table().and_then(|table| table.get("rope_theta"));
        match inside.and_then(Value::as_f64) {
            Some(base) => Ok(base),
            None => Ok(self.number("rope_theta")?.unwrap_or(10_000.0)),
        }
    }

    /// Of these architectures llama.cpp knows no window: a model with one would see more.
    fn check_window(&self, architecture: &Architecture) -> Result<(), WeightsError> {
        let is_used = self.get("use_sliding_window").and_then(Value::as_bool).unwrap_or(true);
        let window = self.count("sliding_window")?.filter(|_| is_used);
        let context = self.required("max_position_embeddings")?;
        match window.filter(|&window| window < context) {
            None => Ok(()),
            Some(window) => Err(unsupported(
                self.base,
                format!("`sliding_window` in GGUF output of architecture {}", architecture.name),
                window.to_string(),
                "null, or the whole context",
            )),
        }
    }

    fn scaling(&self) -> Result<Scaling, WeightsError> {
        let Some(table) = self.rope_table() else { return Ok(Scaling::None) };
        let named = table.get("rope_type").or_else(|| table.get("type")).and_then(Value::as_str);
        let number = |key: &str| table.get(key).and_then(Value::as_f64);
        let wanted = |key: &str| {
            number(key).ok_or_else(|| self.bad("rope_scaling", format!("`{key}` is missing")))
        };
        match named.unwrap_or("default") {
            "default" => Ok(Scaling::None),
            "linear" => Ok(Scaling::Linear(wanted("factor")?)),
            "llama3" => {
                let inside = number("original_max_position_embeddings");
                let outside = self.number("original_max_position_embeddings")?;
                let original = inside.or(outside);
                let missing = "`original_max_position_embeddings` is missing";
                Ok(Scaling::Llama3(Llama3Scaling {
                    factor: wanted("factor")?,
                    low: wanted("low_freq_factor")?,
                    high: wanted("high_freq_factor")?,
                    original: original.ok_or_else(|| self.bad("rope_scaling", missing))?,
                }))
            }
            other => Err(unsupported(
                self.base,
                "rotary scaling in GGUF output",
                other,
                "default, linear, llama3",
            )),
        }
    }
}
