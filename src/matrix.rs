//! Views of row-major matrices. Their constructors check shape, stride and bounds, so nothing else has to.

use crate::error::{Error, Result};

/// The number of elements from the first to the last of a matrix, gaps between rows included; `None` if it overflows.
pub(crate) fn span(rows: usize, cols: usize, row_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    (rows - 1).checked_mul(row_stride)?.checked_add(cols)
}

/// Checks that a matrix fits into a buffer of `available` elements.
pub(crate) fn check(rows: usize, cols: usize, row_stride: usize, available: usize) -> Result<()> {
    if row_stride < cols {
        return Err(Error::RowsOverlap { cols, row_stride });
    }
    match span(rows, cols, row_stride) {
        Some(required) if required <= available => Ok(()),
        required => {
            Err(Error::BufferTooShort { rows, cols, row_stride, required: required.unwrap_or(usize::MAX), available })
        }
    }
}

/// A read-only row-major matrix: element `[i, j]` is `data[i * row_stride + j]`.
#[derive(Debug)]
pub struct MatrixRef<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

// `derive` would require `T: Clone`, which a view does not need.
impl<T> Clone for MatrixRef<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for MatrixRef<'_, T> {}

impl<'a, T> MatrixRef<'a, T> {
    /// A contiguous matrix.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if `data` holds fewer than `rows * cols` elements.
    pub fn new(data: &'a [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows lie `row_stride` elements apart.
    ///
    /// # Errors
    /// [`Error::RowsOverlap`] if `row_stride < cols`; [`Error::BufferTooShort`] if the last row ends outside `data`.
    pub fn with_stride(data: &'a [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check(rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

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

    /// The elements from `[0, 0]` on, with the gaps between rows and everything after the last row.
    pub fn data(&self) -> &'a [T] {
        self.data
    }

    /// Row `i`. Panics if there is no such row.
    pub fn row(&self, i: usize) -> &'a [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &self.data[i * self.row_stride..][..self.cols]
    }

    /// The matrix of the columns `range` of every row. Panics if the range is not inside the matrix.
    pub fn columns(&self, range: std::ops::Range<usize>) -> MatrixRef<'a, T> {
        assert!(range.start <= range.end && range.end <= self.cols, "columns {range:?} of {}", self.cols);
        let data = if self.rows == 0 { self.data } else { &self.data[range.start..] };
        MatrixRef { data, rows: self.rows, cols: range.len(), row_stride: self.row_stride }
    }

    pub(crate) fn expect_shape(&self, operand: &'static str, expected: [usize; 2]) -> Result<()> {
        expect_shape(operand, expected, [self.rows, self.cols])
    }
}

/// A writable row-major matrix: element `[i, j]` is `data[i * row_stride + j]`.
#[derive(Debug)]
pub struct MatrixMut<'a, T> {
    data: &'a mut [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
}

impl<'a, T> MatrixMut<'a, T> {
    /// A contiguous matrix.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if `data` holds fewer than `rows * cols` elements.
    pub fn new(data: &'a mut [T], rows: usize, cols: usize) -> Result<Self> {
        Self::with_stride(data, rows, cols, cols)
    }

    /// A matrix whose rows lie `row_stride` elements apart. The gaps are never written.
    ///
    /// # Errors
    /// [`Error::RowsOverlap`] if `row_stride < cols`; [`Error::BufferTooShort`] if the last row ends outside `data`.
    pub fn with_stride(data: &'a mut [T], rows: usize, cols: usize, row_stride: usize) -> Result<Self> {
        check(rows, cols, row_stride, data.len())?;
        Ok(Self { data, rows, cols, row_stride })
    }

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

    /// The same matrix, read-only.
    pub fn as_ref(&self) -> MatrixRef<'_, T> {
        MatrixRef { data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }

    /// The same matrix, borrowed for a shorter time.
    pub fn reborrow(&mut self) -> MatrixMut<'_, T> {
        MatrixMut { data: self.data, rows: self.rows, cols: self.cols, row_stride: self.row_stride }
    }

    /// Row `i`. Panics if there is no such row.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        &mut self.data[i * self.row_stride..][..self.cols]
    }

    pub(crate) fn data_mut(&mut self) -> &mut [T] {
        self.data
    }

    pub(crate) fn expect_shape(&self, operand: &'static str, expected: [usize; 2]) -> Result<()> {
        expect_shape(operand, expected, [self.rows, self.cols])
    }
}

pub(crate) fn expect_shape(operand: &'static str, expected: [usize; 2], actual: [usize; 2]) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::ShapeMismatch { operand, expected, actual }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_row_needs_no_padding() {
        let data = [0u8; 11];
        assert!(MatrixRef::with_stride(&data, 3, 3, 4).is_ok());
        assert_eq!(
            MatrixRef::with_stride(&data, 3, 4, 4).unwrap_err(),
            Error::BufferTooShort { rows: 3, cols: 4, row_stride: 4, required: 12, available: 11 }
        );
    }

    #[test]
    fn overlapping_rows_and_overflowing_spans_are_refused() {
        let data = [0u8; 4];
        assert_eq!(MatrixRef::with_stride(&data, 2, 3, 2).unwrap_err(), Error::RowsOverlap { cols: 3, row_stride: 2 });
        assert!(MatrixRef::with_stride(&data, usize::MAX, 2, usize::MAX).is_err());
    }

    #[test]
    fn columns_keep_the_stride() {
        let data: Vec<u32> = (0..12).collect();
        let right = MatrixRef::new(&data, 3, 4).unwrap().columns(2..4);
        assert_eq!(right.row(2), &[10, 11]);
    }

    #[test]
    fn empty_matrices_need_no_data() {
        let m = MatrixRef::<f32>::new(&[], 0, 7).unwrap();
        assert_eq!((m.rows(), m.cols()), (0, 7));
        assert_eq!(m.columns(2..5).cols(), 3);
    }
}
