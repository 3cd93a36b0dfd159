//! How the frozen weights are kept: what the recipe asks for, the device does well, and memory
//! holds.

use adapters::weights::ModelFiles;
use burn::tensor::DType;
use trainer::Precision;
use trainer::base_model::{BaseFormat, BaseStorage, DecoderConfig};

use crate::device::{Chosen, DeviceKind};
use crate::diagnostics::UserError;
use crate::recipe::{QuantizeBase, Recipe};

/// The format of a recipe's base on a device.
pub(crate) fn of_recipe(
    recipe: &Recipe,
    files: &ModelFiles,
    config: &DecoderConfig,
    chosen: &Chosen,
) -> anyhow::Result<BaseFormat> {
    let storage = match recipe.quantize_base {
        QuantizeBase::None => {
            let dtype = chosen.dtype(recipe.precision);
            return Ok(dense_or_stored(files, config, dtype, chosen.kind));
        }
        QuantizeBase::Int8 => BaseStorage::Int8,
        QuantizeBase::Nf4 => BaseStorage::Nf4,
    };
    if let Some(error) = quantised_twice(recipe, files) {
        return Err(error.into());
    }
    // What is not quantised, embeddings and head, stays in 16 bits unless f32 is asked for.
    let dtype = if recipe.precision == Precision::F32 { DType::F32 } else { DType::BF16 };
    Ok(BaseFormat { dtype, storage })
}

/// Why a recipe must not quantise this base.
pub(crate) fn quantised_twice(recipe: &Recipe, files: &ModelFiles) -> Option<UserError> {
    (recipe.quantize_base != QuantizeBase::None && files.is_quantised()).then(|| {
        UserError::new(
            format!(
                "`quantize_base` over `{}`, which is quantised already",
                files.location().display()
            ),
            "set `quantize_base = \"none\"`: the file is trained as it stands",
        )
    })
}

/// Quantised files are expanded where that leaves most of the memory free, which is faster; else
/// they stay as they are. Results are the same.
pub(crate) fn dense_or_stored(
    files: &ModelFiles,
    config: &DecoderConfig,
    dtype: DType,
    kind: DeviceKind,
) -> BaseFormat {
    let expanded = trainer::memory::base_bytes(config, dtype.into(), files);
    let free = match kind {
        DeviceKind::Cpu => trainer::available_memory_bytes(),
        DeviceKind::Cuda => crate::device::gpu_free_bytes(),
    };
    let stays = files.is_quantised() && free.is_some_and(|free| expanded > free / 4);
    let storage = if stays { BaseStorage::AsStored } else { BaseStorage::Dense };
    BaseFormat { dtype, storage }
}
