//! The epilogue of an output tile: adds the bias, applies the activation, adds the residual, rounds and stores.

use std::ops::Range;

use super::shared::SharedSlice;
use super::{activation, vector};
use crate::dtype::Element;
use crate::lora::{Epilogue, Residual};
use crate::matrix::MatrixRef;

/// Elements of a residual that are widened at a time.
const CHUNK: usize = 256;

/// The output of a product: the matrix `[tokens, columns]` that tiles are stored to, and their epilogue.
pub(crate) struct Output<'a, X> {
    pub(crate) data: SharedSlice<'a, X>,
    /// Distance between rows, in elements.
    pub(crate) row_stride: usize,
    pub(crate) epilogue: Epilogue<MatrixRef<'a, X>>,
}

impl<X: Element> Output<'_, X> {
    /// Applies the epilogue to one row of a tile and stores it at `[row, cols]`. `bias` is as long as `acc`, or empty.
    ///
    /// # Safety
    /// No other thread may access these elements of the output during the call.
    pub(crate) unsafe fn store_row(&self, row: usize, cols: Range<usize>, acc: &mut [f32], bias: &[f32]) {
        let start = row * self.row_stride;
        // SAFETY: no other thread accesses this range, by this function's contract.
        let out = unsafe { self.data.get_mut(start + cols.start..start + cols.end) };
        if !bias.is_empty() {
            vector::add(acc, bias);
        }
        activation::apply(self.epilogue.activation, acc);
        match self.epilogue.residual {
            Residual::None => {}
            Residual::InPlace => add_widened(acc, out),
            Residual::From(matrix) => add_widened(acc, &matrix.row(row)[cols]),
        }
        X::narrow(acc, out);
    }
}

fn add_widened<X: Element>(acc: &mut [f32], residual: &[X]) {
    if let Some(residual) = X::as_f32(residual) {
        return vector::add(acc, residual);
    }
    let mut wide = [0.0; CHUNK];
    for (acc, residual) in acc.chunks_mut(CHUNK).zip(residual.chunks(CHUNK)) {
        let wide = &mut wide[..residual.len()];
        X::widen(residual, wide);
        vector::add(acc, wide);
    }
}
