//! `tunesmith train`: a recipe to a finished adapter.

pub(crate) mod evaluation;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use adapters::weights::{ModelFiles, UntiedHead};
use adapters::{
    AdapterConfig, AdapterWeights, PeftConfig, WeightTying, WholeSelection, conflicts, fit_experts,
    initial_factors, method_conflict, read_adapter, select_targets, targets_of_adapter,
};
use clap::Args;
use datasets::{Dataset, DatasetCounts, Sampler};
use serde_json::{Value, json};
use trainer::base_model::{
    BaseFormat, Decoder, DecoderConfig, ModelLoader, base_tensors, linear_layers,
};
use trainer::memory::{MemoryPlan, memory_plan};
use trainer::{Event, ObjectiveConfig, Outcome, RunSummary, StepMetrics, TrainSettings, Trainer};

use self::evaluation::Evaluation;
use crate::base_format;
use crate::cli::{DeviceArgs, NetworkArgs, RecipeArgs};
use crate::device::{self, Chosen};
use crate::diagnostics::{ExitStatus, UserError};
use crate::machine;
use crate::memory::{PlanInputs, gib, plan_request};
use crate::named::{self, BaseParts};
use crate::printer::{Printer, Progress, write_atomically};
use crate::provenance::{
    AdapterFacts, CardFacts, CardKind, DataFacts, LicenceDuties, Lock, RunFiles, finish_run_lock,
    lock_run, model_card,
};
use crate::recipe::{self, Recipe};
use crate::run_folder::{RunFolder, Start};
use crate::target::write_rope_scaling;

/// Flags of `tunesmith train`.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Move what is in `output_dir` aside and start over.
    #[arg(long)]
    pub fresh: bool,
    /// Where to train.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Whether the network may be used.
    #[command(flatten)]
    pub network: NetworkArgs,
}

/// Runs a recipe, or goes on with its run.
pub fn train(arguments: &TrainArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let start = Instant::now();
    let loaded = recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    if !loaded.warnings.is_empty() {
        printer.warning_block(&format!("{}\n", loaded.warnings));
    }
    let recipe = &loaded.recipe;
    let chosen = device::choose(arguments.device.device)?;
    printer.status(&chosen.reason);
    let mut base = BaseParts::of_recipe(recipe, arguments.network.network())?;
    printer.warnings(base.files.warnings());
    if let Some(line) = base.left_out() {
        printer.warning(&line);
    }
    named::length(recipe, &base)?;
    for line in device::prepare_heads(base.config.head_dim)? {
        printer.warning(&line);
    }
    let adapter = adapter(recipe, &base)?;
    let untied = named::untied_line(&adapter.whole);
    let head = if untied.is_some() { UntiedHead::Always } else { UntiedHead::WhereDifferent };
    base.take_whole(&adapter.weights, head)?;
    printer.warnings(untied.as_slice());
    if let Some(line) = named::whole_line(&adapter.whole) {
        printer.status(&format!("trained as a whole: {line}"));
    }
    let fresh = if arguments.fresh { Start::Fresh } else { Start::Resume };
    let folder = RunFolder::open(recipe, fresh)?;
    let dataset = load_data(recipe, &base, printer)?;
    let sampler = Sampler::new(&dataset, &recipe.dataset, &recipe.batch, recipe.seed);
    let total = trainer::total_steps(&sampler, &recipe.train);
    if let Some(steps) = folder.finished_steps().filter(|&steps| steps >= total) {
        let adapter = folder.path.join("adapter");
        printer.status(&format!("finished already: {steps} steps, {}", adapter.display()));
        return Ok(ExitStatus::Success);
    }
    // Checkpoints are adapters, too, and find it here.
    if let Some(scaling) = &recipe.rope_scaling {
        write_rope_scaling(&folder.path, scaling)?;
    }
    warn_other_environment(&folder.path, &chosen, printer);
    // The tokenizer takes memory that a run which is not scored has better uses for.
    let (whole, parts);
    let (files, config, scored) = if recipe.evaluate.is_some() {
        whole = base;
        (&whole.files, &whole.config, Some(&whole))
    } else {
        let BaseParts { files, config, tokenizer } = base;
        drop(tokenizer);
        parts = (files, config);
        (&parts.0, &parts.1, None)
    };
    crate::allocator::give_freed_pages_back();
    crate::allocator::keep_freed_pages();
    let (folder, chosen) = (&folder.path, &chosen);
    let job = Job { recipe, files, config, scored, dataset: &dataset, folder, chosen };
    job.run(adapter, sampler, start, printer)
}

