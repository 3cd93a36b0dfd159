//! The recipe: everything that decides what a run does, in one TOML file.
//!
//! [`Draft::read`] parses, merges `--set` overrides and collects every problem with its place;
//! [`load`] is the same for callers that need a recipe or an error. Known keys and types come
//! from the JSON schema of the config structs ([`schema`]), so the check cannot drift from them;
//! rules about values are in `rules.rs`, poor choices in `advice.rs`, what is planned but not
//! there yet in `availability.rs`.

mod advice;
mod availability;
mod document;
mod evaluate_config;
mod overrides;
mod problem;
mod rules;
mod schema;
mod schema_check;

use std::io::Read;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use adapters::{AdapterConfig, DEFAULT_ALPHA, DEFAULT_RANK, LoraConfig, TargetModules};
use datasets::{BatchConfig, DatasetConfig, ValidationConfig};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use trainer::{
    AdamwConfig, CheckpointConfig, DecayConfig, ObjectiveConfig, OptimizerConfig, Precision,
    RopeScalingConfig, ScheduleConfig, SftConfig, TrainConfig,
};

pub use document::Place;
use document::{Node, Source, SourceKind};
pub use evaluate_config::{EvaluateConfig, EvaluateTask};
pub use problem::{Findings, Located, Problem, RecipeError, Severity};
pub use schema::schema;

/// A whole recipe, defaults filled in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Tunesmith recipe")]
pub struct Recipe {
    /// Folder, `.gguf` file, or hub id such as `"meta-llama/Llama-2-7b-hf"`.
    pub base_model: String,
    /// Folder of the run: checkpoints, metrics and the finished adapter.
    pub output_dir: PathBuf,
    /// Decides the order of the data, dropout and the first adapter weights.
    #[serde(default = "default_seed")]
    pub seed: u64,
    /// Number format of the forward and backward pass.
    #[serde(default)]
    pub precision: Precision,
    /// Whether results must repeat. `false` would allow faster kernels whose results do not; there
    /// are none, on the CPU and on CUDA, so it changes nothing yet.
    #[serde(default = "default_deterministic")]
    pub deterministic: bool,
    /// Storage of the frozen base weights.
    #[serde(default)]
    pub quantize_base: QuantizeBase,
    /// A longer context than the base's: training and merging see a base whose `config.json` says
    /// so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScalingConfig>,
    /// Rows to train on, mixed by weight.
    pub dataset: Vec<DatasetConfig>,
    /// Rows that are scored and never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<ValidationConfig>,
    /// How rows become batches.
    #[serde(default)]
    pub batch: BatchConfig,
    /// The adapter method and its keys.
    #[serde(default = "default_adapter")]
    pub adapter: AdapterConfig,
    /// What is minimised.
    #[serde(default = "default_objective")]
    pub objective: ObjectiveConfig,
    /// How gradients become updates.
    #[serde(default = "default_optimizer")]
    pub optimizer: OptimizerConfig,
    /// The learning rate over time.
    #[serde(default = "default_schedule")]
    pub schedule: ScheduleConfig,
    /// Length of the run, clipping, memory.
    #[serde(default)]
    pub train: TrainConfig,
    /// When the run is saved.
    #[serde(default)]
    pub checkpoint: CheckpointConfig,
    /// What the run is scored on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluate: Option<EvaluateConfig>,
}

/// Storage of the frozen base weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantizeBase {
    /// As the base model has them.
    #[default]
    None,
    /// Linear layers in 8 bits, one scale a row.
    Int8,
    /// Linear layers in 4 bits: NF4 with double quantisation, one scale every 64 weights.
    Nf4,
}

fn default_seed() -> u64 {
    42
}

fn default_deterministic() -> bool {
    true
}

fn default_adapter() -> AdapterConfig {
    AdapterConfig::Lora(LoraConfig::default())
}

fn default_objective() -> ObjectiveConfig {
    ObjectiveConfig::Sft(SftConfig::default())
}

fn default_optimizer() -> OptimizerConfig {
    OptimizerConfig::Adamw(AdamwConfig::default())
}

fn default_schedule() -> ScheduleConfig {
    ScheduleConfig::Cosine(DecayConfig::default())
}

impl Recipe {
    /// Reads a recipe from text; places in errors are in `name`.
    pub fn parse(name: &str, text: &str) -> Result<Self, RecipeError> {
        Draft::parse(name, text, &[]).finish().map(|loaded| loaded.recipe)
    }

    /// The recipe as it runs, every default written out; reads back to the same value.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string(self)
    }

    /// Writes down the choices that an absent key leaves to the program.
    ///
    /// With `init_from`, rank, alpha, targets and scaling stay absent: they are the adapter's,
    /// and writing them down would be a second source of truth.
    fn fill_defaults(mut self) -> Self {
        let lora = self.adapter.low_rank_mut();
        if lora.init_from.is_none() {
            lora.rank = lora.rank.or(std::num::NonZeroUsize::new(DEFAULT_RANK));
            lora.alpha = lora.alpha.or(Some(DEFAULT_ALPHA));
            lora.use_rslora = lora.use_rslora.or(Some(false));
            lora.init = lora.init.or(Some(adapters::Initialization::default()));
            let all_linear = || TargetModules::Word("all-linear".to_owned());
            lora.target_modules = Some(lora.target_modules.take().unwrap_or_else(all_linear));
        }
        if self.train.steps.is_none() {
            self.train.epochs = self.train.epochs.or(Some(NonZeroU64::MIN));
        }
        self
    }
}

/// A recipe that can run, and what is said about it.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The recipe, defaults filled in.
    pub recipe: Recipe,
    /// Choices that are known to be poor.
    pub warnings: Findings,
}

