//! `tunesmith merge --format gguf`: one file for llama.cpp, read back and compared before it gets
//! its name.

use std::path::Path;

use adapters::merge::{GgufPlan, Importance, MergePlan, MergeSummary, MergedWeights};
use adapters::weights::{GgufFacts, GgufFileType};
use burn::tensor::{DType, Device};
use datasets::ChatTemplate;
use serde::Serialize;
use trainer::base_model::ModelLoader;
use trainer::parity::{LogitsParity, TextLogits, compare_logits};

use super::{Measured, Source, Text};
use crate::diagnostics::UserError;
use crate::modelfile::{ModelfileFacts, modelfile};
use crate::named::BaseParts;
use crate::printer::{Printer, write_atomically};
use crate::provenance::{LicenceDuties, hub_id_of};

/// A KL above this is worth a warning: answers will differ.
const NOTABLE_KL: f64 = 0.25;

/// Type and name of the file.
pub(super) struct GgufOutput {
    pub(super) file_type: GgufFileType,
    pub(super) file_name: String,
}

/// What quantising cost, against the same merge unquantised.
#[derive(Debug, Serialize)]
pub(super) struct QuantisedReport {
    /// Distance of the logits.
    parity: LogitsParity,
    /// Perplexity of the report's text by the unquantised merge.
    perplexity_unquantised: f64,
    /// Perplexity of the report's text by the file.
    perplexity: f64,
}

impl QuantisedReport {
    pub(super) fn is_finite(&self) -> bool {
        self.parity.mean_kl.is_finite() && self.perplexity.is_finite()
    }

    pub(super) fn line(&self) -> String {
        format!(
            "quantised: KL {:.1e}, best token equal at {:.1} % of {} positions, perplexity {:.4} \
             (unquantised {:.4})",
            self.parity.mean_kl,
            100.0 * self.parity.top_1_agreement,
            self.parity.positions,
            self.perplexity,
            self.perplexity_unquantised,
        )
    }

    pub(super) fn warning(&self) -> Option<String> {
        let kl = self.parity.mean_kl;
        (kl > NOTABLE_KL).then(|| {
            format!(
                "quantising changes answers (KL {kl:.2}); `--quantize q8_0` or `q6_k` keeps more"
            )
        })
    }

    pub(super) fn figures(&self) -> Vec<(String, String)> {
        let kl = format!("{:.3e}", self.parity.mean_kl);
        let perplexity =
            format!("{:.4} ({:.4} unquantised)", self.perplexity, self.perplexity_unquantised);
        vec![
            ("mean KL of quantising".into(), kl),
            ("perplexity of the report's text".into(), perplexity),
        ]
    }
}

/// Writes the file into `folder`.
pub(super) fn write(
    source: &Source,
    (plan, importance): (&MergePlan, Option<&Importance>),
    output: &GgufOutput,
    (folder, final_folder): (&Path, &Path),
    printer: &Printer,
) -> anyhow::Result<MergeSummary> {
    let name = final_folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let licence = LicenceDuties::of_base(&source.base.files)?;
    let facts = GgufFacts {
        name,
        licence: licence.card_keys().into_iter().find(|row| row.0 == "license").map(|row| row.1),
        base_model: source.peft.base_model_name_or_path.as_deref().and_then(hub_id_of),
    };
    let gguf = GgufPlan::new(plan, output.file_type, &facts)?.with_importance(importance);
    let mut progress = printer.progress("merging", gguf.total_bytes());
    let path = folder.join(&output.file_name);
    let summary = gguf.write(&path, &mut |done, _| progress.update(done, "bytes"))?;
    progress.finish();
    Ok(summary)
}

/// Writes the `Modelfile` beside the GGUF file.
pub(super) fn write_modelfile(
    source: &Source,
    file_name: &str,
    folder: &Path,
    printer: &mut Printer,
) -> anyhow::Result<()> {
    let base = &source.base;
    let template = ChatTemplate::of_base(&base.tokenizer)?;
    let generation_config = base.files.side_file("generation_config.json")?;
    let generation_config = generation_config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let licences = LicenceDuties::of_base(&base.files)?.files();
    let licences: Vec<String> = licences
        .into_values()
        .map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned())
        .filter(|text| !text.is_empty())
        .collect();
    let (text, problem) = modelfile(&ModelfileFacts {
        gguf: file_name,
        tokenizer: &base.tokenizer,
        template: template.as_ref(),
        generation_config: generation_config.as_ref(),
        licences: &licences,
    });
    if let Some(problem) = problem {
        printer.warning(&format!("Modelfile: {problem}"));
    }
    write_atomically(&folder.join("Modelfile"), text.as_bytes())
}

/// Reads the file back and compares it with base + adapter.
pub(super) fn compare(
    source: &Source,
    plan: &MergePlan,
    output: &GgufOutput,
    folder: &Path,
    text: &Text,
) -> anyhow::Result<Measured> {
    let file = BaseParts::open(&folder.display().to_string(), adapters::weights::Network::Offline)?;
    check_tokens(source, &file, text)?;
    let device = Device::flex();
    let base = (&source.base.files, &source.peft, &source.weights);
    if !output.file_type.is_quantised() {
        let parity = compare_logits(base, &file.files, &text.ids, &device)?;
        return Ok(Measured { parity, quantised: None });
    }
    let loader = ModelLoader::new(&source.base.files, &device, DType::F32)?;
    let expected = TextLogits::of(&loader, Some((&source.peft, &source.weights)), &text.ids)?;
    let view = MergedWeights::of(plan);
    let loader = ModelLoader::of_weights(&source.base.files, &view, &device, DType::F32)?;
    let merged = TextLogits::of(&loader, None, &text.ids)?;
    let parity = expected.distance(&merged);
    drop(expected);
    let loader = ModelLoader::new(&file.files, &device, DType::F32)?;
    let quantised = TextLogits::of(&loader, None, &text.ids)?;
    let quantised = QuantisedReport {
        parity: merged.distance(&quantised),
        perplexity_unquantised: merged.perplexity(),
        perplexity: quantised.perplexity(),
    };
    Ok(Measured { parity, quantised: Some(quantised) })
}

/// The vocabulary in the file must cut text as the base's does.
fn check_tokens(source: &Source, file: &BaseParts, text: &Text) -> anyhow::Result<()> {
    let expected = source.base.tokenizer.encode(&text.text)?;
    let found = file.tokenizer.encode(&text.text)?;
    if expected == found {
        return Ok(());
    }
    let place = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
    let message = format!(
        "the tokenizer cannot be written to GGUF: read back, it gives other tokens from token \
         {place} of the report's text on; nothing was written"
    );
    let hint = "write `--format safetensors`, and convert that with llama.cpp's own converter";
    Err(UserError::new(message, hint).into())
}
