//! A folder's `config.json` and weights, as they stand, in candle's Llama.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use serde::Deserialize;

/// A model ready to run, in f32 on the CPU.
pub struct Model {
    llama: Llama,
    config: Config,
}

/// A greedy choice.
pub struct Step {
    /// The token with the largest logit.
    pub id: u32,
    /// How far its logit lies above the second largest.
    pub gap: f32,
}

/// The part of `model.safetensors.index.json` that names files.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Model {
    /// Loads a folder in HF layout: one `model.safetensors`, or shards by their index.
    pub fn load(folder: &Path) -> Result<Self> {
        let config = folder.join("config.json");
        let text = std::fs::read_to_string(&config)
            .with_context(|| format!("cannot read `{}`", config.display()))?;
        let config: LlamaConfig = serde_json::from_str(&text)
            .with_context(|| format!("candle does not read `{}`", config.display()))?;
        let config = config.into_config(false);
        let files = weight_files(folder)?;
        // SAFETY: the files are mapped; nothing writes to them while this short program runs.
        let weights =
            unsafe { VarBuilder::from_mmaped_safetensors(&files, DType::F32, &Device::Cpu)? };
        Ok(Self { llama: Llama::load(weights, &config)?, config })
    }

    /// The first `count` greedy choices after `prompt`.
    pub fn greedy(&self, prompt: &[u32], count: usize) -> Result<Vec<Step>> {
        let mut cache = Cache::new(true, DType::F32, &self.config, &Device::Cpu)?;
        let (mut unread, mut position) = (prompt.to_vec(), 0);
        let mut steps = Vec::with_capacity(count);
        while steps.len() < count {
            let input = Tensor::new(unread.as_slice(), &Device::Cpu)?.unsqueeze(0)?;
            let logits = self.llama.forward(&input, position, &mut cache)?.squeeze(0)?;
            position += unread.len();
            let step = choose(&logits.to_vec1()?);
            unread = vec![step.id];
            steps.push(step);
        }
        Ok(steps)
    }
}

fn weight_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        return Ok(vec![folder.join("model.safetensors")]);
    }
    let index: Index = serde_json::from_str(&std::fs::read_to_string(&index)?)
        .with_context(|| format!("`{}` is no index of shards", index.display()))?;
    let names: BTreeSet<String> = index.weight_map.into_values().collect();
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

/// The best token, the lowest id among equals, and its lead.
fn choose(logits: &[f32]) -> Step {
    let (mut best, mut second) = (0, f32::NEG_INFINITY);
    for (id, &logit) in logits.iter().enumerate().skip(1) {
        if logit > logits[best] {
            second = logits[best];
            best = id;
        } else {
            second = second.max(logit);
        }
    }
    Step { id: best as u32, gap: logits[best] - second }
}
