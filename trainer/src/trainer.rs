//! The training loop: one for every objective.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use adapters::{PeftConfig, read_adapter, write_adapter};
use datasets::{BatchConfig, Dataset, EpochPlan, MicroBatch, Sampler, validation_batches};

use crate::base_model::{Decoder, MicroBatchResult, Recompute, StepPlace, linear_layers};
use crate::checkpoint::{self, Newest, RunState};
use crate::config::{
    CheckpointConfig, GradientCheckpointing, OptimizerConfig, ScheduleConfig, TrainConfig,
};
use crate::error::TrainerError;
use crate::gradients::{self, StepGradients};
use crate::judge::Judge;
use crate::memory::MemoryPlan;
use crate::metrics::{MetricsFile, StepMetrics, peak_resident_bytes};
use crate::optimizer::Optimizer;
use crate::schedule::learning_rate;

/// What a run does, apart from its model and data.
#[derive(Debug, Clone)]
pub struct TrainSettings {
    /// Rows, packing and accumulation.
    pub batch: BatchConfig,
    /// Optimizer.
    pub optimizer: OptimizerConfig,
    /// Learning-rate schedule.
    pub schedule: ScheduleConfig,
    /// Length of the run, clipping, recomputation.
    pub train: TrainConfig,
    /// How often state is saved.
    pub checkpoint: CheckpointConfig,
    /// Learning rate of `B` and of magnitudes over that of `A`: 1 but for LoRA+.
    pub learning_rate_ratio: f64,
    /// Steps between validations; at the end of every epoch where it is not given.
    pub validate_every: Option<u64>,
}

/// What the loop tells its caller.
pub enum Event<'a> {
    /// The run goes on from a checkpoint.
    Resumed {
        /// Steps already done.
        step: u64,
        /// Checkpoints that were damaged and passed over.
        damaged: &'a [PathBuf],
    },
    /// A step is done.
    Step {
        /// Its figures.
        metrics: &'a StepMetrics,
        /// Steps of the whole run.
        total: u64,
    },
    /// A checkpoint is on disk.
    Saved(&'a Path),
    /// The judge has scored the run.
    Scored {
        /// Steps done.
        step: u64,
        /// What it says.
        line: &'a str,
    },
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// All steps are done; the adapter waits in [`partial_adapter`] for [`publish_adapter`].
    Finished(RunSummary),
    /// The caller asked to stop; a checkpoint is written.
    Interrupted {
        /// Steps done.
        step: u64,
    },
}

/// Figures of a finished run.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct RunSummary {
    /// Optimizer steps.
    pub steps: u64,
    /// Input tokens.
    pub tokens: u64,
    /// Trained tokens.
    pub trained_tokens: u64,
    /// Loss of the last step.
    pub final_loss: Option<f64>,
    /// Last validation loss.
    pub final_validation_loss: Option<f64>,
    /// Steps that the run was to have; more than `steps` where it was over early.
    pub planned_steps: u64,
}

/// Losses of a step.
struct StepLoss {
    /// Mean over its trained tokens.
    per_token: f64,
    /// The loss that spreads tokens over experts, without its factor: the mean over the
    /// micro-batches by their trained tokens.
    auxiliary: Option<f64>,
}

/// A decoder in training.
pub struct Trainer<'a> {
    decoder: Decoder,
    peft: PeftConfig,
    dataset: &'a Dataset,
    sampler: Sampler,
    /// The rows of an epoch, drawn once.
    plan: Option<(u64, EpochPlan)>,
    settings: TrainSettings,
    folder: PathBuf,
    optimizer: Optimizer,
    state: RunState,
    recompute: Recompute,
    peak_memory: fn() -> u64,
    last: Option<StepMetrics>,
    last_validation: Option<f64>,
    judge: Option<Box<dyn Judge + 'a>>,
    /// Step of the newest checkpoint that this process wrote or read.
    saved: Option<u64>,
}

