//! The choice between a decode kernel and a forward kernel.

use crate::error::Result;
use crate::plan::launch::LaunchShape;
use crate::plan::lora::decode::{self, DecodePlan};
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::problem::LayerProblem;
use crate::plan::workspace::WorkspaceLayout;

/// How a GPU computes y of a layer: on a decode kernel or on a forward kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// For 1 to 16 tokens, if the launch does not return T.
    Decode(DecodePlan),
    /// For more tokens, or if the launch returns T.
    Forward(ForwardPlan),
}

impl Plan {
    /// Plans a layer. With `saves_t` the launch can also return T = x·Aᵀ, which the backward pass needs.
    ///
    /// [`ComputePath::Tf32`](crate::ComputePath::Tf32) affects the forward kernels only. The decode kernels multiply in
    /// f32: for so few tokens the time is that of reading W0.
    ///
    /// # Errors
    /// With `saves_t` as [`ForwardPlan::new`]. Without it as [`DecodePlan::new`] up to [`decode::MAX_TOKENS`] tokens,
    /// else as [`ForwardPlan::serving`].
    pub fn new(problem: &LayerProblem<'_>, saves_t: bool) -> Result<Self> {
        if saves_t {
            ForwardPlan::new(problem).map(Self::Forward)
        } else if problem.tokens <= decode::MAX_TOKENS {
            DecodePlan::new(problem).map(Self::Decode)
        } else {
            ForwardPlan::serving(problem).map(Self::Forward)
        }
    }

    /// The kernel and the shape of its launch.
    pub fn launch(&self) -> &LaunchShape {
        match self {
            Self::Decode(plan) => &plan.launch,
            Self::Forward(plan) => &plan.launch,
        }
    }

    /// Rows (tokens) and columns of a y tile.
    pub fn tile(&self) -> [u32; 2] {
        match self {
            Self::Decode(plan) => [plan.tile_tokens, plan.tile_columns],
            Self::Forward(plan) => [plan.tile_rows, plan.tile_columns],
        }
    }

    /// Stages of the ring in shared memory, and the values of K in each. `None` for a decode kernel, which reads W0
    /// into registers.
    pub fn stages(&self) -> Option<[u32; 2]> {
        match self {
            Self::Decode(_) => None,
            Self::Forward(plan) => Some([plan.stages, plan.stage_depth]),
        }
    }

    /// Split-K of y: CTAs that share a y tile, and the values of K of each.
    pub fn splits(&self) -> [u32; 2] {
        match self {
            Self::Decode(plan) => [plan.splits, plan.split_depth],
            Self::Forward(plan) => [plan.splits, plan.split_depth],
        }
    }

    /// Number of launches of one call: always 1.
    pub fn launches(&self) -> usize {
        1
    }

    /// The workspace that the launch needs.
    pub fn workspace(&self) -> WorkspaceLayout {
        match self {
            Self::Decode(plan) => plan.workspace,
            Self::Forward(plan) => plan.workspace,
        }
    }

    /// The least global memory traffic, in bytes: W0, A, B and x read once, y written once.
    pub fn floor_bytes(&self) -> usize {
        match self {
            Self::Decode(plan) => plan.floor_bytes,
            Self::Forward(plan) => plan.floor_bytes,
        }
    }

    /// Global memory traffic in bytes if no operand is read twice: the floor, and T and the partial sums written once
    /// and read once. A bias, a residual and a T that is returned are not counted.
    pub fn moved_bytes(&self) -> usize {
        let WorkspaceLayout { t_words, t_bytes, partial, .. } = self.workspace();
        let partial = match self {
            Self::Decode(_) => partial,
            Self::Forward(plan) => plan.stored_partial(),
        };
        self.floor_bytes() + 2 * (8 * t_words + t_bytes + 4 * partial)
    }
}

impl std::fmt::Display for Plan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Decode(plan) => plan.fmt(f)?,
            Self::Forward(plan) => plan.fmt(f)?,
        }
        write!(f, ", {} B moved", self.moved_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::error::Error;
    use crate::lora::Layout;
    use crate::plan::problem::ComputePath;

    const PROBLEM: LayerProblem<'static> = LayerProblem {
        tokens: 16,
        d_in: 1024,
        d_out: 512,
        layout: Layout::OutIn,
        dtype: DType::Bf16,
        ranks: &[4],
        aligned: true,
        multiprocessors: 132,
        compute_capability: (9, 0),
        path: ComputePath::Auto,
    };

    #[test]
    fn few_tokens_are_decoded_unless_t_is_kept() {
        let plan = |tokens, saves_t| Plan::new(&LayerProblem { tokens, ..PROBLEM }, saves_t).expect("a plan");
        assert!(matches!(plan(1, false), Plan::Decode(_)));
        assert!(matches!(plan(16, false), Plan::Decode(_)));
        assert!(matches!(plan(17, false), Plan::Forward(_)));
        assert!(matches!(plan(1, true), Plan::Forward(_)));
        let refused = Plan::new(&LayerProblem { tokens: 0, ..PROBLEM }, false);
        assert_eq!(refused, Err(Error::EmptyOperand { operand: "x", shape: [0, 1024] }));
    }

    #[test]
    fn few_tokens_stay_true_f32() {
        let tf32 = LayerProblem { dtype: DType::F32, path: ComputePath::Tf32, ..PROBLEM };
        for (tokens, saves_t, kernel) in [
            (1, false, "decode_rows_f32_t1"),
            (16, false, "decode_rows_f32_t8"),
            (17, false, "mma_tf32_t64"),
            (1, true, "mma_tf32_t64"),
        ] {
            let plan = Plan::new(&LayerProblem { tokens, ..tf32.clone() }, saves_t).expect("a plan");
            assert!(plan.launch().kernel.ends_with(kernel), "{plan}");
        }
        // The reasons to refuse TF32 do not depend on the number of tokens.
        for tokens in [1, 17] {
            let tf32 = LayerProblem { tokens, ..tf32.clone() };
            for refused in [
                LayerProblem { dtype: DType::F16, ..tf32.clone() },
                LayerProblem { compute_capability: (7, 5), ..tf32 },
            ] {
                let refused = Plan::new(&refused, false);
                assert!(matches!(refused, Err(Error::NoMatrixInstructions { .. })), "{refused:?}");
            }
        }
    }

    #[test]
    fn a_plan_tells_what_it_does() {
        for tokens in [1, 16, 17, 4096] {
            let plan = Plan::new(&LayerProblem { tokens, ..PROBLEM }, false).expect("a plan");
            let text = plan.to_string();
            let [rows, columns] = plan.tile();
            let tile = format!("{rows} x {columns}");
            let (floor, moved) = (format!("floor {} B", plan.floor_bytes()), format!("{} B moved", plan.moved_bytes()));
            for part in [&*plan.launch().kernel, "1 launch", &tile, &floor, &moved] {
                assert!(text.contains(part), "no '{part}' in {text}");
            }
            // With a fused shrink neither T nor partial sums pass through global memory.
            assert_eq!(plan.moved_bytes() > plan.floor_bytes(), !plan.launch().kernel.ends_with('r'), "{plan}");
            assert_eq!(plan.stages().is_some(), tokens > 16 && text.contains("stages"));
        }
    }
}
