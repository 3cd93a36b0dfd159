//! What `adapter_config.json` says, as far as updates of linear layers need it.

use crate::config::{LoraConfig, TargetModules};
use crate::error::AdapterError;
use crate::expert_parameters::ExpertParameters;
use crate::modules_to_save::{BiasMode, WeightTying};
use crate::pattern::ModulePatterns;
use crate::target::{
    DEFAULT_ALPHA, DEFAULT_RANK, LinearLayer, Target, last_components, names_any, recipe_patterns,
};

/// An adapter's configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeftConfig {
    /// The base model, as a hub id or a path.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision on the hub.
    pub revision: Option<String>,
    /// Rank of modules without a pattern (`r`).
    pub rank: usize,
    /// Alpha of modules without a pattern (`lora_alpha`).
    pub alpha: f64,
    /// Dropout of the training that made the adapter.
    pub dropout: f64,
    /// How rank and alpha make the scale (`use_rslora`).
    pub scaling: Scaling,
    /// Whether rows have magnitudes (DoRA).
    pub use_dora: bool,
    /// What was adapted. The tensors decide; this is what other programs go by.
    pub target_modules: Option<ModuleNames>,
    /// What was left out. Informational, as `target_modules` is.
    pub exclude_modules: Option<ModuleNames>,
    /// Ranks of single modules.
    pub rank_pattern: ModulePatterns<usize>,
    /// Alphas of single modules.
    pub alpha_pattern: ModulePatterns<f64>,
    /// Parameters that hold all experts of a layer and are adapted as such.
    pub target_parameters: Vec<String>,
    /// What their factors are written for.
    pub parameter_axes: ParameterAxes,
    /// Modules that are trained as a whole, as ends of their paths.
    pub modules_to_save: Vec<String>,
    /// Whether a head that is the embedding stays it when trained (`ensure_weight_tying`).
    pub weight_tying: WeightTying,
    /// Biases that are trained.
    pub bias: BiasMode,
    /// Keys of the file that no known version of PEFT writes; worth a warning.
    pub unknown_keys: Vec<String>,
}

/// What PEFT takes the axes of a parameter that holds experts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ParameterAxes {
    /// `[experts, d_out, d_in]`, since 0.19.
    #[default]
    OutIn,
    /// `[experts, d_in, d_out]`, before.
    InOut,
}

/// Modules as PEFT's config names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModuleNames {
    /// Whole paths or their ends after a dot.
    List(Vec<String>),
    /// A regular expression for whole paths, or `all-linear`.
    Expression(String),
}

/// The factor on `B·A`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scaling {
    /// alpha / rank
    #[default]
    ByRank,
    /// alpha / √rank, "rank-stabilised" (Kalajdzievski 2023, arXiv 2312.03732)
    BySquareRootOfRank,
}

impl Scaling {
    /// The scaling that a `use_rslora` key asks for; by rank where there is none.
    pub fn of(use_rslora: Option<bool>) -> Self {
        if use_rslora == Some(true) { Self::BySquareRootOfRank } else { Self::ByRank }
    }

    /// The one place where alpha and rank become a scale.
    pub fn scale(self, alpha: f64, rank: usize) -> f64 {
        match self {
            Self::ByRank => alpha / rank as f64,
            Self::BySquareRootOfRank => alpha / (rank as f64).sqrt(),
        }
    }
}

impl PeftConfig {
    /// The configuration of an adapter that a recipe describes.
    ///
    /// `targets` is what [`select_targets`](crate::select_targets) chose from `linear_layers`.
    pub fn from_recipe(
        config: &LoraConfig,
        targets: &[Target],
        linear_layers: &[LinearLayer],
        base_model: &str,
    ) -> Result<Self, AdapterError> {
        let (rank_pattern, alpha_pattern) = recipe_patterns(config)?;
        let parameters = ExpertParameters::of(config, targets, linear_layers)?;
        let wanted = match &config.target_modules {
            Some(TargetModules::List(entries)) => entries.as_slice(),
            _ => &[],
        };
        Ok(Self {
            base_model_name_or_path: Some(base_model.to_owned()),
            revision: None,
            rank: config.rank.map_or(DEFAULT_RANK, usize::from),
            alpha: config.alpha.unwrap_or(DEFAULT_ALPHA),
            dropout: config.dropout,
            scaling: Scaling::of(config.use_rslora),
            use_dora: false,
            target_modules: Some(ModuleNames::List(module_names(
                wanted,
                &parameters.others(targets),
                linear_layers,
            ))),
            exclude_modules: None,
            rank_pattern: parameters.with_ranks(&rank_pattern),
            alpha_pattern,
            target_parameters: parameters.entries,
            parameter_axes: ParameterAxes::OutIn,
            modules_to_save: config.modules_to_save.clone(),
            weight_tying: WeightTying::of(config.ensure_weight_tying),
            bias: config.bias.unwrap_or_default(),
            unknown_keys: Vec::new(),
        })
    }

