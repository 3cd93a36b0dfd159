//! A base model some of whose tensors are replaced: what an adapter with whole tensors stands on.
//!
//! Everything above sees an ordinary model, so training, evaluation, merging and export need not
//! know which tensors came out of an adapter.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use kernels::QuantisedMatrix;
use serde_json::Value;

use super::{ModelFiles, StoredDtype, TensorEntry, TensorPart, WeightSource, WeightsError};
use crate::error::{AdapterError, TensorProblem};
use crate::modules_to_save::BaseTensors;
use crate::peft::WholeTensor;

/// The tensors of a model, some of them replaced, and its config.
pub(super) struct ChangedWeights {
    base: ModelFiles,
    entries: BTreeMap<String, TensorEntry>,
    replaced: BTreeMap<String, WholeTensor>,
    /// The head's tensor, and that of the embedding that it was, where the two part.
    untied: Option<(String, String)>,
    /// The head's tensor where the adapter has one that is the embedding's.
    same_as_embedding: Option<String>,
    config: Value,
}

impl ChangedWeights {
    /// Puts `whole` in the place of tensors of the same names; every misfit is in the error.
    pub(super) fn new(
        model: ModelFiles,
        whole: &BTreeMap<String, WholeTensor>,
        base: &BaseTensors,
        head: UntiedHead,
    ) -> Result<Self, AdapterError> {
        let problems = misfits(whole, base);
        if !problems.is_empty() {
            return Err(AdapterError::Misfit { problems });
        }
        let [embedding, own] = [&base.embedding, &base.head].map(|m| format!("{m}.weight"));
        let differ = || match (whole.get(&embedding), whole.get(&own)) {
            (None, None) => false,
            (Some(embedding), Some(head)) => embedding.values != head.values,
            _ => true,
        };
        let parts = base.is_tied && (head == UntiedHead::Always || differ());
        let mut entries = model.weights().entries().clone();
        let mut config = model.config().clone();
        if parts {
            if let Some(entry) = entries.get(&embedding).cloned() {
                entries.insert(own.clone(), entry);
            }
            if let Value::Object(keys) = &mut config {
                keys.insert("tie_word_embeddings".to_owned(), Value::Bool(false));
            }
        }
        let mut replaced = whole.clone();
        let same = base.is_tied && !parts && replaced.remove(&own).is_some();
        let same_as_embedding = same.then(|| own.clone());
        for name in replaced.keys() {
            if let Some(entry) = entries.get_mut(name)
                && entry.dtype.is_quantised()
            {
                entry.dtype = StoredDtype::F32;
            }
        }
        let untied = parts.then_some((own, embedding));
        Ok(Self { base: model, entries, replaced, untied, same_as_embedding, config })
    }

    pub(super) fn config(&self) -> &Value {
        &self.config
    }

    /// Whether the adapter's tensor is in the model, as itself or as the embedding it equals.
    pub(super) fn holds(&self, name: &str) -> bool {
        self.replaced.contains_key(name) || self.same_as_embedding.as_deref() == Some(name)
    }

    /// The tensor of the base that `name` was: the embedding for a head that parts from it.
    fn before<'a>(&'a self, name: &'a str) -> &'a str {
        match &self.untied {
            Some((head, embedding)) if head == name => embedding,
            _ => name,
        }
    }

    /// Rows as the base has them.
    pub(super) fn rows_before(
        &self,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, WeightsError> {
        self.base.weights().read_rows_f32(self.before(name), rows)
    }
}

/// Whether a head that is the embedding becomes a tensor of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UntiedHead {
    /// Whatever the tensors are: it is going to be trained alone.
    Always,
    /// Where the tensors differ.
    WhereDifferent,
}

fn misfits(whole: &BTreeMap<String, WholeTensor>, base: &BaseTensors) -> Vec<TensorProblem> {
    let shapes: BTreeMap<&str, &Vec<usize>> =
        base.tensors.iter().map(|(name, shape)| (name.as_str(), shape)).collect();
    let problem = |(name, tensor): (&String, &WholeTensor)| {
        let reason = match shapes.get(name.as_str()) {
            None => "is no tensor of the model that can be replaced".to_owned(),
            Some(shape) if **shape != tensor.shape => {
                format!("has shape {:?}, the model's has {shape:?}", tensor.shape)
            }
            Some(_) => return tensor.fault().map(|fault| TensorProblem::new(name, fault)),
        };
        Some(TensorProblem::new(name, reason))
    };
    whole.iter().filter_map(problem).collect()
}

impl WeightSource for ChangedWeights {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.base.weights().stored_name(name)
    }

    fn part_of(&self, name: &str) -> Option<&TensorPart> {
        self.base.weights().part_of(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        match self.replaced.get(name) {
            Some(tensor) => Ok(tensor.values.clone()),
            None => self.base.weights().read_f32(self.before(name)),
        }
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let Some(tensor) = self.replaced.get(name) else {
            return self.rows_before(name, rows);
        };
        let columns = tensor.columns();
        let count = tensor.shape.first().copied().unwrap_or(1);
        let values = tensor.values.get(rows.start * columns..rows.end * columns);
        values.map(<[f32]>::to_vec).ok_or_else(|| WeightsError::NoSuchRows {
            tensor: name.to_owned(),
            start: rows.start,
            end: rows.end,
            rows: count,
        })
    }

    fn raw(&self, name: &str) -> Option<&[u8]> {
        if self.replaces(name) { None } else { self.base.weights().raw(self.before(name)) }
    }

    fn quantised(&self, name: &str) -> Option<Arc<dyn QuantisedMatrix>> {
        if self.replaces(name) { None } else { self.base.weights().quantised(self.before(name)) }
    }

    fn replaces(&self, name: &str) -> bool {
        self.replaced.contains_key(name)
    }

    fn release(&self, name: &str) {
        if !self.replaces(name) {
            self.base.weights().release(self.before(name));
        }
    }
}
