//! A layer in device memory, to be made wrong in one way at a time.

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceLora, DeviceMatrix, DeviceSegment, DeviceSlice, Stream};
use fused_lora::lora::Layout;

use super::device::stream;

pub const D_IN: usize = 16;
pub const D_OUT: usize = 8;
pub const RANK: usize = 4;

/// A 16 to 8 layer of rank 4 with everything contiguous, and all of it zeros in one buffer.
pub struct Small<T> {
    pub stream: Stream,
    pub data: DeviceBuffer<T>,
}

impl<T: Element> Small<T> {
    /// On a device of its own, where that is an emulator.
    pub fn new() -> Self {
        let stream = stream();
        let data = DeviceBuffer::zeros(&stream, 1024).unwrap();
        Self { stream, data }
    }

    pub fn matrix(&self, rows: usize, cols: usize) -> DeviceMatrix<'_, T> {
        DeviceMatrix::new(self.data.as_slice(), rows, cols).unwrap()
    }

    pub fn segment(&self) -> DeviceSegment<'_, T> {
        DeviceSegment { columns: 0..D_OUT, a: self.matrix(RANK, D_IN), b: self.matrix(D_OUT, RANK), scale: 1.0 }
    }

    pub fn layer<'a>(&'a self, segments: &'a [DeviceSegment<'a, T>]) -> DeviceLora<'a, T> {
        let (weight, bias) = (self.matrix(D_OUT, D_IN), Some(self.data.slice(0..D_OUT)));
        DeviceLora { weight, layout: Layout::OutIn, bias, segments }
    }

    /// A view of this device's memory that nothing has checked.
    pub fn raw(&self, address: u64, rows: usize, cols: usize) -> DeviceMatrix<'_, T> {
        // SAFETY: the view is used for calls that are refused.
        let data = unsafe { DeviceSlice::from_raw(self.stream.device(), address, rows * cols) };
        DeviceMatrix::new(data, rows, cols).unwrap()
    }
}