impl<'a> Trainer<'a> {
    /// A run from its first step; `decoder` has its adapter attached.
    pub fn new(
        decoder: Decoder,
        peft: PeftConfig,
        (dataset, sampler): (&'a Dataset, Sampler),
        settings: TrainSettings,
        folder: &Path,
    ) -> Self {
        let optimizer = Optimizer::new(settings.optimizer.clone(), settings.learning_rate_ratio);
        let recompute = match settings.train.gradient_checkpointing {
            GradientCheckpointing::On => Recompute::Blocks,
            GradientCheckpointing::Off | GradientCheckpointing::Auto => Recompute::Nothing,
        };
        Self {
            decoder,
            peft,
            dataset,
            sampler,
            plan: None,
            settings,
            folder: folder.to_path_buf(),
            optimizer,
            state: RunState::start(),
            recompute,
            peak_memory: peak_resident_bytes,
            last: None,
            last_validation: None,
            judge: None,
            saved: None,
        }
    }

    /// Has the run scored on its way.
    #[must_use]
    pub fn judged_by(mut self, judge: Box<dyn Judge + 'a>) -> Self {
        self.judge = Some(judge);
        self
    }

    /// Takes up what a plan chose where the recipe leaves the choice, and what measures the peak of
    /// the memory that was planned.
    #[must_use]
    pub fn planned(mut self, plan: &MemoryPlan, peak_memory: fn() -> u64) -> Self {
        self.recompute = plan.choice;
        self.peak_memory = peak_memory;
        self
    }

    /// Steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        total_steps(&self.sampler, &self.settings.train)
    }

    /// Runs to the end, or until `stop` is set: then the step at hand is finished and saved.
    pub fn run(
        mut self,
        stop: &AtomicBool,
        report: &mut dyn FnMut(Event),
    ) -> Result<Outcome, TrainerError> {
        self.resume(report)?;
        if let Some(judge) = &mut self.judge {
            judge.resume(self.state.step).map_err(TrainerError::Judge)?;
        }
        let total = self.total_steps();
        let path = self.folder.join("metrics.jsonl");
        let mut metrics = MetricsFile::open(&path, self.state.step)
            .map_err(|source| TrainerError::Io { path: path.clone(), source })?;
        while !self.judged(total, report)? {
            if stop.load(Ordering::Relaxed) {
                self.save(report)?;
                return Ok(Outcome::Interrupted { step: self.state.step });
            }
            self.one_step(total, &mut metrics, report)?;
            let every = self.settings.checkpoint.every_steps.get();
            if self.state.step.is_multiple_of(every) && self.state.step < total {
                self.save(report)?;
            }
        }
        self.finish(report)
    }

    /// Scores this state where it is time for it; true at the end of the run.
    ///
    /// The checkpoint comes before the score and the best weights before its record, so a run
    /// killed at any point finds each of them, or does it again from the same weights.
    fn judged(&mut self, total: u64, report: &mut dyn FnMut(Event)) -> Result<bool, TrainerError> {
        let step = self.state.step;
        let Some(mut judge) = self.judge.take_if(|judge| judge.is_due(step, total)) else {
            return Ok(step >= total || self.judge.as_ref().is_some_and(|judge| judge.is_over()));
        };
        if step > 0 {
            self.save(report)?;
        }
        let line = judge.score(&self.decoder, step).map_err(TrainerError::Judge)?;
        report(Event::Scored { step, line: &line });
        if judge.is_new_best() {
            let folder = self.best().join(format!("step-{step:06}"));
            write_adapter_folder(&folder, &self.peft, &self.decoder)?;
        }
        judge.keep(step).map_err(TrainerError::Judge)?;
        let over = step >= total || judge.is_over();
        self.judge = Some(judge);
        Ok(over)
    }