/// What training starts from, and what of the base it trains besides.
struct StartingPoint {
    peft: PeftConfig,
    weights: AdapterWeights,
    whole: WholeSelection,
}

/// The adapter that training starts from.
fn adapter(recipe: &Recipe, base: &BaseParts) -> anyhow::Result<StartingPoint> {
    let (peft, weights) = low_rank(recipe, base)?;
    let targets = weights.modules.keys().map(String::as_str);
    let whole = peft.select_whole(targets, &base_tensors(&base.config))?;
    let mut left = weights.whole.keys().filter(|name| !whole.tensors.contains(*name));
    let is_second =
        peft.weight_tying == WeightTying::Ensured && weights.whole.len() == whole.tensors.len() + 1;
    if let Some(name) = left.next().filter(|_| !is_second) {
        let message = format!("`init_from` holds `{name}`, which its config does not train");
        let hint = "merge that adapter into its base first, and train over the merged model";
        return Err(UserError::new(message, hint).into());
    }
    Ok(StartingPoint { peft, weights, whole })
}

/// Its low-rank part, and whole tensors that an earlier run trained.
fn low_rank(recipe: &Recipe, base: &BaseParts) -> anyhow::Result<(PeftConfig, AdapterWeights)> {
    let lora = recipe.adapter.low_rank();
    let layers = linear_layers(&base.config);
    let Some(initial) = &lora.init_from else {
        let targets = select_targets(lora, &layers)?;
        let peft = PeftConfig::from_recipe(lora, &targets, &layers, &recipe.base_model)?;
        let peft = PeftConfig { use_dora: recipe.adapter.is_dora(), ..peft };
        peft.check_experts()?;
        return Ok((peft, initial_factors(&targets, lora, recipe.seed, &base.files)?));
    };
    let (peft, weights) = read_adapter(initial)?;
    let (peft, weights) = fit_experts(peft, weights, &layers);
    refuse_conflicts(&recipe.adapter, &peft, &weights, &layers)?;
    let targets = targets_of_adapter(&peft, &weights, &layers)?;
    Ok((peft.continued(lora, &targets, &layers, &recipe.base_model), weights))
}

fn refuse_conflicts(
    adapter: &AdapterConfig,
    peft: &PeftConfig,
    weights: &AdapterWeights,
    layers: &[adapters::LinearLayer],
) -> anyhow::Result<()> {
    if let Some(line) = method_conflict(adapter, peft) {
        return Err(UserError::new(line, "rename the table: the method is the adapter's").into());
    }
    let lines = conflicts(adapter.low_rank(), peft, weights, layers);
    if lines.is_empty() {
        return Ok(());
    }
    let table = adapter.table();
    let message = format!("`{table}` differs from `init_from`:\n  {}", lines.join("\n  "));
    Err(UserError::new(message, "delete these keys: they come from the adapter").into())
}

fn load_data(recipe: &Recipe, base: &BaseParts, printer: &mut Printer) -> anyhow::Result<Dataset> {
    let cache = named::dataset_cache();
    let dataset = datasets::load(&named::load_request(recipe, base, cache.as_deref()))?;
    printer.warnings(&dataset.warnings);
    for counts in &dataset.counts {
        printer.status(&counts_line(counts));
    }
    Ok(dataset)
}

/// What became of a dataset's rows: nothing that was left out goes unsaid.
fn counts_line(counts: &DatasetCounts) -> String {
    let mut line = format!(
        "data: {}: {} rows, {} examples, {} tokens, {} carry loss",
        counts.path, counts.rows, counts.examples, counts.tokens, counts.trained_tokens
    );
    let losses = [
        ("held back for validation", counts.held_back),
        ("empty rows left out", counts.empty),
        ("too long and dropped", counts.dropped_overlong),
        ("cut", counts.truncated),
        ("split", counts.split),
        ("without loss", counts.untrained),
        ("turns without an end token", counts.turns_without_end),
        ("unknown files skipped", counts.skipped_files),
    ];
    for (what, count) in losses.into_iter().filter(|&(_, count)| count > 0) {
        let _ = write!(line, ", {count} {what}");
    }
    line
}

