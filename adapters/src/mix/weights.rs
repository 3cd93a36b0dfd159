//! The tensors of several models as those of one, computed when they are read.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use sha2::{Digest, Sha256};

use super::rules::{Consensus, Threshold, agree, slerp, smallest_kept};
use super::{MixMethod, MixSettings};
use crate::weights::{ModelFiles, TensorEntry, TensorPart, WeightSource, WeightsError};

const DOMAIN: &[u8] = b"tunesmith/mix-dare/v1\0";
/// Elements of a block that is read to learn something of a whole tensor.
const BLOCK_ELEMENTS: usize = 1 << 20;

/// The tensors of a mix.
pub(crate) struct MixedWeights {
    /// Its names, places and number formats are those of the mix.
    first: ModelFiles,
    others: Vec<ModelFiles>,
    base: Option<ModelFiles>,
    method: MixMethod,
    weights: Vec<f32>,
    position: f64,
    density: f64,
    seed: u64,
    /// What has been learned of whole tensors; only that of the tensor at hand is kept.
    known: Mutex<Option<(String, Arc<Known>)>>,
}

/// What a rule must know of a whole tensor before it can mix its first row.
enum Known {
    Nothing,
    /// Factors of the two models.
    Arc([f64; 2]),
    /// What stays of each model's change; nothing where none does.
    Thresholds(Vec<Option<Threshold>>),
}

impl MixedWeights {
    pub(super) fn new(
        first: ModelFiles,
        others: Vec<ModelFiles>,
        base: Option<ModelFiles>,
        settings: &MixSettings,
        weights: Vec<f64>,
    ) -> Self {
        let total: f64 = weights.iter().sum();
        let share = if settings.method == MixMethod::Linear { total } else { 1.0 };
        Self {
            first,
            others,
            base,
            method: settings.method,
            weights: weights.into_iter().map(|weight| (weight / share) as f32).collect(),
            position: settings.position.unwrap_or(0.5),
            density: settings.density.unwrap_or(1.0),
            seed: settings.seed,
            known: Mutex::new(None),
        }
    }

    fn entry(&self, name: &str) -> Option<&TensorEntry> {
        self.first.weights().entries().get(name)
    }

