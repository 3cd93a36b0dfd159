//! How rotary frequencies are changed for texts beyond the first training's length, as
//! `transformers` computes it in f32.

use std::f64::consts::TAU;

use serde_json::Value;

use super::config_reader::{bad, positive};
use super::rope::{RopeConfig, RopeSetting};
use crate::error::LoadError;

/// Scaling rules.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// None.
    Default,
    /// Positions are divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// The base grows with the length of the sequence once it exceeds the context (dynamic NTK).
    Dynamic {
        /// How much longer the context becomes.
        factor: f64,
    },
    /// Llama 3.1: low frequencies are divided by `factor`, high ones kept, the rest blended.
    Llama3 {
        /// Divisor of low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_frequency_factor` are low frequencies.
        low_frequency_factor: f64,
        /// Wavelengths below `original / high_frequency_factor` are high frequencies.
        high_frequency_factor: f64,
        /// Context the model was trained on first.
        original_max_positions: f64,
    },
    /// `YaRN` (arXiv 2309.00071): as Llama 3, with a linear ramp over the pairs, and a factor on the
    /// rotated queries and keys.
    Yarn {
        /// Divisor of low frequencies.
        factor: f64,
        /// Pairs between these two are blended: the first, and the last.
        ramp: (f64, f64),
        /// Factor of cosines and sines.
        attention_factor: f64,
        /// Factor of queries and keys that `mscale_all_dim` asks for, where a family heeds it.
        magnitude: f64,
    },
    /// `LongRoPE` (arXiv 2402.13753): a divisor for each pair, one set up to the first training's
    /// length and another beyond.
    LongRope {
        /// Divisors of short texts.
        short: Vec<f32>,
        /// Divisors of long texts.
        long: Vec<f32>,
        /// Where long texts begin.
        original_max_positions: usize,
        /// Factor of cosines and sines.
        attention_factor: f64,
    },
}

/// A table of `config.json`.
struct Table<'a> {
    keys: &'a Value,
    /// Length of the first training where it stands beside the table, which wins.
    original: Option<usize>,
    setting: RopeSetting,
}

impl RopeScaling {
    pub(super) fn read(
        keys: &Value,
        original: Option<usize>,
        setting: RopeSetting,
    ) -> Result<Self, LoadError> {
        let kind = keys.get("rope_type").or_else(|| keys.get("type"));
        let table = Table { keys, original, setting };
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(Self::Default),
            Some("linear") => Ok(Self::Linear { factor: table.number("factor")? }),
            Some("dynamic") => Ok(Self::Dynamic { factor: table.number("factor")? }),
            Some("llama3") => Ok(Self::Llama3 {
                factor: table.number("factor")?,
                low_frequency_factor: table.number("low_freq_factor")?,
                high_frequency_factor: table.number("high_freq_factor")?,
                original_max_positions: table.original()?,
            }),
            Some("yarn") => table.yarn(),
            Some("longrope") => table.long_rope(),
            _ => Err(bad(
                "rope_type",
                kind.unwrap_or(&Value::Null),
                "default, linear, dynamic, llama3, yarn or longrope",
            )),
        }
    }

    /// The same under the name `longrope`, which Phi-3's first files called `su` and `yarn`.
    pub(super) fn read_long_rope(
        keys: &Value,
        original: usize,
        setting: RopeSetting,
    ) -> Result<Self, LoadError> {
        Table { keys, original: Some(original), setting }.long_rope()
    }

    /// Factor of cosines and sines.
    pub(super) fn attention_factor(&self) -> f64 {
        match *self {
            Self::Yarn { attention_factor, .. } | Self::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// Factor of whole queries and keys, in families that heed `mscale_all_dim`.
    pub(super) fn score_magnitude(&self) -> f64 {
        match *self {
            Self::Yarn { magnitude, .. } => magnitude,
            _ => 1.0,
        }
    }

    /// Radians per position of each pair, for a sequence of `length`.
    pub(super) fn frequencies(&self, rope: &RopeConfig, length: usize) -> Vec<f32> {
        let dim = rope.rotary_dim;
        let theta = match *self {
            Self::Dynamic { factor } if length > rope.max_positions => {
                let stretch = factor * length as f64 / rope.max_positions as f64 - (factor - 1.0);
                rope.theta * stretch.powf(dim as f64 / (dim as f64 - 2.0))
            }
            _ => rope.theta,
        };
        (0..dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / dim as f32;
                self.scale((theta as f32).powf(exponent), pair, length)
            })
            .collect()
    }

    /// The frequency of a pair from its unscaled inverse.
    fn scale(&self, period: f32, pair: usize, length: usize) -> f32 {
        let frequency = 1.0 / period;
        match *self {
            Self::Default | Self::Dynamic { .. } => frequency,
            Self::Linear { factor } => frequency / factor as f32,
            Self::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_max_positions: original,
            } => {
                let wavelength = TAU / f64::from(frequency);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor as f32
                } else {
                    let smooth = ((original / wavelength - low) / (high - low)) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            }
            Self::Yarn { factor, ramp: (first, last), .. } => {
                let interpolated = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0) as f32;
                let kept = 1.0 - interpolated;
                1.0 / (factor as f32 * period) * (1.0 - kept) + frequency * kept
            }
            Self::LongRope { ref short, ref long, original_max_positions, .. } => {
                let divisors = if length > original_max_positions { long } else { short };
                1.0 / (divisors[pair] * period)
            }
        }
    }
}

