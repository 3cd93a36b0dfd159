//! `tunesmith plan`: what a run takes, before any weight is read.

use std::path::Path;

use adapters::{
    PeftConfig, Target, WholeSelection, fit_experts, read_adapter, select_targets,
    targets_of_adapter,
};
use clap::Args;
use datasets::Sampler;
use serde::Serialize;
use trainer::base_model::{base_tensors, linear_layers};
use trainer::memory::{Largest, MemoryPlan, largest_that_fits, memory_plan};

use crate::base_format;
use crate::cli::{DeviceArgs, DeviceChoice, JsonArgs, NetworkArgs, RecipeArgs};
use crate::device;
use crate::diagnostics::ExitStatus;
use crate::machine;
use crate::memory::{PlanInputs, plan_request};
use crate::named::{self, BaseParts};
use crate::printer::Printer;
use crate::recipe::{self, Recipe};

/// Flags of `tunesmith plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// The recipe.
    #[command(flatten)]
    pub recipe: RecipeArgs,
    /// Where the run would go.
    #[command(flatten)]
    pub device: DeviceArgs,
    /// Where the figures go.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// What a run takes.
#[derive(Debug, Serialize)]
struct Plan {
    base_parameters: u64,
    /// Those that a token passes through.
    active_parameters: u64,
    trained_parameters: u64,
    /// Of tensors of the base (`modules_to_save`, biases).
    trained_whole_parameters: u64,
    /// The modules of these tensors.
    #[serde(skip_serializing_if = "Option::is_none")]
    trained_whole: Option<String>,
    steps: u64,
    examples: usize,
    tokens_per_epoch: u64,
    trained_tokens_per_epoch: u64,
    memory: MemoryPlan,
    /// What would fit, where the memory is known.
    largest_micro_batch: Option<Largest>,
    available_memory_bytes: Option<u64>,
    disk_bytes: u64,
    free_disk_bytes: Option<u64>,
    floating_point_operations: f64,
    estimated_seconds: f64,
    fits: bool,
}

/// Says what a run takes and whether it fits.
pub fn plan(arguments: &PlanArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let loaded = recipe::load(&arguments.recipe.recipe, &arguments.recipe.overrides)?;
    if !loaded.warnings.is_empty() {
        printer.warning_block(&format!("{}\n", loaded.warnings));
    }
    let chosen = device::choose(arguments.device.device)?;
    printer.status(&chosen.reason);
    // Plans download nothing.
    let network = NetworkArgs { offline: true }.network();
    let base = BaseParts::of_recipe(&loaded.recipe, network)?;
    printer.warnings(base.files.warnings());
    if let Some(line) = base.left_out() {
        printer.warning(&line);
    }
    named::length(&loaded.recipe, &base)?;
    let figures = figures(&loaded.recipe, &base, &chosen)?;
    match &arguments.json.json {
        Some(target) => printer.json(target, &figures)?,
        None => show(&figures, printer)?,
    }
    Ok(if figures.fits { ExitStatus::Success } else { ExitStatus::Failure })
}

/// What a report says of a plan.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Planned {
    /// Steps of the whole run.
    pub(crate) steps: u64,
    /// Most memory at a time.
    pub(crate) peak_bytes: u64,
    /// Time of the steps, from a short measurement on this machine.
    pub(crate) seconds: f64,
    /// What checkpoints and the adapter take.
    pub(crate) disk_bytes: u64,
}

/// The plan of a recipe's text, as it would be made now for a device (`cpu`, `cuda`).
pub(crate) fn of_run(recipe: &str, device: &str) -> anyhow::Result<Planned> {
    let recipe = Recipe::parse("recipe.toml", recipe)?;
    let device: DeviceChoice = device.parse().map_err(anyhow::Error::msg)?;
    let chosen = device::choose(device)?;
    let network = NetworkArgs { offline: true }.network();
    let base = BaseParts::open(&recipe.base_model, network)?;
    let plan = figures(&recipe, &base, &chosen)?;
    Ok(Planned {
        steps: plan.steps,
        peak_bytes: plan.memory.peak_bytes,
        seconds: plan.estimated_seconds,
        disk_bytes: plan.disk_bytes,
    })
}

