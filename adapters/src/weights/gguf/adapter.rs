//! LoRA adapters as GGUF files, in the layout of llama.cpp.
//!
//! A module's factors are `<tensor>.lora_a`, `[rank, d_in]`, and `<tensor>.lora_b`,
//! `[d_out, rank]`, under the name of the tensor that they change; rows of B lie as that tensor's
//! do. llama.cpp computes the scale as `adapter.lora.alpha / rank`, one alpha for all, so another
//! scale is folded into B.

use std::{collections::BTreeMap, fs::File, io::Write, path::Path, sync::Arc};

use super::{
    architecture::Architecture,
    config::Sizes,
    experts::LatentForm,
    export,
    head_writer::{HeadWriter, padding, tensor_bytes},
    header,
    placement::{FilePlace, Reading, unfit},
    rows,
};
use crate::peft::LoraFactors;
use crate::weights::{
    ModelFiles, StoredDtype, WeightsError, decode::RowOrder, mapped_file::MappedFile,
};

const A_ENDING: &str = ".lora_a";
const B_ENDING: &str = ".lora_b";

/// The tensors of a base model, as far as an adapter must know them.
pub(crate) struct AdaptedModel {
    architecture: &'static Architecture,
    sizes: Sizes,
}

/// Modules with their factors and scales.
pub(crate) type ScaledModules = BTreeMap<String, (LoraFactors, f64)>;

impl AdaptedModel {
    pub(crate) fn of(base: &ModelFiles) -> Result<Self, WeightsError> {
        let architecture = export::architecture_of(base)?;
        Ok(Self { architecture, sizes: export::sizes(base)? })
    }

    /// Name and order of rows of the weight that a module has in GGUF. In files linear weights lie
    /// as updates do, `[d_out, d_in]`, whatever the HF layout is.
    fn place(&self, module: &str) -> Option<(String, RowOrder)> {
        let name = format!("{module}.weight");
        let places = self.architecture.file_places(&name, LatentForm::Apart, self.sizes)?;
        // The format has no update of one expert, nor of a tensor that lies in two.
        match places.as_slice() {
            [FilePlace { name, expert: None, .. }] => Some((name.clone(), self.order(name))),
            _ => None,
        }
    }

    fn order(&self, weight: &str) -> RowOrder {
        match self.architecture.reading(weight, self.sizes) {
            Reading::Rows(order) => order,
            _ => RowOrder::AsStored,
        }
    }

    /// Modules without a name in the format.
    pub(crate) fn nameless<'a>(&self, modules: impl Iterator<Item = &'a String>) -> Vec<String> {
        modules.filter(|module| self.place(module).is_none()).cloned().collect()
    }

    /// Writes the file. `alpha` over its rank is the scale that a module's factors are stored for.
    pub(crate) fn write(
        &self,
        path: &Path,
        name: &str,
        alpha: f32,
        modules: &ScaledModules,
    ) -> Result<(), WeightsError> {
        let mut head = HeadWriter::default();
        head.string("general.architecture", self.architecture.name);
        head.string("general.type", "adapter");
        head.string("general.name", name);
        head.string("adapter.type", "lora");
        head.f32("adapter.lora.alpha", alpha);
        head.u32("general.file_type", 0);
        let mut tensors = Vec::new();
        for (module, (factors, scale)) in modules {
            let Some((weight, order)) = self.place(module) else {
                return Err(WeightsError::no_such_tensor(path, module));
            };
            let LoraFactors { a, b, rank, d_in, d_out } = factors;
            let fold = (scale * *rank as f64 / f64::from(alpha)) as f32;
            let b: Vec<f32> = b.iter().map(|value| value * fold).collect();
            let b = order.to_stored(&b, *rank);
            tensors.push((format!("{weight}{A_ENDING}"), [*rank, *d_in], a.clone()));
            tensors.push((format!("{weight}{B_ENDING}"), [*d_out, *rank], b));
        }
        for (name, shape, _) in &tensors {
            head.tensor(name, shape, StoredDtype::F32);
        }
        let io = |error| WeightsError::io(path, "write", error);
        let mut file = File::create(path).map_err(io)?;
        file.write_all(&head.finish()).map_err(io)?;
        for (_, shape, values) in &tensors {
            let mut bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            bytes.resize(bytes.len() + padding(tensor_bytes(shape, StoredDtype::F32)), 0);
            file.write_all(&bytes).map_err(io)?;
        }
        file.sync_all().map_err(io)
    }

    /// Reads a file for this model.
    pub(crate) fn read(&self, path: &Path) -> Result<ScaledModules, WeightsError> {
        let file = Arc::new(MappedFile::open(path)?);
        let header = header::read(&file)?;
        let metadata = &header.metadata;
        for (key, wanted) in [
            ("general.type", "adapter"),
            ("adapter.type", "lora"),
            ("general.architecture", self.architecture.name),
        ] {
            let found = metadata.string(key)?.unwrap_or("missing");
            if found != wanted {
                return Err(metadata.unsupported(format!("metadata `{key}`"), found, wanted));
            }
        }
        let alpha = metadata.number("adapter.lora.alpha")?.unwrap_or(0.0);
        let mut modules = ScaledModules::new();
        for (name, a) in &header.tensors {
            let damaged = |problem: &str| {
                WeightsError::damaged(path, format!("tensor `{name}`"), problem.to_owned())
            };
            let Some(weight) = name.strip_suffix(A_ENDING) else {
                let partner = name.strip_suffix(B_ENDING).map(|stem| format!("{stem}{A_ENDING}"));
                if partner.is_some_and(|partner| header.tensors.contains_key(&partner)) {
                    continue;
                }
                return Err(damaged("is no factor of an update, or has no partner"));
            };
            let module = self.architecture.hf_name(weight);
            let module = module.as_deref().and_then(|name| name.strip_suffix(".weight"));
            let module = module.ok_or_else(|| damaged("changes no tensor of the architecture"))?;
            let b = header.tensors.get(&format!("{weight}{B_ENDING}"));
            let b = b.ok_or_else(|| damaged("has no partner"))?;
            let (&[rank, d_in], &[d_out, rank_of_b]) = (a.shape.as_slice(), b.shape.as_slice())
            else {
                return Err(damaged("is no matrix, or its partner is none"));
            };
            let order = self.order(weight);
            if rank != rank_of_b || unfit(Reading::Rows(order), d_out, 2).is_some() {
                return Err(damaged("does not fit its partner, or not whole heads"));
            }
            let values = rows(&file, b).decode(0..1);
            let b = order.of_stored(&values, rank);
            let a = rows(&file, a).decode(0..1);
            // As llama.cpp: without an alpha the factors are taken as they are.
            let scale = if alpha == 0.0 { 1.0 } else { alpha / rank as f64 };
            let factors = LoraFactors { a, b, rank, d_in, d_out };
            modules.insert(module.to_owned(), (factors, scale));
        }
        Ok(modules)
    }
}
