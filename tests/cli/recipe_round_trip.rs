//! A recipe written out with its defaults reads back to the same value.

use std::num::{NonZeroU32, NonZeroU64, NonZeroUsize};

use adapters::{AdapterConfig, LoraConfig, TargetModules};
use datasets::{
    BatchConfig, DatasetConfig, FillInTheMiddleConfig, FormatName, LossOn, OnOverlong, Sentinels,
    ValidationConfig,
};
use proptest::prelude::*;
use recipes::recipe::{EvaluateConfig, EvaluateTask, QuantizeBase, Recipe};
use trainer::{
    AdamwConfig, CheckpointConfig, DecayConfig, GradientCheckpointing, ObjectiveConfig,
    OptimizerConfig, Precision, RopeScalingConfig, RopeType, ScheduleConfig, SftConfig,
    TrainConfig, WarmupConfig,
};

fn size() -> impl Strategy<Value = NonZeroUsize> {
    (1_usize..60_000).prop_map(|size| NonZeroUsize::new(size).unwrap())
}

fn count() -> impl Strategy<Value = NonZeroU64> {
    (1_u64..1_000_000).prop_map(|count| NonZeroU64::new(count).unwrap())
}

fn text() -> impl Strategy<Value = String> {
    "[a-z/._\"'\\\\ #äß=\\[\\]\n\t]{0,12}x".boxed()
}

fn positive() -> impl Strategy<Value = f64> {
    prop_oneof![1e-12..1e3_f64, Just(1.0), Just(f64::MIN_POSITIVE)]
}

fn format() -> impl Strategy<Value = Option<FormatName>> {
    prop::option::of(prop_oneof![
        Just(FormatName::Messages),
        Just(FormatName::Sharegpt),
        Just(FormatName::Text),
        Just(FormatName::Tokens),
        Just(FormatName::FillInTheMiddle),
    ])
}

prop_compose! {
    fn fill_in_the_middle()(
        (rate, spm_rate) in (0.0..=1.0_f64, 0.0..=1.0_f64),
        sentinels in prop::option::of((text(), text(), text())),
    ) -> FillInTheMiddleConfig {
        let sentinels =
            sentinels.map(|(prefix, suffix, middle)| Sentinels { prefix, suffix, middle });
        FillInTheMiddleConfig { rate, spm_rate, sentinels }
    }
}

prop_compose! {
    fn task()(
        (name, data, few_shot_data) in (text(), prop::option::of(text()), prop::option::of(text())),
        (few_shot, limit) in (prop::option::of(0_usize..9), prop::option::of(size())),
        (chat, length) in (any::<bool>(), 2_usize..60_000),
    ) -> EvaluateTask {
        let sequence_length = NonZeroUsize::new(length).unwrap();
        EvaluateTask { name, data, few_shot_data, few_shot, limit, chat, sequence_length }
    }
}

prop_compose! {
    fn evaluate()(
        (every_steps, patience) in (count(), prop::option::of(count())),
        (before_training, best) in (any::<bool>(), text()),
        task in prop::collection::vec(task(), 1..3),
    ) -> EvaluateConfig {
        let best = patience.is_some().then_some(best);
        EvaluateConfig { every_steps: Some(every_steps), before_training, best, patience, task }
    }
}

prop_compose! {
    fn dataset()(
        path in text(),
        format in format(),
        weight in positive(),
        loss_on in prop_oneof![Just(LossOn::Assistant), Just(LossOn::LastMessage), Just(LossOn::All)],
        columns in prop::collection::btree_map(text(), text(), 0..3),
        chat_template in prop::option::of(text()),
        allow_untrained_rows in any::<bool>(),
        fill_in_the_middle in prop::option::of(fill_in_the_middle()),
    ) -> DatasetConfig {
        DatasetConfig {
            path,
            format,
            weight,
            loss_on,
            columns,
            chat_template,
            allow_untrained_rows,
            fill_in_the_middle,
        }
    }
}

