//! Reads keys of `config.json` and says which one is wrong.

use kernels::Gelu;
use serde_json::Value;

use super::config::{Activation, Bias, Head};
use crate::error::LoadError;

/// Most blocks that are believed: far above any model, and small enough to list.
const MAX_LAYERS: usize = 4096;

/// A table of keys.
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

    /// A count that may be 0.
    pub(crate) fn whole(&self, key: &'static str) -> Result<Option<usize>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(count) if count < 1 << 32 => Ok(Some(count as usize)),
            _ => Err(bad(key, value, "a whole number")),
        }
    }

    pub(crate) fn required(&self, key: &'static str) -> Result<usize, LoadError> {
        self.count(key)?.ok_or(LoadError::MissingKey { key })
    }

    /// The number of blocks.
    pub(crate) fn layers(&self, key: &'static str) -> Result<usize, LoadError> {
        let layers = self.required(key)?;
        if layers > MAX_LAYERS {
            return Err(bad(key, &Value::from(layers), &format!("at most {MAX_LAYERS}")));
        }
        Ok(layers)
    }

    pub(crate) fn number(&self, key: &'static str) -> Result<Option<f64>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        positive(value, key).map(Some)
    }

    /// A number above zero; `default` where the key is absent, and `None` where it is null.
    pub(crate) fn nullable_number(
        &self,
        key: &'static str,
        default: f64,
    ) -> Result<Option<f64>, LoadError> {
        match self.config.get(key) {
            None => Ok(Some(default)),
            Some(_) => self.number(key),
        }
    }

    /// A count; `default` where the key is absent, and `None` where it is null.
    pub(crate) fn nullable_count(
        &self,
        key: &'static str,
        default: usize,
    ) -> Result<Option<usize>, LoadError> {
        match self.config.get(key) {
            None => Ok(Some(default)),
            Some(_) => self.count(key),
        }
    }

    /// An activation by its name in `transformers`.
    pub(crate) fn activation(&self, key: &'static str) -> Result<Option<Activation>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Some(Activation::Silu)),
            Some("gelu") => Ok(Some(Activation::Gelu(Gelu::Exact))),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => {
                Ok(Some(Activation::Gelu(Gelu::Tanh)))
            }
            _ => Err(bad(key, value, "silu, gelu, gelu_pytorch_tanh, gelu_new or gelu_fast")),
        }
    }

    /// A GELU by its name in `transformers`.
    pub(crate) fn gelu(&self, key: &'static str, default: Gelu) -> Result<Gelu, LoadError> {
        match self.activation(key)? {
            Some(Activation::Gelu(form)) => Ok(form),
            None => Ok(default),
            Some(Activation::Silu) => {
                let value = self.get(key).unwrap_or(&Value::Null);
                Err(bad(key, value, "gelu, gelu_pytorch_tanh, gelu_new or gelu_fast"))
            }
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

    pub(crate) fn head(&self, default: Head) -> Result<Head, LoadError> {
        Ok(match self.flag("tie_word_embeddings")? {
            Some(true) => Head::Tied,
            Some(false) => Head::Own,
            None => default,
        })
    }

    /// Refuses a flag that is set.
    pub(crate) fn only_unset(&self, key: &'static str) -> Result<(), LoadError> {
        match self.flag(key)? {
            Some(true) => Err(bad(key, &Value::from(true), "false")),
            _ => Ok(()),
        }
    }

    /// One of some texts; `None` where the key is absent.
    pub(crate) fn only_text(
        &self,
        key: &'static str,
        known: &[&str],
    ) -> Result<Option<&'a str>, LoadError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let text = value.as_str().filter(|text| known.contains(text));
        text.map(Some).ok_or_else(|| bad(key, value, &known.join(" or ")))
    }

    /// Refuses any value but null.
    pub(crate) fn only_null(&self, key: &'static str) -> Result<(), LoadError> {
        match self.get(key) {
            None => Ok(()),
            Some(value) => Err(bad(key, value, "null")),
        }
    }

    /// One text for every block, as `layer_types` has them.
    pub(crate) fn layer_types(&self, layers: usize) -> Result<Option<Vec<&'a str>>, LoadError> {
        const KEY: &str = "layer_types";
        let Some(value) = self.get(KEY) else { return Ok(None) };
        let texts = value
            .as_array()
            .and_then(|items| items.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        match texts {
            Some(texts) if texts.len() == layers => Ok(Some(texts)),
            _ => Err(bad(KEY, value, &format!("a list of {layers} texts"))),
        }
    }
}

/// A finite number above 0.
pub(super) fn positive(value: &Value, key: &str) -> Result<f64, LoadError> {
    match value.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(bad(key, value, "a number above 0")),
    }
}

pub(crate) fn bad(key: &str, value: &Value, expected: &str) -> LoadError {
    LoadError::BadKey {
        key: key.to_owned(),
        found: value.to_string(),
        expected: expected.to_owned(),
    }
}
