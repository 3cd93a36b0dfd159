//! Which tensors of the base are trained themselves: `modules_to_save` and `bias`.

use std::collections::BTreeSet;

use crate::config::LoraConfig;
use crate::error::AdapterError;
use crate::peft::PeftConfig;
use crate::target::last_components;

/// The tensors of a model that could be trained.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseTensors {
    /// Names and shapes as files hold them. The head is among them where it has, or could get,
    /// weights of its own.
    pub tensors: Vec<(String, Vec<usize>)>,
    /// Module of the embedding.
    pub embedding: String,
    /// Module of the head.
    pub head: String,
    /// Whether the head is the embedding.
    pub is_tied: bool,
}

/// Which biases are trained, as PEFT's `bias`.
#[derive(
    Debug,
    Clone,
    Copy,
    Default,
    PartialEq,
    Eq,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum BiasMode {
    /// None.
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

impl BiasMode {
    /// PEFT's words.
    pub(crate) const WORDS: [(&'static str, Self); 3] =
        [("none", Self::None), ("all", Self::All), ("lora_only", Self::LoraOnly)];

    pub(crate) fn word(self) -> &'static str {
        Self::WORDS.iter().find(|row| row.1 == self).map_or("none", |row| row.0)
    }
}

/// What becomes of a head that is the embedding, where one of them is trained as a whole
/// (`ensure_weight_tying`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightTying {
    /// They part.
    #[default]
    Dropped,
    /// They are trained as the one matrix they are.
    Ensured,
}

impl WeightTying {
    /// What the key of that name asks for.
    pub fn of(ensure_weight_tying: Option<bool>) -> Self {
        if ensure_weight_tying == Some(true) { Self::Ensured } else { Self::Dropped }
    }
}

/// What of the base is trained.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WholeSelection {
    /// Names of the tensors.
    pub tensors: BTreeSet<String>,
    /// Whether a head that was the embedding becomes a matrix of its own.
    pub unties_head: bool,
    /// Numbers in them.
    pub parameters: u64,
}

impl WholeSelection {
    /// Whether nothing of the base is trained.
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// Names of the modules, each once.
    pub fn modules(&self) -> BTreeSet<&str> {
        self.tensors.iter().map(|name| module_of(name)).collect()
    }
}

/// The module of a tensor: its name without `.weight` or `.bias`.
pub(crate) fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}

fn is_bias(tensor: &str) -> bool {
    tensor.rsplit('.').next() == Some("bias")
}

/// Whether PEFT takes `module` for one that `entries` name: by the end of its path, wherever that
/// end begins.
pub(crate) fn is_saved(entries: &[String], module: &str) -> bool {
    entries.iter().any(|entry| module.ends_with(entry.as_str()))
}

impl PeftConfig {
    /// The tensors of the base that are trained beside the low-rank updates of `targets`.
    ///
    /// Every entry that names nothing is in the error.
    pub fn select_whole<'a>(
        &self,
        targets: impl Iterator<Item = &'a str>,
        base: &BaseTensors,
    ) -> Result<WholeSelection, AdapterError> {
        let adapted: BTreeSet<&str> = targets.collect();
        let mut errors = missing_entries(&self.modules_to_save, base);
        let is_chosen = |name: &str| {
            is_saved(&self.modules_to_save, module_of(name))
                || is_bias(name) && self.trains_bias(&adapted, module_of(name))
        };
        let chosen = base.tensors.iter().filter(|(name, _)| is_chosen(name));
        let mut tensors: BTreeSet<String> = chosen.map(|(name, _)| name.clone()).collect();
        let [embedding, head] = [&base.embedding, &base.head].map(|m| format!("{m}.weight"));
        let is_end = tensors.contains(&embedding) || tensors.contains(&head);
        let ensured = self.weight_tying == WeightTying::Ensured;
        if ensured && !(base.is_tied && is_end) {
            errors.push(AdapterError::NothingTied { is_tied: base.is_tied });
        }
        if self.bias != BiasMode::None && !tensors.iter().any(|name| is_bias(name)) {
            errors.push(AdapterError::NoBias);
        }
        AdapterError::collected(errors)?;
        if ensured && tensors.remove(&head) {
            tensors.insert(embedding);
        }
        let unties_head = base.is_tied && is_end && !ensured;
        let sizes = base.tensors.iter().filter(|(name, _)| tensors.contains(name));
        let parameters = sizes.map(|(_, shape)| shape.iter().product::<usize>() as u64).sum();
        Ok(WholeSelection { tensors, unties_head, parameters })
    }

    fn trains_bias(&self, adapted: &BTreeSet<&str>, module: &str) -> bool {
        match self.bias {
            BiasMode::None => false,
            BiasMode::All => true,
            BiasMode::LoraOnly => adapted.contains(module),
        }
    }
}

