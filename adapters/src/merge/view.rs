//! A merged model that was not written: every read is base + update, in f32.

use std::collections::BTreeMap;
use std::ops::Range;

use super::delta::apply;
use super::plan::{MergePlan, PlannedUpdate};
use crate::weights::{StoredDtype, TensorEntry, WeightSource, WeightsError};

/// The tensors of a planned merge, unrounded: what a quantised file is compared with.
pub struct MergedWeights<'a> {
    base: &'a dyn WeightSource,
    entries: BTreeMap<String, TensorEntry>,
    updates: BTreeMap<&'a str, &'a PlannedUpdate<'a>>,
}

impl<'a> MergedWeights<'a> {
    /// The weights that the plan would write.
    pub fn of(plan: &'a MergePlan<'a>) -> Self {
        let entry =
            |shape: &[usize]| TensorEntry { shape: shape.to_vec(), dtype: StoredDtype::F32 };
        let tensors = plan.tensors.iter();
        Self {
            base: plan.request.base.weights(),
            entries: tensors.clone().map(|t| (t.name.to_owned(), entry(&t.entry.shape))).collect(),
            updates: tensors.filter_map(|t| Some((t.name, t.update.as_ref()?))).collect(),
        }
    }

    fn updated(&self, name: &str, first_row: usize, mut rows: Vec<f32>) -> Vec<f32> {
        if let Some(update) = self.updates.get(name) {
            apply(&mut rows, first_row, update);
        }
        rows
    }
}

impl WeightSource for MergedWeights<'_> {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        &self.entries
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        Ok(self.updated(name, 0, self.base.read_f32(name)?))
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let first = rows.start;
        Ok(self.updated(name, first, self.base.read_rows_f32(name, rows)?))
    }

    fn raw(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    fn release(&self, name: &str) {
        self.base.release(name);
    }
}
