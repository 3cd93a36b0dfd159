//! `tunesmith merge`: base + adapter → a folder that inference programs load, with a measured
//! report of how far its logits stand from base + adapter.

mod gguf;
mod importance;
mod models;

use std::path::{Path, PathBuf};

use adapters::combine::{CombineMethod, CombineRequest, MajoritySign, combine};
use adapters::merge::{
    DEFAULT_MAX_SHARD_BYTES, Existing, MergeDtype, MergePlan, MergeRequest, MergeSummary,
    PartialFolder, plan_merge, write_merged,
};
use adapters::weights::{GgufFileType, ModelFiles, Network, UntiedHead};
use adapters::{AdapterWeights, PeftConfig};
use burn::tensor::Device;
use clap::{Args, ValueEnum};
use serde::Serialize;
use trainer::base_model::linear_layers;
use trainer::parity::{LogitsParity, MAX_POSITIONS, ParityBound, compare_logits};

use super::adapter::combine::{warn_of_bases, weights_or_ones};
use super::adapter::open;

use self::gguf::{GgufOutput, QuantisedReport};
use self::importance::{ImportanceFacts, MeasuredImportance};
pub use self::models::MixArgs;
use self::models::MixReport;
use crate::cli::{JsonArgs, NetworkArgs};
use crate::diagnostics::{ExitStatus, UserError};
use crate::named::BaseParts;
use crate::printer::{Printer, write_atomically};
use crate::provenance::{AdapterFacts, CardFacts, CardKind, LicenceDuties, model_card};
use crate::target::{base_of, check_base, shared_rope_scaling};

/// Text that the report compares logits on where none is given.
const TEXT: &str = include_str!("merge_text.txt");

/// Flags of `tunesmith merge`.
#[derive(Debug, Clone, Args)]
pub struct MergeArgs {
    /// The adapter: a PEFT folder, a checkpoint, or a run folder. Several are added up. With
    /// `--method`: whole models, tunes of one base.
    #[arg(value_name = "ADAPTER", required = true, num_args = 1..)]
    pub adapters: Vec<PathBuf>,
    /// How whole models become one.
    #[command(flatten)]
    pub mix: MixArgs,
    /// A factor for each adapter, such as `0.7,0.3`; may be negative. 1 for each by default.
    #[arg(long, value_name = "W,...", value_delimiter = ',', allow_hyphen_values = true)]
    pub weights: Vec<f64>,
    /// Folder of the merged model; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// The base model, where the adapter's own is elsewhere.
    #[arg(long, value_name = "DIR")]
    pub base: Option<String>,
    /// Number format of the merged weights; `same` is the base's, f16 over a quantised base.
    #[arg(long, value_enum, default_value_t = DtypeChoice::Same)]
    pub dtype: DtypeChoice,
    /// What is written: a folder in Hugging Face layout, or one GGUF file for llama.cpp.
    #[arg(long, value_enum)]
    pub format: Option<FormatChoice>,
    /// Write `model-TYPE.gguf` for llama.cpp; types are `f16`, `q8_0`, `q6_k`, `q5_k_m`, `q4_k_m`, ...
    #[arg(long, value_name = "TYPE", value_parser = file_type, conflicts_with = "dtype")]
    pub quantize: Option<(String, GgufFileType)>,
    /// Weigh what quantising loses by how much each input matters, measured on this text; without a
    /// FILE on what the run held back for validation.
    #[arg(long, value_name = "FILE", num_args = 0..=1, requires = "quantize")]
    pub importance: Option<Option<PathBuf>>,
    /// Text whose logits are compared; a built-in one where it is not given.
    #[arg(long, value_name = "FILE")]
    pub text: Option<PathBuf>,
    /// Merge into a base other than the one that the run's lock file names.
    #[arg(long)]
    pub allow_other_base: bool,
    /// Whether the network may be used.
    #[command(flatten)]
    pub network: NetworkArgs,
    /// Where the report goes besides `merge_report.json`.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Number formats of merged weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DtypeChoice {
    /// The base's.
    Same,
    /// 32 bit.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16.
    Bf16,
}

/// What a merge writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FormatChoice {
    /// A folder in Hugging Face layout.
    Safetensors,
    /// One file for llama.cpp and programs that build on it.
    Gguf,
}

/// A type of GGUF file, with the name as it was typed: it becomes part of the file's name.
fn file_type(name: &str) -> Result<(String, GgufFileType), String> {
    GgufFileType::named(name)
        .map(|file_type| (name.to_owned(), file_type))
        .ok_or_else(|| format!("the types are {}", GgufFileType::all_names()))
}

