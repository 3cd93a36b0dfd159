//! Byte-level BPE (`tokenizer.ggml.model = gpt2`).

use serde_json::{Value, json};

use super::{
    Pipeline, Vocabulary,
    pre_tokenizer::{self, Merges, Normalizer},
};
use crate::weights::WeightsError;

const MERGES: &str = "tokenizer.ggml.merges";

pub(super) fn pipeline(vocabulary: &Vocabulary) -> Result<Pipeline, WeightsError> {
    let metadata = vocabulary.metadata;
    let pre_tokenizer = pre_tokenizer::find(metadata)?;
    if metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(false) {
        return Err(metadata.unsupported(
            "metadata `tokenizer.ggml.add_space_prefix` of a `gpt2` tokenizer",
            "true",
            "false",
        ));
    }
    let lines = metadata.strings(MERGES)?.ok_or_else(|| metadata.damaged(MERGES, "missing"))?;
    let merges = lines
        .iter()
        .map(|line| {
            split_merge(line)
                .ok_or_else(|| metadata.damaged(MERGES, format!("`{line}` is no pair")))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let normalizer = match pre_tokenizer.normalizer {
        Normalizer::None => Value::Null,
        Normalizer::Nfc => json!({"type": "NFC"}),
    };
    Ok(Pipeline {
        normalizer,
        pre_tokenizer: pre_tokenizer.to_json(),
        decoder: json!({
            "type": "ByteLevel",
            "add_prefix_space": true,
            "trim_offsets": true,
            "use_regex": true,
        }),
        model: json!({
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre_tokenizer.merges == Merges::UnlessWholeToken,
            "vocab": vocabulary.vocab_json(),
            "merges": vocabulary.merges_json(merges)?,
        }),
    })
}

fn split_merge(line: &str) -> Option<(&str, &str)> {
    line.split_once(' ')
        .filter(|(left, right)| !left.is_empty() && !right.is_empty() && !right.contains(' '))
}
