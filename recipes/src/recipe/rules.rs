//! Rules about values: ranges of numbers, texts that may not be empty, keys that exclude others.
//!
//! They run on the tree and not on the typed recipe, so that a misspelt key elsewhere hides none
//! of them.

use super::document::{KeyPath, Node, Value};
use super::problem::{Located, Problem};

/// What a number may be.
#[derive(Clone, Copy)]
enum Bound {
    /// Above 0.
    Positive,
    /// 0 or more.
    NotNegative,
    /// In [0, 1).
    BelowOne,
    /// In (0, 1).
    Inside,
    /// In [0, 1].
    Share,
    /// 1 or more.
    OneOrMore,
}

impl Bound {
    fn allows(self, number: f64) -> bool {
        number.is_finite()
            && match self {
                Self::Positive => number > 0.0,
                Self::NotNegative => number >= 0.0,
                Self::BelowOne => (0.0..1.0).contains(&number),
                Self::Inside => number > 0.0 && number < 1.0,
                Self::Share => (0.0..=1.0).contains(&number),
                Self::OneOrMore => number >= 1.0,
            }
    }

    fn rule(self) -> &'static str {
        match self {
            Self::Positive => "a number above 0",
            Self::NotNegative => "a number of at least 0",
            Self::BelowOne => "at least 0 and below 1",
            Self::Inside => "above 0 and below 1",
            Self::Share => "from 0 to 1",
            Self::OneOrMore => "a number of at least 1",
        }
    }
}

/// Ranges of the numbers of a recipe.
const BOUNDS: &[(&str, Bound)] = &[
    ("adapter.dora.alpha", Bound::NotNegative),
    ("adapter.dora.alpha_pattern.*", Bound::NotNegative),
    ("adapter.dora.dropout", Bound::BelowOne),
    ("adapter.dora.lora_plus_ratio", Bound::OneOrMore),
    ("adapter.lora.alpha", Bound::NotNegative),
    ("adapter.lora.alpha_pattern.*", Bound::NotNegative),
    ("adapter.lora.dropout", Bound::BelowOne),
    ("adapter.lora.lora_plus_ratio", Bound::OneOrMore),
    ("dataset.fill_in_the_middle.rate", Bound::Share),
    ("dataset.fill_in_the_middle.spm_rate", Bound::Share),
    ("dataset.weight", Bound::Positive),
    ("optimizer.adamw.betas", Bound::BelowOne),
    ("optimizer.adamw.epsilon", Bound::Positive),
    ("optimizer.adamw.learning_rate", Bound::Positive),
    ("optimizer.adamw.weight_decay", Bound::NotNegative),
    ("optimizer.adamw_8bit.betas", Bound::BelowOne),
    ("optimizer.adamw_8bit.epsilon", Bound::Positive),
    ("optimizer.adamw_8bit.learning_rate", Bound::Positive),
    ("optimizer.adamw_8bit.weight_decay", Bound::NotNegative),
    ("rope_scaling.attention_factor", Bound::Positive),
    ("rope_scaling.beta_fast", Bound::Positive),
    ("rope_scaling.beta_slow", Bound::Positive),
    ("rope_scaling.factor", Bound::Positive),
    ("rope_scaling.high_freq_factor", Bound::Positive),
    ("rope_scaling.long_factor", Bound::Positive),
    ("rope_scaling.low_freq_factor", Bound::Positive),
    ("rope_scaling.short_factor", Bound::Positive),
    ("schedule.cosine.final_ratio", Bound::Share),
    ("schedule.linear.final_ratio", Bound::Share),
    ("train.max_gradient_norm", Bound::NotNegative),
    ("train.router_aux_loss_coef", Bound::NotNegative),
    ("validation.fraction", Bound::Inside),
];

