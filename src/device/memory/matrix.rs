//! Views of row-major matrices in device memory: shape, stride and bounds are checked once, here.

use bytemuck::Pod;

use crate::device::Device;
use crate::device::memory::slice::{DeviceSlice, DeviceSliceMut};
use crate::error::{Error, Result};
use crate::matrix::{check, expect_shape, span};

/// Bytes that kernels load and store at a time.
pub(crate) const CHUNK: usize = 16;

/// The memory that a matrix takes, for checks and launch parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    pub(crate) address: u64,
    pub(crate) rows: usize,
    /// Bytes of a row; `stride` and `element` are in bytes as well.
    pub(crate) row: usize,
    pub(crate) stride: usize,
    pub(crate) element: usize,
}

impl Extent {
    /// The extent of a slice, as one row.
    pub(crate) fn of_slice<T: Pod>(slice: &DeviceSlice<'_, T>) -> Self {
        let row = slice.len() * size_of::<T>();
        Self { address: slice.address(), rows: 1, row, stride: row, element: size_of::<T>() }
    }

    /// Whether every row starts and ends at a multiple of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        self.misalignment(CHUNK).is_none() && self.row.is_multiple_of(CHUNK)
    }

    /// The first row address that is not a multiple of `alignment` bytes, if there is one.
    pub(crate) fn misalignment(&self, alignment: usize) -> Option<u64> {
        let second = (self.rows > 1).then(|| self.address.wrapping_add(self.stride as u64));
        [Some(self.address), second].into_iter().flatten().find(|address| !address.is_multiple_of(alignment as u64))
    }

    pub(crate) fn expect_aligned(&self, operand: &'static str, alignment: usize) -> Result<()> {
        match self.misalignment(alignment) {
            Some(address) => Err(Error::Misaligned { operand, address, alignment }),
            None => Ok(()),
        }
    }

    /// Whether the two extents share a byte.
    ///
    /// Exact for matrices of the same stride, such as column blocks of one buffer. Otherwise, gaps between rows count
    /// as part of the matrix.
    pub(crate) fn overlaps(&self, other: &Extent) -> bool {
        let end = |e: &Extent| e.address + span(e.rows, e.row, e.stride).unwrap_or(usize::MAX) as u64;
        let empty = |e: &Extent| e.rows == 0 || e.row == 0;
        if empty(self) || empty(other) || self.address >= end(other) || other.address >= end(self) {
            return false;
        }
        let rows_apart = |first: &Extent, second: &Extent| {
            let offset = (second.address - first.address) % first.stride as u64;
            offset >= first.row as u64 && offset + second.row as u64 <= first.stride as u64
        };
        let apart = self.stride == other.stride
            && if self.address <= other.address { rows_apart(self, other) } else { rows_apart(other, self) };
        !apart
    }

    pub(crate) fn refuse_overlap(&self, output: &'static str, other: &'static str, extent: &Extent) -> Result<()> {
        if self.overlaps(extent) { Err(Error::Overlap { output, other }) } else { Ok(()) }
    }
}

/// What both kinds of views say about their shape and their memory.
macro_rules! matrix_accessors {
    ($lifetime:lifetime) => {
        /// Number of rows.
        pub fn rows(&self) -> usize {
            self.rows
        }

        /// Number of columns.
        pub fn cols(&self) -> usize {
            self.cols
        }

        /// Distance from one row to the next, in elements.
        pub fn row_stride(&self) -> usize {
            self.row_stride
        }

        /// The device that the matrix is on.
        pub fn device(&self) -> &$lifetime Device {
            self.data.device()
        }

        /// The address of `[0, 0]`, a `CUdeviceptr`.
        pub fn address(&self) -> u64 {
            self.data.address()
        }
    };
}

/// A read-only row-major matrix: element `[i, j]` is element `i * row_stride + j` of its slice.
#[derive(Debug)]
pub struct DeviceMatrix<'a, T> {
    data: DeviceSlice<'a, T>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