fn validation() -> impl Strategy<Value = Option<ValidationConfig>> {
    let every_steps = || prop::option::of(size());
    let by_path = (text(), format(), every_steps()).prop_map(|(path, format, every_steps)| {
        ValidationConfig { path: Some(path), fraction: None, format, every_steps }
    });
    let by_fraction = (0.001..0.999_f64, every_steps()).prop_map(|(fraction, every_steps)| {
        ValidationConfig { path: None, fraction: Some(fraction), format: None, every_steps }
    });
    prop::option::of(prop_oneof![by_path, by_fraction])
}

prop_compose! {
    fn batch()(
        length in 2_usize..4_000_000,
        packing in any::<bool>(),
        on_overlong in prop_oneof![Just(OnOverlong::Drop), Just(OnOverlong::Split)],
        sequences in size(),
        micro_batches in size(),
        shuffle in any::<bool>(),
    ) -> BatchConfig {
        BatchConfig {
            sequence_length: NonZeroUsize::new(length).unwrap(),
            packing,
            on_overlong,
            sequences_per_micro_batch: sequences,
            micro_batches_per_step: micro_batches,
            shuffle,
        }
    }
}

fn targets() -> impl Strategy<Value = TargetModules> {
    prop_oneof![
        Just(TargetModules::Word("all-linear".to_owned())),
        prop::collection::vec(text(), 1..4).prop_map(TargetModules::List),
    ]
}

prop_compose! {
    fn fresh_lora()(
        rank in size(),
        alpha in positive(),
        dropout in 0.0..0.99_f64,
        target_modules in targets(),
        target_parameters in prop::collection::vec(text(), 0..3),
        exclude_modules in prop::collection::vec(text(), 0..3),
        use_rslora in any::<bool>(),
        rank_pattern in prop::collection::btree_map(text(), size(), 0..3),
        alpha_pattern in prop::collection::btree_map(text(), positive(), 0..3),
        modules_to_save in prop::collection::vec(text(), 0..3),
    ) -> LoraConfig {
        LoraConfig {
            rank: Some(rank),
            alpha: Some(alpha),
            dropout,
            target_modules: Some(target_modules),
            target_parameters,
            exclude_modules,
            modules_to_save,
            ensure_weight_tying: Some(use_rslora),
            bias: Some(adapters::BiasMode::LoraOnly),
            use_rslora: Some(use_rslora),
            rank_pattern,
            alpha_pattern,
            init: Some(adapters::Initialization::Gaussian),
            ..LoraConfig::default()
        }
    }
}

prop_compose! {
    fn continued_lora()(path in text(), rank in prop::option::of(size())) -> LoraConfig {
        LoraConfig { rank, init_from: Some(path.into()), ..LoraConfig::default() }
    }
}

fn schedule() -> impl Strategy<Value = ScheduleConfig> {
    let decay = || {
        (0_u64..1_000_000, 0.0..=1.0_f64)
            .prop_map(|(warmup_steps, final_ratio)| DecayConfig { warmup_steps, final_ratio })
    };
    prop_oneof![
        (0_u64..1_000_000)
            .prop_map(|warmup_steps| ScheduleConfig::Constant(WarmupConfig { warmup_steps })),
        decay().prop_map(ScheduleConfig::Linear),
        decay().prop_map(ScheduleConfig::Cosine),
    ]
}

fn train() -> impl Strategy<Value = TrainConfig> {
    let length = prop_oneof![
        count().prop_map(|epochs| (Some(epochs), None)),
        count().prop_map(|steps| (None, Some(steps))),
    ];
    let factor = prop::option::of(0.0..1.0_f64);
    (length, 0.0..10.0_f64, factor).prop_map(
        |((epochs, steps), max_gradient_norm, router_aux_loss_coef)| TrainConfig {
            epochs,
            steps,
            max_gradient_norm,
            gradient_checkpointing: GradientCheckpointing::On,
            router_aux_loss_coef,
        },
    )
}

prop_compose! {
    fn adamw()(
        learning_rate in positive(),
        weight_decay in 0.0..1.0_f64,
        first in 0.0..0.999_f64,
        second in 0.0..0.999_f64,
        epsilon in positive(),
        of in prop_oneof![
            Just(OptimizerConfig::Adamw as fn(AdamwConfig) -> OptimizerConfig),
            Just(OptimizerConfig::Adamw8bit as fn(AdamwConfig) -> OptimizerConfig),
        ],
    ) -> OptimizerConfig {
        let betas = [first, second];
        of(AdamwConfig { learning_rate, weight_decay, betas, epsilon })
    }
}