/// A run resumed where results may differ in their last bits says so.
fn warn_other_environment(folder: &Path, chosen: &Chosen, printer: &mut Printer) {
    let Ok(lock) = Lock::read(folder) else { return };
    for (name, then, now) in lock.environment_differences(&environment(chosen)) {
        printer.warning(&format!(
            "this run began with {name} `{then}`, now it is `{now}`: results may differ in their \
             last bits"
        ));
    }
}

fn environment(chosen: &Chosen) -> BTreeMap<String, String> {
    let mut facts = machine::environment_facts();
    facts.insert("device".to_owned(), format!("{:?}", chosen.kind).to_lowercase());
    if let Some(kernels) = device::kernels_in_use() {
        facts.insert("gpu_kernels".to_owned(), kernels);
    }
    facts
}

/// Openings of the names of files that make up a tokenizer and its chat templates.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer",
    "special_tokens_map",
    "chat_template",
    "additional_chat_templates/",
    "added_tokens",
    "vocab",
    "merges",
];

/// Everything a run reads.
struct Job<'a> {
    recipe: &'a Recipe,
    files: &'a ModelFiles,
    config: &'a DecoderConfig,
    /// Is there where the run is scored.
    scored: Option<&'a BaseParts>,
    dataset: &'a Dataset,
    folder: &'a Path,
    chosen: &'a Chosen,
}

