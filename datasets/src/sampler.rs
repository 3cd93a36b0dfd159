//! Decides which examples an epoch sees, in which order, and in which rows.
//!
//! A dataset of `n` examples and weight `w` gives `floor(w)` copies of itself and a subset of
//! `round((w - floor(w)) * n)` examples, drawn anew each epoch. With `shuffle`, examples are
//! shuffled, then packed, then rows are shuffled; without, everything stays in the order of the
//! files, and packed rows come in the order of their first example. The order is a function of the
//! seed and the epoch alone (see `order.rs`), so a run resumes by asking for the epoch again.

use crate::config::{BatchConfig, DatasetConfig};
use crate::example::{MicroBatch, TokenizedExample};
use crate::load::Dataset;
use crate::order::{Order, Purpose};
use crate::pack;

/// Orders the examples of a dataset, epoch by epoch.
#[derive(Debug, Clone)]
pub struct Sampler {
    /// Tokens of each example.
    lengths: Vec<usize>,
    shares: Vec<Share>,
    batch: BatchConfig,
    seed: u64,
}

/// What one `[[dataset]]` gives to an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Share {
    /// Its examples: `first..first + count`.
    first: u32,
    count: u32,
    /// How often each is taken.
    copies: u32,
    /// How many are taken once more.
    subset: u32,
}

impl Share {
    /// The share of `count` examples from `first` on at a weight that is finite and not negative.
    pub(crate) fn new(first: usize, count: usize, weight: f64) -> Self {
        let copies = weight.floor();
        let subset = ((weight - copies) * count as f64).round();
        Self {
            first: u32::try_from(first).unwrap_or(u32::MAX),
            count: u32::try_from(count).unwrap_or(u32::MAX),
            copies: copies as u32,
            subset: subset as u32,
        }
    }

    /// Examples that an epoch takes from it.
    pub(crate) fn examples(self) -> u64 {
        u64::from(self.count) * u64::from(self.copies) + u64::from(self.subset)
    }

    /// Indices of the examples of one epoch, in the order of the files, copy after copy.
    fn draw(self, seed: u64, epoch: u64, dataset: u64, into: &mut Vec<u32>) {
        let all = self.first..self.first.saturating_add(self.count);
        for _ in 0..self.copies {
            into.extend(all.clone());
        }
        if self.subset > 0 {
            let mut subset: Vec<u32> = all.collect();
            Order::new(Purpose::Subset, seed, epoch, dataset).shuffle(&mut subset);
            subset.truncate(self.subset as usize);
            subset.sort_unstable();
            into.extend(subset);
        }
    }
}

/// The shares of all datasets; `examples` are sorted by dataset.
pub(crate) fn shares(examples: &[TokenizedExample], configs: &[DatasetConfig]) -> Vec<Share> {
    let mut first = 0;
    let share = |(index, config): (usize, &DatasetConfig)| {
        let of_dataset = |example: &&TokenizedExample| example.dataset as usize == index;
        let count = examples.iter().skip(first).take_while(of_dataset).count();
        let share = Share::new(first, count, config.weight);
        first += count;
        share
    };
    configs.iter().enumerate().map(share).collect()
}

impl Sampler {
    /// A sampler over the training examples; `configs` are the ones they were loaded with.
    pub fn new(
        dataset: &Dataset,
        configs: &[DatasetConfig],
        batch: &BatchConfig,
        seed: u64,
    ) -> Self {
        Self {
            lengths: dataset.train.iter().map(|example| example.token_ids.len()).collect(),
            shares: shares(&dataset.train, configs),
            batch: batch.clone(),
            seed,
        }
    }

    /// Rows of an epoch, counting from 0.
    pub fn epoch(&self, epoch: u64) -> EpochPlan {
        let mut order = Vec::new();
        for (dataset, share) in self.shares.iter().enumerate() {
            share.draw(self.seed, epoch, dataset as u64, &mut order);
        }
        if self.batch.shuffle {
            Order::new(Purpose::Examples, self.seed, epoch, 0).shuffle(&mut order);
        }
        EpochPlan {
            rows: if self.batch.packing {
                self.packed(&order, epoch)
            } else {
                order.into_iter().map(|index| vec![index]).collect()
            },
            rows_per_micro_batch: self.batch.sequences_per_micro_batch.get(),
            micro_batches_per_step: self.batch.micro_batches_per_step.get(),
        }
    }

    fn packed(&self, order: &[u32], epoch: u64) -> Vec<Vec<u32>> {
        let lengths: Vec<_> = order.iter().map(|&index| self.lengths[index as usize]).collect();
        let mut rows = pack::best_fit(&lengths, self.batch.sequence_length.get());
        if self.batch.shuffle {
            Order::new(Purpose::Rows, self.seed, epoch, 0).shuffle(&mut rows);
        } else {
            for row in &mut rows {
                row.sort_unstable();
            }
            rows.sort_unstable_by_key(|row| row.first().copied());
        }
        let examples = |row: Vec<usize>| row.into_iter().map(|place| order[place]).collect();
        rows.into_iter().map(examples).collect()
    }
}