impl MergeArgs {
    /// The GGUF file to write; nothing where a folder is wanted.
    fn gguf(&self, plan: &MergePlan) -> anyhow::Result<Option<GgufOutput>> {
        let (name, file_type) = match (self.format, &self.quantize) {
            (Some(FormatChoice::Safetensors), Some((name, _))) => {
                let message =
                    format!("`--quantize {name}` writes GGUF, `--format` says safetensors");
                return Err(UserError::new(message, "leave out one of the two flags").into());
            }
            (_, Some((name, file_type))) => (name.clone(), *file_type),
            (Some(FormatChoice::Gguf), None) => {
                let file_type = plan.gguf_file_type();
                (file_type.name().to_lowercase(), file_type)
            }
            _ => return Ok(None),
        };
        Ok(Some(GgufOutput { file_type, file_name: format!("model-{name}.gguf") }))
    }
}

impl From<DtypeChoice> for MergeDtype {
    fn from(choice: DtypeChoice) -> Self {
        match choice {
            DtypeChoice::Same => Self::Same,
            DtypeChoice::F32 => Self::F32,
            DtypeChoice::F16 => Self::F16,
            DtypeChoice::Bf16 => Self::Bf16,
        }
    }
}

/// `merge_report.json`.
#[derive(Debug, Serialize)]
struct Report {
    base: String,
    adapter: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    weights: Vec<f64>,
    /// Where whole models were mixed.
    #[serde(skip_serializing_if = "Option::is_none")]
    mix: Option<MixReport>,
    /// What the errors of quantising were weighed by.
    #[serde(skip_serializing_if = "Option::is_none")]
    importance: Option<ImportanceFacts>,
    parity: LogitsParity,
    bound: ParityBound,
    within_bound: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantised: Option<QuantisedReport>,
    peak_memory_bytes: u64,
    #[serde(flatten)]
    summary: MergeSummary,
}

/// How far what was written stands from base + adapter.
struct Measured {
    parity: LogitsParity,
    quantised: Option<QuantisedReport>,
}

/// The text that logits are compared on.
struct Text {
    text: String,
    ids: Vec<u32>,
}

/// What is merged: an adapter, or the sum of several, and the base it goes into.
struct Source {
    /// The adapters, by their folders.
    name: String,
    /// Their factors, where any was given.
    factors: Vec<f64>,
    facts: Vec<AdapterFacts>,
    peft: PeftConfig,
    weights: AdapterWeights,
    /// The base, or the mix of models.
    base: BaseParts,
    /// How whole models were mixed, where they were.
    mix: Option<MixReport>,
}

impl Source {
    fn open(
        arguments: &MergeArgs,
        network: Network,
        printer: &mut Printer,
    ) -> anyhow::Result<Self> {
        if let Some(method) = arguments.mix.method {
            return models::open(method, arguments, network);
        }
        let opened: Vec<_> =
            arguments.adapters.iter().map(|path| open(path)).collect::<anyhow::Result<_>>()?;
        let Some((first, peft, _)) = opened.first() else {
            return Err(adapters::combine::CombineError::Nothing.into());
        };
        let folders: Vec<PathBuf> = opened.iter().map(|row| row.0.clone()).collect();
        shared_rope_scaling(&folders)?;
        let base = base_of(first, peft, arguments.base.as_deref(), network)?;
        if !arguments.allow_other_base {
            for (folder, _, _) in &opened {
                check_base(folder, &base.files)?;
            }
        }
        let (folders, pairs): (Vec<_>, Vec<_>) =
            opened.into_iter().map(|(folder, peft, weights)| (folder, (peft, weights))).unzip();
        warn_of_bases(&pairs, printer);
        Self::of(&folders, pairs, &arguments.weights, base)
    }

    /// The sum of adapters, each times its factor.
    fn of(
        folders: &[PathBuf],
        mut adapters: Vec<(PeftConfig, AdapterWeights)>,
        factors: &[f64],
        mut base: BaseParts,
    ) -> anyhow::Result<Self> {
        let names: Vec<String> = folders.iter().map(|path| path.display().to_string()).collect();
        if let [(_, weights)] = adapters.as_slice() {
            base.take_whole(weights, UntiedHead::WhereDifferent)?;
        }
        let facts = adapters.iter().map(|row| AdapterFacts::of(&row.0, &row.1)).collect();
        let layers = linear_layers(&base.config);
        let fit = |(peft, weights)| adapters::fit_experts(peft, weights, &layers);
        adapters = adapters.into_iter().map(fit).collect();
        let (peft, weights) = match adapters.pop() {
            Some(only) if adapters.is_empty() && factors.is_empty() => only,
            last => {
                adapters.extend(last);
                combine(&CombineRequest {
                    adapters: &adapters,
                    weights: &weights_or_ones(factors, adapters.len()),
                    method: CombineMethod::Cat,
                    density: None,
                    rank: None,
                    majority_sign: MajoritySign::Total,
                    seed: 0,
                })?
            }
        };
        let (name, factors) = (names.join(", "), factors.to_vec());
        Ok(Self { name, factors, facts, peft, weights, base, mix: None })
    }
}

