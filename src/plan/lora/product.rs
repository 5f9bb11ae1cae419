//! The products that forward plans are made for, and their cost in bytes and floating-point operations.

use crate::lora::Layout;
use crate::plan::problem::LayerProblem;

/// The result that a launch of a [`ForwardPlan`](super::ForwardPlan) computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// `lora_forward_*`: y, a layer's output.
    Output,
    /// `lora_dx_*`: Q = s·dy·B of every segment, stored in the workspace in place of T, and dx = dy·W0 + Q·A.
    InputGradient,
    /// `lora_dx_*` without dx tiles: Q only.
    LowRankGradient,
    /// `lora_adapter_*`: y of a bottleneck adapter. There is no W0; the hidden features take the place of T.
    Adapter,
}

impl Product {
    /// The operation in the kernels' names.
    pub(crate) fn kernels(self) -> &'static str {
        match self {
            Self::Output => "lora_forward",
            Self::InputGradient | Self::LowRankGradient => "lora_dx",
            Self::Adapter => "lora_adapter",
        }
    }

    /// The layout of W0 as the right operand of this product. dx = dy·W0 uses W0 transposed, so there it is the layout
    /// other than the layer's.
    pub(crate) fn layout(self, layer: Layout) -> Layout {
        match (self, layer) {
            (Self::Output | Self::Adapter, layout) => layout,
            (_, Layout::OutIn) => Layout::InOut,
            (_, Layout::InOut) => Layout::OutIn,
        }
    }

    /// The least global memory traffic in bytes, and the floating-point operations. `problem` is that of the product:
    /// for dx its `d_in` is the layer's d_out.
    pub(crate) fn cost(self, problem: &LayerProblem<'_>) -> (usize, u64) {
        let &LayerProblem { tokens, d_in, d_out, ranks, dtype, .. } = problem;
        let rank: usize = ranks.iter().sum();
        let (elements, multiply_adds) = match self {
            Self::Output | Self::InputGradient => {
                (problem.floor_bytes() / dtype.size(), d_in * d_out + rank * (d_in + d_out))
            }
            Self::LowRankGradient => ((rank + tokens) * d_in, rank * d_in),
            Self::Adapter => ((rank + tokens) * (d_in + d_out), rank * (d_in + d_out)),
        };
        (elements * dtype.size(), 2 * tokens as u64 * multiply_adds as u64)
    }
}