    fn resume(&mut self, report: &mut dyn FnMut(Event)) -> Result<(), TrainerError> {
        let Newest { found, damaged } = checkpoint::newest(&self.checkpoints())?;
        let Some((path, saved)) = found else { return Ok(()) };
        let device = self.decoder.device();
        let updates = saved.state.optimizer_updates;
        self.optimizer =
            Optimizer::new(self.settings.optimizer.clone(), self.settings.learning_rate_ratio)
                .restored(updates, saved.optimizer, &device)
                .ok_or(TrainerError::ForeignCheckpoint { path })?;
        let layers = linear_layers(self.decoder.config());
        let (_, adapter) = adapters::fit_experts(saved.peft, saved.adapter, &layers);
        self.decoder.restore_factors(&adapter);
        self.state = saved.state;
        self.saved = Some(self.state.step);
        report(Event::Resumed { step: self.state.step, damaged: &damaged });
        Ok(())
    }

    fn one_step(
        &mut self,
        total: u64,
        file: &mut MetricsFile,
        report: &mut dyn FnMut(Event),
    ) -> Result<(), TrainerError> {
        let start = Instant::now();
        let (steps_in_epoch, batches) = self.next_batches();
        let (loss, gradients) = self.accumulate(&batches)?;
        let gradient_norm = gradients::global_norm(&gradients);
        if !gradient_norm.is_finite() {
            return Err(self.not_finite("gradient", self.broken_gradient(&batches)));
        }
        let rate = learning_rate(
            &self.settings.schedule,
            self.settings.optimizer.adamw().learning_rate,
            self.state.step,
            total,
        );
        let clip = gradients::clip_factor(gradient_norm, self.settings.train.max_gradient_norm);
        self.optimizer.step(&mut self.decoder, &gradients, rate, clip);
        let (tokens, trained_tokens) = count(&batches);
        self.advance(steps_in_epoch, tokens, trained_tokens);
        let step_seconds = start.elapsed().as_secs_f64();
        let epoch =
            self.state.epoch as f64 + self.state.step_in_epoch as f64 / steps_in_epoch as f64;
        let validation_loss = self.validate(total);
        let metrics = StepMetrics {
            step: self.state.step,
            epoch,
            loss: loss.per_token,
            router_aux_loss: loss.auxiliary,
            learning_rate: rate,
            gradient_norm,
            tokens,
            trained_tokens,
            tokens_per_second: tokens as f64 / step_seconds,
            step_seconds,
            peak_memory_bytes: (self.peak_memory)(),
            validation_loss,
        };
        file.append(&metrics)
            .map_err(|source| TrainerError::Io { path: file.path().to_path_buf(), source })?;
        report(Event::Step { metrics: &metrics, total });
        self.last_validation = validation_loss.or(self.last_validation);
        self.last = Some(metrics);
        Ok(())
    }

    /// Steps of this epoch, and the micro-batches of the next one.
    fn next_batches(&mut self) -> (u64, Vec<MicroBatch>) {
        let plan = match self.plan.take() {
            Some((epoch, plan)) if epoch == self.state.epoch => plan,
            _ => self.sampler.epoch(self.state.epoch),
        };
        let batches = plan.micro_batches(self.state.step_in_epoch as usize, &self.dataset.train);
        let steps = plan.steps() as u64;
        self.plan = Some((self.state.epoch, plan));
        (steps, batches)
    }

    /// Losses of the step, and their gradients.
    fn accumulate(
        &self,
        batches: &[MicroBatch],
    ) -> Result<(StepLoss, StepGradients), TrainerError> {
        let (_, trained) = count(batches);
        // Divided by the tokens of the whole step, not per micro-batch: a mean of means would
        // weight a short answer's tokens above a long one's.
        let factor = if trained == 0 { 0.0 } else { 1.0 / trained as f64 };
        let (mut loss_sum, mut auxiliary, mut total) = (0.0, None, StepGradients::default());
        for (index, batch) in batches.iter().enumerate() {
            let result = self.micro_batch(index, batch, factor);
            if !result.loss_sum.is_finite() {
                return Err(self.not_finite("loss", index..index + 1));
            }
            loss_sum += result.loss_sum;
            if let Some(loss) = result.router_aux_loss {
                let share = factor * batch.trained_tokens() as f64;
                auxiliary = Some(auxiliary.unwrap_or(0.0) + share * loss);
            }
            gradients::accumulate(&mut total, result.into());
        }
        Ok((StepLoss { per_token: loss_sum * factor, auxiliary }, total))
    }

