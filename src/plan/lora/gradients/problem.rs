//! What the plan of the gradients is made from.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::problem::{ComputePath, LayerProblem};

/// Of a segment, what a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GradientsSegment {
    /// Its output columns.
    pub columns: Range<usize>,
    /// Its rank.
    pub rank: usize,
}

/// What a [`GradientsPlan`](super::GradientsPlan) is made from. How rows lie in memory is looked at when the kernel runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GradientsProblem<'a> {
    /// Rows of x and dy.
    pub tokens: usize,
    /// Columns of x.
    pub d_in: usize,
    /// Columns of dy.
    pub d_out: usize,
    /// What x, dy, Q and T are stored as; gradients are `f32`.
    pub dtype: DType,
    /// The layer's segments.
    pub segments: &'a [GradientsSegment],
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Major and minor compute capability of the device.
    pub compute_capability: (u32, u32),
    /// What is to multiply.
    pub path: ComputePath,
    /// Whether the bias's gradient is made as well: it reads every column of dy.
    pub bias: bool,
}

impl GradientsProblem<'_> {
    /// The same layer's forward problem, which answers what both passes ask.
    pub(super) fn layer<'r>(&self, ranks: &'r [usize]) -> LayerProblem<'r> {
        let &Self { tokens, d_in, d_out, dtype, multiprocessors, compute_capability, path, .. } = self;
        let (layout, aligned) = (Layout::OutIn, true);
        LayerProblem { tokens, d_in, d_out, layout, dtype, ranks, aligned, multiprocessors, compute_capability, path }
    }

    pub(super) fn validate(&self, layer: &LayerProblem<'_>) -> Result<()> {
        let &Self { d_out, segments, bias, .. } = self;
        layer.validate()?;
        if segments.is_empty() && !bias {
            return Err(Error::NothingWanted);
        }
        for Range { start, end } in segments.iter().map(|segment| segment.columns.clone()) {
            if start >= end || end > d_out {
                return Err(Error::SegmentOutOfRange { start, end, d_out });
            }
        }
        Ok(())
    }

    /// Columns of dy that some segment has.
    pub(super) fn adapted_columns(&self) -> usize {
        let mut ranges: Vec<_> = self.segments.iter().map(|segment| segment.columns.clone()).collect();
        ranges.sort_by_key(|range| range.start);
        let (mut columns, mut covered) = (0, 0);
        for Range { start, end } in ranges {
            columns += end.max(covered) - start.max(covered);
            covered = covered.max(end);
        }
        columns
    }
}
