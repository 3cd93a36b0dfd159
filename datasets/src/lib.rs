//! Text in, tokens out: reads rows, renders chat templates, tokenizes, packs and orders them.

mod config;
mod conversation;
mod error;
mod example;

pub use config::{BatchConfig, DatasetConfig, FormatName, LossOn, OnOverlong, ValidationConfig};
pub use conversation::{Conversation, Message, MessageError};
pub use error::{DatasetError, Place, RowProblem, SHOWN_ERRORS};
pub use example::{IGNORED, MicroBatch, Origin, TokenizedExample};