/// The rows of one epoch, and how they are cut into steps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochPlan {
    rows: Vec<Vec<u32>>,
    rows_per_micro_batch: usize,
    micro_batches_per_step: usize,
}

impl EpochPlan {
    /// Optimizer steps; a last, shorter one counts.
    pub fn steps(&self) -> usize {
        self.rows.len().div_ceil(self.rows_per_step())
    }

    /// Indices of the examples in each row.
    pub fn rows(&self) -> &[Vec<u32>] {
        &self.rows
    }

    /// The micro-batches of a step, counting from 0; none beyond the last.
    ///
    /// `examples` are those that the sampler was made for.
    pub fn micro_batches(&self, step: usize, examples: &[TokenizedExample]) -> Vec<MicroBatch> {
        self.rows_of(step).map(|rows| micro_batch(rows, examples)).collect()
    }

    /// Indices of the examples in each of those micro-batches, in their order.
    pub fn examples(&self, step: usize) -> Vec<Vec<u32>> {
        self.rows_of(step).map(|rows| rows.iter().flatten().copied().collect()).collect()
    }

    /// Rows of each micro-batch of a step.
    fn rows_of(&self, step: usize) -> std::slice::Chunks<'_, Vec<u32>> {
        let first = step.saturating_mul(self.rows_per_step()).min(self.rows.len());
        let last = first.saturating_add(self.rows_per_step()).min(self.rows.len());
        self.rows[first..last].chunks(self.rows_per_micro_batch)
    }

    fn rows_per_step(&self) -> usize {
        self.rows_per_micro_batch.saturating_mul(self.micro_batches_per_step)
    }
}

/// Batches that score validation examples in the order of the files, packed where `batch` packs.
pub fn validation_batches(examples: &[TokenizedExample], batch: &BatchConfig) -> Vec<MicroBatch> {
    let rows: Vec<Vec<u32>> = if batch.packing {
        let lengths: Vec<_> = examples.iter().map(|example| example.token_ids.len()).collect();
        let rows = pack::next_fit(&lengths, batch.sequence_length.get());
        rows.into_iter().map(|row| row.into_iter().map(|index| index as u32).collect()).collect()
    } else {
        (0..examples.len() as u32).map(|index| vec![index]).collect()
    };
    let rows_at_once = batch.sequences_per_micro_batch.get();
    rows.chunks(rows_at_once).map(|rows| micro_batch(rows, examples)).collect()
}

