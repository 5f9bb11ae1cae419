//! A small valid layer in device memory. Tests make one thing about it wrong at a time and expect an error.

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceLora, DeviceMatrix, DeviceSegment, DeviceSlice, Stream};
use fused_lora::lora::Layout;

use super::device::stream;

pub const D_IN: usize = 16;
pub const D_OUT: usize = 8;
pub const RANK: usize = 4;

/// A layer of 16 inputs, 8 outputs and rank 4. All operands are contiguous and share one buffer of zeros.
pub struct Small<T> {
    pub stream: Stream,
    pub data: DeviceBuffer<T>,
}

impl<T: Element> Small<T> {
    /// A layer on a new device if tests run in the emulator.
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

    /// A view of this device's memory at an arbitrary address, without any check.
    pub fn raw(&self, address: u64, rows: usize, cols: usize) -> DeviceMatrix<'_, T> {
        // SAFETY: the view is only used in calls that fail before the launch.
        let data = unsafe { DeviceSlice::from_raw(self.stream.device(), address, rows * cols) };
        DeviceMatrix::new(data, rows, cols).unwrap()
    }
}