/// Merges, measures, and only then gives the folder its name.
pub fn merge(arguments: &MergeArgs, printer: &mut Printer) -> anyhow::Result<ExitStatus> {
    let source = Source::open(arguments, arguments.network.network(), printer)?;
    write(&source, arguments, printer)
}

/// Flags of `tunesmith adapter unmerge`.
#[derive(Debug, Clone, Args)]
pub struct UnmergeArgs {
    /// The merged model: a folder or a `.gguf` file.
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// The adapter that was merged into it.
    #[arg(value_name = "ADAPTER")]
    pub adapter: PathBuf,
    /// Folder of the model without it; must not exist or be empty.
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Number format of the weights.
    #[arg(long, value_enum, default_value_t = DtypeChoice::Same)]
    pub dtype: DtypeChoice,
    /// Where the report goes besides `merge_report.json`.
    #[command(flatten)]
    pub json: JsonArgs,
}

/// Takes an adapter out again: a merge with the factor −1, exact to one rounding.
pub fn unmerge(
    arguments: &UnmergeArgs,
    network: Network,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    let (folder, peft, weights) = open(&arguments.adapter)?;
    let base = BaseParts::open(&arguments.model, network)?;
    let source = Source::of(&[folder], vec![(peft, weights)], &[-1.0], base)?;
    let merge = MergeArgs {
        adapters: vec![arguments.adapter.clone()],
        weights: vec![-1.0],
        mix: MixArgs::default(),
        output: arguments.output.clone(),
        base: Some(arguments.model.clone()),
        dtype: arguments.dtype,
        format: None,
        quantize: None,
        importance: None,
        text: None,
        allow_other_base: true,
        network: NetworkArgs { offline: network == Network::Offline },
        json: arguments.json.clone(),
    };
    write(&source, &merge, printer)
}

fn write(
    source: &Source,
    arguments: &MergeArgs,
    printer: &mut Printer,
) -> anyhow::Result<ExitStatus> {
    printer.warnings(source.base.files.warnings());
    for key in &source.peft.unknown_keys {
        printer.warning(&format!("`adapter_config.json` has the unknown key `{key}`, ignored"));
    }
    let text = Text::read(arguments.text.as_deref(), &source.base)?;
    let request = MergeRequest {
        base: &source.base.files,
        adapter: (&source.peft, &source.weights),
        dtype: arguments.dtype.into(),
        max_shard_bytes: DEFAULT_MAX_SHARD_BYTES,
    };
    let plan = plan_merge(&request)?;
    let gguf = arguments.gguf(&plan)?;
    let importance = importance::measure(arguments, source, (&plan, gguf.as_ref()), printer)?;
    let folder = PartialFolder::beside(&arguments.output, Existing::Refuse)?;
    let folders = (folder.path(), arguments.output.as_path());
    let summary = match &gguf {
        Some(gguf) => {
            let weighed = importance.as_ref().map(|measured| &measured.importance);
            gguf::write(source, (&plan, weighed), gguf, folders, printer)?
        }
        None => write_folder(&plan, folder.path(), printer)?,
    };
    for module in summary.zero_deltas.iter().chain(&summary.lost_to_rounding) {
        printer.warning(&format!("the update of `{module}` changes nothing in the merged weights"));
    }
    let measured = match &gguf {
        Some(gguf) => gguf::compare(source, &plan, gguf, folder.path(), &text)?,
        None => compare(source, folder.path(), &text)?,
    };
    let mut report = Report::new(source, summary, measured);
    report.importance = importance.as_ref().map(MeasuredImportance::facts);
    if !report.within_bound {
        return Err(out_of_bound(&report).into());
    }
    let kind = if gguf.is_some() { CardKind::Gguf } else { CardKind::Merged };
    write_side_files(source, &report, kind, folders)?;
    if let Some(gguf) = &gguf {
        gguf::write_modelfile(source, &gguf.file_name, folder.path(), printer)?;
    }
    folder.finish()?;
    if let Some(target) = &arguments.json.json {
        printer.json(target, &report)?;
    }
    printer.status(&summary_line(&report, &arguments.output));
    if let Some(quantised) = &report.quantised {
        printer.status(&quantised.line());
        if let Some(warning) = quantised.warning() {
            printer.warning(&warning);
        }
    }
    Ok(ExitStatus::Success)
}