impl LoraConfig {
    /// Whether a layer is trained as a whole, and gets no low-rank update.
    pub(crate) fn saves(&self, module: &str) -> bool {
        is_saved(&self.modules_to_save, module)
    }
}

fn missing_entries(entries: &[String], base: &BaseTensors) -> Vec<AdapterError> {
    let modules: Vec<&str> = base.tensors.iter().map(|(name, _)| module_of(name)).collect();
    let is_idle = |entry: &&String| {
        entry.is_empty() || !modules.iter().any(|module| module.ends_with(entry.as_str()))
    };
    let available = || last_components(modules.iter().copied());
    entries
        .iter()
        .filter(is_idle)
        .map(|entry| AdapterError::NotSavable { entry: entry.clone(), available: available() })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> BaseTensors {
        let tensors = [
            ("model.embed_tokens.weight", vec![10, 4]),
            ("model.layers.0.input_layernorm.weight", vec![4]),
            ("model.layers.0.self_attn.q_proj.weight", vec![4, 4]),
            ("model.layers.0.self_attn.q_proj.bias", vec![4]),
            ("model.layers.0.mlp.up_proj.bias", vec![8]),
            ("model.norm.weight", vec![4]),
            ("lm_head.weight", vec![10, 4]),
        ];
        BaseTensors {
            tensors: tensors.map(|(name, shape)| (name.to_owned(), shape)).into(),
            embedding: "model.embed_tokens".to_owned(),
            head: "lm_head".to_owned(),
            is_tied: false,
        }
    }

    fn select(keys: &serde_json::Value) -> Result<WholeSelection, AdapterError> {
        let config = PeftConfig {
            modules_to_save: serde_json::from_value(keys["modules_to_save"].clone()).unwrap(),
            weight_tying: WeightTying::of(keys["ensure_weight_tying"].as_bool()),
            bias: serde_json::from_value(keys["bias"].clone()).unwrap(),
            ..PeftConfig::default()
        };
        let base = BaseTensors { is_tied: keys["is_tied"] == true, ..base() };
        config.select_whole(["model.layers.0.self_attn.q_proj"].into_iter(), &base)
    }

    #[test]
    fn entries_are_ends_of_paths_as_peft_takes_them() {
        let keys = serde_json::json!({"modules_to_save": ["norm", "lm_head"], "bias": "none"});
        let found = select(&keys).unwrap();
        let names: Vec<&str> = found.tensors.iter().map(String::as_str).collect();
        let expected =
            ["lm_head.weight", "model.layers.0.input_layernorm.weight", "model.norm.weight"];
        assert_eq!(names, expected);
        assert_eq!((found.parameters, found.unties_head), (48, false));
        let keys = serde_json::json!({"modules_to_save": ["mlp"], "bias": "none"});
        let error = select(&keys).unwrap_err();
        assert!(error.to_string().contains("`mlp`"), "{error}");
    }

    #[test]
    fn a_tied_head_is_untied_unless_the_tie_is_ensured() {
        let keys = |ensured: &str, tied: &str| {
            let text = format!(
                r#"{{"modules_to_save": ["lm_head"], "bias": "none", "is_tied": {tied},
                "ensure_weight_tying": {ensured}}}"#
            );
            serde_json::from_str::<serde_json::Value>(&text).unwrap()
        };
        let found = select(&keys("false", "true")).unwrap();
        assert!(found.unties_head && found.tensors.contains("lm_head.weight"));
        let found = select(&keys("true", "true")).unwrap();
        assert!(!found.unties_head && found.tensors.contains("model.embed_tokens.weight"));
        assert_eq!(found.tensors.len(), 1);
        assert!(select(&keys("true", "false")).is_err());
    }

    #[test]
    fn biases_are_all_or_those_of_adapted_layers() {
        let count = |bias: &str| {
            let keys = serde_json::json!({"modules_to_save": [], "bias": bias});
            select(&keys).unwrap().tensors.len()
        };
        assert_eq!([count("none"), count("lora_only"), count("all")], [0, 1, 2]);
    }
}