/// Smallest and largest whole numbers: far beyond use, and small enough that no product of two
/// of them overflows.
const WHOLE_NUMBERS: &[(&str, i64, i64)] = &[
    ("adapter.dora.pissa_iterations", 1, 64),
    ("adapter.dora.rank", 1, 1 << 16),
    ("adapter.dora.rank_pattern.*", 1, 1 << 16),
    ("adapter.lora.pissa_iterations", 1, 64),
    ("adapter.lora.rank", 1, 1 << 16),
    ("adapter.lora.rank_pattern.*", 1, 1 << 16),
    ("batch.micro_batches_per_step", 1, 1 << 20),
    ("batch.sequence_length", 2, 1 << 22),
    ("batch.sequences_per_micro_batch", 1, 1 << 20),
    ("checkpoint.every_steps", 1, 1 << 40),
    ("checkpoint.keep_last", 1, 1 << 40),
    ("evaluate.every_steps", 1, 1 << 40),
    ("evaluate.patience", 1, 1 << 40),
    ("evaluate.task.few_shot", 0, 1 << 20),
    ("evaluate.task.limit", 1, 1 << 40),
    ("evaluate.task.sequence_length", 2, 1 << 22),
    ("rope_scaling.max_position_embeddings", 1, u32::MAX as i64),
    ("rope_scaling.original_max_position_embeddings", 1, u32::MAX as i64),
    ("schedule.constant.warmup_steps", 0, 1 << 40),
    ("schedule.cosine.warmup_steps", 0, 1 << 40),
    ("schedule.linear.warmup_steps", 0, 1 << 40),
    ("seed", 0, i64::MAX),
    ("train.epochs", 1, 1 << 20),
    ("train.steps", 1, 1 << 40),
    ("validation.every_steps", 1, 1 << 40),
];

/// Texts that name something.
const NOT_EMPTY: &[&str] = &[
    "adapter.dora.exclude_modules",
    "adapter.dora.init_from",
    "adapter.dora.target_modules",
    "adapter.lora.exclude_modules",
    "adapter.lora.init_from",
    "adapter.lora.target_modules",
    "base_model",
    "dataset.chat_template",
    "dataset.columns.*",
    "dataset.fill_in_the_middle.sentinels.middle",
    "dataset.fill_in_the_middle.sentinels.prefix",
    "dataset.fill_in_the_middle.sentinels.suffix",
    "dataset.path",
    "evaluate.best",
    "evaluate.task.data",
    "evaluate.task.few_shot_data",
    "evaluate.task.name",
    "output_dir",
    "validation.path",
];

/// Every value of `root` that breaks a rule.
pub(crate) fn check(root: &Node) -> Vec<Located> {
    let mut problems = Vec::new();
    root.walk(&KeyPath::default(), &mut |path, node| {
        problems
            .extend(value_problem(path, node).map(|found| Located::new(found, node.place.clone())));
    });
    problems.extend(epochs_and_steps(root));
    problems.extend(validation(root));
    problems.extend(no_dataset(root));
    problems.extend(evaluate(root));
    problems.extend(target_modules(root));
    problems.extend(output_is_base(root));
    problems.extend(initialization(root));
    problems
}

fn value_problem(path: &KeyPath, node: &Node) -> Option<Problem> {
    let name = path.rule_name();
    let out_of_range = |found: String, rule: String| {
        Some(Problem::OutOfRange { path: path.to_string(), found, rule })
    };
    match &node.value {
        Value::Float(number) => {
            let bound = bound(&name).filter(|bound| !bound.allows(*number))?;
            out_of_range(number.to_string(), bound.rule().into())
        }
        Value::Integer(number) => match (bound(&name), whole(&name)) {
            (Some(bound), _) if !bound.allows(*number as f64) => {
                out_of_range(number.to_string(), bound.rule().into())
            }
            (_, Some((least, most))) if !(least..=most).contains(number) => {
                let rule = match most {
                    i64::MAX => format!("a whole number of at least {least}"),
                    _ => format!("a whole number from {least} to {most}"),
                };
                out_of_range(number.to_string(), rule)
            }
            _ => None,
        },
        Value::String(text) if text.trim().is_empty() && matches_any(&name, NOT_EMPTY) => {
            out_of_range("empty".into(), "a name or path".into())
        }
        _ => None,
    }
}

