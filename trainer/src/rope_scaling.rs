//! The `[rope_scaling]` table: a longer context than the base model was made for.
//!
//! The table goes into the base's `config.json` under the names that `transformers` gives them, so
//! training, merging and every program that reads the merged folder see the same model.

use std::num::NonZeroU32;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::base_model::DecoderConfig;
use crate::error::LoadError;

/// How positions beyond the base's context are brought back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RopeScalingConfig {
    /// The rule: `yarn` needs little training, `linear` some, `dynamic` none; `llama3` and
    /// `longrope` are for models of these families.
    pub rope_type: RopeType,
    /// How much longer the context becomes: 4.0 makes 8,192 positions 32,768.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub factor: Option<f64>,
    /// Positions of the extended model; `factor` times the base's where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_position_embeddings: Option<NonZeroU32>,
    /// Positions of the first training; the base's own where it is not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_max_position_embeddings: Option<NonZeroU32>,
    /// Of `yarn` and `longrope`: factor of cosines and sines; follows from `factor` otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attention_factor: Option<f64>,
    /// Of `yarn`: turns from which on a frequency is kept; 32 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_fast: Option<f64>,
    /// Of `yarn`: turns up to which a frequency is divided; 1 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta_slow: Option<f64>,
    /// Of `llama3`: wavelengths above the original length over this are divided; 1 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub low_freq_factor: Option<f64>,
    /// Of `llama3`: wavelengths below the original length over this are kept; 4 is usual.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_freq_factor: Option<f64>,
    /// Of `longrope`: a divisor for each rotary pair, for texts up to the original length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short_factor: Option<Vec<f64>>,
    /// Of `longrope`: a divisor for each rotary pair, for longer texts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub long_factor: Option<Vec<f64>>,
}

/// Rules of scaling, as `transformers` names them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RopeType {
    /// Positions are divided.
    Linear,
    /// The base grows with the text once it is longer than the context.
    Dynamic,
    /// Low frequencies are divided, high ones kept, with a ramp between (`YaRN`).
    Yarn,
    /// Low frequencies are divided, high ones kept, as Llama 3.1 does.
    Llama3,
    /// A divisor for each frequency (`LongRoPE`).
    Longrope,
}

/// Why a context is not extended.
#[derive(Debug, thiserror::Error)]
pub enum RopeScalingError {
    /// There is nothing to scale.
    #[error("`rope_scaling` does nothing for {family}: its positions are learned, not rotated")]
    LearnedPositions {
        /// `model_type`.
        family: String,
    },
    /// A key of another rule.
    #[error("`rope_scaling.{key}` is no key of rope type `{rope_type}`")]
    StrayKey {
        /// The key.
        key: &'static str,
        /// The rule.
        rope_type: &'static str,
    },
    /// A key that the rule needs.
    #[error("rope type `{rope_type}` needs `rope_scaling.{key}`")]
    MissingKey {
        /// The key.
        key: &'static str,
        /// The rule.
        rope_type: &'static str,
    },
    /// A value that extends nothing.
    #[error("`rope_scaling.{key}` is {found}; {wanted}")]
    OutOfRange {
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is possible.
        wanted: String,
    },
    /// The family cannot be computed with it.
    #[error("with `rope_scaling` the base cannot be computed: {0}")]
    Unfit(#[from] LoadError),
}

impl RopeType {
    fn name(self) -> &'static str {
        match self {
            Self::Linear => "linear",
            Self::Dynamic => "dynamic",
            Self::Yarn => "yarn",
            Self::Llama3 => "llama3",
            Self::Longrope => "longrope",
        }
    }
}

const MAX: &str = "max_position_embeddings";
const ORIGINAL: &str = "original_max_position_embeddings";

impl RopeScalingConfig {
    /// The configuration of the extended model.
    pub fn extend(&self, config: &Value) -> Result<Value, RopeScalingError> {
        let family = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if family == "gpt2" {
            return Err(RopeScalingError::LearnedPositions { family: family.to_owned() });
        }
        self.check_keys()?;
        let mut extended = config.clone();
        let text = match extended.get_mut("text_config") {
            Some(Value::Object(text)) if matches!(family, "gemma3" | "llama4") => Some(text),
            _ => None,
        };
        match text {
            Some(text) => self.write_into(text)?,
            None => match extended.as_object_mut() {
                Some(keys) => self.write_into(keys)?,
                None => return Err(LoadError::MissingKey { key: "model_type" }.into()),
            },
        }
        DecoderConfig::read(&extended)?;
        Ok(extended)
    }

