//! Which tensors a file will hold, in which order, and out of which tensors of the model.

use serde_json::Value;

use super::unsupported;
use crate::weights::gguf::architecture::Architecture;
use crate::weights::gguf::config::Sizes;
use crate::weights::gguf::experts::LatentForm;
use crate::weights::gguf::placement::{Reading, unfit};
use crate::weights::{ModelFiles, TensorEntry, WeightsError, model_files::Kind};

/// The tensors of a file, in its order.
pub(super) struct Outline<'a> {
    pub(super) tensors: Vec<Outlined<'a>>,
    /// Tensors of the base that have no place in the format and no use.
    pub(super) left_out: Vec<String>,
}

/// A tensor of the file, and those of the model that it is made of.
pub(super) struct Outlined<'a> {
    pub(super) name: String,
    pub(super) reading: Reading,
    /// One, or the experts that it is a stack of.
    sources: Vec<Source<'a>>,
    place: (usize, usize, usize),
}

struct Source<'a> {
    hf_name: &'a str,
    entry: &'a TensorEntry,
    expert: Option<usize>,
}

impl<'a> Outline<'a> {
    pub(super) fn of(
        base: &ModelFiles,
        architecture: &Architecture,
        tensors: impl Iterator<Item = (&'a str, &'a TensorEntry)>,
        sizes: Sizes,
    ) -> Result<Self, WeightsError> {
        let form = match base.kind() {
            Kind::Gguf(model, _) => model.latent_form(),
            Kind::Folder(_) => LatentForm::Apart,
        };
        let mut outline = Self { tensors: Vec::new(), left_out: Vec::new() };
        for (hf_name, entry) in tensors {
            let text_name = text_name(hf_name);
            let places = match architecture.file_places(&text_name, form, sizes) {
                _ if is_unused(base, &text_name) => {
                    outline.left_out.push(hf_name.to_owned());
                    continue;
                }
                Some(places) => places,
                None => {
                    let what = format!("{} tensor without a name in GGUF", architecture.name);
                    return Err(unsupported(
                        base,
                        what,
                        hf_name,
                        "the tensors of the architecture",
                    ));
                }
            };
            for place in places {
                let source = Source { hf_name, entry, expert: place.expert };
                outline.add(source, place.name, place.reading, architecture);
            }
        }
        outline.tensors.sort_by(|a, b| (a.place, &a.name).cmp(&(b.place, &b.name)));
        Ok(outline)
    }

    fn add(
        &mut self,
        source: Source<'a>,
        name: String,
        reading: Reading,
        architecture: &Architecture,
    ) {
        if source.expert.is_some() {
            // The experts of a block come one after the other, so the last tensors are likely ones.
            let known = self.tensors.iter_mut().rev().find(|tensor| tensor.name == name);
            if let Some(tensor) = known {
                tensor.sources.push(source);
                return;
            }
        }
        let place = place(&name, architecture);
        self.tensors.push(Outlined { name, reading, sources: vec![source], place });
    }
}

impl Outlined<'_> {
    /// The shape in the file, and the tensors of the model in its order.
    pub(super) fn shape_and_names(
        &self,
        base: &ModelFiles,
    ) -> Result<(Vec<usize>, Vec<String>), WeightsError> {
        let mut sources: Vec<&Source> = self.sources.iter().collect();
        sources.sort_by_key(|source| source.expert);
        let damaged = |source: &Source, problem: String| {
            WeightsError::damaged(base.location(), format!("tensor `{}`", source.hf_name), problem)
        };
        let Some(first) = sources.first().copied() else { return Ok((Vec::new(), Vec::new())) };
        for (number, source) in sources.iter().enumerate() {
            let shape = &source.entry.shape;
            if let Some(problem) = unfit(self.reading, source.entry.rows(), shape.len()) {
                return Err(damaged(source, problem));
            }
            if *shape != first.entry.shape {
                let problem =
                    format!("shape {shape:?}, `{}` {:?}", first.hf_name, first.entry.shape);
                return Err(damaged(source, problem));
            }
            if source.expert.is_some_and(|expert| expert != number) {
                return Err(damaged(source, format!("there is no expert {number} before it")));
            }
        }
        let stack = first.expert.map(|_| sources.len());
        let shape = self.reading.stored_shape(&first.entry.shape);
        let names = sources.iter().map(|source| source.hf_name.to_owned()).collect();
        Ok((stack.into_iter().chain(shape).collect(), names))
    }
}

/// Beginnings of names in models that see images, and what the language model alone has.
const TEXT_PREFIXES: &[(&str, &str)] = &[
    ("model.language_model.", "model."),
    ("language_model.model.", "model."),
    ("language_model.lm_head.", "lm_head."),
];

/// The name that a tensor has in the language model alone.
pub(super) fn text_name(hf_name: &str) -> String {
    let found = TEXT_PREFIXES
        .iter()
        .find_map(|(from, to)| hf_name.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    found.unwrap_or_else(|| hf_name.to_owned())
}

/// Whether a tensor takes no part in the language model: masks and frequencies that old checkpoints
/// carry, what sees images, layers behind the last.
fn is_unused(base: &ModelFiles, name: &str) -> bool {
    const PARTS: &[&str] = &["vision_tower.", "vision_model.", "multi_modal_projector."];
    const MASKS: &[&str] = &[
        ".inv_freq",
        ".attn.bias",
        ".attn.masked_bias",
        ".attention.bias",
        ".attention.masked_bias",
    ];
    let layers = base.config().get("num_hidden_layers").and_then(Value::as_u64);
    let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next());
    let layer = layer.and_then(|number| number.parse::<u64>().ok());
    let is_behind = layers.zip(layer).is_some_and(|(layers, layer)| layer >= layers);
    let is_of_deepseek = base.config()["model_type"] == "deepseek_v3";
    PARTS.iter().any(|part| name.contains(part))
        || MASKS.iter().any(|ending| name.ends_with(ending))
        || (is_behind && is_of_deepseek)
}

/// Embedding, blocks by number, final norm, head: the order in which a model uses them.
fn place(name: &str, architecture: &Architecture) -> (usize, usize, usize) {
    let mut words = name.split('.');
    let first = words.next().unwrap_or_default();
    let position = |table: &[(&str, &str)], part: &str| {
        table.iter().position(|row| row.0 == part).unwrap_or(table.len())
    };
    if first == "blk" {
        let layer = words.next().and_then(|number| number.parse().ok()).unwrap_or_default();
        let part = words.next().unwrap_or_default();
        return (1, layer, position(architecture.block_tensors, part));
    }
    let stage = if first == "token_embd" { 0 } else { 2 };
    (stage, 0, position(architecture.tensors, first))
}