prop_compose! {
    fn rope_scaling()(
        rope_type in prop_oneof![Just(RopeType::Yarn), Just(RopeType::Linear), Just(RopeType::Longrope)],
        factor in prop::option::of(1.5..64.0_f64),
        positions in prop::option::of(1_u32..u32::MAX),
        short_factor in prop::option::of(prop::collection::vec(0.5..64.0_f64, 1..4)),
    ) -> RopeScalingConfig {
        RopeScalingConfig {
            rope_type,
            factor,
            max_position_embeddings: positions.and_then(NonZeroU32::new),
            original_max_position_embeddings: None,
            attention_factor: factor,
            beta_fast: factor,
            beta_slow: None,
            low_freq_factor: None,
            high_freq_factor: factor,
            long_factor: short_factor.clone(),
            short_factor,
        }
    }
}

prop_compose! {
    fn recipe()(
        (base_model, output, seed, deterministic) in (text(), text(), 0..=i64::MAX as u64, any::<bool>()),
        precision in prop_oneof![Just(Precision::Auto), Just(Precision::F32), Just(Precision::Bf16)],
        dataset in prop::collection::vec(dataset(), 1..3),
        (validation, batch) in (validation(), batch()),
        adapter in prop_oneof![fresh_lora(), continued_lora()].prop_map(AdapterConfig::Lora),
        (optimizer, schedule, train) in (adamw(), schedule(), train()),
        (every_steps, keep_last) in (count(), count()),
        (evaluate, rope_scaling) in (prop::option::of(evaluate()), prop::option::of(rope_scaling())),
    ) -> Recipe {
        Recipe {
            base_model,
            output_dir: format!("runs/{output}").into(),
            seed,
            precision,
            deterministic,
            quantize_base: QuantizeBase::None,
            rope_scaling,
            dataset,
            validation,
            batch,
            adapter,
            objective: ObjectiveConfig::Sft(SftConfig::default()),
            optimizer,
            schedule,
            train,
            checkpoint: CheckpointConfig { every_steps, keep_last },
            evaluate,
        }
    }
}

proptest! {
    #[test]
    fn a_recipe_as_run_loads_again_to_the_same_value(recipe in recipe()) {
        let text = recipe.to_toml().unwrap();
        let again = Recipe::parse("recipe.toml", &text);
        prop_assert!(again.is_ok(), "{}\n{text}", again.unwrap_err());
        prop_assert_eq!(again.unwrap(), recipe);
    }
}

#[test]
fn the_smallest_recipe_gets_every_default() {
    let text = "base_model = \"m\"\noutput_dir = \"r\"\n[[dataset]]\npath = \"d\"\n";
    let recipe = Recipe::parse("recipe.toml", text).unwrap();
    insta::assert_snapshot!(recipe.to_toml().unwrap(), @r#"
    base_model = "m"
    output_dir = "r"
    seed = 42
    precision = "auto"
    deterministic = true
    quantize_base = "none"

    [[dataset]]
    path = "d"
    weight = 1.0
    loss_on = "assistant"
    allow_untrained_rows = false

    [batch]
    sequence_length = 2048
    packing = true
    on_overlong = "error"
    sequences_per_micro_batch = 1
    micro_batches_per_step = 1
    shuffle = true

    [adapter.lora]
    rank = 16
    alpha = 32.0
    dropout = 0.0
    target_modules = "all-linear"
    use_rslora = false
    init = "kaiming_uniform"

    [objective.sft]

    [optimizer.adamw]
    learning_rate = 0.0002
    weight_decay = 0.0
    betas = [0.9, 0.999]
    epsilon = 0.00000001

    [schedule.cosine]
    warmup_steps = 0
    final_ratio = 0.0

    [train]
    epochs = 1
    max_gradient_norm = 1.0
    gradient_checkpointing = "auto"

    [checkpoint]
    every_steps = 100
    keep_last = 2
    "#);
}
