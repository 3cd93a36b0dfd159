//! What a recipe names: base model, data, adapter to start from, folder of the run.
//!
//! [`inspect`] looks at everything as far as that costs little: headers of weights, the first
//! rows of data. Nothing is downloaded and nothing is written. [`BaseParts`] and [`load_request`]
//! are how commands open the same things for use.

use std::collections::BTreeMap;
use std::path::Path;

use adapters::weights::{ModelFiles, Network, UntiedHead, WeightsError};
use adapters::{AdapterConfig, AdapterWeights, LinearLayer, PeftConfig, WholeSelection};
use burn::tensor::{DType, Device};
use datasets::{LoadRequest, Tokenizer, TokenizerFiles};
use serde_json::Value;
use trainer::RopeScalingConfig;
use trainer::base_model::{self, DecoderConfig, ModelLoader};

use crate::base_format;
use crate::diagnostics;
use crate::machine;
use crate::recipe::{Draft, Problem, Recipe};

/// A line about something that was found: what it is, and how it is.
pub type Fact = (String, Value);

/// The parts of a base model that cost little to open: everything but its weights.
pub struct BaseParts {
    /// Its files.
    pub files: ModelFiles,
    /// Its shape.
    pub config: DecoderConfig,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
}

impl BaseParts {
    /// Opens the folder, `.gguf` file or hub id `spec`.
    pub fn open(spec: &str, network: Network) -> anyhow::Result<Self> {
        Self::of(ModelFiles::open(spec, network)?)
    }

    /// Reads configuration and tokenizer of opened files.
    pub fn of(files: ModelFiles) -> anyhow::Result<Self> {
        let config = DecoderConfig::read(files.config())?;
        let tokenizer = Tokenizer::from_files(&tokenizer_files(&files)?)?;
        Ok(Self { files, config, tokenizer })
    }

    /// Puts an adapter's whole tensors in the place of the base's, and parts the head from the
    /// embedding where they are, or are to be, trained apart.
    pub fn take_whole(&mut self, weights: &AdapterWeights, head: UntiedHead) -> anyhow::Result<()> {
        if weights.whole.is_empty() && head == UntiedHead::WhereDifferent {
            return Ok(());
        }
        let tensors = base_model::base_tensors(&self.config);
        self.files = self.files.with_whole(&weights.whole, &tensors, head)?;
        self.config = DecoderConfig::read(self.files.config())?;
        Ok(())
    }

    /// The base of a recipe, with what the recipe changes in its configuration.
    pub fn of_recipe(recipe: &Recipe, network: Network) -> anyhow::Result<Self> {
        let mut base = Self::open(&recipe.base_model, network)?;
        base.extend_context(recipe.rope_scaling.as_ref())?;
        base.set_router_aux_loss(recipe.train.router_aux_loss_coef)?;
        Ok(base)
    }

    /// Gives the base the longer context of `[rope_scaling]`.
    pub fn extend_context(&mut self, scaling: Option<&RopeScalingConfig>) -> anyhow::Result<()> {
        let Some(scaling) = scaling else { return Ok(()) };
        let extended = scaling.extend(self.files.config())?;
        self.reconfigure(extended)
    }

    /// Turns the loss that spreads tokens over experts on, or off, as `config.json` would.
    fn set_router_aux_loss(&mut self, factor: Option<f64>) -> anyhow::Result<()> {
        let Some(factor) = factor else { return Ok(()) };
        if !self.config.has_router_aux_loss() {
            let family = self.config.family;
            let message = format!(
                "`train.router_aux_loss_coef` is for models that train with a loss over their \
                 experts, Mixtral and Qwen3-MoE; the base is {family}"
            );
            return Err(diagnostics::UserError::new(message, "delete the key").into());
        }
        let mut config = self.files.config().clone();
        config["output_router_logits"] = (factor > 0.0).into();
        config["router_aux_loss_coef"] = factor.into();
        self.reconfigure(config)
    }

    fn reconfigure(&mut self, config: serde_json::Value) -> anyhow::Result<()> {
        self.config = DecoderConfig::read(&config)?;
        self.files.set_config(config);
        Ok(())
    }