fn bound(name: &str) -> Option<Bound> {
    BOUNDS.iter().find(|(pattern, _)| matches(name, pattern)).map(|(_, bound)| *bound)
}

fn whole(name: &str) -> Option<(i64, i64)> {
    let found = WHOLE_NUMBERS.iter().find(|(pattern, ..)| matches(name, pattern));
    found.map(|(_, least, most)| (*least, *most))
}

fn matches_any(name: &str, patterns: &[&str]) -> bool {
    patterns.iter().any(|pattern| matches(name, pattern))
}

/// `*` stands for the keys of a free map, which may hold dots themselves.
fn matches(name: &str, pattern: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == pattern,
    }
}

fn conflict(node: &Node, message: &str, hint: &str) -> Located {
    let problem = Problem::Conflict { message: message.to_owned(), hint: hint.to_owned() };
    Located::new(problem, node.place.clone())
}

fn epochs_and_steps(root: &Node) -> Option<Located> {
    root.find("train.epochs")?;
    let steps = root.find("train.steps")?;
    Some(conflict(
        steps,
        "`train.steps` and `train.epochs` both say how long the run is",
        "delete one of them",
    ))
}

fn validation(root: &Node) -> Vec<Located> {
    let Some(entry) = root.entry("validation") else { return Vec::new() };
    let table = &entry.node;
    let mut problems = Vec::new();
    match (table.find("path"), table.find("fraction")) {
        (Some(_), Some(fraction)) => problems.push(conflict(
            fraction,
            "`validation.path` and `validation.fraction` both say which rows are held back",
            "delete one of them",
        )),
        (None, None) if matches!(table.value, Value::Table(_)) => {
            let problem = Problem::Conflict {
                message: "`[validation]` names no rows".into(),
                hint: "write `fraction = 0.02` or `path = \"data/validation.jsonl\"`".into(),
            };
            problems.push(Located::new(problem, entry.key_place.clone()));
        }
        _ => {}
    }
    if let (Some(format), None) = (table.find("format"), table.find("path")) {
        problems.push(conflict(
            format,
            "`validation.format` is the format of `validation.path`, which is absent",
            "delete it: held-back rows have the format of their dataset",
        ));
    }
    problems
}

fn evaluate(root: &Node) -> Vec<Located> {
    let Some(table) = root.find("evaluate") else { return Vec::new() };
    let mut problems = Vec::new();
    if let Some(list) = table.find("task")
        && matches!(&list.value, Value::Array(elements) if elements.is_empty())
    {
        problems.push(conflict(
            list,
            "`evaluate.task` is an empty list: there is nothing to score",
            "write `[[evaluate.task]]` and below it `name = \"perplexity\"` and `data`",
        ));
    }
    if let Some(patience) = table.find("patience") {
        for (key, hint) in [
            ("best", "name the figure that is to get better: `best = \"task\"`"),
            ("every_steps", "say how often to score: `every_steps = 50`"),
        ] {
            if table.find(key).is_none() {
                let message = format!("`evaluate.patience` needs `evaluate.{key}`");
                problems.push(conflict(patience, &message, hint));
            }
        }
    }
    problems
}

fn no_dataset(root: &Node) -> Option<Located> {
    let list = root.find("dataset")?;
    let is_empty = matches!(&list.value, Value::Array(elements) if elements.is_empty());
    is_empty.then(|| {
        conflict(
            list,
            "`dataset` is an empty list: there is nothing to train on",
            "write `[[dataset]]` and below it `path = \"data/train.jsonl\"`",
        )
    })
}