fn figures(recipe: &Recipe, base: &BaseParts, chosen: &device::Chosen) -> anyhow::Result<Plan> {
    let cache = named::dataset_cache();
    let dataset = datasets::load(&named::load_request(recipe, base, cache.as_deref()))?;
    let sampler = Sampler::new(&dataset, &recipe.dataset, &recipe.batch, recipe.seed);
    let steps = trainer::total_steps(&sampler, &recipe.train);
    let (targets, whole) = trained(recipe, base)?;
    let of_updates: u64 = targets.iter().map(|target| target.parameters(&recipe.adapter)).sum();
    let trained_parameters = of_updates + whole.parameters;
    let saved = targets.iter().map(|target| target.saved_bytes_per_token(&recipe.adapter)).sum();
    let longest = dataset.train.iter().map(|e| e.token_ids.len()).max().unwrap_or(0);
    let tokens = dataset.train.iter().map(|e| e.token_ids.len() as u64).sum();
    let trained = dataset.train.iter().map(|e| e.trained_tokens() as u64).sum();
    let inputs = PlanInputs { trained_parameters, saved_bytes_per_token: saved, longest };
    let format = base_format::of_recipe(recipe, &base.files, &base.config, chosen)?;
    let mut request = plan_request(recipe, (&base.files, &base.config), format, chosen, &inputs);
    request.base_bytes -= trainer::memory::frozen_bytes(&base.config, format, &whole);
    let free = chosen.free_memory();
    let memory = memory_plan(&request, free);
    let available = free.device;
    let largest = available.map(|bytes| largest_that_fits(&request, bytes));
    let disk_bytes = disk_bytes(recipe, trained_parameters);
    let free_disk_bytes = machine::Machine::look().free_disk_bytes;
    let steps_per_epoch = sampler.epoch(0).steps().max(1) as f64;
    let all_tokens = tokens as f64 * steps as f64 / steps_per_epoch;
    // Forward and the gradient of inputs: twice 2 operations a weight and token.
    let operations = 4.0 * base.config.active_parameters() as f64 * all_tokens;
    let fits = available.is_none_or(|bytes| memory.peak_bytes <= bytes)
        && free_disk_bytes.is_none_or(|bytes| disk_bytes <= bytes);
    Ok(Plan {
        base_parameters: base.config.parameters(),
        active_parameters: base.config.active_parameters(),
        trained_parameters,
        trained_whole_parameters: whole.parameters,
        trained_whole: named::whole_line(&whole),
        steps,
        examples: dataset.train.len(),
        tokens_per_epoch: tokens,
        trained_tokens_per_epoch: trained,
        memory,
        largest_micro_batch: largest,
        available_memory_bytes: available,
        disk_bytes,
        free_disk_bytes,
        floating_point_operations: operations,
        estimated_seconds: operations / trainer::memory::measured_operations_per_second(),
        fits,
    })
}

/// Checkpoints, one more while it is written, and the finished adapter.
fn disk_bytes(recipe: &Recipe, trained_parameters: u64) -> u64 {
    let checkpoint_bytes =
        4 * trained_parameters + recipe.optimizer.moment_bytes(trained_parameters);
    checkpoint_bytes * (recipe.checkpoint.keep_last.get() + 1) + 4 * trained_parameters
}

/// The layers that get an update, and what of the base is trained besides.
fn trained(recipe: &Recipe, base: &BaseParts) -> anyhow::Result<(Vec<Target>, WholeSelection)> {
    let lora = recipe.adapter.low_rank();
    let layers = linear_layers(&base.config);
    let (targets, peft) = match &lora.init_from {
        Some(folder) => {
            let (peft, weights) = read_adapter(Path::new(folder))?;
            let (peft, weights) = fit_experts(peft, weights, &layers);
            (targets_of_adapter(&peft, &weights, &layers)?, peft)
        }
        None => {
            let targets = select_targets(lora, &layers)?;
            let peft = PeftConfig::from_recipe(lora, &targets, &layers, &recipe.base_model)?;
            (targets, peft)
        }
    };
    let names = targets.iter().map(|target| target.name.as_str());
    let whole = peft.select_whole(names, &base_tensors(&base.config))?;
    Ok((targets, whole))
}

fn show(plan: &Plan, printer: &mut Printer) -> anyhow::Result<()> {
    let gib = |bytes: u64| format!("{:8.2} GiB", bytes as f64 / f64::from(1 << 30));
    let million = |count: u64| format!("{:8.2} M", count as f64 / 1e6);
    let mut lines = vec![
        ("base parameters", million(plan.base_parameters)),
        ("  active for a token", million(plan.active_parameters)),
        ("trained parameters", million(plan.trained_parameters)),
        (
            "  as a whole",
            match &plan.trained_whole {
                Some(line) => format!("{} ({line})", million(plan.trained_whole_parameters)),
                None => million(0),
            },
        ),
        ("examples", format!("{:8}", plan.examples)),
        ("tokens an epoch", format!("{:8}", plan.tokens_per_epoch)),
        ("  that carry loss", format!("{:8}", plan.trained_tokens_per_epoch)),
        ("steps", format!("{:8}", plan.steps)),
        (
            "time",
            format!(
                "{:8.0} s (from a short measurement of matrix products)",
                plan.estimated_seconds
            ),
        ),
        ("memory: base", gib(plan.memory.base_bytes)),
        ("  adapter", gib(plan.memory.adapter_bytes)),
        ("  optimizer", gib(plan.memory.optimizer_bytes)),
        (
            "  saved activations",
            format!("{} ({})", gib(plan.memory.activation_bytes), plan.memory.recompute),
        ),
        ("  workspace", gib(plan.memory.workspace_bytes)),
        ("  loss", gib(plan.memory.loss_bytes)),
        ("  peak", gib(plan.memory.peak_bytes)),
    ];
    if let Some(bytes) = plan.available_memory_bytes {
        lines.push(("  available", gib(bytes)));
    }
    if let Some(largest) = plan.largest_micro_batch {
        let Largest { sequences_per_micro_batch: rows, sequence_length: length } = largest;
        lines.push(("largest micro-batch", format!("{rows:8} rows as they are")));
        lines.push(("  or rows of", format!("{length:8} tokens, as many as there are")));
    }
    lines.push(("disk", gib(plan.disk_bytes)));
    for (name, value) in lines {
        printer.data(&format!("{name:22}{value}"))?;
    }
    let verdict = if plan.fits {
        "it fits"
    } else {
        "it does not fit: lower `batch.sequence_length` or `batch.sequences_per_micro_batch`, or \
         set `train.gradient_checkpointing = \"on\"`"
    };
    printer.data(verdict)
}
