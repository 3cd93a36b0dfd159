//! Command R: attention and feed-forward side by side behind one norm, `LayerNorm` without bias,
//! neighbours as rotary pairs, scaled logits.

use kernels::RotaryPairs;
use serde_json::Value;

use super::ModelFamily;
use super::config::{Biases, DecoderConfig, Defaults, Flow, Head, NormKind, QueryKeyNorm};
use super::config_reader::ConfigReader;
use super::names::{BlockNormNames, LLAMA_NAMES, TensorNames};
use crate::error::LoadError;

pub(super) const FAMILY: ModelFamily = ModelFamily { name: "cohere", read };

const DEFAULTS: Defaults = Defaults {
    family: FAMILY.name,
    names: &NAMES,
    norm_epsilon: ("layer_norm_eps", 1e-5),
    head_dim: None,
    max_positions: 8192,
    rope_theta: 500_000.0,
    head: Head::Tied,
};

pub(super) const NAMES: TensorNames = TensorNames {
    norms: BlockNormNames { feed_forward_input: None, ..LLAMA_NAMES.norms },
    ..LLAMA_NAMES
};

/// What Command R and R7B share.
pub(super) fn arrange(reader: &ConfigReader, decoder: &mut DecoderConfig) -> Result<(), LoadError> {
    decoder.flow = Flow::Parallel;
    decoder.norm = NormKind::LayerWithoutBias;
    decoder.rotary_pairs = RotaryPairs::Interleaved;
    decoder.scales.logits = reader.number("logit_scale")?.unwrap_or(0.0625);
    decoder.biases = Biases::of_attention(reader)?;
    Ok(())
}

fn read(config: &Value) -> Result<DecoderConfig, LoadError> {
    let reader = ConfigReader::new(config);
    let mut decoder = DecoderConfig::read_common(&reader, &DEFAULTS)?;
    arrange(&reader, &mut decoder)?;
    if reader.flag("use_qk_norm")? == Some(true) {
        decoder.query_key_norm = QueryKeyNorm::HeadOwnWeights;
    }
    Ok(decoder)
}
