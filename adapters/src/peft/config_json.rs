//! `adapter_config.json`: parsed with every fault collected, and written.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::config::{ModuleNames, ParameterAxes, PeftConfig, Scaling};
use crate::error::AdapterError;
use crate::modules_to_save::{BiasMode, WeightTying};
use crate::pattern::ModulePatterns;

/// PEFT's defaults for keys a file leaves out.
const PEFT_DEFAULT_RANK: usize = 8;
const PEFT_DEFAULT_ALPHA: f64 = 8.0;
/// More patterns than the largest models have layers, few enough to hold compiled.
const MAX_PATTERNS: usize = 20_000;

/// Keys that change what an adapter computes; each is refused unless null, false or empty.
const UNSUPPORTED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
];

/// Ways of starting an adapter that change the base model's weights too.
const BASE_CHANGING_STARTS: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

/// Keys that are read, or describe how the adapter was made and not what it computes.
const KNOWN: &[&str] = &[
    "alpha_pattern",
    "auto_mapping",
    "base_model_name_or_path",
    "bias",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "exclude_modules",
    // PEFT itself takes this from the layers it meets.
    "fan_in_fan_out",
    "inference_mode",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "loftq_config",
    "lora_alpha",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "modules_to_save",
    "parent_library",
    "peft_type",
    "peft_version",
    "qalora_group_size",
    "r",
    "rank_pattern",
    "revision",
    "runtime_config",
    "target_modules",
    "target_parameters",
    "task_type",
    "use_dora",
    "use_rslora",
    "velora_config",
];

/// The version of PEFT whose layout of expert parameters is written.
const LAYOUT_VERSION: &str = "0.21.0";

/// Reads a config's text; `path` is for messages.
pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<PeftConfig, AdapterError> {
    let syntax = |reason: String| AdapterError::ConfigSyntax { path: path.to_owned(), reason };
    let keys: Map<String, Value> =
        serde_json::from_slice(text).map_err(|error| syntax(error.to_string()))?;
    let features = unsupported(&keys);
    if !features.is_empty() {
        return Err(AdapterError::Unsupported { path: path.to_owned(), features });
    }
    let mut reader = Reader { keys: &keys, problems: Vec::new() };
    let config = reader.config();
    if reader.problems.is_empty() {
        return Ok(config);
    }
    Err(AdapterError::ConfigValues { path: path.to_owned(), problems: reader.problems })
}

/// Everything the config asks for that is not implemented.
fn unsupported(keys: &Map<String, Value>) -> Vec<String> {
    let mut features = Vec::new();
    match keys.get("peft_type") {
        Some(Value::String(kind)) if kind.eq_ignore_ascii_case("lora") => {}
        other => features.push(format!("`peft_type` = {}", shown(other))),
    }
    for &key in UNSUPPORTED {
        if keys.get(key).is_some_and(is_set) {
            features.push(format!("`{key}` = {}", shown(keys.get(key))));
        }
    }
    if let Some(Value::String(word)) = keys.get("init_lora_weights") {
        let lower = word.to_ascii_lowercase();
        if BASE_CHANGING_STARTS.iter().any(|start| lower.starts_with(start)) {
            features.push(format!("`init_lora_weights` = \"{word}\""));
        }
    }
    features
}

fn is_set(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Array(items) => !items.is_empty(),
        Value::Object(items) => !items.is_empty(),
        _ => true,
    }
}

/// A value for a message, cut where it is long.
fn shown(value: Option<&Value>) -> String {
    let text = value.map_or_else(|| "nothing".to_owned(), Value::to_string);
    if text.chars().count() <= 60 {
        return text;
    }
    text.chars().take(57).chain("...".chars()).collect()
}