fn micro_batch(rows: &[Vec<u32>], examples: &[TokenizedExample]) -> MicroBatch {
    let mut batch = MicroBatch { rows: rows.len(), ..MicroBatch::default() };
    for &index in rows.iter().flatten() {
        batch.push(&examples[index as usize]);
    }
    batch
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use proptest::prelude::*;

    use super::*;
    use crate::example::{IGNORED, Origin};

    fn dataset(lengths: &[&[usize]]) -> Dataset {
        let mut train = Vec::new();
        for (dataset, lengths) in lengths.iter().enumerate() {
            for (row, &length) in lengths.iter().enumerate() {
                train.push(TokenizedExample {
                    token_ids: vec![row as u32; length],
                    labels: vec![row as i32; length],
                    dataset: dataset as u32,
                    origin: Origin { file: 0, line: row as u64 + 1, part: 0 },
                });
            }
        }
        Dataset { train, ..Dataset::default() }
    }

    fn configs(weights: &[f64]) -> Vec<DatasetConfig> {
        let config = |&weight| DatasetConfig { weight, ..DatasetConfig::new("x.jsonl") };
        weights.iter().map(config).collect()
    }

    #[expect(clippy::fn_params_excessive_bools, reason = "the properties hold for all four")]
    fn batch(packing: bool, shuffle: bool) -> BatchConfig {
        BatchConfig {
            sequence_length: NonZeroUsize::new(16).unwrap(),
            packing,
            shuffle,
            sequences_per_micro_batch: NonZeroUsize::new(2).unwrap(),
            micro_batches_per_step: NonZeroUsize::new(3).unwrap(),
            ..BatchConfig::default()
        }
    }

    fn seen(plan: &EpochPlan) -> Vec<u32> {
        let mut seen: Vec<_> = plan.rows().iter().flatten().copied().collect();
        seen.sort_unstable();
        seen
    }

    proptest! {
        #[test]
        fn at_weight_one_an_epoch_sees_every_example_once(
            lengths in prop::collection::vec(1_usize..=16, 1..80),
            packing: bool, shuffle: bool, seed: u64, epoch in 0_u64..5,
        ) {
            let data = dataset(&[&lengths]);
            let sampler = Sampler::new(&data, &configs(&[1.0]), &batch(packing, shuffle), seed);
            let plan = sampler.epoch(epoch);
            prop_assert_eq!(seen(&plan), (0..lengths.len() as u32).collect::<Vec<_>>());
            prop_assert_eq!(&plan, &sampler.epoch(epoch));
            let batches: Vec<_> =
                (0..plan.steps()).flat_map(|step| plan.micro_batches(step, &data.train)).collect();
            let tokens: usize = batches.iter().map(|batch| batch.token_ids.len()).sum();
            prop_assert_eq!(tokens, lengths.iter().sum::<usize>());
            let named: Vec<_> = (0..plan.steps()).flat_map(|step| plan.examples(step)).collect();
            prop_assert_eq!(named.len(), batches.len());
            for (named, batch) in named.iter().zip(&batches) {
                let tokens = named.iter().map(|&index| lengths[index as usize]).sum::<usize>();
                prop_assert_eq!(tokens, batch.token_ids.len());
            }
            let rows: usize = batches.iter().map(|batch| batch.rows).sum();
            prop_assert_eq!(rows, plan.rows().len());
            prop_assert!(plan.micro_batches(plan.steps(), &data.train).is_empty());
        }

        #[test]
        fn weights_take_whole_copies_and_a_subset(weight in 0.0_f64..4.0, seed: u64) {
            let data = dataset(&[&[1; 3], &[1; 40]]);
            let sampler = Sampler::new(&data, &configs(&[1.0, weight]), &batch(true, true), seed);
            let seen = seen(&sampler.epoch(0));
            let copies = weight.floor() as usize;
            let subset = ((weight - weight.floor()) * 40.0).round() as usize;
            let times: Vec<_> = (3..43).map(|i| seen.iter().filter(|&&s| s == i).count()).collect();
            prop_assert!(times.iter().all(|&times| times == copies || times == copies + 1));
            prop_assert_eq!(times.iter().filter(|&&times| times > copies).count(), subset);
            prop_assert_eq!(seen.iter().filter(|&&index| index < 3).count(), 3);
        }
    }

    #[test]
    fn without_shuffle_and_packing_rows_come_in_file_order() {
        let data = dataset(&[&[3; 5], &[2; 4]]);
        let plan = Sampler::new(&data, &configs(&[1.0, 1.0]), &batch(false, false), 7).epoch(3);
        assert_eq!(plan.rows(), (0..9).map(|index| vec![index]).collect::<Vec<_>>());
        assert_eq!(plan.steps(), 2);
        let last = plan.micro_batches(1, &data.train);
        assert_eq!(last.iter().map(|batch| batch.rows).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(last[1].token_ids, [3, 3]);
        assert_eq!(last[0].segment_starts, [0, 2, 4]);
        assert_eq!(last[0].targets, [1, IGNORED, 2, IGNORED]);
    }

    #[test]
    fn without_shuffle_packed_rows_come_in_the_order_of_their_first_example() {
        let data = dataset(&[&[4, 15, 6, 10, 6]]);
        let plan = Sampler::new(&data, &configs(&[1.0]), &batch(true, false), 7).epoch(0);
        assert_eq!(plan.rows(), [vec![0, 4], vec![1], vec![2, 3]].as_slice());
    }

    #[test]
    fn a_fractional_weight_draws_another_subset_each_epoch() {
        let data = dataset(&[&[1; 100]]);
        let sampler = Sampler::new(&data, &configs(&[0.3]), &batch(true, true), 7);
        assert_eq!(seen(&sampler.epoch(0)).len(), 30);
        assert_ne!(seen(&sampler.epoch(0)), seen(&sampler.epoch(1)));
    }

    #[test]
    fn validation_keeps_the_order_of_the_files() {
        let data = dataset(&[&[9, 9, 3, 4, 16]]);
        let batches = validation_batches(&data.train, &batch(true, true));
        let tokens: Vec<_> = batches.iter().flat_map(|batch| batch.token_ids.clone()).collect();
        assert!(tokens.is_sorted());
        assert_eq!(batches.iter().map(|batch| batch.rows).collect::<Vec<_>>(), [2, 1]);
        let alone = validation_batches(&data.train, &batch(false, true));
        assert_eq!(alone.iter().map(|batch| batch.rows).collect::<Vec<_>>(), [2, 2, 1]);
        let trained =
            |batches: &[MicroBatch]| batches.iter().map(MicroBatch::trained_tokens).sum::<usize>();
        assert_eq!(trained(&batches), trained(&alone));
    }
}
