//! Reaches the memory of CPU tensors without copying it.

use burn::tensor::{DType, Device, Tensor, TensorData};
use burn_flex::{Flex, FlexTensor};
use half::bf16;

/// Whether a tensor lives on the CPU backend.
pub fn on_host<const D: usize>(tensor: &Tensor<D>) -> bool {
    tensor.clone().try_into_primitive::<Flex>().is_ok()
}

/// The CPU tensor behind `tensor`, rows end to end, when it is f32 on the CPU.
pub(crate) fn host_f32<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    host(tensor).filter(|tensor| tensor.dtype() == DType::F32)
}

/// The CPU tensor behind `tensor`, rows end to end, whatever its number format.
pub(crate) fn host<const D: usize>(tensor: &Tensor<D>) -> Option<FlexTensor> {
    let tensor = tensor.clone().try_into_primitive::<Flex>().ok()?;
    let dense = tensor.layout().is_contiguous() && tensor.layout().start_offset() == 0;
    Some(if dense { tensor } else { tensor.to_contiguous() })
}

/// The CPU tensor, given up by the caller so that a kernel can write into it.
#[expect(clippy::result_large_err, reason = "the tensor itself, given back")]
pub(crate) fn take_f32<const D: usize>(tensor: Tensor<D>) -> Result<FlexTensor, Tensor<D>> {
    if tensor.dtype() != DType::F32 || !on_host(&tensor) {
        return Err(tensor);
    }
    let flex = tensor.try_into_primitive::<Flex>().expect("checked by on_host");
    let dense = flex.layout().is_contiguous() && flex.layout().start_offset() == 0;
    Ok(if dense { flex } else { flex.to_contiguous() })
}

/// What a gradient is added to: `sum`, or zeros where there is none yet. `sum` is given back where
/// it is not f32 on the CPU.
#[expect(clippy::result_large_err, reason = "the tensor itself, given back")]
pub(crate) fn sum_or_zeros<const D: usize>(
    sum: Option<Tensor<D>>,
    shape: [usize; D],
) -> Result<FlexTensor, Tensor<D>> {
    match sum {
        Some(sum) => take_f32(sum),
        None => {
            Ok(FlexTensor::from_data(TensorData::new(vec![0.0_f32; shape.iter().product()], shape)))
        }
    }
}

/// The values of a dense f32 tensor.
pub(crate) fn read(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage::<f32>()[..tensor.layout().num_elements()]
}

/// The values of a dense f32 tensor, to write; copies them first when they are shared.
pub(crate) fn write(tensor: &mut FlexTensor) -> &mut [f32] {
    let elements = tensor.layout().num_elements();
    &mut tensor.storage_mut::<f32>()[..elements]
}

/// The values of a dense bf16 tensor.
pub(crate) fn read_bf16(tensor: &FlexTensor) -> &[bf16] {
    &tensor.storage::<bf16>()[..tensor.layout().num_elements()]
}

/// Wraps values as a CPU tensor without copying them.
pub(crate) fn wrap<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    let tensor = FlexTensor::from_data(TensorData::new(values, shape));
    Tensor::from_primitive::<Flex>(tensor)
}

/// Gives a CPU tensor back to burn.
pub(crate) fn give<const D: usize>(tensor: FlexTensor) -> Tensor<D> {
    Tensor::from_primitive::<Flex>(tensor)
}

/// A buffer whose every element the caller writes before anything reads it.
#[expect(clippy::uninit_vec, reason = "each kernel writes all of its output")]
pub(crate) fn buffer(elements: usize) -> Vec<f32> {
    let mut values = Vec::with_capacity(elements);
    // SAFETY: f32 has no invalid bit patterns and no destructor, and kernels write every element
    // before reading it.
    unsafe { values.set_len(elements) };
    values
}

/// Puts f32 values on a device, converted to `dtype`.
pub fn from_f32<const D: usize>(
    values: Vec<f32>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, shape).convert_dtype(dtype), (device, dtype))
}

/// Puts little-endian bytes on a device as they are stored.
pub fn from_stored<const D: usize>(
    bytes: Vec<u8>,
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    Tensor::from_data(TensorData::from_bytes_vec(bytes, shape, dtype), (device, dtype))
}

/// Copies a tensor to the host as f32.
pub fn to_f32<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    match host_f32(tensor) {
        Some(host) => read(&host).to_vec(),
        None => values(tensor.clone()),
    }
}

/// The values of a tensor as f32, without a copy where that is possible.
pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.cast(DType::F32).into_data().try_into_vec::<f32>().expect("cast to f32")
}

/// A CPU tensor whose every element the caller writes before anything reads it.
pub(crate) fn empty<const D: usize>(shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(buffer(shape.iter().product()), shape))
}

/// A pointer that tasks may share because they write disjoint elements.
pub(crate) struct Shared(pub(crate) *mut f32);

// SAFETY: every use writes elements that belong to one task alone.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

impl Shared {
    /// # Safety
    /// `offset` must lie inside the buffer.
    pub(crate) unsafe fn at(&self, offset: usize) -> *mut f32 {
        // SAFETY: promised by the caller.
        unsafe { self.0.add(offset) }
    }
}