/// Typed access to the keys; what has the wrong type is noted and replaced by a default.
struct Reader<'a> {
    keys: &'a Map<String, Value>,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn config(&mut self) -> PeftConfig {
        PeftConfig {
            base_model_name_or_path: self.text("base_model_name_or_path"),
            revision: self.text("revision"),
            rank: self.typed("r", "a whole number above 0", rank).unwrap_or(PEFT_DEFAULT_RANK),
            alpha: self.typed("lora_alpha", FINITE, finite).unwrap_or(PEFT_DEFAULT_ALPHA),
            dropout: self.typed("lora_dropout", FINITE, finite).unwrap_or(0.0),
            scaling: Scaling::of(self.typed("use_rslora", "true or false", Value::as_bool)),
            use_dora: self.typed("use_dora", "true or false", Value::as_bool).unwrap_or(false),
            target_modules: self.typed("target_modules", NAMES, module_names),
            exclude_modules: self.typed("exclude_modules", NAMES, module_names),
            rank_pattern: self.patterns("rank_pattern", "a whole number above 0", rank),
            alpha_pattern: self.patterns("alpha_pattern", FINITE, finite),
            target_parameters: self
                .typed("target_parameters", "a list of texts", texts)
                .unwrap_or_default(),
            parameter_axes: self.parameter_axes(),
            modules_to_save: self
                .typed("modules_to_save", "a list of texts", texts)
                .unwrap_or_default(),
            weight_tying: WeightTying::of(self.typed(
                "ensure_weight_tying",
                "true or false",
                Value::as_bool,
            )),
            bias: self
                .typed("bias", "\"none\", \"all\" or \"lora_only\"", bias)
                .unwrap_or_default(),
            unknown_keys: self.unknown_keys(),
        }
    }

    fn text(&mut self, key: &str) -> Option<String> {
        self.typed(key, "text or null", |value| value.as_str().map(str::to_owned))
    }

    fn typed<T>(
        &mut self,
        key: &str,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Option<T> {
        let value = self.keys.get(key).filter(|value| !value.is_null())?;
        let typed = read(value);
        if typed.is_none() {
            let found = shown(Some(value));
            self.problems.push(format!("`{key}` is {found}, but must be {wanted}"));
        }
        typed
    }

    fn patterns<T: Copy>(
        &mut self,
        table: &str,
        wanted: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> ModulePatterns<T> {
        let entries = self.typed(table, "an object", |value| value.as_object().cloned());
        let entries = entries.unwrap_or_default();
        if entries.len() > MAX_PATTERNS {
            self.problems.push(format!("`{table}` has more than {MAX_PATTERNS} keys"));
            return ModulePatterns::default();
        }
        let mut pairs = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            if let Some(typed) = read(&value) {
                pairs.push((key, typed));
            } else {
                let found = shown(Some(&value));
                self.problems.push(format!("`{table}.{key}` is {found}, but must be {wanted}"));
            }
        }
        ModulePatterns::new(pairs).unwrap_or_else(|bad| {
            let line = |bad: crate::BadPattern| {
                format!("`{table}` key `{}` cannot be matched: {}", bad.key, bad.reason)
            };
            self.problems.extend(bad.into_iter().map(line));
            ModulePatterns::default()
        })
    }

    /// PEFT 0.19 turned the factors of parameters around.
    fn parameter_axes(&mut self) -> ParameterAxes {
        let version = self.text("peft_version").unwrap_or_default();
        let mut numbers = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        let has_parameters = self.keys.get("target_parameters").is_some_and(is_set);
        if has_parameters && version < (0, 19) {
            ParameterAxes::InOut
        } else {
            ParameterAxes::OutIn
        }
    }

    fn unknown_keys(&self) -> Vec<String> {
        let is_known = |key: &str| KNOWN.contains(&key) || UNSUPPORTED.contains(&key);
        self.keys.keys().filter(|key| !is_known(key)).cloned().collect()
    }
}

const FINITE: &str = "a finite number";
const NAMES: &str = "text or a list of texts";

fn rank(value: &Value) -> Option<usize> {
    value.as_u64().filter(|&rank| rank > 0).and_then(|rank| usize::try_from(rank).ok())
}

fn finite(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite())
}

fn bias(value: &Value) -> Option<BiasMode> {
    let word = value.as_str()?;
    BiasMode::WORDS.iter().find(|(known, _)| *known == word).map(|&(_, mode)| mode)
}