impl Table<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.keys.get(key).filter(|value| !value.is_null())
    }

    fn optional(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.get(key).map(|value| positive(value, &format!("rope scaling `{key}`"))).transpose()
    }

    /// A number above 0; 0 stands for none.
    fn weight(&self, key: &str) -> Result<Option<f64>, LoadError> {
        match self.get(key).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.optional(key),
        }
    }

    fn number(&self, key: &str) -> Result<f64, LoadError> {
        self.optional(key)?.ok_or_else(|| LoadError::MissingRopeKey { key: key.to_owned() })
    }

    /// Length of the first training.
    fn original(&self) -> Result<f64, LoadError> {
        match self.original {
            Some(original) => Ok(original as f64),
            None => Ok(self
                .optional("original_max_position_embeddings")?
                .unwrap_or(self.setting.max_positions as f64)),
        }
    }

    /// How much longer the context became.
    fn factor(&self, original: f64) -> Result<f64, LoadError> {
        let factor = self.optional("factor")?;
        Ok(factor.unwrap_or(self.setting.max_positions as f64 / original))
    }

    fn yarn(&self) -> Result<RopeScaling, LoadError> {
        let original = self.original()?;
        let factor = self.factor(original)?;
        let magnitude = |weight: f64| {
            if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
        };
        let all_dimensions = self.weight("mscale_all_dim")?;
        let attention_factor = match self.optional("attention_factor")? {
            Some(given) => given,
            None => match (self.weight("mscale")?, all_dimensions) {
                (Some(above), Some(below)) => magnitude(above) / magnitude(below),
                _ => magnitude(1.0),
            },
        };
        let (dim, theta) = (self.setting.rotary_dim as f64, self.setting.theta);
        let pair_of = |turns: f64| dim * (original / (turns * TAU)).ln() / (2.0 * theta.ln());
        let mut first = pair_of(self.optional("beta_fast")?.unwrap_or(32.0));
        let mut last = pair_of(self.optional("beta_slow")?.unwrap_or(1.0));
        if self.get("truncate").and_then(Value::as_bool).unwrap_or(true) {
            (first, last) = (first.floor(), last.ceil());
        }
        (first, last) = (first.max(0.0), last.min(dim - 1.0));
        if first == last {
            last += 0.001;
        }
        let magnitude = all_dimensions.map_or(1.0, magnitude);
        Ok(RopeScaling::Yarn { factor, ramp: (first, last), attention_factor, magnitude })
    }

    fn long_rope(&self) -> Result<RopeScaling, LoadError> {
        let original = self.original()?;
        let factor = self.factor(original)?;
        let attention_factor = match self.optional("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short: self.divisors("short_factor")?,
            long: self.divisors("long_factor")?,
            original_max_positions: original as usize,
            attention_factor,
        })
    }

    /// A divisor for every pair.
    fn divisors(&self, key: &str) -> Result<Vec<f32>, LoadError> {
        let pairs = self.setting.rotary_dim / 2;
        let value =
            self.get(key).ok_or_else(|| LoadError::MissingRopeKey { key: key.to_owned() })?;
        let divisor = |item: &Value| item.as_f64().filter(|n| n.is_finite() && *n > 0.0);
        let divisors = value
            .as_array()
            .and_then(|items| items.iter().map(divisor).collect::<Option<Vec<f64>>>());
        match divisors {
            Some(divisors) if divisors.len() == pairs => {
                Ok(divisors.into_iter().map(|divisor| divisor as f32).collect())
            }
            _ => Err(bad(key, value, &format!("a list of {pairs} numbers above 0"))),
        }
    }
}