/// Reads the recipe at `path`, with `--set` overrides in order; all errors at once.
pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, RecipeError> {
    Draft::read(path, overrides)?.finish()
}

/// A recipe that has been read, with everything that is wrong with it.
#[derive(Debug, Clone)]
pub struct Draft {
    sources: Vec<Source>,
    root: Option<Node>,
    problems: Vec<Located>,
    warnings: Vec<Located>,
    recipe: Option<Recipe>,
}

/// No recipe that a person writes is longer; a longer file is something else.
const MAX_RECIPE_BYTES: u64 = 1 << 20;

impl Draft {
    /// Reads a file; an error only where there is no text to look at.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, RecipeError> {
        let text = read_text(path).map_err(|reason| RecipeError::Unreadable {
            path: path.display().to_string(),
            reason,
        })?;
        Ok(Self::parse(&path.display().to_string(), &text, overrides))
    }

    /// Reads text; `name` is what messages call it.
    pub fn parse(name: &str, text: &str, overrides: &[String]) -> Self {
        let file = Source { name: name.to_owned(), text: text.to_owned(), kind: SourceKind::File };
        let mut draft = Self {
            sources: vec![file],
            root: None,
            problems: Vec::new(),
            warnings: Vec::new(),
            recipe: None,
        };
        match document::parse(text) {
            Ok((root, problems)) => {
                draft.problems.extend(problems);
                draft.check(root, overrides);
            }
            Err(problems) => draft.problems.extend(problems),
        }
        draft
    }

    fn check(&mut self, mut root: Node, overrides: &[String]) {
        for text in overrides {
            let source = self.sources.len();
            self.sources.push(Source {
                name: "--set".to_owned(),
                text: text.clone(),
                kind: SourceKind::Override,
            });
            self.problems.extend(overrides::apply(&mut root, text, source));
        }
        self.problems.extend(schema_check::check(&root));
        self.problems.extend(rules::check(&root));
        if self.problems.is_empty() {
            match root.to_toml().try_into::<Recipe>() {
                Ok(recipe) => self.recipe = Some(recipe.fill_defaults()),
                Err(error) => self.problems.push(Located {
                    problem: Problem::Syntax { message: error.message().to_owned() },
                    place: None,
                }),
            }
        }
        self.root = Some(root);
    }

    /// The recipe, where nothing is wrong with it by itself.
    pub fn recipe(&self) -> Option<&Recipe> {
        self.recipe.as_ref()
    }

    /// The text at a dotted path of keys, even where other parts of the recipe are wrong.
    pub fn text(&self, path: &str) -> Option<&str> {
        self.root.as_ref()?.find(path)?.text()
    }

    /// Paths of all datasets that are strings, with their numbers from 0.
    pub fn dataset_paths<'a>(&'a self) -> Vec<(usize, &'a str)> {
        let datasets = self.root.as_ref().and_then(|root| root.find("dataset"));
        let elements = datasets.map(Node::elements).unwrap_or_default();
        let path = |(index, node): (usize, &'a Node)| {
            node.entry("path").and_then(|entry| entry.node.text()).map(|text| (index, text))
        };
        elements.iter().enumerate().filter_map(path).collect()
    }

    /// Adds a problem with what `path` (`base_model`, `dataset[1].path`) names.
    pub fn add(&mut self, path: &str, problem: Problem) {
        let place = self.place(path);
        self.problems.push(Located { problem, place });
    }

    /// Adds a warning about what `path` names.
    pub fn warn(&mut self, path: &str, problem: Problem) {
        let place = self.place(path);
        self.warnings.push(Located { problem, place });
    }

    /// Place of the value at `path`, of the nearest table above it where it is a default.
    fn place(&self, path: &str) -> Option<Place> {
        let mut node = self.root.as_ref()?;
        for part in path.split(['.', '[']) {
            let below = match part.strip_suffix(']').map(str::parse::<usize>) {
                Some(Ok(index)) => node.elements().get(index),
                _ => node.entry(part).map(|entry| &entry.node),
            };
            match below {
                Some(below) => node = below,
                None if node.place.span.is_empty() => return None,
                None => break,
            }
        }
        Some(node.place.clone())
    }

    /// All that is wrong, in the order of the text.
    pub fn findings(&self) -> Findings {
        self.collect(Severity::Error, self.problems.clone())
    }

    /// Choices that are known to be poor; empty where the recipe is wrong.
    pub fn warnings(&self) -> Findings {
        let mut warnings = self.warnings.clone();
        if let (Some(root), Some(recipe)) = (&self.root, &self.recipe) {
            warnings.extend(advice::check(root, recipe));
        }
        self.collect(Severity::Warning, warnings)
    }

    fn collect(&self, severity: Severity, items: Vec<Located>) -> Findings {
        let mut findings = Findings { sources: self.sources.clone(), severity, items };
        findings.sort();
        findings
    }

    /// The recipe with its warnings, or every problem.
    pub fn finish(self) -> Result<Loaded, RecipeError> {
        let findings = self.findings();
        if !findings.is_empty() {
            return Err(RecipeError::Invalid(findings));
        }
        let warnings = self.warnings();
        match self.recipe {
            Some(recipe) => Ok(Loaded { recipe, warnings }),
            None => Err(RecipeError::Invalid(findings)),
        }
    }
}

fn read_text(path: &Path) -> Result<String, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let read = file.take(MAX_RECIPE_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| error.to_string())?;
    if bytes.len() as u64 > MAX_RECIPE_BYTES {
        return Err("it is longer than 1 MiB, which no recipe is".to_owned());
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let position = error.utf8_error().valid_up_to();
        let before = error.as_bytes().get(..position).unwrap_or_default();
        let line = String::from_utf8_lossy(before).matches('\n').count() + 1;
        format!("line {line} is not UTF-8 text")
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}
