//! Text in, tokens out: reads rows, renders chat templates, tokenizes, packs and orders them.

mod cache;
mod chat_template;
mod collect;
mod config;
mod conversation;
mod counts;
mod encode;
mod error;
mod example;
mod fill_in_the_middle;
mod format;
mod holdout;
mod load;
mod order;
mod overlong;
mod pack;
mod prepare;
mod preview;
mod read;
mod row_template;
mod rows;
mod sampler;
mod tokenizer;

pub use chat_template::{
    BUILTIN_TEMPLATES, BuiltinTemplate, ChatTemplate, EncodedConversation, Frame, GenerationPrompt,
    SystemPlace, TemplateError, TurnParts,
};
pub use config::{BatchConfig, DatasetConfig, FormatName, LossOn, OnOverlong, ValidationConfig};
pub use conversation::{Conversation, Message, MessageError};
pub use counts::{DatasetCounts, DatasetRole};
pub use error::{DatasetError, Place, RowProblem, SHOWN_ERRORS};
pub use example::{IGNORED, MicroBatch, Origin, TokenizedExample};
pub use fill_in_the_middle::{
    FillInTheMiddleConfig, NoSentinels, PartOrder, SentinelIds, Sentinels,
};
pub use load::{DataFile, Dataset, LoadRequest, load};
pub use preview::{PreviewRow, PreviewSegment, PreviewToken, preview};
pub use row_template::{RowTemplate, RowTemplateError};
pub use rows::{SourceRow, read_rows};
pub use sampler::{EpochPlan, Sampler, validation_batches};
pub use tokenizer::{SpecialTokens, TextStream, Tokenizer, TokenizerError, TokenizerFiles};

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
