//! Base models: one shared decoder, and a thin file per family that reads its `config.json`.

mod block;
mod config;
mod decoder;
mod head;
mod llama;
mod load;
mod rope;
mod streamed;

use serde_json::Value;

pub use block::{Block, BlockGradients, BlockOutput, LayerCache, Saved};
pub use config::{Bias, DecoderConfig, Head};
pub use decoder::{Decoder, Gradients, KeyValueCache, MicroBatchResult, Recompute, StepPlace};
pub use head::{CHUNK_BYTES as HEAD_CHUNK_BYTES, OutputHead};
pub use load::{ModelLoader, linear_layers};
pub use rope::{Angles, RopeConfig, RopeScaling};
pub use streamed::StreamedDecoder;

use crate::error::LoadError;

/// A family of models: how its `config.json` is read.
#[derive(Debug)]
pub(crate) struct ModelFamily {
    /// `model_type` in `config.json`.
    name: &'static str,
    read: fn(&Value) -> Result<DecoderConfig, LoadError>,
}

/// Every model family, looked up by `model_type` in the model's `config.json`.
///
/// To add one: write `base_model/<family>.rs`, then add its `FAMILY` here.
pub(crate) const FAMILIES: &[ModelFamily] = &[llama::FAMILY];

impl DecoderConfig {
    /// Reads a model's `config.json`; anything the decoder would compute wrongly is an error that
    /// names the key.
    pub fn read(config: &Value) -> Result<Self, LoadError> {
        let model_type = config.get("model_type").and_then(Value::as_str).unwrap_or_default();
        let family = FAMILIES.iter().find(|family| family.name == model_type).ok_or_else(|| {
            LoadError::UnknownFamily {
                model_type: model_type.to_owned(),
                known: FAMILIES.iter().map(|family| family.name).collect::<Vec<_>>().join(", "),
            }
        })?;
        (family.read)(config)
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        load::expected_tensors(self)
            .iter()
            .map(|(_, shape)| shape.iter().map(|&size| size as u64).product::<u64>())
            .sum()
    }
}
