//! Weight files → decoder: names, shapes, and number formats on the device.

use adapters::weights::{ModelFiles, StoredDtype, WeightSource};
use adapters::{AdaptedLinear, LinearLayer};
use burn::tensor::{DType, Device, Tensor};

use super::block::Block;
use super::config::{Bias, DecoderConfig, Head};
use super::decoder::Decoder;
use super::head::OutputHead;
use crate::error::LoadError;

/// Reads parts of a base model onto a device.
pub struct ModelLoader<'a> {
    source: &'a dyn WeightSource,
    config: DecoderConfig,
    device: Device,
    dtype: DType,
}

/// One linear layer of a block: its name in the checkpoint and its sizes.
struct Linear {
    name: &'static str,
    d_in: usize,
    d_out: usize,
    bias: Bias,
}

/// The seven linear layers of a block, in the order the forward pass uses them.
fn block_linears(config: &DecoderConfig) -> [Linear; 7] {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (queries, keys) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    let attention = |name, d_in, d_out| Linear { name, d_in, d_out, bias: config.attention_bias };
    let feed_forward =
        |name, d_in, d_out| Linear { name, d_in, d_out, bias: config.feed_forward_bias };
    [
        attention("self_attn.q_proj", hidden, queries),
        attention("self_attn.k_proj", hidden, keys),
        attention("self_attn.v_proj", hidden, keys),
        attention("self_attn.o_proj", queries, hidden),
        feed_forward("mlp.gate_proj", hidden, inner),
        feed_forward("mlp.up_proj", hidden, inner),
        feed_forward("mlp.down_proj", inner, hidden),
    ]
}

/// Every linear layer an adapter may sit on, in the order of the forward pass.
pub fn linear_layers(config: &DecoderConfig) -> Vec<LinearLayer> {
    let mut layers = Vec::new();
    for index in 0..config.layers {
        layers.extend(block_linears(config).into_iter().map(|linear| LinearLayer {
            name: format!("model.layers.{index}.{}", linear.name),
            d_in: linear.d_in,
            d_out: linear.d_out,
        }));
    }
    if config.head == Head::Own {
        layers.push(LinearLayer {
            name: "lm_head".to_owned(),
            d_in: config.hidden_size,
            d_out: config.vocab_size,
        });
    }
    layers
}

/// Names and shapes of all tensors of a model.
pub(super) fn expected_tensors(config: &DecoderConfig) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors =
        vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    for index in 0..config.layers {
        let prefix = format!("model.layers.{index}");
        for linear in block_linears(config) {
            let name = format!("{prefix}.{}", linear.name);
            if linear.bias == Bias::Present {
                tensors.push((format!("{name}.bias"), vec![linear.d_out]));
            }
            tensors.push((format!("{name}.weight"), vec![linear.d_out, linear.d_in]));
        }
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            tensors.push((format!("{prefix}.{norm}.weight"), vec![hidden]));
        }
    }
    tensors.push(("model.norm.weight".to_owned(), vec![hidden]));
    if config.head == Head::Own {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    tensors
}

impl<'a> ModelLoader<'a> {
    /// Checks every tensor's name and shape before any is read.
    ///
    /// `dtype` is the number format of the weights on the device: f32 or bf16.
    pub fn new(files: &'a ModelFiles, device: &Device, dtype: DType) -> Result<Self, LoadError> {
        let config = DecoderConfig::read(files.config())?;
        let problems = tensor_problems(&config, files.weights());
        if !problems.is_empty() {
            return Err(LoadError::Tensors {
                location: files.location().to_path_buf(),
                problems: problems.join("\n"),
            });
        }
        Ok(Self { source: files.weights(), config, device: device.clone(), dtype })
    }

    /// The model's shape.
    pub fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// Device the parts are put on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Number format of activations: f32 on the CPU, the weights' elsewhere.
    pub fn activation_dtype(&self) -> DType {
        if kernels::on_host(&Tensor::<1>::zeros([1], &self.device)) {
            DType::F32
        } else {
            self.dtype
        }
    }

    /// The whole model.
    pub fn decoder(&self) -> Result<Decoder, LoadError> {
        let embedding = self.embedding()?;
        let blocks = (0..self.config.layers)
            .map(|index| self.block(index))
            .collect::<Result<Vec<_>, _>>()?;
        let head = self.head(Some(&embedding))?;
        Ok(Decoder::new(self.config.clone(), embedding, blocks, head, self.activation_dtype()))
    }