fn target_modules(root: &Node) -> Option<Located> {
    let targets = ["adapter.lora.target_modules", "adapter.dora.target_modules"]
        .iter()
        .find_map(|path| root.find(path))?;
    match &targets.value {
        Value::String(word) if word != "all-linear" && !word.trim().is_empty() => Some(conflict(
            targets,
            &format!("`target_modules` is the word \"{}\"; the only word is \"all-linear\"", {
                word.chars().filter(|c| !c.is_control()).take(60).collect::<String>()
            }),
            "write names of modules as a list: `[\"q_proj\", \"v_proj\"]`",
        )),
        Value::Array(names) if names.is_empty() => Some(conflict(
            targets,
            "`target_modules` is an empty list: nothing would be trained",
            "write \"all-linear\", or names of modules",
        )),
        _ => None,
    }
}

/// Ways to begin that do not go with other keys.
fn initialization(root: &Node) -> Vec<Located> {
    let adapter = |key: &str| {
        ["adapter.lora", "adapter.dora"].iter().find_map(|t| root.find(&format!("{t}.{key}")))
    };
    let init = adapter("init");
    let word = init.and_then(Node::text).unwrap_or("kaiming_uniform");
    let mut problems = Vec::new();
    if let (Some(iterations), true) = (adapter("pissa_iterations"), word != "pissa") {
        problems.push(conflict(
            iterations,
            "`pissa_iterations` is about `init = \"pissa\"`",
            "delete it, or set `init = \"pissa\"`",
        ));
    }
    let Some(init) = init else { return problems };
    if adapter("init_from").is_some() {
        problems.push(conflict(
            init,
            "`init` and `init_from` both say how the adapter begins",
            "delete one of them",
        ));
    }
    let quantised = root.find("quantize_base").and_then(Node::text).is_some_and(|q| q != "none");
    if quantised && matches!(word, "pissa" | "olora") {
        problems.push(conflict(
            init,
            "`init` takes a part out of the base before it is quantised, which is not available",
            "delete `quantize_base`, or start with `init = \"kaiming_uniform\"`",
        ));
    }
    problems
}

fn output_is_base(root: &Node) -> Option<Located> {
    let output = root.find("output_dir")?;
    let same = output.text().map(trimmed) == root.find("base_model")?.text().map(trimmed);
    same.then(|| {
        conflict(
            output,
            "`output_dir` is the folder of the base model",
            "give the run a folder of its own, such as \"runs/name\"",
        )
    })
}

fn trimmed(path: &str) -> &str {
    path.trim_start_matches("./").trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recipe::schema;

    /// Paths of all numbers of the schema.
    fn numbers(value: &serde_json::Value, path: &str, found: &mut Vec<String>) {
        if matches!(value["type"].as_str(), Some("number" | "integer")) {
            found.push(path.to_owned());
        }
        for choice in value["oneOf"].as_array().into_iter().flatten() {
            numbers(choice, path, found);
        }
        if value["items"].is_object() {
            numbers(&value["items"], path, found);
        }
        if value["additionalProperties"].is_object() {
            numbers(&value["additionalProperties"], &format!("{path}.*"), found);
        }
        for (name, below) in value["properties"].as_object().into_iter().flatten() {
            numbers(below, format!("{path}.{name}").trim_start_matches('.'), found);
        }
    }

    #[test]
    fn every_number_of_the_schema_has_a_range() {
        let mut found = Vec::new();
        numbers(&schema(), "", &mut found);
        found.retain(|path| bound(path).is_none() && whole(path).is_none());
        assert_eq!(found, [""; 0]);
    }

    #[test]
    fn every_rule_is_about_a_number_of_the_schema() {
        let mut found = Vec::new();
        numbers(&schema(), "", &mut found);
        let names = BOUNDS.iter().map(|(name, _)| *name);
        for name in names.chain(WHOLE_NUMBERS.iter().map(|(name, ..)| *name)) {
            assert!(found.iter().any(|path| path == name), "{name}");
        }
    }
}
