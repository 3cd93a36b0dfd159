//! A forward pass that holds one block of weights at a time: for merge reports, where the model
//! may be larger than memory.

use std::sync::Arc;

use adapters::{AdaptedLinear, AdapterWeights, InputObserver, PeftConfig};
use burn::tensor::Tensor;

use super::context::BlockContext;
use super::head::OutputHead;
use super::load::ModelLoader;
use crate::error::LoadError;

/// Runs texts through the model block by block, and shows every input of a linear layer to
/// `observer`. Memory: one block of weights and the hidden states of all texts.
pub fn observe_inputs(
    loader: &ModelLoader,
    texts: &[Vec<u32>],
    observer: &Arc<dyn InputObserver>,
) -> Result<(), LoadError> {
    let config = loader.config();
    let pass = adapters::Pass::Inference;
    let embedding = loader.embedding()?;
    let mut hidden = Vec::with_capacity(texts.len());
    for text in texts {
        let starts = [0, text.len()];
        let context = BlockContext::of_segments(config, &starts, pass, loader.device());
        hidden.push((embedding.forward(text, &starts), context));
    }
    drop(embedding);
    for index in 0..config.layers() {
        let mut block = loader.block(index)?;
        block.linears_mut().for_each(|linear| linear.observer = Some(observer.clone()));
        for (x, context) in &mut hidden {
            *x = block.forward(x.clone(), context).hidden;
        }
    }
    let head = loader.head(None)?;
    for (x, _) in &hidden {
        observer.observe(&head.linear.name, &head.normed(x));
    }
    Ok(())
}

/// Hidden states of some segments and the head, with the blocks already gone.
pub struct StreamedDecoder {
    /// `[tokens, hidden]`
    hidden: Tensor<2>,
    head: OutputHead,
}

impl StreamedDecoder {
    /// Runs the tokens through the model block by block; with an adapter where one is given.
    pub fn run(
        loader: &ModelLoader,
        adapter: Option<(&PeftConfig, &AdapterWeights)>,
        token_ids: &[u32],
        segment_starts: &[usize],
    ) -> Result<Self, LoadError> {
        let config = loader.config();
        let pass = adapters::Pass::Inference;
        let context = BlockContext::of_segments(config, segment_starts, pass, loader.device());
        let attach = |linear: &mut AdaptedLinear| {
            if let Some((peft, weights)) = adapter {
                linear.attach(peft, weights, loader.device());
            }
        };
        let mut x = loader.embedding()?.forward(token_ids, segment_starts);
        for index in 0..config.layers() {
            let mut block = loader.block(index)?;
            block.linears_mut().for_each(attach);
            x = block.forward(x, &context).hidden;
        }
        let mut head = loader.head(None)?;
        attach(&mut head.linear);
        Ok(Self { hidden: x, head })
    }

    /// Logits of some positions.
    ///
    /// # Shapes
    /// - returns `[rows.len(), vocab]`
    pub fn logits(&self, rows: &[usize]) -> Tensor<2> {
        self.head.logits(&kernels::gather_rows(&self.hidden, rows))
    }
}
