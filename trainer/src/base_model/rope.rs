//! Angles of the rotary embedding and its scaling rules, as `transformers` computes them in f32.

use burn::tensor::{DType, Device, Tensor};
use serde_json::Value;

use super::config::{ConfigReader, bad};
use crate::error::LoadError;

/// Base frequency and scaling of a model's rotary embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How positions beyond the original context are brought back.
    pub scaling: RopeScaling,
    /// Positions the model was made for.
    pub max_positions: usize,
}

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
}

/// Cosines and sines of a micro-batch: `[tokens, head_dim / 2]` each, f32.
#[derive(Debug, Clone)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor<2>,
    /// Sines.
    pub sin: Tensor<2>,
}

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
    ///
    /// As in `transformers`, `rope_scaling` wins over `rope_parameters`, and a base inside the
    /// table over one beside it.
    pub(crate) fn read(reader: &ConfigReader, max_positions: usize) -> Result<Self, LoadError> {
        let parameters = reader.get("rope_scaling").or_else(|| reader.get("rope_parameters"));
        let theta = match parameters.and_then(|p| p.get("rope_theta")) {
            Some(value) => positive(value, "rope_parameters.rope_theta")?,
            None => reader.number("rope_theta")?.unwrap_or(10_000.0),
        };
        let scaling = match parameters {
            Some(parameters) => {
                let original = reader.count("original_max_position_embeddings")?;
                RopeScaling::read(parameters, original, max_positions)?
            }
            None => RopeScaling::Default,
        };
        if let Some(share) = reader.get("partial_rotary_factor")
            && share.as_f64() != Some(1.0)
        {
            return Err(bad("partial_rotary_factor", share, "1.0"));
        }
        Ok(Self { theta, scaling, max_positions })
    }

    /// Angles of tokens whose segments begin at `starts`; positions count from 0 in each.
    pub fn angles(&self, starts: &[usize], head_dim: usize, device: &Device) -> Angles {
        let half = head_dim / 2;
        let tokens = starts.last().copied().unwrap_or(0);
        let mut radians = Vec::with_capacity(tokens * half);
        for segment in starts.windows(2) {
            self.extend(&mut radians, 0..segment[1] - segment[0], head_dim);
        }
        to_angles(&radians, half, device)
    }

    /// Angles of a stretch of positions of one sequence.
    pub fn angles_from(
        &self,
        positions: std::ops::Range<usize>,
        head_dim: usize,
        device: &Device,
    ) -> Angles {
        let mut radians = Vec::new();
        self.extend(&mut radians, positions, head_dim);
        to_angles(&radians, head_dim / 2, device)
    }

    fn extend(&self, radians: &mut Vec<f32>, positions: std::ops::Range<usize>, head_dim: usize) {
        let frequencies = self.frequencies(positions.end, head_dim);
        for position in positions {
            radians.extend(frequencies.iter().map(|frequency| position as f32 * frequency));
        }
    }

    /// Radians per position of each pair, for a sequence of `length`: `[head_dim / 2]`.
    pub fn frequencies(&self, length: usize, head_dim: usize) -> Vec<f32> {
        let theta = match self.scaling {
            RopeScaling::Dynamic { factor } if length > self.max_positions => {
                let stretch = factor * length as f64 / self.max_positions as f64 - (factor - 1.0);
                self.theta * stretch.powf(head_dim as f64 / (head_dim as f64 - 2.0))
            }
            _ => self.theta,
        };
        (0..head_dim / 2)
            .map(|pair| {
                let exponent = (2 * pair) as f32 / head_dim as f32;
                self.scale_frequency(1.0 / (theta as f32).powf(exponent))
            })
            .collect()
    }

    fn scale_frequency(&self, frequency: f32) -> f32 {
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => frequency,
            RopeScaling::Linear { factor } => frequency / factor as f32,
            RopeScaling::Llama3 {
                factor,
                low_frequency_factor: low,
                high_frequency_factor: high,
                original_max_positions: original,
            } => {
                let wavelength = std::f64::consts::TAU / f64::from(frequency);
                if wavelength < original / high {
                    frequency
                } else if wavelength > original / low {
                    frequency / factor as f32
                } else {
                    let smooth = ((original / wavelength - low) / (high - low)) as f32;
                    (1.0 - smooth) * frequency / factor as f32 + smooth * frequency
                }
            }
        }
    }
}

impl RopeScaling {
    fn read(
        parameters: &Value,
        original: Option<usize>,
        max_positions: usize,
    ) -> Result<Self, LoadError> {
        let kind = parameters.get("rope_type").or_else(|| parameters.get("type"));
        let number = |key: &str| match parameters.get(key) {
            Some(value) => positive(value, &format!("rope scaling `{key}`")),
            None => Err(LoadError::MissingRopeKey { key: key.to_owned() }),
        };
        match kind.map_or(Some("default"), Value::as_str) {
            Some("default") => Ok(Self::Default),
            Some("linear") => Ok(Self::Linear { factor: number("factor")? }),
            Some("dynamic") => Ok(Self::Dynamic { factor: number("factor")? }),
            Some("llama3") => Ok(Self::Llama3 {
                factor: number("factor")?,
                low_frequency_factor: number("low_freq_factor")?,
                high_frequency_factor: number("high_freq_factor")?,
                original_max_positions: match parameters.get("original_max_position_embeddings") {
                    _ if original.is_some() => original.unwrap_or(max_positions) as f64,
                    Some(value) => positive(value, "original_max_position_embeddings")?,
                    None => max_positions as f64,
                },
            }),
            _ => Err(bad(
                "rope_type",
                kind.unwrap_or(&Value::Null),
                "default, linear, dynamic or llama3",
            )),
        }
    }
}

fn positive(value: &Value, key: &str) -> Result<f64, LoadError> {
    match value.as_f64() {
        Some(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err(bad(key, value, "a number above 0")),
    }
}

fn to_angles(radians: &[f32], half: usize, device: &Device) -> Angles {
    let shape = [radians.len() / half.max(1), half];
    let (cos, sin) = radians.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
    Angles {
        cos: kernels::from_f32(cos, shape, DType::F32, device),
        sin: kernels::from_f32(sin, shape, DType::F32, device),
    }
}
