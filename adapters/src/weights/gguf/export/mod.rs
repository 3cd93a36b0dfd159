//! Lays out a GGUF file of a model: its metadata, and which tensor lies where in which type.
//!
//! A base that is a GGUF itself passes its metadata on as it stands. For a folder in HF layout the
//! metadata is what llama.cpp's converter writes: the model's sizes from `config.json`, the
//! vocabulary from the tokenizer files.

mod family_keys;
mod model_keys;
mod outline;
mod tokenizer_keys;
mod vocabulary;

use serde_json::Value;

use self::outline::{Outline, Outlined};
use super::{
    architecture::Architecture,
    config::Sizes,
    file_type::{GgufFileType, GroupedQueries, Head, ModelShape},
    head_writer::{HeadWriter, tensor_bytes},
    placement::Reading,
};
use crate::weights::{ModelFiles, StoredDtype, TensorEntry, WeightsError, model_files::Kind};

/// What a GGUF file says of itself besides what its base says.
#[derive(Clone, Debug, Default)]
pub struct GgufFacts {
    /// The model's name.
    pub name: String,
    /// Licence as the hub abbreviates it, where it is known.
    pub licence: Option<String>,
    /// Hub id of the base model, where it has one.
    pub base_model: Option<String>,
}

/// A file that is known to be writable, not yet written.
pub(crate) struct GgufLayout {
    /// Everything before the tensors' bytes.
    pub(crate) head: Vec<u8>,
    /// In the order of the file.
    pub(crate) tensors: Vec<GgufTensor>,
    /// Tensors of the base that have no place in the format and no use.
    pub(crate) left_out: Vec<String>,
}

/// A tensor of the file.
pub(crate) struct GgufTensor {
    /// Its name there.
    pub(crate) name: String,
    /// Outermost first.
    pub(crate) shape: Vec<usize>,
    pub(crate) dtype: StoredDtype,
    pub(crate) content: Content,
}

/// Where a tensor's numbers come from.
pub(crate) enum Content {
    /// The base's tensors of these HF names, end to end, stored so that they are read this way.
    Base { hf_names: Vec<String>, reading: Reading },
    /// Numbers that follow from the configuration.
    Values(Vec<f32>),
}

impl GgufTensor {
    pub(crate) fn bytes(&self) -> u64 {
        tensor_bytes(&self.shape, self.dtype)
    }
}

impl GgufLayout {
    /// Bytes of all tensors.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.tensors.iter().map(GgufTensor::bytes).sum()
    }

    /// Lays out a file with the tensors that `tensors` names.
    pub(crate) fn plan<'a>(
        base: &ModelFiles,
        tensors: impl Iterator<Item = (&'a str, &'a TensorEntry)>,
        file_type: GgufFileType,
        facts: &GgufFacts,
    ) -> Result<Self, WeightsError> {
        let architecture = architecture_of(base)?;
        if base.is_reconfigured() && matches!(base.kind(), Kind::Gguf(..)) {
            let what = "GGUF output over a GGUF base";
            return Err(unsupported(
                base,
                what,
                "a longer context",
                "a folder, or a base that is one",
            ));
        }
        if let Kind::Folder(_) = base.kind() {
            // What makes the model inexpressible is a better reason than a tensor that follows from it.
            model_keys::write(&mut HeadWriter::default(), base, architecture)?;
        }
        let sizes = sizes(base)?;
        let outline = Outline::of(base, architecture, tensors, sizes)?;
        let names: Vec<&str> = outline.tensors.iter().map(|tensor| tensor.name.as_str()).collect();
        let model = model_shape(base, &names);
        let mut layout = Self { head: Vec::new(), tensors: Vec::new(), left_out: outline.left_out };
        for tensor in outline.tensors {
            let (shape, hf_names) = tensor.shape_and_names(base)?;
            let Outlined { name, reading, .. } = tensor;
            let dtype = file_type.tensor_dtype(&name, &shape, &model);
            let content = Content::Base { hf_names, reading };
            layout.tensors.push(GgufTensor { name, shape, dtype, content });
        }
        layout.add_rope_tables(base, sizes)?;
        layout.write_head(base, architecture, file_type, facts)?;
        Ok(layout)
    }

    /// Scalings by frequency stand in the file as one divisor for each rotary pair.
    fn add_rope_tables(&mut self, base: &ModelFiles, sizes: Sizes) -> Result<(), WeightsError> {
        let tables: Vec<(String, Vec<f32>)> = match base.kind() {
            Kind::Gguf(model, _) => model.rope_tables().into_iter().collect(),
            Kind::Folder(_) => model_keys::rope_tables(base, sizes)?,
        };
        let after_embedding = 1.min(self.tensors.len());
        for (name, values) in tables.into_iter().rev() {
            let table = GgufTensor {
                name,
                shape: vec![values.len()],
                dtype: StoredDtype::F32,
                content: Content::Values(values),
            };
            self.tensors.insert(after_embedding, table);
        }
        Ok(())
    }

    fn write_head(
        &mut self,
        base: &ModelFiles,
        architecture: &Architecture,
        file_type: GgufFileType,
        facts: &GgufFacts,
    ) -> Result<(), WeightsError> {
        let mut head = HeadWriter::default();
        match base.kind() {
            Kind::Gguf(model, _) => {
                head.string("general.architecture", architecture.name);
                head.string("general.name", &facts.name);
                for (key, bytes) in model.metadata().raw_entries() {
                    if !is_replaced(key) {
                        head.raw(key, bytes);
                    }
                }
            }
            Kind::Folder(_) => {
                let elements = self.tensors.iter().map(|t| t.shape.iter().product::<usize>()).sum();
                general_keys(&mut head, architecture, elements, facts);
                model_keys::write(&mut head, base, architecture)?;
                tokenizer_keys::write(&mut head, base)?;
            }
        }
        head.u32("general.file_type", file_type.id());
        if file_type.is_quantised() {
            head.u32("general.quantization_version", 2);
        }
        for tensor in &self.tensors {
            head.tensor(&tensor.name, &tensor.shape, tensor.dtype);
        }
        self.head = head.finish();
        Ok(())
    }
}

