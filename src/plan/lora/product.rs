//! Which product of a layer a forward kernel computes, and what it costs.

use crate::lora::Layout;
use crate::plan::problem::LayerProblem;

/// What a launch computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Product {
    /// `lora_forward_*`: a layer's output, y.
    Output,
    /// `lora_dx_*`: Q = s·dy·B of every segment, which stays in the workspace's T, and dx = dy·W0 + Q·A.
    InputGradient,
    /// `lora_dx_*` without tiles of dx: Q alone.
    LowRankGradient,
    /// `lora_adapter_*`: a bottleneck adapter's output, without W0; what is hidden is T.
    Adapter,
}

impl Product {
    /// How the kernels' names begin.
    pub(crate) fn kernels(self) -> &'static str {
        match self {
            Self::Output => "lora_forward",
            Self::InputGradient | Self::LowRankGradient => "lora_dx",
            Self::Adapter => "lora_adapter",
        }
    }

    /// The layout of W0 as this product's right operand: dx takes the layer's outputs for inputs.
    pub(crate) fn layout(self, layer: Layout) -> Layout {
        match (self, layer) {
            (Self::Output | Self::Adapter, layout) => layout,
            (_, Layout::OutIn) => Layout::InOut,
            (_, Layout::InOut) => Layout::OutIn,
        }
    }

    /// Bytes that must move at least, and multiplications and additions, of a problem whose inputs are this product's.
    pub(crate) fn cost(self, problem: &LayerProblem<'_>) -> (usize, u64) {
        let &LayerProblem { tokens, d_in, d_out, ranks, dtype, .. } = problem;
        let rank: usize = ranks.iter().sum();
        let (elements, products) = match self {
            Self::Output | Self::InputGradient => {
                (problem.floor_bytes() / dtype.size(), d_in * d_out + rank * (d_in + d_out))
            }
            Self::LowRankGradient => ((rank + tokens) * d_in, rank * d_in),
            Self::Adapter => ((rank + tokens) * (d_in + d_out), rank * (d_in + d_out)),
        };
        (elements * dtype.size(), 2 * tokens as u64 * products as u64)
    }
}