impl Job<'_> {
    fn run(
        &self,
        adapter: StartingPoint,
        sampler: Sampler,
        start: Instant,
        printer: &mut Printer,
    ) -> anyhow::Result<ExitStatus> {
        let stop = stop_flag()?;
        let config = self.recipe.evaluate.as_ref();
        // What is wrong with the tasks is said before anything is trained.
        let evaluation = config
            .zip(self.scored)
            .map(|(config, base)| Evaluation::new(config, base, self.folder))
            .transpose()?;
        let StartingPoint { peft, weights, whole } = adapter;
        let adapters = [AdapterFacts::of(&peft, &weights).with_whole(&whole, &weights)];
        let format = base_format::of_recipe(self.recipe, self.files, self.config, self.chosen)?;
        let memory = self.memory(format, (&peft, &weights), &whole)?;
        let planned = gib(memory.peak_bytes);
        printer.status(&format!("memory: {planned} planned at the peak, {}", memory.recompute));
        let (outcome, first_step) = std::thread::scope(|scope| {
            // Hashed beside the work: a large base takes seconds.
            let locked = scope.spawn(|| self.lock());
            let decoder = self.decoder(format, (&peft, &weights), &whole)?;
            drop(weights);
            let data = (self.dataset, sampler);
            let trainer = Trainer::new(decoder, peft, data, settings(self.recipe), self.folder);
            let mut trainer = trainer.planned(&memory, self.chosen.peak_memory());
            if let Some(evaluation) = evaluation {
                trainer = trainer.judged_by(Box::new(evaluation));
            }
            let mut show = Show::new(printer, trainer.total_steps(), start);
            let outcome = trainer.run(&stop, &mut |event| show.event(&event))?;
            let first_step = show.finish();
            locked.join().map_err(|_| anyhow::anyhow!("hashing stopped"))??;
            anyhow::Ok((outcome, first_step))
        })?;
        match outcome {
            Outcome::Interrupted { step } => {
                printer.status(&format!("interrupted after step {step}: the same command goes on"));
                Ok(ExitStatus::Interrupted)
            }
            Outcome::Finished(summary) => {
                let data: Vec<_> =
                    self.dataset.files.iter().map(|file| file.path.clone()).collect();
                let scored = (self.folder, data.as_slice());
                let scores =
                    config.map(|config| evaluation::report(config, scored, printer)).transpose()?;
                let verdicts = scores.as_ref().map(evaluation::verdicts).unwrap_or_default();
                self.publish(&summary, &adapters, &verdicts)?;
                self.report(&summary, start, &memory, (first_step, scores))?;
                for (what, verdict) in &verdicts {
                    printer.status(&format!("{what}: {verdict}"));
                }
                finish_run_lock(self.folder)?;
                let measured = gib(self.chosen.peak_memory()());
                printer.status(&format!("memory: {planned} planned, {measured} measured"));
                printer.status(&finished_line(&summary, &self.folder.join("adapter")));
                Ok(ExitStatus::Success)
            }
        }
    }

    fn lock(&self) -> anyhow::Result<()> {
        let files = RunFiles {
            run: self.folder,
            recipe: self.recipe,
            base: self.files,
            data: &self.dataset.files,
        };
        lock_run(files, environment(self.chosen))?;
        Ok(())
    }

    /// What the run will take, and what it does to take no more.
    fn memory(
        &self,
        format: BaseFormat,
        (peft, weights): (&PeftConfig, &AdapterWeights),
        whole: &WholeSelection,
    ) -> anyhow::Result<MemoryPlan> {
        let targets = targets_of_adapter(peft, weights, &linear_layers(self.config))?;
        let saved = targets.iter().map(|target| target.saved_bytes_per_token(&self.recipe.adapter));
        let train = &self.dataset.train;
        let counted = weights.whole.values().map(|tensor| tensor.values.len() as u64).sum::<u64>();
        let inputs = PlanInputs {
            trained_parameters: weights.parameters() - counted + whole.parameters,
            saved_bytes_per_token: saved.sum(),
            longest: train.iter().map(|e| e.token_ids.len()).max().unwrap_or(0),
        };
        let model = (self.files, self.config);
        let mut request = plan_request(self.recipe, model, format, self.chosen, &inputs);
        request.base_bytes -= trainer::memory::frozen_bytes(self.config, format, whole);
        Ok(memory_plan(&request, self.chosen.free_memory()))
    }

    fn decoder(
        &self,
        format: BaseFormat,
        (peft, weights): (&PeftConfig, &AdapterWeights),
        whole: &WholeSelection,
    ) -> anyhow::Result<Decoder> {
        let loader = ModelLoader::new(self.files, &self.chosen.device, format)?;
        let mut decoder = loader.training(whole).decoder()?;
        decoder.attach(peft, weights);
        let lora = self.recipe.adapter.low_rank();
        decoder.set_dropout(lora.dropout, self.recipe.seed);
        Ok(decoder)
    }

    /// Adds tokenizer, card and licence to the adapter and gives it its name.
    fn publish(
        &self,
        summary: &RunSummary,
        adapters: &[AdapterFacts],
        verdicts: &[(String, String)],
    ) -> anyhow::Result<()> {
        let mut figures = figures(summary);
        figures.extend(verdicts.iter().cloned());
        let folder = trainer::partial_adapter(self.folder);
        for name in self.files.side_files()? {
            if TOKENIZER_FILES.iter().any(|prefix| name.starts_with(prefix))
                && let Some(bytes) = self.files.side_file(&name)?
            {
                let path = folder.join(&name);
                std::fs::create_dir_all(path.parent().unwrap_or(&folder))?;
                write_atomically(&path, &bytes)?;
            }
        }
        if let Some(scaling) = &self.recipe.rope_scaling {
            write_rope_scaling(&folder, scaling)?;
        }
        let licence = LicenceDuties::of_base(self.files)?;
        let data: Vec<DataFacts> = self.dataset.files.iter().map(data_facts).collect();
        let recipe = self.recipe.to_toml()?;
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let card = model_card(&CardFacts {
            kind: CardKind::Adapter,
            mix: None,
            name: &name,
            base_model: &self.recipe.base_model,
            base_config: self.files.config(),
            licence: &licence,
            adapters,
            data: &data,
            recipe: Some(&recipe),
            figures: &figures,
        });
        write_atomically(&folder.join("README.md"), card.as_bytes())?;
        licence.write(&folder)?;
        trainer::publish_adapter(self.folder)?;
        Ok(())
    }

    fn report(
        &self,
        summary: &RunSummary,
        start: Instant,
        memory: &MemoryPlan,
        (seconds_to_first_step, scores): (Option<f64>, Option<Value>),
    ) -> anyhow::Result<()> {
        let report = json!({
            "steps": summary.steps,
            "planned_steps": summary.planned_steps,
            "tokens": summary.tokens,
            "trained_tokens": summary.trained_tokens,
            "final_loss": summary.final_loss,
            "final_validation_loss": summary.final_validation_loss,
            "seconds": start.elapsed().as_secs_f64(),
            "seconds_to_first_step": seconds_to_first_step,
            "peak_memory_bytes": self.chosen.peak_memory()(),
            "memory_plan": memory,
            "device": environment(self.chosen)["device"],
            "data": self.dataset.counts,
            "evaluation": scores,
        });
        let text = serde_json::to_string_pretty(&report)?;
        write_atomically(&self.folder.join("report.json"), format!("{text}\n").as_bytes())
    }
}