    /// Refuses texts of more positions than the model has learned; `key` is what asks for them.
    pub fn check_length(&self, key: &str, positions: usize) -> anyhow::Result<()> {
        match self.config.position_limit() {
            Some(limit) if positions > limit => {
                let family = self.config.family;
                let message = format!(
                    "{key} asks for {positions} positions, but this {family} model has learned \
                     {limit}"
                );
                Err(diagnostics::UserError::new(message, format!("ask for {limit} at most")).into())
            }
            _ => Ok(()),
        }
    }

    /// A tokenizer may know tokens that the model has no row for.
    pub fn check_ids(&self, ids: &[u32]) -> anyhow::Result<()> {
        let vocab = self.config.vocab_size;
        let Some(id) = ids.iter().find(|&&id| id as usize >= vocab) else { return Ok(()) };
        let message = format!(
            "the tokenizer of `{}` gives token {id}, the model has {vocab} rows",
            self.files.location().display()
        );
        let hint = "take tokenizer and weights from the same model";
        Err(diagnostics::UserError::new(message, hint).into())
    }

    /// What of the checkpoint is not used, for a line to the user.
    pub fn left_out(&self) -> Option<String> {
        let parts = self.config.left_out(self.files.weights())?;
        let location = self.files.location().display();
        Some(format!("`{location}` is used as a language model, without its {parts}"))
    }
}

/// The files that a tokenizer is made of.
pub fn tokenizer_files(files: &ModelFiles) -> anyhow::Result<TokenizerFiles> {
    let Some(tokenizer_json) = files.side_file("tokenizer.json")? else {
        return Err(no_tokenizer(files)?.into());
    };
    let template = files.side_file("chat_template.jinja")?;
    Ok(TokenizerFiles {
        tokenizer_json,
        tokenizer_config_json: files.side_file("tokenizer_config.json")?,
        special_tokens_map_json: files.side_file("special_tokens_map.json")?,
        chat_template_jinja: template.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
        additional_chat_templates: additional_templates(files)?,
        config_json: Some(files.config().to_string().into_bytes()),
        generation_config_json: files.side_file("generation_config.json")?,
    })
}

/// Old Llama and Gemma folders have their tokenizer as a `SentencePiece` model alone.
fn no_tokenizer(files: &ModelFiles) -> anyhow::Result<diagnostics::UserError> {
    let location = files.location().display();
    let found = match files.side_file("tokenizer.model")? {
        Some(_) => ", only SentencePiece's `tokenizer.model`, which is not read",
        None => "",
    };
    let message = format!("`{location}` has no `tokenizer.json`{found}");
    let hint = format!(
        "let transformers write one beside the model: `python -c 'from transformers import \
         AutoTokenizer; AutoTokenizer.from_pretrained(\"{location}\")\
         .save_pretrained(\"{location}\")'`"
    );
    Ok(diagnostics::UserError::new(message, hint))
}

/// The base's named chat templates: `additional_chat_templates/NAME.jinja`.
fn additional_templates(files: &ModelFiles) -> anyhow::Result<BTreeMap<String, String>> {
    let mut templates = BTreeMap::new();
    for path in files.side_files()? {
        let name = path.strip_prefix("additional_chat_templates/");
        let Some(name) = name.and_then(|name| name.strip_suffix(".jinja")) else { continue };
        if let Some(bytes) = files.side_file(&path)? {
            templates.insert(name.to_owned(), String::from_utf8_lossy(&bytes).into_owned());
        }
    }
    Ok(templates)
}

/// What [`datasets::load`] needs to load the data of a recipe.
pub fn load_request<'a>(
    recipe: &'a Recipe,
    base: &'a BaseParts,
    cache: Option<&'a Path>,
) -> LoadRequest<'a> {
    LoadRequest {
        datasets: &recipe.dataset,
        validation: recipe.validation.as_ref(),
        batch: &recipe.batch,
        seed: recipe.seed,
        tokenizer: &base.tokenizer,
        vocab_size: base.config.vocab_size,
        cache_dir: cache,
        row_limit: None,
    }
}

