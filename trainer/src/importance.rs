//! How much each input of a linear layer matters: the mean of its square over texts, by which a
//! quantiser weighs errors. llama.cpp calls the table of these an importance matrix.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use adapters::InputObserver;
use adapters::merge::Importance;
use burn::tensor::Tensor;

use crate::base_model::{ModelLoader, observe_inputs};
use crate::error::LoadError;

/// Tokens of texts that are looked at; hidden states of all of them are held.
pub const MOST_TOKENS: usize = 16_384;

/// The means of squares over `texts`, token ids each, of at most [`MOST_TOKENS`].
pub fn importance(loader: &ModelLoader, texts: &[Vec<u32>]) -> Result<Importance, LoadError> {
    let squares = Arc::new(Squares::default());
    let observer: Arc<dyn InputObserver> = squares.clone();
    observe_inputs(loader, texts, &observer)?;
    drop(observer);
    let table = squares.0.lock().unwrap_or_else(PoisonError::into_inner);
    let mean = |(sums, rows): &(Vec<f64>, usize)| -> Vec<f32> {
        sums.iter().map(|sum| (sum / *rows as f64) as f32).collect()
    };
    let columns = table.iter().map(|(module, sums)| (module.clone(), mean(sums))).collect();
    let tokens = texts.iter().map(|text| text.len() as u64).sum();
    Ok(Importance { columns, tokens })
}

/// Sums of squares and rows seen, by module.
#[derive(Debug, Default)]
struct Squares(Mutex<BTreeMap<String, (Vec<f64>, usize)>>);

impl InputObserver for Squares {
    fn observe(&self, module: &str, x: &Tensor<2>) {
        let [rows, columns] = x.dims();
        let of_rows = kernels::values((x.clone() * x.clone()).sum_dim(0));
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (sums, seen) =
            table.entry(module.to_owned()).or_insert_with(|| (vec![0.0; columns], 0));
        sums.iter_mut().zip(of_rows).for_each(|(sum, value)| *sum += f64::from(value));
        *seen += rows;
    }
}
