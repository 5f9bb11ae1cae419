//! The plan of a whole backward pass: a launch for Q and dx, then a launch for dA, dB and the bias's gradient. Either
//! is left out if it has nothing to compute.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::gradients::{GradientsPlan, GradientsProblem, GradientsSegment};
use crate::plan::problem::{ComputePath, LayerProblem};
use crate::plan::workspace::WorkspaceLayout;

/// The input of a [`BackwardPlan`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackwardProblem<'a> {
    /// Rows of x and dy.
    pub tokens: usize,
    /// Columns of x and dx.
    pub d_in: usize,
    /// Columns of dy.
    pub d_out: usize,
    /// The storage order of W0.
    pub layout: Layout,
    /// The type in which x, dy, W0, A, B, T, Q and dx are stored. The other gradients are `f32`.
    pub dtype: DType,
    /// The columns and the rank of each segment of the layer.
    pub segments: &'a [GradientsSegment],
    /// Whether all rows of dy and W0 start and end at multiples of 16 bytes.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Compute capability of the device, major and minor.
    pub compute_capability: (u32, u32),
    /// The instructions to use.
    pub path: ComputePath,
    /// Whether to compute dx.
    pub dx: bool,
    /// Whether to compute the bias's gradient.
    pub bias: bool,
}

/// How a GPU runs a layer's backward pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackwardPlan {
    /// The first launch. It stores Q in the workspace and computes dx. `None` if dx is not wanted and the layer has no
    /// segments.
    pub input: Option<ForwardPlan>,
    /// The second launch. It computes dA and dB of all segments and the bias's gradient. `None` if the layer has no
    /// segments and the bias's gradient is not wanted.
    pub gradients: Option<GradientsPlan>,
}

impl BackwardPlan {
    /// Plans the backward pass of a layer.
    ///
    /// # Errors
    /// As [`ForwardPlan::input_gradient`] and [`GradientsPlan::new`]; [`Error::NothingWanted`] if there is nothing to
    /// compute.
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

    /// Number of launches of one call.
    pub fn launches(&self) -> usize {
        usize::from(self.input.is_some()) + usize::from(self.gradients.is_some())
    }

    /// The workspace that both launches need. The first launch stores Q in it for the second.
    pub fn workspace(&self) -> WorkspaceLayout {
        let input = self.input.as_ref().map(|plan| plan.workspace).unwrap_or_default();
        self.gradients.as_ref().map(|plan| plan.workspace).unwrap_or_default().union(&input)
    }

    /// Floating-point operations of both launches; a multiply-add counts as two.
    pub fn flops(&self) -> u64 {
        let input = self.input.as_ref().map_or(0, |plan| plan.flops);
        input + self.gradients.as_ref().map_or(0, |plan| plan.flops)
    }

    /// The least global memory traffic of each launch, added, in bytes: its operands read once, its results written
    /// once.
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