/// Folder of tokenized datasets.
pub fn dataset_cache() -> Option<std::path::PathBuf> {
    machine::cache_dir().map(|folder| folder.join("datasets"))
}

/// Rows of each dataset that `check` reads.
const CHECKED_ROWS: usize = 20;

/// Looks at everything the recipe names; what is wrong is added to the draft.
///
/// With [`Network::Allowed`], a hub id that is not in the cache is no fault: the run downloads it.
pub fn inspect(draft: &mut Draft, network: Network) -> Vec<Fact> {
    let mut facts = Vec::new();
    let base = base(draft, network, &mut facts);
    let mut base = base;
    if let (Some(recipe), Some(base)) = (draft.recipe().cloned(), &mut base) {
        if let Err(error) = base.extend_context(recipe.rope_scaling.as_ref()) {
            add(draft, "rope_scaling", &error);
        }
        if let Err(error) = base.set_router_aux_loss(recipe.train.router_aux_loss_coef) {
            add(draft, "train.router_aux_loss_coef", &error);
        }
        if let Err(error) = length(&recipe, base) {
            add(draft, "batch.sequence_length", &error);
        }
        if let Some(error) = base_format::quantised_twice(&recipe, &base.files) {
            add(draft, "quantize_base", &error.into());
        }
        adapter(draft, &recipe, base, &mut facts);
        data(draft, &recipe, base, &mut facts);
        evaluation(draft, &recipe);
    } else {
        data_exists(draft);
    }
    output(draft, &mut facts);
    facts
}

/// The base model has positions for the recipe's rows.
pub fn length(recipe: &Recipe, base: &BaseParts) -> anyhow::Result<()> {
    base.check_length("`batch.sequence_length`", recipe.batch.sequence_length.get())
}

fn problem(message: String, hint: Option<String>) -> Problem {
    Problem::Named { message, hint }
}

/// Adds `error` to the draft, at the key that names the culprit.
fn add(draft: &mut Draft, path: &str, error: &anyhow::Error) {
    let (message, hint) = diagnostics::message_and_hint(error);
    draft.add(path, problem(message, hint));
}

/// The base model opens, and its headers hold what its config promises.
fn base(draft: &mut Draft, network: Network, facts: &mut Vec<Fact>) -> Option<BaseParts> {
    let spec = draft.text("base_model").filter(|text| !text.trim().is_empty())?.to_owned();
    match BaseParts::open(&spec, Network::Offline).and_then(with_all_tensors) {
        Ok(base) => {
            let parameters = base.config.parameters() as f64 / 1e6;
            let location = base.files.location().display();
            facts.push(("base".into(), format!("{location}, {parameters:.1} M parameters").into()));
            if let Some(parts) = base.config.left_out(base.files.weights()) {
                facts.push(("left out".into(), parts.into()));
            }
            for warning in base.files.warnings() {
                draft.warn("base_model", problem(warning.clone(), None));
            }
            Some(base)
        }
        Err(error) if network == Network::Allowed && is_not_here_yet(&error) => {
            facts.push(("base".into(), format!("{spec}, to be downloaded by the run").into()));
            None
        }
        Err(error) => {
            add(draft, "base_model", &error);
            None
        }
    }
}

/// A hub id that is not in the cache is no fault of the recipe: `check` downloads nothing.
fn is_not_here_yet(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(WeightsError::Offline { .. }))
}

fn with_all_tensors(base: BaseParts) -> anyhow::Result<BaseParts> {
    // Compares names and shapes; no weight is read.
    ModelLoader::new(&base.files, &Device::default(), DType::F32)?;
    Ok(base)
}

