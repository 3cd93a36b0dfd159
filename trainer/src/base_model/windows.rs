//! Sliding windows by layer, as the keys of several families give them.

use super::config::DecoderConfig;
use super::config_reader::{ConfigReader, bad};
use crate::error::LoadError;

const SLIDING: &str = "sliding_attention";
const FULL: &str = "full_attention";

/// Which layers slide: `layer_types`, or `otherwise` where the file has none.
pub(super) fn sliding_layers(
    reader: &ConfigReader,
    layers: usize,
    otherwise: impl Fn(usize) -> bool,
) -> Result<Vec<bool>, LoadError> {
    let Some(types) = reader.layer_types(layers)? else {
        return Ok((0..layers).map(otherwise).collect());
    };
    types
        .into_iter()
        .map(|kind| match kind {
            SLIDING => Ok(true),
            FULL => Ok(false),
            other => Err(bad("layer_types", &other.into(), &format!("{SLIDING} or {FULL}"))),
        })
        .collect()
}

/// Sets the windows of Qwen and its likes: `use_sliding_window` turns them on, and `otherwise`
/// says for which layers where `layer_types` does not.
pub(super) fn limit_optional(
    reader: &ConfigReader,
    decoder: &mut DecoderConfig,
    default: Option<usize>,
    otherwise: impl Fn(usize) -> bool,
) -> Result<(), LoadError> {
    let window = match reader.flag("use_sliding_window")? {
        Some(true) => reader.count("sliding_window")?.or(default),
        _ => None,
    };
    let sliding =
        sliding_layers(reader, decoder.layers(), |layer| window.is_some() && otherwise(layer))?;
    let Some(window) = window else {
        if sliding.contains(&true) {
            // `transformers` fails on such a file, too.
            return Err(bad("layer_types", &SLIDING.into(), "full_attention without a window"));
        }
        return Ok(());
    };
    decoder.limit_sight(window, |layer| sliding[layer]);
    Ok(())
}
