//! Kernels in CubeCL's queue.

use std::hash::{DefaultHasher, Hash, Hasher};

use burn::tensor::{DType, Tensor};
use burn_cubecl::Cube;
use burn_cubecl::cubecl::ir::metadata::Info;
use burn_cubecl::cubecl::ir::{AddressType, ElemType, UIntKind};
use burn_cubecl::cubecl::prelude::{
    CubeCount, CubeDim, ExecutionMode, KernelDefinition, KernelId, KernelMetadata, KernelSettings,
    Scope,
};
use burn_cubecl::cubecl::server::{KernelArguments, MetadataBindingInfo};
use burn_cubecl::cubecl::{CubeKernel, PrecompiledSource};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;

use super::cublas;
use crate::launch::{Argument, Launch, Machine, Operands, Product, Program};

/// The GPU that a tensor lies on.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Gpu;

impl Machine for Gpu {
    type Buffer = CubeTensor;

    fn read<const D: usize>(&self, tensor: &Tensor<D>) -> Option<CubeTensor> {
        tensor.clone().try_into_primitive::<Cube>().ok().map(into_contiguous)
    }

    fn own<const D: usize>(&self, tensor: Tensor<D>) -> Option<CubeTensor> {
        let tensor = into_contiguous(tensor.try_into_primitive::<Cube>().ok()?);
        Some(if tensor.handle.can_mut() { tensor } else { tensor.copy() })
    }

    fn empty(&self, like: &CubeTensor, dtype: DType, elements: usize) -> CubeTensor {
        let handle = like.client.empty(elements * dtype.size());
        let (client, device) = (like.client.clone(), like.device.clone());
        CubeTensor::new_contiguous(client, device, [elements].into(), handle, dtype)
    }

    fn upload(&self, like: &CubeTensor, bytes: &[u8]) -> CubeTensor {
        let handle = like.client.create_from_slice(bytes);
        let (client, device) = (like.client.clone(), like.device.clone());
        CubeTensor::new_contiguous(client, device, [bytes.len()].into(), handle, DType::U8)
    }

    fn tensor<const D: usize>(&self, buffer: CubeTensor, shape: [usize; D]) -> Tensor<D> {
        let CubeTensor { client, handle, device, dtype, .. } = buffer;
        let tensor = CubeTensor::new_contiguous(client, device, shape.into(), handle, dtype);
        Tensor::from_primitive::<Cube>(tensor)
    }

    fn download(&self, buffer: &CubeTensor) -> Vec<u8> {
        let length = buffer.meta.num_elements() * buffer.dtype.size();
        buffer.client.read_one_unchecked(buffer.handle.clone())[..length].to_vec()
    }

    fn launch(&self, launch: &Launch, arguments: &[Argument<'_, CubeTensor>]) {
        let Some((first, _)) = arguments.first() else { return };
        let kernel = Text { program: launch.program.clone(), threads: launch.threads };
        let words = launch.scalars.words();
        // All numbers go by value, none by a buffer.
        let info = MetadataBindingInfo { dynamic_metadata_offset: words.len(), data: words };
        let [x, y, z] = launch.grid;
        let bound = arguments.iter().fold(KernelArguments::new(), |bound, (buffer, _)| {
            bound.with_buffer(buffer.handle.clone().binding())
        });
        first.client.launch(Box::new(kernel), CubeCount::Static(x, y, z), bound.with_info(info));
    }

    fn product(&self, product: &Product, operands: &Operands<'_, CubeTensor>) -> bool {
        cublas::multiply(product, operands)
    }
}

/// A kernel as CUDA C++.
struct Text {
    program: Program,
    threads: u32,
}

impl KernelMetadata for Text {
    fn id(&self) -> KernelId {
        // The text follows from the program; its hash keeps apart what two versions made of it.
        let mut hasher = DefaultHasher::new();
        env!("CARGO_PKG_VERSION").hash(&mut hasher);
        let dim = CubeDim::new_1d(self.threads);
        KernelId::new::<Self>().info((self.program.clone(), hasher.finish())).cube_dim(dim.into())
    }

    fn address_type(&self) -> ElemType {
        UIntKind::U32.into()
    }
}

impl CubeKernel for Text {
    fn define(&self) -> KernelDefinition {
        let dim = CubeDim::new_1d(self.threads);
        let settings = KernelSettings::new(dim.into(), ExecutionMode::Checked, AddressType::U32);
        KernelDefinition { body: Scope::root(settings.clone()), settings, info: Info::default() }
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: self.program.text(),
            entrypoint_name: self.program.entry.to_owned(),
            lang: "cuda",
        })
    }
}
