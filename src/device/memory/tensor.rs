//! An owned matrix in device memory.

use bytemuck::Pod;

use crate::device::launch::stream::Stream;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut};
use crate::error::{Error, Result};

/// A row-major matrix `[rows, cols]` that owns its memory, without gaps between rows.
///
/// For the first steps and for tests: a program that keeps many matrices in one allocation takes views of a
/// [`DeviceBuffer`] instead.
#[derive(Debug)]
pub struct DeviceTensor<T> {
    buffer: DeviceBuffer<T>,
    rows: usize,
    cols: usize,
}

impl<T: Pod> DeviceTensor<T> {
    /// A copy of `rows * cols` elements in host memory; returns when the copy is done.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`] unless `from` holds exactly `rows * cols` elements; otherwise as
    /// [`DeviceBuffer::from_slice`].
    pub fn from_slice(stream: &Stream, from: &[T], rows: usize, cols: usize) -> Result<Self> {
        let (expected, actual) = (rows.saturating_mul(cols), from.len());
        if actual != expected {
            return Err(Error::LengthMismatch { operand: "tensor", expected, actual });
        }
        Ok(Self { buffer: DeviceBuffer::from_slice(stream, from)?, rows, cols })
    }

    /// A matrix whose bytes are all zero.
    ///
    /// # Errors
    /// As [`DeviceBuffer::zeros`].
    pub fn zeros(stream: &Stream, rows: usize, cols: usize) -> Result<Self> {
        Ok(Self { buffer: DeviceBuffer::zeros(stream, rows.saturating_mul(cols))?, rows, cols })
    }

    /// A view of the whole matrix.
    pub fn view(&self) -> DeviceMatrix<'_, T> {
        DeviceMatrix::new(self.buffer.as_slice(), self.rows, self.cols).expect("checked when the tensor was made")
    }

    /// A writable view of the whole matrix.
    pub fn view_mut(&mut self) -> DeviceMatrixMut<'_, T> {
        DeviceMatrixMut::new(self.buffer.as_mut_slice(), self.rows, self.cols)
            .expect("checked when the tensor was made")
    }

    /// Copies all elements, row by row, to a new vector; returns when the copy is done.
    ///
    /// # Errors
    /// As [`DeviceBuffer::to_vec`].
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.buffer.to_vec(stream)
    }
}
