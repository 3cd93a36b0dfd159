//! Writes small GGUF files for tests.

use std::path::{Path, PathBuf};

/// A file under construction; [`Self::bytes`] lays it out.
#[derive(Clone, Default)]
pub(in crate::weights) struct GgufWriter {
    entries: Vec<Vec<u8>>,
    /// Name, dimensions (innermost first), type, data.
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(value: &str) -> Vec<u8> {
    [&(value.len() as u64).to_le_bytes()[..], value.as_bytes()].concat()
}

impl GgufWriter {
    fn entry(mut self, key: &str, value_type: u32, value: &[u8]) -> Self {
        self.entries.push([&text(key), &value_type.to_le_bytes()[..], value].concat());
        self
    }

    pub(in crate::weights) fn u32(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    pub(in crate::weights) fn f32(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    pub(in crate::weights) fn bool(self, key: &str, value: u8) -> Self {
        self.entry(key, 7, &[value])
    }

    pub(in crate::weights) fn string(self, key: &str, value: &str) -> Self {
        self.entry(key, 8, &text(value))
    }

    pub(in crate::weights) fn strings(self, key: &str, values: &[&str]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| text(value)).collect();
        let head = [&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.entry(key, 9, &[head, items].concat())
    }

    pub(in crate::weights) fn i32s(self, key: &str, values: &[i32]) -> Self {
        let items: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let head = [&5_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        self.entry(key, 9, &[head, items].concat())
    }

    pub(in crate::weights) fn tensor(
        mut self,
        name: &str,
        shape: &[u64],
        ggml_type: u32,
        data: Vec<u8>,
    ) -> Self {
        let dimensions = shape.iter().rev().copied().collect();
        self.tensors.push((name.to_owned(), dimensions, ggml_type, data));
        self
    }

    /// A tensor of `f32`s that count up from 0.
    pub(in crate::weights) fn counting(self, name: &str, shape: &[u64]) -> Self {
        let count = shape.iter().product::<u64>();
        let data = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
        self.tensor(name, shape, 0, data)
    }

    pub(in crate::weights) fn bytes(&self) -> Vec<u8> {
        let mut head = [&b"GGUF"[..], &3_u32.to_le_bytes()].concat();
        head.extend((self.tensors.len() as u64).to_le_bytes());
        head.extend((self.entries.len() as u64).to_le_bytes());
        head.extend(self.entries.concat());
        let mut data = Vec::new();
        for (name, dimensions, ggml_type, content) in &self.tensors {
            data.resize(data.len().next_multiple_of(32), 0);
            head.extend(text(name));
            head.extend((dimensions.len() as u32).to_le_bytes());
            head.extend(dimensions.iter().flat_map(|size| size.to_le_bytes()));
            head.extend(ggml_type.to_le_bytes());
            head.extend((data.len() as u64).to_le_bytes());
            data.extend(content);
        }
        head.resize(head.len().next_multiple_of(32), 0);
        [head, data].concat()
    }

    pub(in crate::weights) fn write(&self, folder: &Path) -> PathBuf {
        let path = folder.join("model.gguf");
        std::fs::write(&path, self.bytes()).unwrap();
        path
    }

    /// A one-layer Llama of 4 heads and 2 kv heads of size 4, with a byte-level vocabulary.
    pub(in crate::weights) fn llama() -> Self {
        let tokens = ["<s>", "</s>", "1", "2", "12", "a", "Ġ", "Ġa", "é", "Ã", "©", "Ã©"];
        Self::default()
            .string("general.architecture", "llama")
            .u32("llama.block_count", 1)
            .u32("llama.context_length", 64)
            .u32("llama.embedding_length", 16)
            .u32("llama.feed_forward_length", 8)
            .u32("llama.attention.head_count", 4)
            .u32("llama.attention.head_count_kv", 2)
            .f32("llama.attention.layer_norm_rms_epsilon", 1e-5)
            .string("tokenizer.ggml.model", "gpt2")
            .strings("tokenizer.ggml.tokens", &tokens)
            .i32s("tokenizer.ggml.token_type", &[3, 3, 1, 1, 1, 1, 1, 1, 4, 1, 1, 1])
            .strings("tokenizer.ggml.merges", &["1 2", "Ġ a", "Ã ©"])
            .u32("tokenizer.ggml.bos_token_id", 0)
            .u32("tokenizer.ggml.eos_token_id", 1)
            .counting("token_embd.weight", &[12, 16])
            .counting("output_norm.weight", &[16])
            .counting("blk.0.attn_q.weight", &[16, 16])
            .counting("blk.0.attn_k.weight", &[8, 16])
    }
}