/// The adapter fits the base model.
fn adapter(draft: &mut Draft, recipe: &Recipe, base: &BaseParts, facts: &mut Vec<Fact>) {
    let lora = recipe.adapter.low_rank();
    let layers = base_model::linear_layers(&base.config);
    if lora.init_from.is_some() {
        return initial_adapter(draft, &recipe.adapter, &layers, facts);
    }
    match adapters::select_targets(lora, &layers) {
        Ok(targets) => {
            let size = |target: &adapters::Target| target.parameters(&recipe.adapter);
            let parameters = targets.iter().map(size).sum::<u64>() as f64 / 1e6;
            let count = targets.len();
            let text = format!(
                "{} on {count} layers, {parameters:.2} M parameters",
                recipe.adapter.method()
            );
            facts.push(("adapter".into(), text.into()));
            wide_rank(draft, recipe.adapter.table(), &targets);
            let peft = PeftConfig::from_recipe(lora, &targets, &layers, "");
            let use_dora = recipe.adapter.is_dora();
            let names = targets.iter().map(|target| target.name.as_str());
            let checked = peft.and_then(|peft| {
                PeftConfig { use_dora, ..peft.clone() }.check_experts()?;
                peft.select_whole(names, &base_model::base_tensors(&base.config))
            });
            match checked {
                Ok(whole) => whole_tensors(draft, recipe.adapter.table(), &whole, facts),
                Err(error) => add(draft, recipe.adapter.table(), &error.into()),
            }
        }
        Err(error) => {
            add(draft, &format!("{}.target_modules", recipe.adapter.table()), &error.into());
        }
    }
}

/// What of the base is trained, and what that does to a tied head.
fn whole_tensors(draft: &mut Draft, table: &str, whole: &WholeSelection, facts: &mut Vec<Fact>) {
    if let Some(line) = whole_line(whole) {
        facts.push(("trained as a whole".into(), line.into()));
    }
    if let Some(line) = untied_line(whole) {
        let hint = "`ensure_weight_tying = true` trains them as one".to_owned();
        draft.warn(&format!("{table}.modules_to_save"), problem(line, Some(hint)));
    }
}

/// The modules that are trained as a whole, by the last part of their names, and their size.
pub fn whole_line(whole: &WholeSelection) -> Option<String> {
    if whole.is_empty() {
        return None;
    }
    let last = |name: &'_ str| name.rsplit('.').next().unwrap_or(name).to_owned();
    let names: std::collections::BTreeSet<String> = whole.modules().into_iter().map(last).collect();
    let names: Vec<String> = names.into_iter().collect();
    let (tensors, parameters) = (whole.tensors.len(), whole.parameters as f64 / 1e6);
    Some(format!("{tensors} tensors of {}, {parameters:.2} M parameters", names.join(", ")))
}

/// What to say where a head parts from the embedding.
pub fn untied_line(whole: &WholeSelection) -> Option<String> {
    whole.unties_head.then(|| {
        "this model's head is its embedding (`tie_word_embeddings`); trained as a whole, the two \
         part: the model grows by a matrix, and merges say `tie_word_embeddings = false`"
            .to_owned()
    })
}

/// A rank above the layer's own adds numbers and no capacity.
fn wide_rank(draft: &mut Draft, table: &str, targets: &[adapters::Target]) {
    let wide = targets.iter().find(|target| target.rank > target.d_in.min(target.d_out));
    if let Some(target) = wide {
        let full = target.d_in.min(target.d_out);
        let message = format!(
            "rank {} is above what `{}` can hold: its update has rank {full} at most",
            target.rank, target.name
        );
        let hint = format!("set `rank` to {full} or less");
        draft.warn(&format!("{table}.rank"), problem(message, Some(hint)));
    }
}

fn initial_adapter(
    draft: &mut Draft,
    adapter: &AdapterConfig,
    layers: &[LinearLayer],
    facts: &mut Vec<Fact>,
) {
    let Some(folder) = &adapter.low_rank().init_from else { return };
    let key = &format!("{}.init_from", adapter.table());
    let (config, weights) = match adapters::read_adapter(folder) {
        Ok((config, weights)) => adapters::fit_experts(config, weights, layers),
        Err(error) => return add(draft, key, &error.into()),
    };
    if let Err(error) = adapters::targets_of_adapter(&config, &weights, layers) {
        return add(draft, key, &error.into());
    }
    let of_method = adapters::method_conflict(adapter, &config);
    let others = adapters::conflicts(adapter.low_rank(), &config, &weights, layers);
    for conflict in of_method.into_iter().chain(others) {
        let hint = "delete the key: it comes from the adapter that training starts from";
        draft.add(adapter.table(), problem(conflict, Some(hint.to_owned())));
    }
    let count = weights.modules.len();
    facts.push(("adapter".into(), format!("{count} modules of {}", folder.display()).into()));
}

