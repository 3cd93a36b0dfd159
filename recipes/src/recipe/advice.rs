//! Choices that run but are known to be poor.
//!
//! The bounds are those of "`LoRA` Without Regret" (Schulman et al. 2025) as the trainers carry
//! them: every linear layer adapted, a learning rate about ten times that of full fine-tuning,
//! and batches that stay small.

use adapters::TargetModules;
use trainer::{OptimizerConfig, ScheduleConfig};

use super::Recipe;
use super::document::Node;
use super::problem::{Located, Problem};

/// Sequences of one step above which `LoRA` learns less than full fine-tuning does.
const MAX_SEQUENCES_PER_STEP: usize = 32;
/// Ends of the usual learning rates of `LoRA`.
const LEARNING_RATES: (f64, f64) = (1e-5, 1e-3);
/// Layers of attention, whose adaptation alone is known to be the weaker choice.
const ATTENTION: &[&str] =
    &["q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "attn", "self_attn"];

/// What is said about a recipe that has no errors.
pub(crate) fn check(root: &Node, recipe: &Recipe) -> Vec<Located> {
    let found = [
        attention_only(recipe),
        no_scale(recipe),
        high_dropout(recipe),
        large_batch(recipe),
        learning_rate(recipe),
        long_warmup(recipe),
        not_deterministic(recipe),
    ];
    let locate = |(path, message, hint): (&str, String, &str)| Located {
        problem: Problem::Named { message, hint: Some(hint.to_owned()) },
        place: root
            .find(&path.replace("adapter.lora", recipe.adapter.table()))
            .map(|node| node.place.clone()),
    };
    found.into_iter().flatten().map(locate).collect()
}

type Advice = Option<(&'static str, String, &'static str)>;

fn attention_only(recipe: &Recipe) -> Advice {
    let lora = recipe.adapter.low_rank();
    let Some(TargetModules::List(names)) = &lora.target_modules else { return None };
    let is_attention =
        |name: &String| name.rsplit('.').next().is_some_and(|last| ATTENTION.contains(&last));
    names.iter().all(is_attention).then(|| {
        (
            "adapter.lora.target_modules",
            "only attention layers are adapted, which learns less than adapting every linear \
             layer, at the same number of parameters too"
                .to_owned(),
            "set `target_modules = \"all-linear\"` and a smaller `rank` if memory is short",
        )
    })
}

fn no_scale(recipe: &Recipe) -> Advice {
    let lora = recipe.adapter.low_rank();
    (lora.alpha == Some(0.0)).then(|| {
        (
            "adapter.lora.alpha",
            "`alpha` is 0, so the adapter changes nothing and nothing is learned".to_owned(),
            "delete the key; the default is 32",
        )
    })
}

fn high_dropout(recipe: &Recipe) -> Advice {
    let lora = recipe.adapter.low_rank();
    (lora.dropout > 0.5).then(|| {
        (
            "adapter.lora.dropout",
            format!("`dropout` of {} zeroes most of what the adapter reads", lora.dropout),
            "0 to 0.1 is usual",
        )
    })
}

fn large_batch(recipe: &Recipe) -> Advice {
    let sequences = recipe
        .batch
        .sequences_per_micro_batch
        .get()
        .saturating_mul(recipe.batch.micro_batches_per_step.get());
    (sequences > MAX_SEQUENCES_PER_STEP).then(|| {
        (
            "batch.sequences_per_micro_batch",
            format!(
                "a step takes {sequences} sequences; above {MAX_SEQUENCES_PER_STEP}, LoRA learns \
                 less from the same data"
            ),
            "lower `sequences_per_micro_batch` or `micro_batches_per_step`",
        )
    })
}

fn learning_rate(recipe: &Recipe) -> Advice {
    let rate = recipe.optimizer.adamw().learning_rate;
    let (low, high) = LEARNING_RATES;
    let (word, hint) = if rate > high {
        ("high", "above 1e-3 runs often diverge; 1e-4 to 5e-4 is usual")
    } else if rate < low {
        ("low", "LoRA needs about ten times the rate of full fine-tuning; 1e-4 to 5e-4 is usual")
    } else {
        return None;
    };
    let message = format!("the learning rate {rate:e} is unusually {word} for LoRA");
    let path = match recipe.optimizer {
        OptimizerConfig::Adamw(_) => "optimizer.adamw.learning_rate",
        OptimizerConfig::Adamw8bit(_) => "optimizer.adamw_8bit.learning_rate",
    };
    Some((path, message, hint))
}

fn long_warmup(recipe: &Recipe) -> Advice {
    let (path, warmup) = match &recipe.schedule {
        ScheduleConfig::Constant(config) => ("schedule.constant.warmup_steps", config.warmup_steps),
        ScheduleConfig::Linear(config) => ("schedule.linear.warmup_steps", config.warmup_steps),
        ScheduleConfig::Cosine(config) => ("schedule.cosine.warmup_steps", config.warmup_steps),
    };
    let steps = recipe.train.steps?.get();
    (warmup >= steps).then(|| {
        let message = format!(
            "the warm-up of {warmup} steps is as long as the run of {steps}: the learning rate \
             never gets past it"
        );
        (path, message, "about a tenth of the steps is usual")
    })
}

fn not_deterministic(recipe: &Recipe) -> Advice {
    (!recipe.deterministic).then(|| {
        (
            "deterministic",
            "`deterministic = false` changes nothing: there are no kernels whose results do not \
             repeat"
                .to_owned(),
            "delete the key",
        )
    })
}
