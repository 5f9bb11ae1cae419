//! The plan of a bottleneck adapter: a forward plan of a layer with one segment and without W0.

use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::forward::tiles::{ANY, CORES_ANY, CORES_T64, CORES16_ANY, CORES16_T64, T64, Tile};
use crate::plan::lora::forward::tiling::Tiling;
use crate::plan::lora::product::Product;
use crate::plan::problem::{ComputePath, LayerProblem};

/// The input of a bottleneck adapter's plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterProblem {
    /// Rows of x and y.
    pub tokens: usize,
    /// Columns of x and of y.
    pub d: usize,
    /// Hidden features: rows of the down projection `[width, d]`.
    pub width: usize,
    /// The type in which x, y, both projections and the hidden features are stored.
    pub dtype: DType,
    /// Whether all rows of x and of the down projection start and end at multiples of 16 bytes.
    pub aligned: bool,
    /// SMs of the device.
    pub multiprocessors: usize,
    /// Compute capability of the device, major and minor.
    pub compute_capability: (u32, u32),
    /// The instructions to use. TF32 is an error: no kernel computes an adapter in it.
    pub path: ComputePath,
}

impl ForwardPlan {
    /// Plans a bottleneck adapter. The hidden features `[tokens, width]` take the place of T; y tiles have no K of
    /// their own, only the product of T with the up projection. The alignment decides which kernel runs, and nothing
    /// else: tiles, workspace and the bits of the result are the same.
    ///
    /// # Errors
    /// [`Error::EmptyOperand`], [`Error::RankOutOfRange`] for the width, [`Error::NoMatrixInstructions`],
    /// [`Error::TooLarge`] if there are more tiles than a launch can have CTAs.
    pub fn adapter(problem: &AdapterProblem) -> Result<Self> {
        let &AdapterProblem { tokens, d, width, dtype, aligned, multiprocessors, compute_capability, path } = problem;
        let ranks = [width];
        let layer = LayerProblem {
            tokens,
            d_in: d,
            d_out: d,
            layout: Layout::OutIn,
            dtype,
            ranks: &ranks,
            aligned,
            multiprocessors,
            compute_capability,
            path,
        };
        layer.validate()?;
        let aligned = layer.in_chunks();
        let tile: Tile = match (path, layer.matrix_obstacle()) {
            (ComputePath::Auto | ComputePath::Matrix, None) => [ANY, T64][usize::from(aligned)],
            (ComputePath::Matrix, Some(reason)) => return Err(Error::NoMatrixInstructions { dtype, reason }),
            (ComputePath::Tf32, _) => {
                let reason = "adapters are not multiplied in TF32";
                return Err(Error::NoMatrixInstructions { dtype, reason });
            }
            (ComputePath::Auto | ComputePath::CudaCores, _) => match dtype {
                DType::F32 => [CORES_ANY, CORES_T64][usize::from(aligned)],
                DType::F16 | DType::Bf16 => [CORES16_ANY, CORES16_T64][usize::from(aligned)],
            },
        };
        // K of y is 0: the kernel has no main loop over W0.
        let mut plan = Self::with_tiling(Product::Adapter, &layer, &Tiling { tile, splits: 1, split_depth: 0 })?;
        plan.launch.kernel = tile.kernel("lora_adapter", "", &dtype.to_string());
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::LaunchShape;

    const GPT2_MEDIUM: AdapterProblem = AdapterProblem {
        tokens: 128,
        d: 1024,
        width: 113,
        dtype: DType::Bf16,
        aligned: true,
        multiprocessors: 132,
        compute_capability: (9, 0),
        path: ComputePath::Auto,
    };

    fn plan(problem: &AdapterProblem) -> ForwardPlan {
        ForwardPlan::adapter(problem).expect("a plan")
    }

    #[test]
    fn hidden_features_take_the_place_of_t_and_y_has_no_k_of_its_own() {
        let plan = plan(&GPT2_MEDIUM);
        assert_eq!(plan.launch.kernel, "lora_adapter_mma_bf16_t64");
        assert_eq!((plan.row_tiles, plan.column_tiles, plan.t_tiles, plan.t_stride), (2, 16, 2, 128));
        assert_eq!((plan.splits, plan.split_depth), (1, 0));
        assert!(plan.t_splits > 1 && plan.t_splits * plan.t_split_depth >= 1024, "{plan}");
        assert_eq!(plan.launch.grid[0], 2 * (2 * plan.t_splits + 16));
        assert_eq!(plan.floor_bytes, 2 * (2 * 113 * 1024 + 2 * 128 * 1024));
        assert_eq!(plan.flops, 4 * 128 * 113 * 1024);
    }

    #[test]
    fn alignment_changes_the_kernel_alone() {
        for (dtype, compute_capability, kernel) in [
            (DType::F32, (9, 0), "lora_adapter_f32"),
            (DType::F16, (7, 5), "lora_adapter_mma_f16"),
            (DType::Bf16, (7, 5), "lora_adapter_bf16"),
        ] {
            let problem = AdapterProblem { dtype, compute_capability, ..GPT2_MEDIUM };
            let [aligned, any] = [true, false].map(|aligned| plan(&AdapterProblem { aligned, ..problem.clone() }));
            assert_eq!(
                (aligned.launch.kernel.clone(), any.launch.kernel.clone()),
                (format!("{kernel}_t64"), format!("{kernel}_any"))
            );
            let launch = LaunchShape { kernel: aligned.launch.kernel.clone(), ..any.launch.clone() };
            assert_eq!(aligned, ForwardPlan { launch, ..any });
        }
    }

    #[test]
    fn each_wrong_problem_has_its_error() {
        let refused = |problem: AdapterProblem| ForwardPlan::adapter(&problem).expect_err("no plan");
        let empty = Error::EmptyOperand { operand: "x", shape: [0, 1024] };
        assert_eq!(refused(AdapterProblem { tokens: 0, ..GPT2_MEDIUM }), empty);
        for width in [0, 513] {
            let error = Error::RankOutOfRange { rank: width, max: 512 };
            assert_eq!(refused(AdapterProblem { width, ..GPT2_MEDIUM }), error);
        }
        for (dtype, path) in [(DType::F32, ComputePath::Matrix), (DType::F32, ComputePath::Tf32)] {
            let error = refused(AdapterProblem { dtype, path, ..GPT2_MEDIUM });
            assert!(matches!(error, Error::NoMatrixInstructions { .. }), "{error}");
        }
    }
}
