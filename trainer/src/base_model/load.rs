//! Weight files → decoder: names, shapes, and number formats on the device.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use adapters::weights::{ModelFiles, StoredDtype, WeightSource};
use adapters::{AdaptedLinear, Decay, Trained, TrainedLinear, WholeSelection};
use burn::tensor::{DType, Device, Tensor};
use kernels::{Int8Matrix, Nf4Matrix, QuantisedMatrix, Weight};

use super::attention::Attention;
use super::attention_half::AttentionHalf;
use super::block::{Block, BlockNorms};
use super::config::{Bias, BlockConfig, DecoderConfig, Head, NormKind, QueryKeyNorm};
use super::decoder::Decoder;
use super::embedding::Embedding;
use super::experts::{Experts, Router};
use super::feed_forward::FeedForward;
use super::half::Half;
use super::head::OutputHead;
use super::latent_attention::LatentAttention;
use super::names::{
    Linear, Storage, attention_linears, expected_tensors, expert_linears, experts_of,
    feed_forward_linears, is_extra, latent_norms, shared_linears,
};
use super::norm::{Norm, NormWidth, QueryKeyNorms};
use crate::error::LoadError;

/// Reads parts of a base model onto a device.
pub struct ModelLoader<'a> {
    source: &'a dyn WeightSource,
    config: DecoderConfig,
    device: Device,
    format: BaseFormat,
    /// Tensors that are trained themselves.
    trained: BTreeSet<String>,
}

/// How the frozen weights are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BaseFormat {
    /// f32 or bf16: matrices that are not quantised.
    pub dtype: DType,
    /// What becomes of the others.
    pub storage: BaseStorage,
}

/// Whether matrices are kept in fewer bits, and in which. Sums do not depend on it: only what
/// quantisation rounds does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BaseStorage {
    /// None is.
    Dense,
    /// Those that the file holds quantised stay as they are, mapped from it.
    AsStored,
    /// Linear layers of the blocks in 8 bits.
    Int8,
    /// Linear layers of the blocks in 4 bits.
    Nf4,
}

impl From<DType> for BaseFormat {
    fn from(dtype: DType) -> Self {
        Self { dtype, storage: BaseStorage::Dense }
    }
}

impl<'a> ModelLoader<'a> {
    /// Checks every tensor's name and shape before any is read.
    ///
    /// `format` is how the weights are kept on the device: f32, bf16, or quantised.
    pub fn new(
        files: &'a ModelFiles,
        device: &Device,
        format: impl Into<BaseFormat>,
    ) -> Result<Self, LoadError> {
        Self::of_weights(files, files.weights(), device, format)
    }

    /// The same with other weights than the model's own, such as a merge that was not written.
    pub fn of_weights(
        files: &ModelFiles,
        source: &'a dyn WeightSource,
        device: &Device,
        format: impl Into<BaseFormat>,
    ) -> Result<Self, LoadError> {
        let config = DecoderConfig::read(files.config())?;
        let problems = tensor_problems(&config, source);
        if !problems.is_empty() {
            return Err(LoadError::Tensors {
                location: files.location().to_path_buf(),
                problems: problems.join("\n"),
            });
        }
        let (device, format) = (device.clone(), format.into());
        Ok(Self { source, config, device, format, trained: BTreeSet::new() })
    }

    /// Reads these tensors in f32, whatever the format, and marks them as trained.
    #[must_use]
    pub fn training(mut self, selection: &WholeSelection) -> Self {
        self.trained.clone_from(&selection.tensors);
        self
    }

    /// The mark of a tensor that is trained.
    fn mark(&self, name: &str, storage: Storage, decay: Decay) -> Option<Trained> {
        let entry = self.source.entries().get(name).filter(|_| self.trained.contains(name))?;
        let storage = match storage {
            Storage::OutIn => adapters::Storage::Same,
            Storage::InOut => adapters::Storage::Transposed,
        };
        Some(Trained::new(name, entry.shape.clone(), storage, decay))
    }

