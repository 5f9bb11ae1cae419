//! Two-dimensional operands with a stride in both directions, so that a transposed view costs nothing.

use std::ops::Range;

use crate::dtype::Element;
use crate::lora::{Layout, Weight};
use crate::matrix::MatrixRef;

/// A strided `[rows, cols]` operand of a matrix product. Element `[i, j]` is `data[i * row_stride + j * col_stride]`.
#[derive(Debug, Clone, Copy)]
pub struct Operand<'a, T> {
    data: &'a [T],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a, T> Operand<'a, T> {
    /// An operand over `data`. Panics if its last element lies outside `data`.
    pub fn new(data: &'a [T], rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Self {
        if rows > 0 && cols > 0 {
            let last = (rows - 1) * row_stride + (cols - 1) * col_stride;
            assert!(last < data.len(), "a {rows}x{cols} operand ends at {last} of {}", data.len());
        }
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The operand of a row-major matrix.
    pub fn from_matrix(m: MatrixRef<'a, T>) -> Self {
        Self::new(m.data(), m.rows(), m.cols(), m.row_stride(), 1)
    }

    /// A weight as the right operand of `x · W`: `[d_in, d_out]` in either layout.
    pub fn from_weight(weight: &Weight<'a, T>) -> Self
    where
        T: Element,
    {
        let stored = Self::from_matrix(weight.matrix);
        match weight.layout {
            Layout::InOut => stored,
            Layout::OutIn => stored.t(),
        }
    }

    /// The transposed operand.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            data: self.data,
        }
    }

    /// The block of `rows` and `cols`. Panics if it is not inside the operand.
    pub fn block(self, rows: Range<usize>, cols: Range<usize>) -> Self {
        assert!(rows.start <= rows.end && rows.end <= self.rows, "rows {rows:?} of {}", self.rows);
        assert!(cols.start <= cols.end && cols.end <= self.cols, "columns {cols:?} of {}", self.cols);
        let start = rows.start * self.row_stride + cols.start * self.col_stride;
        let data = if rows.is_empty() || cols.is_empty() { &self.data[..0] } else { &self.data[start..] };
        Self { data, rows: rows.len(), cols: cols.len(), ..self }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Distance between rows, in elements.
    pub fn row_stride(&self) -> usize {
        self.row_stride
    }

    /// Distance between columns, in elements.
    pub fn col_stride(&self) -> usize {
        self.col_stride
    }

    /// The elements from `[0, 0]` on.
    pub fn data(&self) -> &'a [T] {
        self.data
    }
}