fn texts(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

fn module_names(value: &Value) -> Option<ModuleNames> {
    match value {
        Value::String(expression) => Some(ModuleNames::Expression(expression.clone())),
        Value::Array(items) => items
            .iter()
            .map(|item| item.as_str().map(str::to_owned))
            .collect::<Option<_>>()
            .map(ModuleNames::List),
        _ => None,
    }
}

/// The text of a config: keys sorted, and only those in use, because older PEFT refuses keys it
/// does not know.
///
/// `parameters` are rank and alpha of the expert parameters.
pub(super) fn to_text(config: &PeftConfig, parameters: &BTreeMap<String, (usize, f64)>) -> String {
    let mut keys = vec![
        ("base_model_name_or_path", json!(config.base_model_name_or_path)),
        ("bias", json!(config.bias)),
        ("fan_in_fan_out", json!(false)),
        ("inference_mode", json!(true)),
        ("init_lora_weights", json!(true)),
        ("lora_alpha", number(config.alpha)),
        ("lora_dropout", json!(config.dropout)),
        ("peft_type", json!("LORA")),
        ("r", json!(config.rank)),
        ("target_modules", names_json(config.target_modules.as_ref())),
        ("task_type", json!("CAUSAL_LM")),
    ];
    if config.scaling == Scaling::BySquareRootOfRank {
        keys.push(("use_rslora", json!(true)));
    }
    if config.use_dora {
        keys.push(("use_dora", json!(true)));
    }
    if !config.modules_to_save.is_empty() {
        keys.push(("modules_to_save", json!(config.modules_to_save)));
    }
    if config.weight_tying == WeightTying::Ensured {
        keys.push(("ensure_weight_tying", json!(true)));
    }
    if let Some(revision) = &config.revision {
        keys.push(("revision", json!(revision)));
    }
    if config.exclude_modules.is_some() {
        keys.push(("exclude_modules", names_json(config.exclude_modules.as_ref())));
    }
    if !parameters.is_empty() {
        keys.push(("target_parameters", json!(config.target_parameters)));
        keys.push(("peft_version", json!(LAYOUT_VERSION)));
    }
    // The first key that fits counts, so those of single parameters come first.
    let ranks = parameters.iter().map(|(key, &(rank, _))| (key.clone(), json!(rank)));
    let rank = |(key, rank): (&str, usize)| (key.to_owned(), json!(rank));
    let ranks: Map<_, _> = first_of_each(ranks.chain(config.rank_pattern.iter().map(rank)));
    if !ranks.is_empty() {
        keys.push(("rank_pattern", Value::Object(ranks)));
    }
    let alphas = parameters.iter().map(|(key, &(_, alpha))| (key.clone(), number(alpha)));
    let alpha = |(key, alpha): (&str, f64)| (key.to_owned(), number(alpha));
    let alphas: Map<_, _> = first_of_each(alphas.chain(config.alpha_pattern.iter().map(alpha)));
    if !alphas.is_empty() {
        keys.push(("alpha_pattern", Value::Object(alphas)));
    }
    keys.sort_unstable_by_key(|(key, _)| *key);
    let object: Map<_, _> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    format!("{:#}\n", Value::Object(object))
}

/// A table in which the first value of a key counts.
fn first_of_each(entries: impl Iterator<Item = (String, Value)>) -> Map<String, Value> {
    let mut table = Map::new();
    for (key, value) in entries {
        table.entry(key).or_insert(value);
    }
    table
}

/// Whole numbers without a fraction: readers of other programs take `lora_alpha` as an integer.
fn number(value: f64) -> Value {
    const EXACT_INTEGERS: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < EXACT_INTEGERS {
        json!(value as i64)
    } else {
        json!(value)
    }
}

fn names_json(names: Option<&ModuleNames>) -> Value {
    match names {
        None => Value::Null,
        Some(ModuleNames::Expression(expression)) => json!(expression),
        Some(ModuleNames::List(names)) => json!(names),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &Value) -> Result<PeftConfig, AdapterError> {
        parse(Path::new("a/adapter_config.json"), value.to_string().as_bytes())
    }

    #[test]
    fn a_config_of_the_first_peft_versions_loads_with_peft_defaults() {
        let config = parsed(&json!({
            "base_model_name_or_path": "llama", "bias": "none", "enable_lora": null,
            "fan_in_fan_out": false, "inference_mode": true, "lora_dropout": 0.05,
            "merge_weights": false, "modules_to_save": null, "peft_type": "LORA",
            "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"
        }))
        .unwrap();
        assert_eq!((config.rank, config.alpha), (8, 8.0));
        assert_eq!(config.unknown_keys, ["enable_lora", "merge_weights"]);
        let names = vec!["q_proj".to_owned(), "v_proj".to_owned()];
        assert_eq!(config.target_modules, Some(ModuleNames::List(names)));
    }

    #[test]
    fn everything_unsupported_is_named_in_one_error() {
        let error = parsed(&json!({
            "peft_type": "LORA", "trainable_token_indices": [1],
            "layer_replication": [[0, 4]], "lora_bias": true,
            "megatron_config": {"x": 1},
            "alora_invocation_tokens": [5], "use_qalora": true, "r": "wrong",
            "init_lora_weights": "pissa_niter_16"
        }))
        .unwrap_err();
        let text = error.to_string();
        for part in [
            "`trainable_token_indices`",
            "`layer_replication`",
            "`lora_bias`",
            "`megatron_config`",
            "`alora_invocation_tokens`",
            "`use_qalora`",
            "`init_lora_weights` = \"pissa_niter_16\"",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
        assert!(error.hint().unwrap().contains("path_initial_model_for_weight_conversion"));
    }

    #[test]
    fn another_peft_type_is_refused() {
        let text = parsed(&json!({"peft_type": "LOHA"})).unwrap_err().to_string();
        assert!(text.ends_with("not supported: `peft_type` = \"LOHA\""), "{text}");
        assert!(parsed(&json!({"r": 4})).unwrap_err().to_string().contains("= nothing"));
    }

    #[test]
    fn wrong_values_are_all_named() {
        let text = parsed(&json!({
            "peft_type": "LORA", "r": 0, "lora_alpha": "16", "target_modules": [1],
            "rank_pattern": {"q_proj": -1, "k[": 2}, "use_rslora": 1
        }))
        .unwrap_err()
        .to_string();
        for part in [
            "`r` is 0, but must be a whole number above 0",
            "`lora_alpha` is \"16\", but must be a finite number",
            "`target_modules` is [1], but must be text or a list of texts",
            "`rank_pattern.q_proj` is -1",
            "`rank_pattern` key `k[` cannot be matched",
            "`use_rslora` is 1, but must be true or false",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn broken_json_says_where() {
        let error = parse(Path::new("c.json"), b"{\"r\": 4,\n oops}").unwrap_err().to_string();
        assert!(
            error.contains("`c.json` is not a JSON object") && error.contains("line 2"),
            "{error}"
        );
        assert!(parse(Path::new("c.json"), b"[]").is_err());
    }

    #[test]
    fn a_plain_config_is_written_with_the_keys_of_the_first_versions_only() {
        let config = parsed(&json!({
            "peft_type": "LORA", "r": 16, "lora_alpha": 32, "base_model_name_or_path": "b",
            "target_modules": ["q_proj"], "use_rslora": false, "rank_pattern": {},
            "alpha_pattern": {}, "exclude_modules": null, "peft_version": "0.21.2"
        }))
        .unwrap();
        let expected = r#"{
  "base_model_name_or_path": "b",
  "bias": "none",
  "fan_in_fan_out": false,
  "inference_mode": true,
  "init_lora_weights": true,
  "lora_alpha": 32,
  "lora_dropout": 0.0,
  "peft_type": "LORA",
  "r": 16,
  "target_modules": [
    "q_proj"
  ],
  "task_type": "CAUSAL_LM"
}
"#;
        assert_eq!(to_text(&config, &BTreeMap::new()), expected);
    }
}