// `derive` would require `T: Clone`, which a view does not need.
impl<T> Clone for DeviceMatrix<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceMatrix<'_, T> {}

impl<'a, T: Pod> DeviceMatrix<'a, T> {
    /// A contiguous matrix.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if `data` holds fewer than `rows * cols` elements.
    pub fn new(data: DeviceSlice<'a, T>, rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows lie `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::RowsOverlap`] if `row_stride < cols`; [`Error::BufferTooShort`] if the last row ends outside `data`.
    pub fn with_stride(data: DeviceSlice<'a, T>, rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check(rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

    matrix_accessors!('a);

    /// Whether every row starts and ends at a multiple of 16 bytes, as the fast kernels require.
    pub fn is_aligned(&self) -> bool {
        self.extent().is_aligned()
    }

    pub(crate) fn extent(&self) -> Extent {
        let element = size_of::<T>();
        let (row, stride) = (self.cols * element, self.row_stride * element);
        Extent { address: self.address(), rows: self.rows, row, stride, element }
    }

    pub(crate) fn expect_shape(&self, operand: &'static str, expected: [usize; 2]) -> Result<()> {
        expect_shape(operand, expected, [self.rows, self.cols])
    }
}

/// A writable row-major matrix: element `[i, j]` is element `i * row_stride + j` of its slice.
#[derive(Debug)]
pub struct DeviceMatrixMut<'a, T> {
    data: DeviceSliceMut<'a, T>,
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T: Pod> DeviceMatrixMut<'a, T> {
    /// A contiguous matrix.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if `data` holds fewer than `rows * cols` elements.
    pub fn new(data: DeviceSliceMut<'a, T>, rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows lie `row_stride` elements apart. The gaps are never written.
    ///
    /// # Errors
    /// [`Error::RowsOverlap`] if `row_stride < cols`; [`Error::BufferTooShort`] if the last row ends outside `data`.
    pub fn with_stride(data: DeviceSliceMut<'a, T>, rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check(rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

    matrix_accessors!('a);

    /// The same matrix, read-only.
    pub fn as_ref(&self) -> DeviceMatrix<'_, T> {
        let (rows, cols, row_stride) = (self.rows, self.cols, self.row_stride);
        DeviceMatrix { data: self.data.as_ref(), rows, cols, row_stride }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(address: u64, rows: usize, row: usize, stride: usize) -> Extent {
        Extent { address, rows, row, stride, element: 2 }
    }

    #[test]
    fn a_matrix_is_aligned_if_all_its_rows_are() {
        assert!(extent(0x100, 3, 32, 48).is_aligned());
        assert!(!extent(0x108, 3, 32, 48).is_aligned());
        assert!(!extent(0x100, 3, 32, 40).is_aligned());
        assert!(!extent(0x100, 3, 24, 48).is_aligned());
        assert!(extent(0x100, 1, 32, 40).is_aligned(), "a single row has no stride");
        assert_eq!(extent(0x100, 2, 32, 40).misalignment(16), Some(0x128));
    }

    #[test]
    fn overlap_is_told_from_neighbourhood() {
        let whole = extent(0x1000, 4, 64, 64);
        assert!(whole.overlaps(&whole));
        assert!(whole.overlaps(&extent(0x10ff, 1, 1, 1)));
        assert!(!whole.overlaps(&extent(0x1100, 1, 1, 1)));
        assert!(!whole.overlaps(&extent(0x1000, 0, 64, 64)));
    }

    #[test]
    fn column_blocks_of_one_buffer_do_not_overlap() {
        let (left, right) = (extent(0x1000, 4, 32, 64), extent(0x1020, 4, 32, 64));
        assert!(!left.overlaps(&right) && !right.overlaps(&left));
        assert!(left.overlaps(&extent(0x101e, 4, 32, 64)));
        // In the gap behind the second row, 32 bytes fit; 2 bytes further on, they overlap the third row.
        assert!(!left.overlaps(&extent(0x1060, 2, 32, 64)));
        assert!(left.overlaps(&extent(0x1062, 2, 32, 64)));
    }
}