/// The first rows of every dataset make examples.
fn data(draft: &mut Draft, recipe: &Recipe, base: &BaseParts, facts: &mut Vec<Fact>) {
    let request = LoadRequest { row_limit: Some(CHECKED_ROWS), ..load_request(recipe, base, None) };
    for (index, config) in recipe.dataset.iter().enumerate() {
        let alone = LoadRequest {
            datasets: std::slice::from_ref(config),
            validation: None,
            ..request.clone()
        };
        match datasets::load(&alone) {
            Ok(dataset) => facts.extend(dataset.counts.iter().map(counted)),
            Err(error) => add(draft, &format!("dataset[{index}].path"), &error.into()),
        }
    }
    let validation = recipe.validation.as_ref().filter(|validation| validation.path.is_some());
    if let (Some(validation), Some(first)) = (validation, recipe.dataset.first()) {
        let alone = LoadRequest {
            datasets: std::slice::from_ref(first),
            validation: Some(validation),
            ..request
        };
        // The dataset itself was loaded above; what is wrong now is wrong with the validation.
        if let Err(error) = datasets::load(&alone)
            && datasets::load(&LoadRequest { validation: None, ..alone }).is_ok()
        {
            add(draft, "validation.path", &error.into());
        }
    }
}

fn counted(counts: &datasets::DatasetCounts) -> Fact {
    let format = serde_json::to_value(counts.format).unwrap_or_default();
    let text = format!(
        "{}: {}, files: {}, rows read: {}, examples: {}",
        counts.path,
        format.as_str().unwrap_or_default(),
        counts.files,
        counts.rows,
        counts.examples
    );
    ("dataset".into(), text.into())
}

/// The tasks that the run is scored on can be read, and their rows are there.
fn evaluation(draft: &mut Draft, recipe: &Recipe) {
    let Some(config) = &recipe.evaluate else { return };
    if let Err(error) = crate::commands::train::evaluation::check(config) {
        add(draft, "evaluate", &error);
    }
}

/// Without a recipe or base model, rows cannot be read; that there are any can still be seen.
fn data_exists(draft: &mut Draft) {
    let is_plain = |path: &str| !path.contains(['*', '?', '[', '{']) && !path.trim().is_empty();
    let missing: Vec<_> = draft
        .dataset_paths()
        .into_iter()
        .filter(|(_, path)| is_plain(path) && !Path::new(path).exists())
        .map(|(index, path)| (index, path.to_owned()))
        .collect();
    for (index, path) in missing {
        let message = format!("`{path}` does not exist");
        let hint = "paths are relative to the current folder".to_owned();
        draft.add(&format!("dataset[{index}].path"), problem(message, Some(hint)));
    }
}

/// The run folder can be made and written to.
fn output(draft: &mut Draft, facts: &mut Vec<Fact>) {
    let Some(text) = draft.text("output_dir").map(str::to_owned) else { return };
    if text.trim().is_empty() {
        return;
    }
    match writable(Path::new(&text)) {
        Ok(()) => facts.push(("output".into(), text.into())),
        Err(reason) => {
            let message = format!("the run cannot be written to `{text}`: {reason}");
            let hint = "choose a folder that can be written to".to_owned();
            draft.add("output_dir", problem(message, Some(hint)));
        }
    }
}

/// Whether `folder`, or the nearest existing one above it, takes a file.
fn writable(folder: &Path) -> Result<(), String> {
    let absolute = std::path::absolute(folder).map_err(|error| error.to_string())?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.symlink_metadata().is_ok());
    let existing = existing.ok_or("no folder above it exists")?;
    if !existing.is_dir() {
        return Err(format!("`{}` is a file", existing.display()));
    }
    // Permission bits do not tell: read-only mounts and quotas refuse as well. The file has no
    // name on systems that allow it, and is gone at once on the others.
    tempfile::tempfile_in(existing).map(drop).map_err(|error| error.to_string())
}