    /// Every key has a use, and those that are needed are there.
    fn check_keys(&self) -> Result<(), RopeScalingError> {
        use RopeType::{Llama3, Longrope, Yarn};
        let rope_type = self.rope_type.name();
        let keys: [(&'static str, bool, &[RopeType]); 7] = [
            ("attention_factor", self.attention_factor.is_some(), &[Yarn, Longrope]),
            ("beta_fast", self.beta_fast.is_some(), &[Yarn]),
            ("beta_slow", self.beta_slow.is_some(), &[Yarn]),
            ("low_freq_factor", self.low_freq_factor.is_some(), &[Llama3]),
            ("high_freq_factor", self.high_freq_factor.is_some(), &[Llama3]),
            ("short_factor", self.short_factor.is_some(), &[Longrope]),
            ("long_factor", self.long_factor.is_some(), &[Longrope]),
        ];
        for (key, is_given, of) in keys {
            if is_given && !of.contains(&self.rope_type) {
                return Err(RopeScalingError::StrayKey { key, rope_type });
            }
            let is_needed = key.ends_with("_factor") && of == [Longrope];
            if !is_given && is_needed && self.rope_type == Longrope {
                return Err(RopeScalingError::MissingKey { key, rope_type });
            }
        }
        if self.rope_type == RopeType::Dynamic && self.max_position_embeddings.is_some() {
            // The rule begins where the context ends, so that must stay the base's.
            return Err(RopeScalingError::StrayKey { key: MAX, rope_type });
        }
        match self.factor {
            None if self.rope_type == Longrope && self.max_position_embeddings.is_some() => Ok(()),
            None => Err(RopeScalingError::MissingKey { key: "factor", rope_type }),
            Some(factor) if factor > 1.0 && factor.is_finite() => Ok(()),
            Some(factor) => Err(RopeScalingError::OutOfRange {
                key: "factor",
                found: factor.to_string(),
                wanted: "a longer context needs a number above 1".to_owned(),
            }),
        }
    }

    fn write_into(&self, keys: &mut Map<String, Value>) -> Result<(), RopeScalingError> {
        let positions = keys.get(MAX).and_then(Value::as_u64);
        let positions = positions.ok_or(LoadError::MissingKey { key: MAX })?;
        let is_new = keys.get("rope_parameters").is_some_and(Value::is_object);
        let place = if is_new { "rope_parameters" } else { "rope_scaling" };
        let old = keys.get(place).and_then(Value::as_object).cloned().unwrap_or_default();
        // Gemma 3 has a table for local layers, too, which stays as it is.
        let full = old.get("full_attention").and_then(Value::as_object).cloned();
        let own = full.as_ref().unwrap_or(&old);
        let original = match self.original_max_position_embeddings {
            Some(original) => u64::from(original.get()),
            None => own.get(ORIGINAL).and_then(Value::as_u64).unwrap_or(positions),
        };
        let table = Value::Object(self.table(own, original));
        if self.rope_type != RopeType::Dynamic {
            keys.insert(MAX.to_owned(), self.extended_positions(original, positions)?.into());
        }
        if keys.contains_key(ORIGINAL) {
            keys.insert(ORIGINAL.to_owned(), original.into());
        }
        let table = match full {
            None => table,
            Some(_) => {
                let mut both = old;
                both.insert("full_attention".to_owned(), table);
                Value::Object(both)
            }
        };
        if is_new {
            keys.remove("rope_scaling");
        }
        keys.insert(place.to_owned(), table);
        Ok(())
    }

    fn extended_positions(&self, original: u64, positions: u64) -> Result<u64, RopeScalingError> {
        let extended = match self.max_position_embeddings {
            Some(given) => u64::from(given.get()),
            None => (self.factor.unwrap_or(1.0) * original as f64) as u64,
        };
        if extended < positions || extended >= 1 << 32 {
            return Err(RopeScalingError::OutOfRange {
                key: MAX,
                found: extended.to_string(),
                wanted: format!(
                    "the base has {positions} positions, and fewer than 2^32 are possible"
                ),
            });
        }
        Ok(extended)
    }

    /// The table, with what the base's says besides its scaling.
    fn table(&self, own: &Map<String, Value>, original: u64) -> Map<String, Value> {
        let mut table = Map::new();
        for key in ["rope_theta", "partial_rotary_factor"] {
            if let Some(value) = own.get(key) {
                table.insert(key.to_owned(), value.clone());
            }
        }
        table.insert("rope_type".to_owned(), self.rope_type.name().into());
        if !matches!(self.rope_type, RopeType::Linear | RopeType::Dynamic) {
            table.insert(ORIGINAL.to_owned(), original.into());
        }
        let is_llama3 = self.rope_type == RopeType::Llama3;
        let usual = |given: Option<f64>, usual: f64| given.or(is_llama3.then_some(usual));
        for (key, value) in [
            ("factor", self.factor),
            ("attention_factor", self.attention_factor),
            ("beta_fast", self.beta_fast),
            ("beta_slow", self.beta_slow),
            ("low_freq_factor", usual(self.low_freq_factor, 1.0)),
            ("high_freq_factor", usual(self.high_freq_factor, 4.0)),
        ] {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.into());
            }
        }
        for (key, value) in
            [("short_factor", &self.short_factor), ("long_factor", &self.long_factor)]
        {
            if let Some(value) = value {
                table.insert(key.to_owned(), value.clone().into());
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn scaling(table: Value) -> RopeScalingConfig {
        serde_json::from_value(table).unwrap()
    }

    fn llama(rope: &Value) -> Value {
        let mut config = json!({
            "model_type": "llama", "hidden_size": 32, "intermediate_size": 40, "vocab_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 128,
        });
        config.as_object_mut().unwrap().extend(rope.as_object().unwrap().clone());
        config
    }

    #[test]
    fn the_table_goes_where_the_base_has_one() {
        let yarn = scaling(json!({"rope_type": "yarn", "factor": 4.0}));
        let old = yarn.extend(&llama(&json!({"rope_theta": 5e5, "rope_scaling": null}))).unwrap();
        let table =
            json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
        assert_eq!(old["rope_scaling"], table);
        assert_eq!(
            (&old["rope_theta"], &old["max_position_embeddings"]),
            (&json!(5e5), &json!(512))
        );
        let base = llama(&json!({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}));
        let new = yarn.extend(&base).unwrap();
        assert_eq!(new["rope_parameters"]["rope_theta"], json!(5e5));
        assert_eq!(new["rope_parameters"]["rope_type"], json!("yarn"));
        assert!(new.get("rope_scaling").is_none());
    }

    #[test]
    fn dynamic_scaling_begins_where_the_context_ends() {
        let dynamic = scaling(json!({"rope_type": "dynamic", "factor": 2.0}));
        let extended = dynamic.extend(&llama(&json!({"rope_theta": 1e4}))).unwrap();
        assert_eq!(extended["max_position_embeddings"], json!(128));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_key() {
        let refused =
            |table: Value, config: Value| scaling(table).extend(&config).unwrap_err().to_string();
        let base = || llama(&json!({"rope_theta": 1e4}));
        for (table, key) in [
            (json!({"rope_type": "linear"}), "factor"),
            (json!({"rope_type": "linear", "factor": 0.5}), "factor"),
            (json!({"rope_type": "linear", "factor": 2.0, "beta_fast": 1.0}), "beta_fast"),
            (json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0]}), "long_factor"),
            (
                json!({"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 9}),
                "max_position_embeddings",
            ),
            (
                json!({"rope_type": "yarn", "factor": 2.0, "max_position_embeddings": 100}),
                "max_position_embeddings",
            ),
            (
                json!({"rope_type": "longrope", "factor": 2.0, "short_factor": [1.0],
                       "long_factor": [1.0]}),
                "a list of 4 numbers",
            ),
        ] {
            let message = refused(table, base());
            assert!(message.contains(key), "{message}");
        }
        let linear = json!({"rope_type": "linear", "factor": 2.0});
        assert!(refused(linear, json!({"model_type": "gpt2"})).contains("learned"));
    }
}