impl Text {
    fn read(path: Option<&Path>, base: &BaseParts) -> anyhow::Result<Self> {
        let text = match path {
            Some(path) => std::fs::read_to_string(path).map_err(|error| {
                let message = format!("cannot read `{}`: {error}", path.display());
                UserError::new(message, "give `--text` a file of plain UTF-8 text")
            })?,
            None => TEXT.to_owned(),
        };
        let mut ids = base.tokenizer.encode(&text)?;
        ids.retain(|&id| (id as usize) < base.config.vocab_size);
        ids.truncate(MAX_POSITIONS);
        if ids.len() < 2 {
            let message = "the text to compare logits on has fewer than 2 tokens";
            return Err(UserError::new(message, "give `--text` a longer file").into());
        }
        Ok(Self { text, ids })
    }
}

fn write_folder(
    plan: &MergePlan,
    folder: &Path,
    printer: &Printer,
) -> anyhow::Result<MergeSummary> {
    let mut progress = printer.progress("merging", plan.total_bytes());
    let summary = write_merged(plan, folder, &mut |done, _| progress.update(done, "bytes"))?;
    progress.finish();
    Ok(summary)
}

fn compare(source: &Source, folder: &Path, text: &Text) -> anyhow::Result<Measured> {
    let merged = ModelFiles::open(&folder.display().to_string(), Network::Offline)?;
    let base = (&source.base.files, &source.peft, &source.weights);
    let parity = compare_logits(base, &merged, &text.ids, &Device::flex())?;
    Ok(Measured { parity, quantised: None })
}

impl Report {
    /// A quantised merge is held to the bound before it is quantised: then it is f32.
    fn new(source: &Source, summary: MergeSummary, measured: Measured) -> Self {
        let Measured { parity, quantised } = measured;
        let is_f32 = quantised.is_some() || matches!(summary.dtype, "float32" | "F32");
        let bound = if is_f32 { ParityBound::F32 } else { ParityBound::SIXTEEN_BIT };
        let is_finite = quantised.as_ref().is_none_or(QuantisedReport::is_finite);
        Self {
            base: source.base.files.location().display().to_string(),
            adapter: source.name.clone(),
            weights: source.factors.clone(),
            mix: source.mix.clone(),
            importance: None,
            parity,
            bound,
            within_bound: bound.holds(&parity) && is_finite,
            quantised,
            peak_memory_bytes: trainer::peak_resident_bytes(),
            summary,
        }
    }
}

fn out_of_bound(report: &Report) -> UserError {
    let parity = &report.parity;
    UserError::new(
        format!(
            "the merged model is not base + adapter: over {} positions logits differ by up to \
             {:.3e}, KL is {:.3e}, best tokens agree in {:.1} %; nothing was written",
            parity.positions,
            parity.max_absolute_error,
            parity.mean_kl,
            100.0 * parity.top_1_agreement,
        ),
        "write more bits with `--dtype f32`, or look for broken values in the base or the adapter",
    )
}

fn write_side_files(
    source: &Source,
    report: &Report,
    kind: CardKind,
    (folder, output): (&Path, &Path),
) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    write_atomically(&folder.join("merge_report.json"), format!("{text}\n").as_bytes())?;
    let licence = LicenceDuties::of_base(&source.base.files)?;
    let name = output.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let base_model = source.peft.base_model_name_or_path.clone().unwrap_or_default();
    let mut figures = vec![
        (
            "largest logit error of the merge".into(),
            format!("{:.3e}", report.parity.max_absolute_error),
        ),
        ("mean KL of the merge".into(), format!("{:.3e}", report.parity.mean_kl)),
    ];
    figures.extend(report.quantised.iter().flat_map(QuantisedReport::figures));
    let card = model_card(&CardFacts {
        kind,
        mix: source.mix.as_ref().map(MixReport::sentence),
        name: &name,
        base_model: &base_model,
        base_config: source.base.files.config(),
        licence: &licence,
        adapters: &source.facts,
        data: &[],
        recipe: None,
        figures: &figures,
    });
    write_atomically(&folder.join("README.md"), card.as_bytes())?;
    licence.write(folder)?;
    Ok(())
}

fn summary_line(report: &Report, output: &Path) -> String {
    let parity = &report.parity;
    let (what, against) = match &report.mix {
        Some(mix) => (mix.to_string(), "the unrounded mix"),
        None => {
            let summary = &report.summary;
            let (consumed, all) = (summary.adapter_tensors_consumed, summary.adapter_tensors);
            (format!("{consumed} of {all} adapter tensors"), "base + adapter")
        }
    };
    format!(
        "merged: {}, {what}, {}; logits within {:.1e} of {against}, KL {:.1e}, best token equal at \
         {:.1} % of {} positions",
        output.display(),
        report.summary.dtype,
        parity.max_absolute_error,
        parity.mean_kl,
        100.0 * parity.top_1_agreement,
        parity.positions,
    )
}
