//! The plan of a whole backward pass: two launches, or one where there is nothing for the other.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::gradients::{GradientsPlan, GradientsProblem, GradientsSegment};
use crate::plan::problem::{ComputePath, LayerProblem};
use crate::plan::workspace::WorkspaceLayout;

/// What a [`BackwardPlan`] is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackwardProblem<'a> {
    /// Rows of x and dy.
    pub tokens: usize,
    /// Columns of x.
    pub d_in: usize,
    /// Columns of dy.
    pub d_out: usize,
    /// How W0 lies in memory.
    pub layout: Layout,
    /// What everything but the gradients is stored as; those are `f32`.
    pub dtype: DType,
    /// The layer's segments.
    pub segments: &'a [GradientsSegment],
    /// Whether all rows of dy and W0 start at multiples of 16 bytes.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Major and minor compute capability of the device.
    pub compute_capability: (u32, u32),
    /// What is to multiply.
    pub path: ComputePath,
    /// Whether dx is wanted.
    pub dx: bool,
    /// Whether the bias's gradient is wanted.
    pub bias: bool,
}

/// How a GPU runs a layer's backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackwardPlan {
    /// The first launch: Q, which stays in the workspace, and dx. None where nobody wants dx and there is no adapter.
    pub input: Option<ForwardPlan>,
    /// The second: dA and dB of all segments, and the bias's gradient. None where there is neither.
    pub gradients: Option<GradientsPlan>,
}

impl BackwardPlan {
    /// # Errors
    /// As [`ForwardPlan::input_gradient`] and [`GradientsPlan::new`]; [`Error::NothingWanted`] if nothing is wanted.
    pub fn new(problem: &BackwardProblem<'_>) -> Result<Self> {
        let &BackwardProblem { tokens, d_in, d_out, layout, dtype, segments, aligned, .. } = problem;
        let &BackwardProblem { multiprocessors, compute_capability, path, dx, bias, .. } = problem;
        let ranks: Vec<_> = segments.iter().map(|segment| segment.rank).collect();
        if !dx && !bias && segments.is_empty() {
            return Err(Error::NothingWanted);
        }
        let layer = LayerProblem {
            tokens,
            d_in,
            d_out,
            layout,
            dtype,
            ranks: &ranks,
            aligned,
            multiprocessors,
            compute_capability,
            path,
        };
        let input = dx || !segments.is_empty();
        let input = input.then(|| ForwardPlan::input_gradient(&layer, dx)).transpose()?;
        let gradients =
            GradientsProblem { tokens, d_in, d_out, dtype, segments, multiprocessors, compute_capability, path, bias };
        let wanted = bias || !segments.is_empty();
        Ok(Self { input, gradients: wanted.then(|| GradientsPlan::new(&gradients)).transpose()? })
    }

    /// Kernels launched for one call.
    pub fn launches(&self) -> usize {
        usize::from(self.input.is_some()) + usize::from(self.gradients.is_some())
    }

    /// What the launches need of a workspace. Q has its place in it from the first to the second.
    pub fn workspace(&self) -> WorkspaceLayout {
        let input = self.input.as_ref().map(|plan| plan.workspace).unwrap_or_default();
        self.gradients.as_ref().map(|plan| plan.workspace).unwrap_or_default().union(&input)
    }

    /// Multiplications and additions.
    pub fn flops(&self) -> u64 {
        let input = self.input.as_ref().map_or(0, |plan| plan.flops);
        input + self.gradients.as_ref().map_or(0, |plan| plan.flops)
    }

    /// Global bytes that must move at least, launch by launch: what each reads and writes once.
    pub fn floor_bytes(&self) -> usize {
        let input = self.input.as_ref().map_or(0, |plan| plan.floor_bytes);
        input + self.gradients.as_ref().map_or(0, |plan| plan.floor_bytes)
    }
}

impl std::fmt::Display for BackwardPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match (&self.input, &self.gradients) {
            (Some(input), Some(gradients)) => write!(f, "{input}; {gradients}"),
            (Some(input), None) => input.fmt(f),
            (None, Some(gradients)) => gradients.fmt(f),
            (None, None) => f.write_str("nothing"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problem(segments: &[GradientsSegment]) -> BackwardProblem<'_> {
        BackwardProblem {
            tokens: 256,
            d_in: 1024,
            d_out: 3072,
            layout: Layout::OutIn,
            dtype: DType::Bf16,
            segments,
            aligned: true,
            multiprocessors: 132,
            compute_capability: (9, 0),
            path: ComputePath::Auto,
            dx: true,
            bias: false,
        }
    }

    #[test]
    fn two_launches_share_q() {
        let segments = [(0..1024, 4), (2048..3072, 20)].map(|(columns, rank)| GradientsSegment { columns, rank });
        let plan = BackwardPlan::new(&problem(&segments)).expect("a plan");
        assert_eq!(plan.launches(), 2);
        let (input, gradients) = (plan.input.as_ref().expect("dx"), plan.gradients.as_ref().expect("dA and dB"));
        assert_eq!(input.t_stride, gradients.q_stride);
        assert_eq!(input.workspace.t_bytes, gradients.workspace.t_bytes);
        assert!(plan.workspace().serves(&input.workspace) && plan.workspace().serves(&gradients.workspace));
        let text = plan.to_string();
        assert!(text.contains("lora_dx_columns") && text.contains("lora_gradients_mma_bf16"), "{text}");
    }

    #[test]
    fn only_what_is_wanted_is_launched() {
        let segments = [GradientsSegment { columns: 0..3072, rank: 4 }];
        for (segments, dx, bias, launches) in [
            (&segments[..], true, true, [true, true]),
            (&segments[..], false, false, [true, true]),
            (&[], true, false, [true, false]),
            (&[], true, true, [true, true]),
            (&[], false, true, [false, true]),
        ] {
            let plan = BackwardPlan::new(&BackwardProblem { dx, bias, ..problem(segments) }).expect("a plan");
            assert_eq!([plan.input.is_some(), plan.gradients.is_some()], launches, "{plan}");
        }
        let nothing = BackwardPlan::new(&BackwardProblem { dx: false, ..problem(&[]) });
        assert_eq!(nothing, Err(Error::NothingWanted));
    }
}