    fn micro_batch(&self, index: usize, batch: &MicroBatch, factor: f64) -> MicroBatchResult {
        let place = StepPlace { step: self.state.step as u32, micro_batch: index as u32 };
        self.decoder.loss_and_gradients(batch, factor, place, self.recompute)
    }

    fn advance(&mut self, steps_in_epoch: u64, tokens: u64, trained_tokens: u64) {
        let state = &mut self.state;
        state.step += 1;
        state.step_in_epoch += 1;
        state.tokens += tokens;
        state.trained_tokens += trained_tokens;
        state.optimizer_updates = self.optimizer.updates();
        if state.step_in_epoch == steps_in_epoch {
            state.step_in_epoch = 0;
            state.epoch += 1;
        }
    }

    /// Mean loss of the validation rows, where it is time for it.
    fn validate(&self, total: u64) -> Option<f64> {
        let due = match self.settings.validate_every {
            Some(every) => self.state.step.is_multiple_of(every),
            None => self.state.step_in_epoch == 0,
        };
        let due = due || self.state.step == total;
        (due && !self.dataset.validation.is_empty())
            .then(|| validation_loss(&self.decoder, self.dataset, &self.settings.batch))
    }

    fn save(&mut self, report: &mut dyn FnMut(Event)) -> Result<(), TrainerError> {
        if self.saved.replace(self.state.step) == Some(self.state.step) {
            return Ok(());
        }
        let checkpoints = self.checkpoints();
        let weights = self.decoder.adapter_weights();
        let adapter = (&self.peft, &weights);
        let path = checkpoint::save(&checkpoints, self.state.clone(), adapter, &self.optimizer)?;
        checkpoint::prune(&checkpoints, self.settings.checkpoint.keep_last.get())?;
        report(Event::Saved(&path));
        Ok(())
    }

    /// Writes the adapter beside its final name: the caller adds its files and publishes it.
    fn finish(mut self, report: &mut dyn FnMut(Event)) -> Result<Outcome, TrainerError> {
        // Kept even at the last step, so that the run can go on with more steps later.
        self.save(report)?;
        let best = self.judge.as_ref().and_then(|judge| judge.best_step());
        if let Some(step) = best.filter(|step| *step != self.state.step) {
            let (_, weights) = read_adapter(&self.best().join(format!("step-{step:06}")))?;
            self.decoder.restore_factors(&weights);
        }
        write_adapter_folder(&partial_adapter(&self.folder), &self.peft, &self.decoder)?;
        let planned_steps = self.total_steps();
        Ok(Outcome::Finished(RunSummary {
            steps: self.state.step,
            planned_steps,
            tokens: self.state.tokens,
            trained_tokens: self.state.trained_tokens,
            final_loss: self.last.as_ref().map(|metrics| metrics.loss),
            final_validation_loss: self.last_validation,
        }))
    }

    /// Adapters of the steps that were the best when they were scored.
    fn best(&self) -> PathBuf {
        self.folder.join("best")
    }

    fn checkpoints(&self) -> PathBuf {
        self.folder.join("checkpoints")
    }

    /// The micro-batch whose gradient is broken, found by computing each again; all of them where
    /// only their sum is.
    fn broken_gradient(&self, batches: &[MicroBatch]) -> Range<usize> {
        let (_, trained) = count(batches);
        let factor = 1.0 / trained.max(1) as f64;
        let is_broken = |(index, batch): (usize, &MicroBatch)| {
            let result = self.micro_batch(index, batch, factor);
            !gradients::global_norm(&result.into()).is_finite()
        };
        let found = batches.iter().enumerate().position(is_broken);
        found.map_or(0..batches.len(), |index| index..index + 1)
    }