    /// `[vocab, hidden]`
    pub fn embedding(&self) -> Result<Tensor<2>, LoadError> {
        self.matrix("model.embed_tokens.weight")
    }

    /// The final norm and the output matrix, which is `embedding` where the head is tied.
    pub fn head(&self, embedding: Option<&Tensor<2>>) -> Result<OutputHead, LoadError> {
        let weight = match (self.config.head, embedding) {
            (Head::Own, _) => self.matrix("lm_head.weight")?,
            (Head::Tied, Some(embedding)) => embedding.clone(),
            (Head::Tied, None) => self.embedding()?,
        };
        Ok(OutputHead {
            norm: self.vector("model.norm.weight")?,
            norm_epsilon: self.config.norm_epsilon,
            linear: AdaptedLinear { name: "lm_head".to_owned(), weight, bias: None, adapter: None },
        })
    }

    /// One block, without adapters.
    pub fn block(&self, index: usize) -> Result<Block, LoadError> {
        let prefix = format!("model.layers.{index}");
        let mut linears = Vec::with_capacity(7);
        for linear in block_linears(&self.config) {
            let name = format!("{prefix}.{}", linear.name);
            let bias = match linear.bias {
                Bias::Present => Some(self.vector(&format!("{name}.bias"))?),
                Bias::Absent => None,
            };
            let weight = self.matrix(&format!("{name}.weight"))?;
            linears.push(AdaptedLinear { name, weight, bias, adapter: None });
        }
        let linears: [AdaptedLinear; 7] =
            linears.try_into().expect("a block has seven linear layers");
        Ok(Block::new(
            &self.config,
            self.vector(&format!("{prefix}.input_layernorm.weight"))?,
            self.vector(&format!("{prefix}.post_attention_layernorm.weight"))?,
            linears,
        ))
    }

    fn matrix(&self, name: &str) -> Result<Tensor<2>, LoadError> {
        let entry = &self.source.entries()[name];
        let shape = [entry.rows(), entry.columns()];
        let stored_as_wanted = entry.dtype == StoredDtype::Bf16 && self.dtype == DType::BF16;
        let tensor = match self.source.raw(name).filter(|_| stored_as_wanted) {
            Some(bytes) => kernels::from_stored(bytes.to_vec(), shape, self.dtype, &self.device),
            None => kernels::from_f32(self.source.read_f32(name)?, shape, self.dtype, &self.device),
        };
        self.source.release(name);
        Ok(tensor)
    }

    /// Norms and biases are f32 whatever the weights are.
    fn vector(&self, name: &str) -> Result<Tensor<1>, LoadError> {
        let values = self.source.read_f32(name)?;
        let shape = [values.len()];
        Ok(kernels::from_f32(values, shape, DType::F32, &self.device))
    }
}

/// One line for every tensor that is missing, misshapen or unknown.
fn tensor_problems(config: &DecoderConfig, source: &dyn WeightSource) -> Vec<String> {
    let entries = source.entries();
    let expected = expected_tensors(config);
    let mut problems = Vec::new();
    for (name, shape) in &expected {
        match entries.get(name) {
            None => problems.push(format!("  `{name}` is missing; expected shape {shape:?}")),
            Some(entry) if entry.shape != *shape => {
                problems
                    .push(format!("  `{name}` has shape {:?}; expected {shape:?}", entry.shape));
            }
            Some(_) => {}
        }
    }
    let known: std::collections::HashSet<&str> =
        expected.iter().map(|(name, _)| name.as_str()).collect();
    for name in entries.keys().filter(|name| !known.contains(name.as_str())) {
        if name == "lm_head.weight" && config.head == Head::Tied {
            if source.raw(name).is_none()
                || source.raw(name) != source.raw("model.embed_tokens.weight")
            {
                problems.push(
                    "  `lm_head.weight` differs from the embedding, yet `tie_word_embeddings` is true"
                        .to_owned(),
                );
            }
        } else if !name.ends_with("rotary_emb.inv_freq") {
            problems.push(format!("  `{name}` is not part of a {} model", config.family));
        }
    }
    limit(problems)
}

/// Keeps the first problems: a wrong `config.json` breaks every tensor alike.
fn limit(mut problems: Vec<String>) -> Vec<String> {
    const SHOWN: usize = 20;
    let more = problems.len().saturating_sub(SHOWN);
    problems.truncate(SHOWN);
    if more > 0 {
        problems.push(format!("  and {more} more"));
    }
    problems
}
