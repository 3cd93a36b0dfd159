//! Command R7B and Command A: Command R with a sliding window in most layers; the others see
//! everything and turn no queries and keys.

use serde_json::Value;

use super::ModelFamily;
use super::cohere::{NAMES, arrange};
use super::config::{DecoderConfig, Defaults, Head};
use super::config_reader::ConfigReader;
use super::windows::sliding_layers;
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "cohere2", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("layer_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 8192,
    rope_theta: 10_000.0,
    head: Head::Tied,
};

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    arrange(&reader, &mut decoder)?;
    let pattern = reader.count("sliding_window_pattern")?.unwrap_or(4);
    let otherwise = |layer: usize| !(layer + 1).is_multiple_of(pattern);
    let sliding = sliding_layers(&reader, decoder.layers(), otherwise)?;
    let window = reader.count("sliding_window")?.unwrap_or(4096);
    decoder.limit_sight(window, |layer| sliding[layer]);
    for (block, &slides) in decoder.blocks.iter_mut().zip(&sliding) {
        block.rope = slides.then_some(0);
    }
    Ok(decoder)
}