    /// Whether a tensor stays in f32: it is trained, or an adapter's.
    fn is_wide(&self, name: &str) -> bool {
        self.trained.contains(name) || self.source.replaces(name)
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
        if self.is_on_host() { DType::F32 } else { self.format.dtype }
    }

    fn is_on_host(&self) -> bool {
        kernels::on_host(&Tensor::<1>::zeros([1], &self.device))
    }

    /// The whole model.
    pub fn decoder(&self) -> Result<Decoder, LoadError> {
        let embedding = self.embedding()?;
        let blocks = (0..self.config.layers())
            .map(|index| self.block(index))
            .collect::<Result<Vec<_>, _>>()?;
        let head = self.head(Some(&embedding))?;
        Ok(Decoder::new(self.config.clone(), embedding, blocks, head))
    }

    /// Token and learned positions.
    pub fn embedding(&self) -> Result<Embedding, LoadError> {
        let names = self.config.names;
        let matrix = |name: &str| self.matrix(&format!("{name}.weight"), Storage::OutIn);
        let weight = format!("{}.weight", names.embedding);
        Ok(Embedding {
            trained: self.mark(&weight, Storage::OutIn, Decay::Usual),
            weight: matrix(names.embedding)?,
            positions: names.positions.map(matrix).transpose()?,
            scale: self.config.scales.embedding,
            dtype: self.activation_dtype(),
            device: self.device.clone(),
        })
    }

    /// The final norm and the output matrix, which is `embedding` where the head is tied.
    pub fn head(&self, embedding: Option<&Embedding>) -> Result<OutputHead, LoadError> {
        let names = self.config.names;
        let own = format!("{}.weight", names.head);
        let (weight, trained) = match (self.config.head, embedding) {
            (Head::Own, _) => {
                let mark = self.mark(&own, Storage::OutIn, Decay::Usual);
                (self.matrix(&own, Storage::OutIn)?, mark)
            }
            (Head::Tied, Some(embedding)) => (embedding.weight.clone(), embedding.trained.clone()),
            (Head::Tied, None) => (self.embedding()?.weight, None),
        };
        let mut linear = AdaptedLinear::frozen(names.head.to_owned(), weight, None);
        linear.trained.weight = trained;
        Ok(OutputHead {
            norm: self.norm(names.final_norm)?,
            linear,
            scale: self.config.scales.logits,
            soft_cap: self.config.logits_soft_cap,
        })
    }

    /// One block, without adapters.
    pub fn block(&self, index: usize) -> Result<Block, LoadError> {
        let config = &self.config;
        let prefix = format!("{}.{index}", config.names.blocks);
        let names = &config.names.norms;
        let norm = |name: Option<&str>| {
            name.map(|name| self.norm(&format!("{prefix}.{name}"))).transpose()
        };
        let norms = BlockNorms {
            attention_input: norm(names.attention_input)?,
            attention_output: norm(names.attention_output)?,
            feed_forward_input: norm(names.feed_forward_input)?,
            feed_forward_output: norm(names.feed_forward_output)?,
        };
        let attention = self.attention(index, &prefix)?;
        Ok(Block::new(config, attention, self.feed_forward(index, &prefix)?, norms))
    }

    fn attention(&self, index: usize, prefix: &str) -> Result<AttentionHalf, LoadError> {
        let config = &self.config;
        let (block, linears) = (config.blocks[index], attention_linears(config));
        let linears = self.linears(prefix, &linears)?;
        let Some(latent) = config.latent else {
            let norms = self.query_key_norms(prefix, block)?;
            let attention = Attention::new(config, block, linears, norms);
            return Ok(AttentionHalf::Heads(Box::new(attention)));
        };
        let norm = |(name, _)| {
            let name = format!("{prefix}.{name}.weight");
            let weight = self.vector(&name)?;
            let mark = self.mark(&name, Storage::OutIn, Decay::Never);
            Ok(Norm::latent(weight.clone()).train(config, weight, (mark, None)))
        };
        let norms = latent_norms(config).into_iter().map(norm).collect::<Result<_, LoadError>>()?;
        let attention = LatentAttention::new(config, (block, latent), linears, norms);
        Ok(AttentionHalf::Latent(Box::new(attention)))
    }

