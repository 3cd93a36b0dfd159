//! Reads a base model out of one GGUF file, under the names and in the layout of the HF format.

pub(crate) mod adapter;
mod architecture;
mod architectures;
pub(super) mod blocks;
mod config;
mod describe;
mod experts;
pub(crate) mod export;
mod family_config;
mod file_type;
pub(crate) mod head_writer;
mod header;
mod mapped_rows;
mod metadata;
mod model;
pub(crate) mod placement;
pub(crate) mod quantize;
mod reader;
mod rope_factors;
mod tensors;
#[cfg(test)]
pub(super) mod test_writer;
#[cfg(test)]
mod tests;
mod tokenizer;

pub(super) use self::model::GgufModel;
pub use self::{
    describe::{GgufDescription, describe_gguf},
    export::GgufFacts,
    file_type::GgufFileType,
};

use self::{
    architecture::Architecture,
    header::{Header, TensorInfo},
};
use super::{
    WeightsError,
    decode::{RowOrder, StoredRows},
    mapped_file::MappedFile,
};

/// A tensor as one row, in the file's order.
fn rows<'a>(file: &'a MappedFile, info: &TensorInfo) -> StoredRows<'a> {
    let bytes = file.bytes().get(info.range.clone()).unwrap_or_default();
    let columns = info.shape.iter().product();
    StoredRows { bytes, dtype: info.dtype, columns, order: RowOrder::AsStored }
}

fn architecture_of(header: &Header) -> Result<&'static Architecture, WeightsError> {
    let metadata = &header.metadata;
    let kind = metadata.string("general.type")?.unwrap_or("model");
    if kind != "model" {
        return Err(metadata.unsupported("GGUF file of type", kind, "model"));
    }
    let parts = metadata.u64("split.count")?.unwrap_or(1);
    if parts > 1 {
        return Err(metadata.unsupported(
            "GGUF split into",
            format!("{parts} files"),
            "one file; join them with `llama-gguf-split --merge`",
        ));
    }
    let name = metadata
        .string("general.architecture")?
        .ok_or_else(|| metadata.damaged("general.architecture", "missing"))?;
    let experts = metadata.u64(&format!("{name}.expert_count"))?.unwrap_or(0);
    Architecture::find(name, experts)
        .ok_or_else(|| metadata.unsupported("GGUF architecture", name, Architecture::all_names()))
}
