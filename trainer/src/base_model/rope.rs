//! Angles of the rotary embedding and its scaling rules, as `transformers` computes them in f32.

use std::ops::Range;

use burn::tensor::{DType, Device, Tensor};
use serde_json::Value;

use super::config_reader::{ConfigReader, bad, positive};
use super::rope_scaling::RopeScaling;
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
    /// Elements of a head that turn; even.
    pub rotary_dim: usize,
}

/// What `config.json` says elsewhere about a rotary embedding.
#[derive(Clone, Copy)]
pub(super) struct RopeSetting {
    pub(super) rotary_dim: usize,
    pub(super) max_positions: usize,
    /// Base where the file has none.
    pub(super) theta: f64,
}

/// Cosines and sines of a micro-batch: `[tokens, rotary_dim / 2]` each, f32.
#[derive(Debug, Clone)]
pub struct Angles {
    /// Cosines.
    pub cos: Tensor<2>,
    /// Sines.
    pub sin: Tensor<2>,
}

impl Angles {
    /// Cosines and sines.
    pub fn pair(&self) -> (&Tensor<2>, &Tensor<2>) {
        (&self.cos, &self.sin)
    }
}

impl RopeConfig {
    /// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before), of a
    /// model whose heads turn as a whole.
    ///
    /// As in `transformers`, `rope_scaling` wins over `rope_parameters`, and a base inside the
    /// table over one beside it.
    pub(super) fn read(reader: &ConfigReader, setting: RopeSetting) -> Result<Self, LoadError> {
        let table = Self::table(reader);
        let share = table
            .and_then(|table| table.get("partial_rotary_factor"))
            .or_else(|| reader.get("partial_rotary_factor"));
        match share {
            Some(share) if !share.is_null() && share.as_f64() != Some(1.0) => {
                Err(bad("partial_rotary_factor", share, "1.0"))
            }
            _ => {
                let theta = reader.number("rope_theta")?.unwrap_or(setting.theta);
                Self::read_table(reader, table, RopeSetting { theta, ..setting })
            }
        }
    }

    /// The table of the scaling, where there is one.
    pub(super) fn table<'a>(reader: &ConfigReader<'a>) -> Option<&'a Value> {
        reader.get("rope_scaling").or_else(|| reader.get("rope_parameters"))
    }

    /// Reads one table. A base inside of it wins over the setting's.
    pub(super) fn read_table(
        reader: &ConfigReader,
        table: Option<&Value>,
        setting: RopeSetting,
    ) -> Result<Self, LoadError> {
        let RopeSetting { rotary_dim, max_positions, theta } = setting;
        let theta = match table.and_then(|table| table.get("rope_theta")) {
            Some(value) if !value.is_null() => positive(value, "rope_parameters.rope_theta")?,
            _ => theta,
        };
        let setting = RopeSetting { theta, ..setting };
        let scaling = match table {
            Some(table) => {
                let original = reader.count("original_max_position_embeddings")?;
                RopeScaling::read(table, original, setting)?
            }
            None => RopeScaling::Default,
        };
        Ok(Self { theta, scaling, max_positions, rotary_dim })
    }

    /// Angles of tokens whose segments begin at `starts`; positions count from 0 in each.
    pub fn angles(&self, starts: &[usize], device: &Device) -> Angles {
        let segments = starts.windows(2).map(|segment| 0..segment[1] - segment[0]);
        self.angles_of(segments, device)
    }

    /// Angles of stretches of positions, end to end.
    pub fn angles_of(
        &self,
        stretches: impl IntoIterator<Item = Range<usize>>,
        device: &Device,
    ) -> Angles {
        let mut radians = Vec::new();
        for positions in stretches {
            self.extend(&mut radians, positions);
        }
        self.to_angles(&radians, device)
    }

    /// Whether a text of `longer` positions turns by other angles than its first `shorter`, in a
    /// way that `transformers` computes anew.
    pub fn switches_between(&self, shorter: usize, longer: usize) -> bool {
        match self.scaling {
            RopeScaling::LongRope { original_max_positions: original, .. } => {
                shorter <= original && longer > original
            }
            _ => false,
        }
    }

    fn extend(&self, radians: &mut Vec<f32>, positions: Range<usize>) {
        let frequencies = self.frequencies(positions.end);
        for position in positions {
            radians.extend(frequencies.iter().map(|frequency| position as f32 * frequency));
        }
    }

    /// Radians per position of each pair, for a sequence of `length`: `[rotary_dim / 2]`.
    pub fn frequencies(&self, length: usize) -> Vec<f32> {
        self.scaling.frequencies(self, length)
    }

    fn to_angles(&self, radians: &[f32], device: &Device) -> Angles {
        let half = self.rotary_dim / 2;
        let shape = [radians.len() / half.max(1), half];
        let factor = self.scaling.attention_factor() as f32;
        let (cos, sin) =
            radians.iter().map(|angle| (angle.cos() * factor, angle.sin() * factor)).unzip();
        Angles {
            cos: kernels::from_f32(cos, shape, DType::F32, device),
            sin: kernels::from_f32(sin, shape, DType::F32, device),
        }
    }
}
