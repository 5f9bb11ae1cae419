//! The input of the plan of the gradients.

use std::ops::Range;

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::problem::{ComputePath, LayerProblem};

/// The properties of a segment that the plan of its gradients depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GradientsSegment {
    /// The output columns of the segment: columns of dy.
    pub columns: Range<usize>,
    /// The rank of the segment.
    pub rank: usize,
}

/// The input of a [`GradientsPlan`](super::GradientsPlan). The kernels test the alignment of rows when they run, so the
/// plan does not depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GradientsProblem<'a> {
    /// Rows of x and dy.
    pub tokens: usize,
    /// Columns of x.
    pub d_in: usize,
    /// Columns of dy.
    pub d_out: usize,
    /// The type in which x, dy, Q and T are stored. The gradients are `f32`.
    pub dtype: DType,
    /// The columns and the rank of each segment of the layer.
    pub segments: &'a [GradientsSegment],
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Compute capability of the device, major and minor.
    pub compute_capability: (u32, u32),
    /// The instructions to use.
    pub path: ComputePath,
    /// Whether to compute the bias's gradient, for which the launch reads every column of dy.
    pub bias: bool,
}

impl GradientsProblem<'_> {
    /// The forward problem of the same layer, for the checks that both passes share.
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

    /// The number of columns of dy that lie in at least one segment.
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
