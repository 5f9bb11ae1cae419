//! Tensor maps: descriptions of tensors for a GPU's copy engine (TMA, from compute capability 9.0 on).

use crate::abi::TensorMap;
use crate::device::Device;
use crate::error::{Error, Result};

/// A tensor in device memory, and the shape of the boxes that are copied from or to it. The contiguous dimension comes
/// first.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// The address of the first element; a multiple of 16.
    pub address: u64,
    /// Bytes of an element: 1, 2, 4 or 8.
    pub element_bytes: u32,
    /// Elements in each of the 1 to 5 dimensions.
    pub dims: &'a [u64],
    /// Strides in bytes of every dimension but the first; multiples of 16.
    pub strides: &'a [u64],
    /// Elements of a box in each dimension, at most 256.
    pub boxes: &'a [u32],
    /// Whether boxes are stored in shared memory with the 128-byte swizzle. Their rows then have 128 bytes.
    pub swizzle_128: bool,
}

impl Device {
    /// Encodes a tensor map for the parameters of a kernel. The map holds the tensor's address, but does not keep its
    /// memory alive.
    ///
    /// # Errors
    /// [`Error::BadTensorMap`] if the tensor breaks one of the rules above, or the device has no copy engine.
    pub fn tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap> {
        let bad = |reason: &str| Err(Error::BadTensorMap { reason: reason.to_owned() });
        let rank = tensor.dims.len();
        if !(1..=5).contains(&rank) || tensor.boxes.len() != rank || tensor.strides.len() + 1 != rank {
            return bad("a tensor has 1 to 5 dimensions, a box as many, and one stride less");
        }
        if ![1, 2, 4, 8].contains(&tensor.element_bytes) {
            return bad("elements are of 1, 2, 4 or 8 bytes");
        }
        if self.properties().compute_capability < (9, 0) {
            return bad("the device has no copy engine");
        }
        self.backend().encode_tensor_map(tensor)
    }
}