fn settings(recipe: &Recipe) -> TrainSettings {
    let ObjectiveConfig::Sft(_) = &recipe.objective;
    let every = recipe.validation.as_ref().and_then(|validation| validation.every_steps);
    TrainSettings {
        batch: recipe.batch.clone(),
        optimizer: recipe.optimizer.clone(),
        schedule: recipe.schedule.clone(),
        train: recipe.train.clone(),
        checkpoint: recipe.checkpoint.clone(),
        learning_rate_ratio: recipe.adapter.low_rank().lora_plus_ratio.unwrap_or(1.0),
        validate_every: every.map(|steps| steps.get() as u64),
    }
}

/// Set by Ctrl-C and SIGTERM; a second one ends the process at once.
fn stop_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        let second = Arc::clone(&stop);
        signal_hook::flag::register_conditional_shutdown(signal, 130, second)?;
        signal_hook::flag::register(signal, Arc::clone(&stop))?;
    }
    stop.store(false, Ordering::Relaxed);
    Ok(stop)
}

/// Shows the run on the terminal.
struct Show {
    progress: Progress,
    start: Instant,
    first_step: Option<f64>,
}

impl Show {
    fn new(printer: &Printer, total: u64, start: Instant) -> Self {
        Self { progress: printer.progress("step", total), start, first_step: None }
    }

    fn event(&mut self, event: &Event) {
        match event {
            Event::Resumed { step, damaged } => {
                for path in *damaged {
                    self.progress
                        .line(&format!("warning: `{}` is damaged, passed over", path.display()));
                }
                self.progress.line(&format!("resumed after step {step}"));
            }
            Event::Step { metrics, .. } => {
                self.first_step.get_or_insert_with(|| {
                    self.start.elapsed().as_secs_f64() - metrics.step_seconds
                });
                self.progress.update(metrics.step, &step_text(metrics));
            }
            Event::Saved(_) => {}
            Event::Scored { step, line } => self.progress.line(&format!("step {step}: {line}")),
        }
    }

    fn finish(self) -> Option<f64> {
        self.progress.finish();
        self.first_step
    }
}

fn step_text(metrics: &StepMetrics) -> String {
    let validation = metrics
        .validation_loss
        .map_or(String::new(), |loss| format!(", validation loss {loss:.4}"));
    format!(
        "loss {:.4}{validation}, {:.0} tokens/s, {:.2} GiB",
        metrics.loss,
        metrics.tokens_per_second,
        metrics.peak_memory_bytes as f64 / f64::from(1 << 30),
    )
}

fn finished_line(summary: &RunSummary, adapter: &Path) -> String {
    let loss = summary.final_loss.map_or(String::new(), |loss| format!(", last loss {loss:.4}"));
    format!(
        "finished: {} steps, {} tokens{loss}, {}",
        summary.steps,
        summary.tokens,
        adapter.display()
    )
}

fn data_facts(file: &datasets::DataFile) -> DataFacts {
    DataFacts {
        path: file.path.display().to_string(),
        sha256: file.sha256.clone(),
        bytes: file.bytes,
        rows: Some(file.rows),
    }
}

fn figures(summary: &RunSummary) -> Vec<(String, String)> {
    let mut figures = vec![
        ("optimizer steps".to_owned(), summary.steps.to_string()),
        ("input tokens".to_owned(), summary.tokens.to_string()),
        ("trained tokens".to_owned(), summary.trained_tokens.to_string()),
    ];
    let losses = [
        ("last training loss", summary.final_loss),
        ("validation loss", summary.final_validation_loss),
    ];
    for (name, loss) in losses {
        figures.extend(loss.map(|loss| (name.to_owned(), format!("{loss:.4}"))));
    }
    figures
}