/// Metadata of a GGUF base that is not true of a file made from it.
fn is_replaced(key: &str) -> bool {
    const EXACT: &[&str] = &[
        "general.architecture",
        "general.name",
        "general.file_type",
        "general.quantization_version",
        "general.alignment",
    ];
    EXACT.contains(&key) || key.starts_with("split.") || key.starts_with("quantize.imatrix.")
}

fn general_keys(
    head: &mut HeadWriter,
    architecture: &Architecture,
    elements: usize,
    facts: &GgufFacts,
) {
    head.string("general.architecture", architecture.name);
    head.string("general.type", "model");
    head.string("general.name", &facts.name);
    head.string("general.size_label", &size_label(elements));
    if let Some(licence) = &facts.licence {
        head.string("general.license", licence);
    }
    if let Some(base) = &facts.base_model {
        head.u32("general.base_model.count", 1);
        head.string("general.base_model.0.name", base);
        head.string("general.base_model.0.repo_url", &format!("https://huggingface.co/{base}"));
    }
}

/// `135M`, `1.2B`: two digits at least.
fn size_label(elements: usize) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")];
    let (unit, suffix) =
        units.into_iter().find(|&(unit, _)| elements as f64 >= unit).unwrap_or((1e3, "K"));
    let scaled = elements as f64 / unit;
    if scaled < 9.5 { format!("{scaled:.1}{suffix}") } else { format!("{scaled:.0}{suffix}") }
}

pub(super) fn architecture_of(base: &ModelFiles) -> Result<&'static Architecture, WeightsError> {
    if let Kind::Gguf(model, _) = base.kind() {
        return model.architecture();
    }
    let model_type = base.config().get("model_type").and_then(Value::as_str).unwrap_or("none");
    Architecture::of_model_type(model_type).ok_or_else(|| {
        unsupported(base, "GGUF output of model type", model_type, &Architecture::written_types())
    })
}

fn unsupported(
    base: &ModelFiles,
    what: impl Into<String>,
    found: impl Into<String>,
    known: &str,
) -> WeightsError {
    WeightsError::Unsupported {
        path: base.location().to_owned(),
        what: what.into(),
        found: found.into(),
        known: known.to_owned(),
    }
}

/// Sizes of the attention, from the file or the configuration.
pub(super) fn sizes(base: &ModelFiles) -> Result<Sizes, WeightsError> {
    match base.kind() {
        Kind::Gguf(model, _) => model.sizes(),
        Kind::Folder(_) => model_keys::sizes(base),
    }
}

fn model_shape(base: &ModelFiles, names: &[&str]) -> ModelShape {
    let reader = model_keys::Reader::new(base);
    let number = |keys: &[&str]| reader.number_of(keys);
    let heads = number(model_keys::HEADS);
    let kv_heads = number(&["num_key_value_heads"]).or(heads);
    ModelShape {
        layers: number(model_keys::LAYERS).unwrap_or_default() as usize,
        head: if names.contains(&"output.weight") { Head::Own } else { Head::Tied },
        grouped_queries: if heads == kv_heads { GroupedQueries::No } else { GroupedQueries::Yes },
        experts: number(model_keys::EXPERTS).unwrap_or_default() as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        assert_eq!(size_label(134_515_008), "135M");
        assert_eq!(size_label(1_235_814_400), "1.2B");
        assert_eq!(size_label(6_738_415_616), "6.7B");
        assert_eq!(size_label(70_553_706_496), "71B");
        assert_eq!(size_label(300), "0.3K");
    }
}
