//! The plan of dx. It is a forward plan with dy in place of x, the transposed W0, and B and A in place of A and B.

use crate::error::{Error, Result};
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::product::Product;
use crate::plan::problem::{ComputePath, LayerProblem};

impl ForwardPlan {
    /// Plans the first launch of the backward pass. It computes Q = s·dy·B of every segment and stores it in the
    /// workspace for the launch of dA and dB. With `wants_dx` it also computes dx = dy·W0 + mask/(1 − p) ⊙ Q·A, which
    /// only the layers above the lowest adapter of a model need.
    ///
    /// `problem` is that of the layer, as for [`new`](Self::new), with one difference:
    /// [`aligned`](LayerProblem::aligned) says whether all rows of dy and W0 start and end at multiples of 16 bytes.
    /// Rows of A, B, dx and the residual may start at any element.
    ///
    /// No kernel computes dx in TF32: with [`ComputePath::Tf32`] the plan uses CUDA cores, in f32.
    ///
    /// # Errors
    /// As [`new`](Self::new); [`Error::NothingWanted`] if dx is not wanted and the layer has no segments.
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
        let transposed =
            LayerProblem { d_in: d_out, d_out: d_in, layout: product.layout(layout), path, ..problem.clone() };
        Self::for_product(product, &transposed)
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
    fn dx_is_the_forward_product_of_the_transposed_layer() {
        for (layout, transposed, name) in
            [(Layout::OutIn, Layout::InOut, "columns"), (Layout::InOut, Layout::OutIn, "rows")]
        {
            let layer = LayerProblem { layout, ..LAYER };
            let dx = ForwardPlan::input_gradient(&layer, true).expect("a plan");
            let forward = LayerProblem { d_in: 3072, d_out: 1024, layout: transposed, ..LAYER };
            let forward = ForwardPlan::new(&forward).expect("a plan");
            assert!(dx.launch.kernel.starts_with(&format!("lora_dx_{name}_wgmma_bf16")), "{dx}");
            assert_eq!(dx.launch.kernel.replace("_dx_", "_forward_"), forward.launch.kernel);
            assert_eq!(dx.boxes(layout), forward.boxes(transposed));
            let launch = LaunchShape { kernel: dx.launch.kernel.clone(), ..forward.launch.clone() };
            assert_eq!(dx, ForwardPlan { launch, product: Product::InputGradient, ..forward });
        }
    }

    #[test]
    fn without_dx_the_tiles_of_q_are_the_same() {
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
