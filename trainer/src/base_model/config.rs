//! The shape of a decoder, read from a model's `config.json`.

use serde_json::Value;

use super::rope::RopeConfig;
use crate::error::LoadError;

/// Everything the shared decoder needs to know of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig {
    /// Family that read it: the `model_type` of `config.json`.
    pub family: &'static str,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Added to the mean square in every norm.
    pub norm_epsilon: f64,
    /// Rotary embedding and its scaling.
    pub rope: RopeConfig,
    /// Whether the head is the embedding.
    pub head: Head,
    /// Biases of the attention's linear layers.
    pub attention_bias: Bias,
    /// Biases of the feed-forward layers.
    pub feed_forward_bias: Bias,
}

/// Where the output matrix comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The embedding serves as head.
    Tied,
    /// A matrix of its own.
    Own,
}

/// Whether linear layers have biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// They do.
    Present,
    /// They do not.
    Absent,
}

/// Reads keys of `config.json` and says which one is wrong.
pub(crate) struct ConfigReader<'a> {
    config: &'a Value,
}

impl<'a> ConfigReader<'a> {
    pub(crate) fn new(config: &'a Value) -> Self {
        Self { config }
    }

    /// The value of a key, `None` where it is absent or null.
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.config.get(key).filter(|value| !value.is_null())
    }

    /// A count above zero and below 2^32.
    pub(crate) fn count(&self, key: &'static str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(count) if count > 0 && count < 1 << 32 => Ok(Some(count as usize)),
            _ => Err(bad(key, value, "a whole number above 0")),
        }
    }

    pub(crate) fn required(&self, key: &'static str) -> Result<usize, LoadError> {
        self.count(key)?.ok_or(LoadError::MissingKey { key })
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(bad(key, value, "a number above 0")),
        }
    }

    pub(crate) fn flag(&self, key: &'static str) -> Result<Option<bool>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| bad(key, value, "true or false"))
    }

    pub(crate) fn bias(&self, key: &'static str) -> Result<Bias, LoadError> {
        Ok(match self.flag(key)? {
            Some(true) => Bias::Present,
            _ => Bias::Absent,
        })
    }

    /// Refuses a value that the decoder would compute wrongly.
    pub(crate) fn only(&self, key: &'static str, allowed: &[&str]) -> Result<(), LoadError> {
        match self.get(key) {
            None => Ok(()),
            Some(value) if value.as_str().is_some_and(|text| allowed.contains(&text)) => Ok(()),
            Some(value) => Err(bad(key, value, &allowed.join(" or "))),
        }
    }
}

pub(crate) fn bad(key: &str, value: &Value, expected: &str) -> LoadError {
    LoadError::BadKey {
        key: key.to_owned(),
        found: value.to_string(),
        expected: expected.to_owned(),
    }
}
