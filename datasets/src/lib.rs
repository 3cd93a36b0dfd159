//! Text in, tokens out: reads rows, renders chat templates, tokenizes, packs and orders them.

mod config;
mod example;

pub use config::{
    BatchConfig, DatasetConfig, FormatName, LossOn, OnOverlong, ValidationConfig,
};
pub use example::{IGNORED, MicroBatch, Origin, TokenizedExample};