    fn mixed_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        let known = self.known(name)?;
        let columns = self.entry(name).map_or(1, TensorEntry::columns);
        let place = rows.start * columns;
        let mut values = self.rows(name, &rows)?;
        let out = match &*known {
            Known::Arc(factors) => {
                let [x, y] = factors.map(|factor| factor as f32);
                values[0].iter().zip(&values[1]).map(|(a, b)| x * a + y * b).collect()
            }
            _ if self.base.is_none() => each(&values, |all| {
                all.iter().zip(&self.weights).map(|(value, weight)| value * weight).sum()
            }),
            known => {
                let base = self.base_rows(name, rows)?;
                for (model, values) in values.iter_mut().enumerate() {
                    values.iter_mut().zip(&base).for_each(|(value, base)| *value -= base);
                    self.prune(known, name, model, place, values);
                }
                let consensus = match self.method {
                    MixMethod::Ties => Consensus::MeanOfAgreeing,
                    MixMethod::DareTies => Consensus::SumOfAgreeing,
                    _ => Consensus::None,
                };
                let changes = each(&values, |all| agree(all, &self.weights, consensus));
                base.iter().zip(changes).map(|(base, change)| base + change).collect()
            }
        };
        Ok(out)
    }

    /// The rows of every model but the base.
    fn rows(&self, name: &str, rows: &Range<usize>) -> Result<Vec<Vec<f32>>, WeightsError> {
        self.models().map(|model| self.read(model, name, rows.clone())).collect()
    }

    /// Every model but the base.
    fn models(&self) -> impl Iterator<Item = &dyn WeightSource> {
        std::iter::once(&self.first).chain(&self.others).map(ModelFiles::weights)
    }

    fn base_rows(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        match &self.base {
            Some(base) => self.read(base.weights(), name, rows),
            None => Ok(Vec::new()),
        }
    }

    fn read(
        &self,
        source: &dyn WeightSource,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, WeightsError> {
        let is_scalar = self.entry(name).is_some_and(|entry| entry.shape.is_empty());
        if is_scalar { source.read_f32(name) } else { source.read_rows_f32(name, rows) }
    }

    /// Drops what the rule drops of one model's change; `place` is that of the first element.
    fn prune(&self, known: &Known, name: &str, model: usize, place: usize, values: &mut [f32]) {
        match (self.method, known) {
            (MixMethod::Ties, Known::Thresholds(thresholds)) => {
                let threshold = thresholds.get(model).copied().flatten();
                for (offset, value) in values.iter_mut().enumerate() {
                    if !threshold.is_some_and(|threshold| threshold.keeps(place + offset, *value)) {
                        *value = 0.0;
                    }
                }
            }
            (MixMethod::DareLinear | MixMethod::DareTies, _) if self.density < 1.0 => {
                let mut words = self.words(name, model);
                words.set_word_pos(place as u128);
                let limit = self.density * 4_294_967_296.0;
                for value in values {
                    let stays = f64::from(words.next_u32()) < limit;
                    *value = if stays { *value / self.density as f32 } else { 0.0 };
                }
            }
            _ => {}
        }
    }

    /// What DARE draws from: element n of a model's tensor stays where word n lies below
    /// density · 2³². Key: SHA-256 of the domain `tunesmith/mix-dare/v1` and a zero byte, seed and
    /// place of the model as 8 bytes little-endian each, and the tensor's name.
    fn words(&self, name: &str, model: usize) -> ChaCha8Rng {
        let mut hash = Sha256::new();
        hash.update(DOMAIN);
        hash.update(self.seed.to_le_bytes());
        hash.update((model as u64).to_le_bytes());
        hash.update(name.as_bytes());
        ChaCha8Rng::from_seed(hash.finalize().into())
    }

    fn known(&self, name: &str) -> Result<Arc<Known>, WeightsError> {
        // What a thread that panicked had learned is as good as any.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, found)) = known.as_ref().filter(|(known, _)| known == name) {
            return Ok(found.clone());
        }
        let learned = Arc::new(match self.method {
            MixMethod::Slerp => self.arc(name)?,
            MixMethod::Ties if self.density < 1.0 => self.thresholds(name)?,
            MixMethod::Ties => {
                let all = Some(Threshold::new(0.0, usize::MAX));
                Known::Thresholds(vec![all; self.weights.len()])
            }
            _ => Known::Nothing,
        });
        *known = Some((name.to_owned(), learned.clone()));
        Ok(learned)
    }

    fn arc(&self, name: &str) -> Result<Known, WeightsError> {
        let (mut product, mut squares) = (0.0, [0.0; 2]);
        for rows in self.blocks(name) {
            let values = self.rows(name, &rows)?;
            for (x, y) in values[0].iter().zip(&values[1]) {
                let (x, y) = (f64::from(*x), f64::from(*y));
                product += x * y;
                squares[0] += x * x;
                squares[1] += y * y;
            }
        }
        Ok(Known::Arc(slerp(product, squares.map(f64::sqrt), self.position)))
    }

    fn thresholds(&self, name: &str) -> Result<Known, WeightsError> {
        let mut thresholds = Vec::with_capacity(self.weights.len());
        for model in self.models() {
            let mut sizes = Vec::new();
            for rows in self.blocks(name) {
                sizes.extend(self.change(model, name, rows)?.into_iter().map(f32::abs));
            }
            let found = smallest_kept(&mut sizes, self.density);
            drop(sizes);
            thresholds.push(match found {
                None => None,
                Some((size, count)) => Some(self.last_of(model, name, size, count)?),
            });
        }
        Ok(Known::Thresholds(thresholds))
    }

    /// The threshold that keeps the first `count` elements of exactly `size`.
    fn last_of(
        &self,
        model: &dyn WeightSource,
        name: &str,
        size: f32,
        count: usize,
    ) -> Result<Threshold, WeightsError> {
        let (mut seen, mut place) = (0, 0);
        for rows in self.blocks(name) {
            for value in self.change(model, name, rows)? {
                seen += usize::from(value.abs() == size);
                if seen == count {
                    return Ok(Threshold::new(size, place));
                }
                place += 1;
            }
        }
        Ok(Threshold::new(size, usize::MAX))
    }

    /// What a model changed in rows of the base.
    fn change(
        &self,
        model: &dyn WeightSource,
        name: &str,
        rows: Range<usize>,
    ) -> Result<Vec<f32>, WeightsError> {
        let base = self.base_rows(name, rows.clone())?;
        let mut values = self.read(model, name, rows)?;
        values.iter_mut().zip(base).for_each(|(value, base)| *value -= base);
        Ok(values)
    }

    /// Rows of a tensor in blocks.
    fn blocks(&self, name: &str) -> Vec<Range<usize>> {
        let Some(entry) = self.entry(name) else { return Vec::new() };
        let (rows, columns) = (entry.rows(), entry.columns().max(1));
        let step = (BLOCK_ELEMENTS / columns).max(1);
        (0..rows).step_by(step).map(|start| start..rows.min(start + step)).collect()
    }
}

impl WeightSource for MixedWeights {
    fn entries(&self) -> &BTreeMap<String, TensorEntry> {
        self.first.weights().entries()
    }

    fn stored_name<'a>(&'a self, name: &'a str) -> &'a str {
        self.first.weights().stored_name(name)
    }

    fn part_of(&self, name: &str) -> Option<&TensorPart> {
        self.first.weights().part_of(name)
    }

    fn read_f32(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let rows = self.entry(name).map_or(0, TensorEntry::rows);
        self.mixed_rows(name, 0..rows)
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>) -> Result<Vec<f32>, WeightsError> {
        self.mixed_rows(name, rows)
    }

    /// Nothing lies anywhere: every tensor is computed.
    fn raw(&self, _name: &str) -> Option<&[u8]> {
        None
    }

    fn release(&self, name: &str) {
        self.models().for_each(|model| model.release(name));
        self.base.iter().for_each(|base| base.weights().release(name));
    }
}

/// One number for each place, out of that of every model.
fn each(values: &[Vec<f32>], rule: impl Fn(&[f32]) -> f32) -> Vec<f32> {
    let mut all = vec![0.0; values.len()];
    (0..values.first().map_or(0, Vec::len))
        .map(|place| {
            all.iter_mut().zip(values).for_each(|(out, values)| *out = values[place]);
            rule(&all)
        })
        .collect()
}