    fn feed_forward(&self, index: usize, prefix: &str) -> Result<Half, LoadError> {
        let config = &self.config;
        let Some((names, experts)) = experts_of(config, &config.blocks[index]) else {
            let linears = self.linears(prefix, &feed_forward_linears(config))?;
            return Ok(Half::Dense(Box::new(FeedForward::new(config, linears))));
        };
        let weight = self.matrix(&format!("{prefix}.{}.weight", names.router), Storage::OutIn)?;
        let bias = names.bias.map(|name| self.source.read_f32(&format!("{prefix}.{name}")));
        let router = Router { weight, bias: bias.transpose()? };
        let network = |layers: &[Linear]| -> Result<FeedForward, LoadError> {
            Ok(FeedForward::expert(config, self.linears(prefix, layers)?))
        };
        let all = (0..experts.count)
            .map(|expert| network(&expert_linears(config, names, experts, expert)))
            .collect::<Result<_, _>>()?;
        let shared = shared_linears(config, names, experts);
        let shared = (!shared.is_empty()).then(|| network(&shared)).transpose()?;
        Ok(Half::Experts(Box::new(Experts::new(router, experts, all, shared))))
    }

    fn linears(&self, prefix: &str, linears: &[Linear]) -> Result<Vec<AdaptedLinear>, LoadError> {
        linears.iter().map(|linear| self.linear(prefix, linear)).collect()
    }

    fn linear(&self, prefix: &str, linear: &Linear) -> Result<AdaptedLinear, LoadError> {
        let name = format!("{prefix}.{}", linear.name);
        let bias = match linear.bias {
            Bias::Present => Some(self.vector(&format!("{name}.bias"))?),
            Bias::Absent => None,
        };
        let weight = self.linear_weight(&format!("{name}.weight"), linear.storage)?;
        let mark = |kind: &str, decay| self.mark(&format!("{name}.{kind}"), linear.storage, decay);
        let trained = TrainedLinear {
            weight: mark("weight", Decay::Usual),
            bias: mark("bias", Decay::Never),
        };
        Ok(AdaptedLinear { trained, ..AdaptedLinear::frozen(name, weight, bias) })
    }

    fn norm(&self, name: &str) -> Result<Norm, LoadError> {
        let bias = match self.config.norm {
            NormKind::Layer => Some(self.vector(&format!("{name}.bias"))?),
            _ => None,
        };
        let weight = self.vector(&format!("{name}.weight"))?;
        let mark = |kind: &str| self.mark(&format!("{name}.{kind}"), Storage::OutIn, Decay::Never);
        let marks = (mark("weight"), mark("bias"));
        Ok(Norm::new(&self.config, weight.clone(), bias).train(&self.config, weight, marks))
    }

    fn query_key_norms(
        &self,
        prefix: &str,
        block: BlockConfig,
    ) -> Result<Option<QueryKeyNorms>, LoadError> {
        let width = NormWidth::of(&self.config);
        match self.config.query_key_norm {
            QueryKeyNorm::Absent => Ok(None),
            // Only where queries and keys turn; the norm of a turned head is that of the head.
            QueryKeyNorm::HeadUnweighted => Ok(block.rope.map(|_| {
                let ones = vec![1.0; self.config.head_dim];
                let ones =
                    kernels::from_f32(ones, [self.config.head_dim], DType::F32, &self.device);
                let norm = Norm::new(&self.config, ones, None);
                QueryKeyNorms { query: norm.clone(), key: norm, width }
            })),
            _ => {
                let [query, key] = self.config.names.query_key_norms;
                let norm = |name: &str| self.norm(&format!("{prefix}.{name}"));
                Ok(Some(QueryKeyNorms { query: norm(query)?, key: norm(key)?, width }))
            }
        }
    }

