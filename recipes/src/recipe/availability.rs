//! Parts of the recipe format that do not work yet, refused by name.
//!
//! When one of them starts to work, its line goes, and the type that the schema comes from gains
//! it; the test below fails while a name is both known and refused.

/// Tables and keys: path, and what to use today.
const TABLES: &[(&str, &str)] = &[
    ("adapter.vera", "use `[adapter.lora]`"),
    ("adapter.ia3", "use `[adapter.lora]`"),
    ("objective.dpo", "use `[objective.sft]`"),
    ("objective.ipo", "use `[objective.sft]`"),
    ("objective.kto", "use `[objective.sft]`"),
    ("objective.orpo", "use `[objective.sft]`"),
    ("objective.simpo", "use `[objective.sft]`"),
    ("optimizer.adafactor", "use `[optimizer.adamw]`"),
    ("optimizer.lion", "use `[optimizer.adamw]`"),
    ("optimizer.muon", "use `[optimizer.adamw]`"),
    ("optimizer.sgd", "use `[optimizer.adamw]`"),
    ("schedule.cosine_with_restarts", "use `[schedule.cosine]`"),
    ("schedule.warmup_stable_decay", "use `[schedule.linear]`"),
    ("adapter.lora.use_dora", "write `[adapter.dora]` for `[adapter.lora]`"),
];

/// Words of a key: path, word, and what to use today.
const WORDS: &[(&str, &str, &str)] = &[
    ("precision", "f16", "use \"auto\", \"f32\" or \"bf16\""),
    ("dataset.format", "preference", "use \"messages\" with the chosen answers"),
    ("adapter.lora.init", "eva", "use \"pissa\", \"olora\" or \"kaiming_uniform\""),
    ("adapter.lora.init", "loftq", "use \"pissa\" over a base that is not quantised"),
    ("adapter.dora.init", "eva", "use \"pissa\", \"olora\" or \"kaiming_uniform\""),
    ("adapter.dora.init", "loftq", "use \"pissa\" over a base that is not quantised"),
    ("validation.format", "preference", "use \"messages\" with the chosen answers"),
];

/// What to use instead of a table or key that is not there yet.
pub(crate) fn missing_table(path: &str) -> Option<&'static str> {
    TABLES.iter().find(|(name, _)| *name == path).map(|(_, instead)| *instead)
}

/// What to use instead of a word that is not there yet.
pub(crate) fn missing_word(path: &str, word: &str) -> Option<&'static str> {
    let found = WORDS.iter().find(|(name, refused, _)| *name == path && *refused == word);
    found.map(|(_, _, instead)| *instead)
}
