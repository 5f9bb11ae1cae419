//! Folding an adapter into the weight and taking it out again, in double precision with one rounding an element.

use rayon::prelude::*;

use super::gemm::{Scale, gemm_into};
use super::operand::Operand;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Layout, LoraLinear, Segment, Weight};
use crate::matrix::{MatrixMut, MatrixRef};

/// What a merge did to the weight.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MergeReport {
    /// The largest distance between an element as stored and its exact value.
    pub largest_rounding: f64,
    /// The largest change of an element, |s·B·A|.
    pub largest_change: f64,
}

impl MergeReport {
    fn max(self, other: Self) -> Self {
        Self {
            largest_rounding: self.largest_rounding.max(other.largest_rounding),
            largest_change: self.largest_change.max(other.largest_change),
        }
    }
}

/// `W0 += s·B·A` for every segment, in place.
///
/// Nothing is written unless every result is finite.
///
/// # Errors
/// As [`LoraLinear::validate`]; [`Error::NonFiniteMerge`].
pub fn merge<W: Element>(
    weight: &mut MatrixMut<'_, W>,
    layout: Layout,
    segments: &[Segment<'_, W>],
) -> Result<MergeReport> {
    update(weight, layout, segments, 1.0)
}

/// Undoes [`merge`]: restores `original` exactly where it was kept, and computes `W − s·B·A` where it was not.
///
/// # Errors
/// As [`merge`]; [`Error::ShapeMismatch`] if `original` is another matrix's.
pub fn unmerge<W: Element>(
    weight: &mut MatrixMut<'_, W>,
    layout: Layout,
    segments: &[Segment<'_, W>],
    original: Option<MatrixRef<'_, W>>,
) -> Result<MergeReport> {
    let Some(original) = original else {
        return update(weight, layout, segments, -1.0);
    };
    original.expect_shape("original", [weight.rows(), weight.cols()])?;
    for i in 0..weight.rows() {
        weight.row_mut(i).copy_from_slice(original.row(i));
    }
    Ok(MergeReport::default())
}

/// Rows of the stored weight that one task updates.
const ROWS: usize = 32;

fn update<W: Element>(
    weight: &mut MatrixMut<'_, W>,
    layout: Layout,
    segments: &[Segment<'_, W>],
    sign: f64,
) -> Result<MergeReport> {
    LoraLinear { weight: Weight::new(weight.as_ref(), layout), bias: None, segments }.validate()?;
    let (rows, cols, stride) = (weight.rows(), weight.cols(), weight.row_stride());
    if rows == 0 || cols == 0 {
        return Ok(MergeReport::default());
    }
    let factors: Vec<Factors> = segments.iter().map(Factors::new).collect();
    let deltas = |block: usize| {
        let range = block * ROWS..((block + 1) * ROWS).min(rows);
        let mut delta = vec![0.0f64; range.len() * cols];
        for factors in &factors {
            factors.add_delta(&mut delta, cols, layout, range.clone(), sign);
        }
        delta
    };

    let stored = weight.as_ref();
    (0..rows.div_ceil(ROWS)).into_par_iter().try_for_each(|block| {
        for (i, delta) in deltas(block).chunks_exact(cols).enumerate() {
            let row = block * ROWS + i;
            for (column, (w, delta)) in stored.row(row).iter().zip(delta).enumerate() {
                let value = f64::from(w.to_f32()) + delta;
                if !W::from_f64(value).to_f32().is_finite() {
                    return Err(Error::NonFiniteMerge { row, column, value, dtype: W::DTYPE });
                }
            }
        }
        Ok(())
    })?;

    let report = weight
        .data_mut()
        .par_chunks_mut(ROWS * stride)
        .enumerate()
        .take(rows.div_ceil(ROWS))
        .map(|(block, chunk)| {
            let mut report = MergeReport::default();
            for (row, delta) in chunk.chunks_mut(stride).zip(deltas(block).chunks_exact(cols)) {
                for (w, delta) in row.iter_mut().zip(delta) {
                    let exact = f64::from(w.to_f32()) + delta;
                    *w = W::from_f64(exact);
                    report = report.max(MergeReport {
                        largest_rounding: (f64::from(w.to_f32()) - exact).abs(),
                        largest_change: delta.abs(),
                    });
                }
            }
            report
        })
        .reduce(MergeReport::default, MergeReport::max);
    Ok(report)
}

/// A segment's factors in double precision.
struct Factors {
    columns: std::ops::Range<usize>,
    /// `[rank, d_in]`
    a: Vec<f64>,
    /// `[columns.len(), rank]`
    b: Vec<f64>,
    rank: usize,
    d_in: usize,
    scale: f64,
}

impl Factors {
    fn new<W: Element>(segment: &Segment<'_, W>) -> Self {
        let wide = |m: MatrixRef<'_, W>| (0..m.rows()).flat_map(|i| m.row(i)).map(|v| f64::from(v.to_f32())).collect();
        Self {
            columns: segment.columns.clone(),
            a: wide(segment.a),
            b: wide(segment.b),
            rank: segment.rank(),
            d_in: segment.a.cols(),
            scale: f64::from(segment.scale),
        }
    }

    /// Adds `sign·s·B·A`, rows `rows` of it in the weight's own layout, to `delta` `[rows.len(), cols]`.
    fn add_delta(&self, delta: &mut [f64], cols: usize, layout: Layout, rows: std::ops::Range<usize>, sign: f64) {
        let a = Operand::new(&self.a, self.rank, self.d_in, self.d_in, 1);
        let b = Operand::new(&self.b, self.columns.len(), self.rank, self.rank, 1);
        let scale = Scale::Add(sign * self.scale);
        match layout {
            Layout::InOut => {
                gemm_into(&mut delta[self.columns.start..], cols, a.block(0..self.rank, rows).t(), b.t(), scale);
            }
            Layout::OutIn => {
                let start = rows.start.max(self.columns.start);
                let end = rows.end.min(self.columns.end);
                if start < end {
                    let b = b.block(start - self.columns.start..end - self.columns.start, 0..self.rank);
                    gemm_into(&mut delta[(start - rows.start) * cols..], cols, b, a, scale);
                }
            }
        }
    }
}
