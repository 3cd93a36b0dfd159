//! Tensors that wait in the memory of the host, out of a GPU's.

use burn::tensor::{Device, Tensor, TensorData};

/// A matrix in the memory of the host, with the device that it goes back to.
#[derive(Debug)]
pub struct Parked {
    data: TensorData,
    device: Device,
}

/// Copies a matrix to the host; waits for it.
pub fn park(x: &Tensor<2>) -> Parked {
    Parked { data: x.to_data(), device: x.device() }
}

impl Parked {
    /// The matrix where it was, to the bit.
    pub fn back(self) -> Tensor<2> {
        let dtype = self.data.dtype();
        Tensor::from_data(self.data, (&self.device, dtype))
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::DType;

    use super::*;

    #[test]
    fn what_was_parked_comes_back_to_the_bit() {
        for dtype in [DType::F32, DType::BF16] {
            let values = (0..60).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Tensor<2> = crate::from_f32(values, [5, 12], dtype, &Device::flex());
            let back = park(&x).back();
            assert_eq!((back.dtype(), back.dims()), (dtype, [5, 12]));
            assert_eq!(back.to_data(), x.to_data());
        }
    }
}
