//! The plan of dx: the forward kernels' with other operands.

use crate::error::{Error, Result};
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::product::Product;
use crate::plan::problem::{ComputePath, LayerProblem};

impl ForwardPlan {
    /// The plan of the backward pass's first launch: Q = s·dy·B of every segment, left in the workspace for the gradients of A
    /// and B, and, if anyone `wants_dx`, dx = dy·W0 + mask/(1 − p) ⊙ Q·A. Below the lowest adapter of a model nobody does.
    ///
    /// The problem is the layer's, as [`new`](Self::new) takes it; but [`aligned`](LayerProblem::aligned) tells whether all rows of
    /// dy and W0 are. Those of A and B, dx and what it is added to may start anywhere. A segment's columns are those of dy
    /// that its B meets, as in the forward pass.
    ///
    /// There is no dx in TF32: who asks for it gets CUDA cores and true f32.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::NothingWanted`] where dx is not wanted and there is no adapter.
    pub fn input_gradient(problem: &LayerProblem<'_>, wants_dx: bool) -> Result<Self> {
        problem.validate()?;
        let &LayerProblem { d_in, d_out, layout, ranks, .. } = problem;
        if !wants_dx && ranks.is_empty() {
            return Err(Error::NothingWanted);
        }
        let product = if wants_dx { Product::InputGradient } else { Product::LowRankGradient };
        let path = match problem.path {
            ComputePath::Tf32 if problem.matrix_obstacle().is_none() => ComputePath::CudaCores,
            path => path,
        };
        let turned = LayerProblem { d_in: d_out, d_out: d_in, layout: product.layout(layout), path, ..problem.clone() };
        Self::of(product, &turned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::DType;
    use crate::lora::Layout;
    use crate::plan::LaunchShape;

    const LAYER: LayerProblem<'static> = LayerProblem {
        tokens: 1000,
        d_in: 1024,
        d_out: 3072,
        layout: Layout::OutIn,
        dtype: DType::Bf16,
        ranks: &[16, 3],
        aligned: true,
        multiprocessors: 132,
        compute_capability: (9, 0),
        path: ComputePath::Auto,
    };

    #[test]
    fn dx_is_the_forward_product_of_the_turned_layer() {
        for (layout, turned, name) in
            [(Layout::OutIn, Layout::InOut, "columns"), (Layout::InOut, Layout::OutIn, "rows")]
        {
            let layer = LayerProblem { layout, ..LAYER };
            let dx = ForwardPlan::input_gradient(&layer, true).expect("a plan");
            let forward = LayerProblem { d_in: 3072, d_out: 1024, layout: turned, ..LAYER };
            let forward = ForwardPlan::new(&forward).expect("a plan");
            assert!(dx.launch.kernel.starts_with(&format!("lora_dx_{name}_wgmma_bf16")), "{dx}");
            assert_eq!(dx.launch.kernel.replace("_dx_", "_forward_"), forward.launch.kernel);
            assert_eq!(dx.boxes(layout), forward.boxes(turned));
            let launch = LaunchShape { kernel: dx.launch.kernel.clone(), ..forward.launch.clone() };
            assert_eq!(dx, ForwardPlan { launch, product: Product::InputGradient, ..forward });
        }
    }

    #[test]
    fn without_dx_the_tiles_of_q_stay() {
        for compute_capability in [(8, 0), (9, 0)] {
            let layer = LayerProblem { compute_capability, ..LAYER };
            let [with, without] =
                [true, false].map(|wants| ForwardPlan::input_gradient(&layer, wants).expect("a plan"));
            assert_eq!(
                (&with.launch.kernel, with.t_tiles, with.t_splits),
                (&without.launch.kernel, without.t_tiles, without.t_splits)
            );
            assert_eq!(with.workspace.t_bytes, without.workspace.t_bytes);
            assert_eq!((without.column_tiles, without.flops), (0, 2 * 1000 * 19 * 3072));
            assert_eq!(
                without.launch.grid[0],
                (without.row_tiles * without.t_tiles * without.t_splits).min(without.launch.grid[0])
            );
        }
    }

    #[test]
    fn nothing_to_compute_is_not_planned() {
        let base = LayerProblem { ranks: &[], ..LAYER };
        assert_eq!(ForwardPlan::input_gradient(&base, false), Err(Error::NothingWanted));
        assert_eq!(ForwardPlan::input_gradient(&base, true).expect("a plan").t_tiles, 0);
    }
}
