//! Adds adapters to the weight and removes them again, in double precision with one rounding per element.

use rayon::prelude::*;

use super::gemm::{Scale, gemm_into};
use super::operand::Operand;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Layout, Segment};
use crate::matrix::{MatrixMut, MatrixRef};

/// How much a merge changed the weight.
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
/// As [`LoraLinear::validate`](crate::lora::LoraLinear::validate); [`Error::NonFiniteMerge`].
pub fn merge<W: Element>(
    weight: &mut MatrixMut<'_, W>,
    layout: Layout,
    segments: &[Segment<'_, W>],
) -> Result<MergeReport> {
    update(weight, layout, segments, 1.0)
}

/// Undoes [`merge`]: restores `original` exactly if it is given, and otherwise computes `W − s·B·A`.
///
/// # Errors
/// As [`merge`]; [`Error::ShapeMismatch`] if `original` has another shape.
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

/// `out = source + s·B·A` for every segment, rounded once to `out`'s own type. `source` and `out` are stored in
/// `layout`.
///
/// # Errors
/// As [`merge`], and [`Error::ShapeMismatch`] for `out`. The contents of `out` after an error are undefined.
pub fn merge_into<S: Element, W: Element, O: Element>(
    source: MatrixRef<'_, S>,
    layout: Layout,
    segments: &[Segment<'_, W>],
    out: &mut MatrixMut<'_, O>,
) -> Result<MergeReport> {
    out.expect_shape("merged weight", [source.rows(), source.cols()])?;
    let deltas = Deltas::new(source.rows(), source.cols(), layout, segments, 1.0)?;
    let (cols, stride) = (out.cols(), out.row_stride());
    if deltas.blocks() == 0 {
        return Ok(MergeReport::default());
    }
    let blocks = out.data_mut().par_chunks_mut(ROWS * stride).enumerate().take(deltas.blocks());
    let report = |(block, chunk): (usize, &mut [O])| {
        let mut report = MergeReport::default();
        for (i, (row, delta)) in chunk.chunks_mut(stride).zip(deltas.block(block).chunks_exact(cols)).enumerate() {
            let row_index = block * ROWS + i;
            for (column, ((out, w), delta)) in row.iter_mut().zip(source.row(row_index)).zip(delta).enumerate() {
                let exact = f64::from(w.to_f32()) + delta;
                *out = O::from_f64(exact);
                report = report.max(element_report(*out, exact, *delta, row_index, column)?);
            }
        }
        Ok(report)
    };
    blocks.map(report).try_reduce(MergeReport::default, |a, b| Ok(a.max(b)))
}

/// `weight += sign·s·B·A` for every segment, in place.
fn update<W: Element>(
    weight: &mut MatrixMut<'_, W>,
    layout: Layout,
    segments: &[Segment<'_, W>],
    sign: f64,
) -> Result<MergeReport> {
    let deltas = Deltas::new(weight.rows(), weight.cols(), layout, segments, sign)?;
    let (cols, stride) = (weight.cols(), weight.row_stride());
    if deltas.blocks() == 0 {
        return Ok(MergeReport::default());
    }
    let stored = weight.as_ref();
    let check = |block: usize| -> Result<MergeReport> {
        let mut report = MergeReport::default();
        for (i, delta) in deltas.block(block).chunks_exact(cols).enumerate() {
            let row = block * ROWS + i;
            for (column, (w, delta)) in stored.row(row).iter().zip(delta).enumerate() {
                let exact = f64::from(w.to_f32()) + delta;
                report = report.max(element_report(W::from_f64(exact), exact, *delta, row, column)?);
            }
        }
        Ok(report)
    };
    // A merge in place cannot be undone: a first pass checks that every result is finite, a second one stores them.
    let report =
        (0..deltas.blocks()).into_par_iter().map(check).try_reduce(MergeReport::default, |a, b| Ok(a.max(b)))?;
    let blocks = weight.data_mut().par_chunks_mut(ROWS * stride).enumerate().take(deltas.blocks());
    blocks.for_each(|(block, chunk)| {
        for (row, delta) in chunk.chunks_mut(stride).zip(deltas.block(block).chunks_exact(cols)) {
            for (w, delta) in row.iter_mut().zip(delta) {
                *w = W::from_f64(f64::from(w.to_f32()) + delta);
            }
        }
    });
    Ok(report)
}

/// The report of one element, or the error if it is not finite as stored.
fn element_report<T: Element>(stored: T, exact: f64, delta: f64, row: usize, column: usize) -> Result<MergeReport> {
    let stored = f64::from(stored.to_f32());
    if !stored.is_finite() {
        return Err(Error::NonFiniteMerge { row, column, value: exact, dtype: T::DTYPE });
    }
    Ok(MergeReport { largest_rounding: (stored - exact).abs(), largest_change: delta.abs() })
}

/// Rows of the stored weight that one task updates.
const ROWS: usize = 32;

/// ΔW = Σ sign·s·B·A over the segments, in the weight's own layout. It is computed one block of rows at a time.
struct Deltas {
    rows: usize,
    cols: usize,
    layout: Layout,
    factors: Vec<Factors>,
    sign: f64,
}

impl Deltas {
    fn new<W: Element>(
        rows: usize,
        cols: usize,
        layout: Layout,
        segments: &[Segment<'_, W>],
        sign: f64,
    ) -> Result<Self> {
        let (d_in, d_out) = match layout {
            Layout::OutIn => (cols, rows),
            Layout::InOut => (rows, cols),
        };
        crate::lora::validate_segments(segments, d_in, d_out)?;
        Ok(Self { rows, cols, layout, factors: segments.iter().map(Factors::new).collect(), sign })
    }

    fn blocks(&self) -> usize {
        if self.cols == 0 { 0 } else { self.rows.div_ceil(ROWS) }
    }

    /// The rows of ΔW from `block * ROWS` on, at most ROWS of them: `[rows, cols]`.
    fn block(&self, block: usize) -> Vec<f64> {
        let rows = block * ROWS..((block + 1) * ROWS).min(self.rows);
        let mut delta = vec![0.0; rows.len() * self.cols];
        for factors in &self.factors {
            factors.add_delta(&mut delta, self.cols, self.layout, rows.clone(), self.sign);
        }
        delta
    }
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

    /// Adds rows `rows` of `sign·s·B·A`, in the weight's own layout, to `delta` `[rows.len(), cols]`.
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
