//! One plan for any number of tokens.

use crate::error::Result;
use crate::plan::launch::LaunchShape;
use crate::plan::lora::decode::{self, DecodePlan};
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::problem::LayerProblem;
use crate::plan::workspace::WorkspaceLayout;

/// How a layer runs: on a decode kernel or on a forward kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Plan {
    /// 1 to 16 tokens whose T nobody wants to keep.
    Decode(DecodePlan),
    /// All others.
    Forward(ForwardPlan),
}

impl Plan {
    /// The plan for this problem; with `saves_t` for a launch that can also write T = x Aᵀ, as the backward pass needs it.
    ///
    /// [`ComputePath::Tf32`](crate::ComputePath::Tf32) rounds in forward kernels only: the decode kernels stay true f32, since
    /// so few tokens wait for W0's bytes.
    ///
    /// # Errors
    /// As [`DecodePlan::new`] up to [`decode::MAX_TOKENS`] tokens without T, else as [`ForwardPlan::new`] or, without T,
    /// [`ForwardPlan::serving`].
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

    /// Tokens and columns of a tile of y.
    pub fn tile(&self) -> [u32; 2] {
        match self {
            Self::Decode(plan) => [plan.tile_tokens, plan.tile_columns],
            Self::Forward(plan) => [plan.tile_rows, plan.tile_columns],
        }
    }

    /// How many stages are in flight or at work, and the depth of each. None in the decode kernels, which read W0 straight
    /// into registers.
    pub fn stages(&self) -> Option<[u32; 2]> {
        match self {
            Self::Decode(_) => None,
            Self::Forward(plan) => Some([plan.stages, plan.stage_depth]),
        }
    }

    /// CTAs that share a tile's depth, and what of it each of them takes.
    pub fn splits(&self) -> [u32; 2] {
        match self {
            Self::Decode(plan) => [plan.splits, plan.split_depth],
            Self::Forward(plan) => [plan.splits, plan.split_depth],
        }
    }

    /// Kernels launched for one call: both kinds do everything in one.
    pub fn launches(&self) -> usize {
        1
    }

    /// What the launch needs of a workspace.
    pub fn workspace(&self) -> WorkspaceLayout {
        match self {
            Self::Decode(plan) => plan.workspace,
            Self::Forward(plan) => plan.workspace,
        }
    }

    /// Global bytes that must move at least: W0, A, B, x and y once.
    pub fn floor_bytes(&self) -> usize {
        match self {
            Self::Decode(plan) => plan.floor_bytes,
            Self::Forward(plan) => plan.floor_bytes,
        }
    }

    /// Global bytes that move if every value that CTAs share is fetched once: the floor, and T and the partial sums out and
    /// in again. A bias, a residual and a T that the caller keeps come on top.
    pub fn moved_bytes(&self) -> usize {
        let WorkspaceLayout { t_words, t_bytes, partial, .. } = self.workspace();
        let partial = match self {
            Self::Decode(_) => partial,
            Self::Forward(plan) => plan.partial_moved(),
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
        // What TF32 is refused for does not depend on how many tokens there are.
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
            // With a fused shrink nothing goes through memory but the floor.
            assert_eq!(plan.moved_bytes() > plan.floor_bytes(), !plan.launch().kernel.ends_with('r'), "{plan}");
            assert_eq!(plan.stages().is_some(), tokens > 16 && text.contains("stages"));
        }
    }
}