    /// The weight of a linear layer of a block: quantised where the format says so.
    fn linear_weight(&self, name: &str, storage: Storage) -> Result<Weight, LoadError> {
        if self.is_wide(name) {
            return self.matrix(name, storage);
        }
        let quantised: Arc<dyn QuantisedMatrix> = match (self.format.storage, storage) {
            (BaseStorage::AsStored, Storage::OutIn) => match self.source.quantised(name) {
                Some(stored) => stored,
                None => return self.matrix(name, storage),
            },
            (BaseStorage::Dense | BaseStorage::AsStored, _) => return self.matrix(name, storage),
            (BaseStorage::Int8, Storage::OutIn) => {
                Arc::new(Int8Matrix::quantise(self.dims(name), |rows| self.rows(name, rows))?)
            }
            (BaseStorage::Nf4, Storage::OutIn) => {
                Arc::new(Nf4Matrix::quantise(self.dims(name), |rows| self.rows(name, rows))?)
            }
            (kind, Storage::InOut) => {
                let [rows, columns] = self.dims(name);
                let values = transposed(&self.source.read_f32(name)?, [rows, columns]);
                let read = |wanted: Range<usize>| {
                    Ok::<_, LoadError>(values[wanted.start * rows..wanted.end * rows].to_vec())
                };
                match kind {
                    BaseStorage::Int8 => Arc::new(Int8Matrix::quantise([columns, rows], read)?),
                    _ => Arc::new(Nf4Matrix::quantise([columns, rows], read)?),
                }
            }
        };
        // On a GPU the codes go there, tensor by tensor.
        let quantised = kernels::to_device(quantised, &self.device);
        self.source.release(name);
        Ok(Weight::Quantised(quantised))
    }

    fn dims(&self, name: &str) -> [usize; 2] {
        let entry = &self.source.entries()[name];
        [entry.rows(), entry.columns()]
    }

    fn rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, LoadError> {
        Ok(self.source.read_rows_f32(name, rows)?)
    }

    /// A matrix as `[d_out, d_in]`.
    fn matrix(&self, name: &str, storage: Storage) -> Result<Weight, LoadError> {
        let shape = self.dims(name);
        let is_wide = self.is_wide(name);
        let dtype = if is_wide { DType::F32 } else { self.format.dtype };
        if storage == Storage::InOut {
            let values = transposed(&self.source.read_f32(name)?, shape);
            self.source.release(name);
            let shape = [shape[1], shape[0]];
            return Ok(Weight::Dense(kernels::from_f32(values, shape, dtype, &self.device)));
        }
        if self.format.storage == BaseStorage::AsStored
            && !is_wide
            && self.is_on_host()
            && let Some(stored) = self.source.quantised(name)
        {
            return Ok(Weight::Quantised(stored));
        }
        let is_bf16 = self.source.entries()[name].dtype == StoredDtype::Bf16;
        let as_wanted = is_bf16 && dtype == DType::BF16;
        let tensor = match self.source.raw(name).filter(|_| as_wanted) {
            Some(bytes) => kernels::from_stored(bytes.to_vec(), shape, dtype, &self.device),
            None => kernels::from_f32(self.source.read_f32(name)?, shape, dtype, &self.device),
        };
        self.source.release(name);
        Ok(Weight::Dense(tensor))
    }

    /// Norms and biases are f32 whatever the weights are.
    fn vector(&self, name: &str) -> Result<Tensor<1>, LoadError> {
        let values = self.source.read_f32(name)?;
        let shape = [values.len()];
        Ok(kernels::from_f32(values, shape, DType::F32, &self.device))
    }
}

fn transposed(values: &[f32], [rows, columns]: [usize; 2]) -> Vec<f32> {
    let column = |column| (0..rows).map(move |row| values[row * columns + column]);
    (0..columns).flat_map(column).collect()
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
        // A copy of the embedding: another matrix would not have counted as tied.
        let is_head = name.strip_suffix(".weight") == Some(config.names.head);
        let is_copy = is_head && config.head == Head::Tied;
        let is_known = is_copy || is_extra(config, name);
        if !is_known && !config.names.unused.iter().any(|unused| name.contains(unused)) {
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