    /// The configuration of an adapter trained further from this one: scale and ranks stay, the
    /// modules are named after `targets`.
    #[must_use]
    pub fn continued(
        &self,
        config: &LoraConfig,
        targets: &[Target],
        linear_layers: &[LinearLayer],
        base_model: &str,
    ) -> Self {
        let wanted = match &self.target_modules {
            Some(ModuleNames::List(entries)) => entries.as_slice(),
            _ => &[],
        };
        Self {
            base_model_name_or_path: Some(base_model.to_owned()),
            revision: None,
            dropout: config.dropout,
            target_modules: Some(ModuleNames::List(module_names(wanted, targets, linear_layers))),
            exclude_modules: None,
            unknown_keys: Vec::new(),
            ..self.clone()
        }
    }

    /// Refuses DoRA of experts that are adapted as parameters.
    pub fn check_experts(&self) -> Result<(), AdapterError> {
        if self.use_dora && !self.target_parameters.is_empty() {
            return Err(AdapterError::ExpertDora { parameters: self.target_parameters.clone() });
        }
        Ok(())
    }

    /// Rank of `module`.
    pub fn rank(&self, module: &str) -> usize {
        let parameter = self.parameter_of(module);
        let key = parameter.as_deref().unwrap_or(module);
        self.rank_pattern.get(key).unwrap_or(self.rank)
    }

    /// Alpha of `module`.
    pub fn alpha(&self, module: &str) -> f64 {
        let parameter = self.parameter_of(module);
        let key = parameter.as_deref().unwrap_or(module);
        self.alpha_pattern.get(key).unwrap_or(self.alpha)
    }

    /// Factor on `B·A` of `module`.
    pub fn scale(&self, module: &str) -> f64 {
        self.scaling.scale(self.alpha(module), self.rank(module))
    }
}

/// A list that selects exactly `targets` out of `linear_layers`: the one asked for, else last
/// components of names, else whole paths. Sorted, without repetition.
fn module_names(
    wanted: &[String],
    targets: &[Target],
    linear_layers: &[LinearLayer],
) -> Vec<String> {
    let is_target = |layer: &LinearLayer| targets.iter().any(|target| target.name == layer.name);
    let selects_targets = |entries: &[String]| {
        linear_layers.iter().all(|layer| names_any(entries, &layer.name) == is_target(layer))
    };
    let sorted = |mut entries: Vec<String>| {
        entries.sort_unstable();
        entries.dedup();
        entries
    };
    let short = last_components(targets.iter().map(|target| target.name.as_str()));
    if !wanted.is_empty() && selects_targets(wanted) {
        sorted(wanted.to_vec())
    } else if selects_targets(&short) {
        short
    } else {
        sorted(targets.iter().map(|target| target.name.clone()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::target::select_targets;
    use crate::target::tests::{llama_layers, lora};

    fn target_modules_of(config: &LoraConfig) -> Vec<String> {
        let layers = llama_layers();
        let targets = select_targets(config, &layers).unwrap();
        let peft = PeftConfig::from_recipe(config, &targets, &layers, "base").unwrap();
        match peft.target_modules {
            Some(ModuleNames::List(names)) => names,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn all_linear_is_written_as_the_short_names() {
        assert_eq!(target_modules_of(&lora()), ["down_proj", "k_proj", "q_proj", "up_proj"]);
    }

    #[test]
    fn a_list_of_the_recipe_is_kept_where_it_selects_the_same() {
        let entries = ["self_attn.q_proj", "mlp.up_proj", "self_attn.q_proj"];
        let list = TargetModules::List(entries.map(str::to_owned).to_vec());
        let config = LoraConfig { target_modules: Some(list), ..lora() };
        assert_eq!(target_modules_of(&config), ["mlp.up_proj", "self_attn.q_proj"]);
    }

    #[test]
    fn exclusions_that_short_names_cannot_express_give_whole_paths() {
        let config = LoraConfig {
            target_modules: Some(TargetModules::List(vec!["q_proj".to_owned()])),
            exclude_modules: vec!["layers.1.self_attn.q_proj".to_owned()],
            ..lora()
        };
        assert_eq!(target_modules_of(&config), ["model.layers.0.self_attn.q_proj"]);
        let config = LoraConfig { exclude_modules: vec!["q_proj".to_owned()], ..lora() };
        assert_eq!(target_modules_of(&config), ["down_proj", "k_proj", "up_proj"]);
    }

    #[test]
    fn scale_is_alpha_by_rank_or_by_its_root_with_the_patterns_of_the_module() {
        let mut config = lora();
        config.rank_pattern.insert("q_proj".to_owned(), 4.try_into().unwrap());
        config.alpha_pattern.insert("up_proj".to_owned(), 8.0);
        let layers = llama_layers();
        let targets = select_targets(&config, &layers).unwrap();
        let mut peft = PeftConfig::from_recipe(&config, &targets, &layers, "base").unwrap();
        let of = |peft: &PeftConfig, name: &str| peft.scale(&format!("model.layers.0.{name}"));
        assert!((of(&peft, "self_attn.q_proj") - 8.0).abs() < 1e-12);
        assert!((of(&peft, "mlp.up_proj") - 0.5).abs() < 1e-12);
        assert!((of(&peft, "mlp.down_proj") - 2.0).abs() < 1e-12);
        peft.scaling = Scaling::BySquareRootOfRank;
        assert!((of(&peft, "self_attn.q_proj") - 16.0).abs() < 1e-12);
        assert!((of(&peft, "mlp.up_proj") - 2.0).abs() < 1e-12);
        for target in &targets {
            assert_eq!(peft.rank(&target.name), target.rank);
        }
    }
}
