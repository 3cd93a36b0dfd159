//! Task files that come with the program; `recipes/tasks/` holds them for users to copy.

/// A task file: its name and text.
pub(super) struct ShippedTask {
    pub(super) name: &'static str,
    pub(super) text: &'static str,
}

macro_rules! shipped {
    ($($name:literal),* $(,)?) => {
        &[$(ShippedTask {
            name: $name,
            text: include_str!(concat!("../../../tasks/", $name, ".toml")),
        }),*]
    };
}

/// Every shipped task. To add one: write `recipes/tasks/<name>.toml`, then list it here.
pub(super) const TASKS: &[ShippedTask] = shipped![
    "arc",
    "forgetting",
    "gsm8k",
    "hellaswag",
    "humaneval",
    "mbpp",
    "medqa",
    "mmlu",
    "pubmedqa",
    "truthfulqa_mc1",
    "truthfulqa_mc2",
    "wikitext",
    "winogrande",
];

/// The names, for help.
pub(super) fn names() -> String {
    TASKS.iter().map(|task| task.name).collect::<Vec<_>>().join(", ")
}

pub(super) fn help() -> String {
    format!(
        "Shipped tasks read local files in their published format, named with --data: {}.\n\
         `recipes/tasks/` holds their files to copy; README.md there says what a task file takes.",
        names()
    )
}