    /// The error of this step; it names the rows of the micro-batches at fault, not their content.
    fn not_finite(&self, what: &'static str, at_fault: Range<usize>) -> TrainerError {
        let plan = self.plan.as_ref().map(|(_, plan)| plan);
        let examples = plan.map(|plan| plan.examples(self.state.step_in_epoch as usize));
        let examples = examples.unwrap_or_default();
        let mut origins: Vec<_> = examples
            .get(at_fault)
            .unwrap_or_default()
            .iter()
            .flatten()
            .map(|&index| self.dataset.train[index as usize].origin)
            .collect();
        origins.sort_unstable();
        // The parts of a row that was split stand in one place.
        origins.dedup_by_key(|origin| (origin.file, origin.line));
        TrainerError::NotFinite {
            what,
            step: self.state.step + 1,
            epoch: self.state.epoch,
            rows: origins
                .into_iter()
                .map(|origin| self.dataset.place(origin).to_string())
                .collect(),
        }
    }
}

/// Writes a decoder's adapter as a folder, in place of one that is there.
fn write_adapter_folder(
    folder: &Path,
    peft: &PeftConfig,
    decoder: &Decoder,
) -> Result<(), TrainerError> {
    let io = |source| TrainerError::Io { path: folder.to_path_buf(), source };
    let name = folder.file_name().unwrap_or_default().to_string_lossy();
    let partial = folder.with_file_name(format!(".{name}.partial"));
    if partial.exists() {
        std::fs::remove_dir_all(&partial).map_err(io)?;
    }
    std::fs::create_dir_all(&partial).map_err(io)?;
    write_adapter(&partial, peft, &decoder.adapter_weights())?;
    if folder.exists() {
        std::fs::remove_dir_all(folder).map_err(io)?;
    }
    std::fs::rename(&partial, folder).map_err(io)
}

/// Where a finished run leaves its adapter until [`publish_adapter`].
pub fn partial_adapter(run: &Path) -> PathBuf {
    run.join(".adapter.partial")
}

/// Gives the finished adapter its name, `adapter`, in place of one that is there.
pub fn publish_adapter(run: &Path) -> Result<PathBuf, TrainerError> {
    let (partial, done) = (partial_adapter(run), run.join("adapter"));
    let io = |source| TrainerError::Io { path: done.clone(), source };
    if done.exists() {
        std::fs::remove_dir_all(&done).map_err(io)?;
    }
    std::fs::rename(&partial, &done).map_err(io)?;
    checkpoint::sync_folder(run).map_err(io)?;
    Ok(done)
}

/// Steps of a run: as asked, or those of its epochs.
pub fn total_steps(sampler: &Sampler, train: &TrainConfig) -> u64 {
    match train.steps {
        Some(steps) => steps.get(),
        None => {
            let epochs = train.epochs.map_or(1, std::num::NonZero::get);
            (0..epochs).map(|epoch| sampler.epoch(epoch).steps() as u64).sum()
        }
    }
}

/// Mean loss over the trained tokens of the validation rows, in nats.
pub fn validation_loss(decoder: &Decoder, dataset: &Dataset, batch: &BatchConfig) -> f64 {
    let (mut loss_sum, mut trained) = (0.0, 0);
    for batch in validation_batches(&dataset.validation, batch) {
        loss_sum += decoder.loss_sum(&batch);
        trained += batch.trained_tokens();
    }
    loss_sum / (trained as f64).max(1.0)
}

fn count(batches: &[MicroBatch]) -> (u64, u64) {
    let tokens = batches.iter().map(|batch| batch.token_ids.len() as u64).sum();
    let trained = batches.iter().map(|batch| batch.trained_tokens() as u64).sum();
    (tokens, trained)
}
