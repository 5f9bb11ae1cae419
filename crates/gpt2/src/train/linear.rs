//! A projection in training. The forward pass saves T = x·Aᵀ, which the backward pass reads.

use fused_lora::cpu::{self, Accumulate, Input, SegmentGradient};
use fused_lora::dropout::Dropout;
use fused_lora::lora::{Activation, Epilogue, LoraLinear, Residual};
use fused_lora::{Element, MatrixMut, MatrixRef};

use super::gradients::FactorGradients;
use crate::adapter::lora::{Lora, Projection};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::Layer;

/// A block of the model, its LoRA, and the shape of the batch.
#[derive(Clone, Copy)]
pub(super) struct BlockContext<'a, W> {
    pub(super) config: &'a Config,
    pub(super) layer: &'a Layer<W>,
    pub(super) lora: &'a Lora<W>,
    pub(super) index: usize,
    pub(super) rows: usize,
    /// Tokens of a sequence.
    pub(super) sequence: usize,
    /// The dropout of this pass. Each projection of each block derives its own mask from it.
    pub(super) dropout: Option<Dropout>,
}

impl<W: Element> BlockContext<'_, W> {
    /// `y = x·W + bias + Σ s·T·Bᵀ (+ y)`. Writes T of every segment, `[rows, total_rank]`, to the start of `t`.
    pub(super) fn forward(
        &self,
        projection: Projection,
        x: &[f32],
        y: &mut [f32],
        residual: Residual<MatrixRef<'_, f32>>,
        t: &mut [f32],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        let linear = &self.layer.projections[projection as usize];
        let segments = self.lora.segments(self.index, projection)?;
        let layer = linear.layer(&segments)?;
        let x = self.input(projection, MatrixRef::new(x, self.rows, linear.d_in)?);
        let mut y = MatrixMut::new(y, self.rows, linear.d_out)?;
        let epilogue = Epilogue { activation: Activation::Identity, residual };
        let t = &mut t[..self.rows * layer.total_rank()];
        let mut run = || {
            let needed = layer.plan_forward::<f32>(self.rows)?.workspace_len();
            cpu::forward_with(&layer, x, &mut y, &epilogue, Some(t), grown(workspace, needed))
        };
        run().map_err(|source| self.error(projection, source))
    }

    /// Computes dA and dB of every segment and, if `dx` is given, dx.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn backward(
        &self,
        projection: Projection,
        x: &[f32],
        dy: &[f32],
        t: &[f32],
        dx: Option<&mut [f32]>,
        gradients: &mut [FactorGradients],
        workspace: &mut Vec<f32>,
    ) -> Result<()> {
        let linear = &self.layer.projections[projection as usize];
        let segments = self.lora.segments(self.index, projection)?;
        let layer = linear.layer(&segments)?;
        let x = self.input(projection, MatrixRef::new(x, self.rows, linear.d_in)?);
        let dy = MatrixRef::new(dy, self.rows, linear.d_out)?;
        let mut dx = dx.map(|dx| MatrixMut::new(dx, self.rows, linear.d_in)).transpose()?;
        let gradients: fused_lora::Result<Vec<_>> = gradients
            .iter_mut()
            .map(|g| {
                let da = MatrixMut::new(&mut g.a, g.rank, linear.d_in)?;
                Ok(SegmentGradient { da, db: MatrixMut::new(&mut g.b, g.columns.len(), g.rank)? })
            })
            .collect();
        let run = || backward(&layer, x, dy, t, dx.as_mut(), &mut gradients?, workspace);
        run().map_err(|source| self.error(projection, source))
    }

    fn input<'x>(&self, projection: Projection, x: MatrixRef<'x, f32>) -> Input<'x, f32> {
        Input { x, dropout: self.dropout.map(|dropout| dropout.for_layer(projection_index(self.index, projection))) }
    }

    fn error(&self, projection: Projection, source: fused_lora::Error) -> Error {
        Error::Layer { what: format!("h.{}.{}", self.index, projection.name()), source }
    }
}

/// The index of a projection in the model, which gives it its own dropout mask.
#[expect(clippy::cast_possible_truncation, reason = "a model has few layers")]
fn projection_index(index: usize, projection: Projection) -> u32 {
    (Projection::ALL.len() * index + projection as usize) as u32
}

/// [`cpu::backward`], with a workspace that is enlarged if need be.
pub(super) fn backward<'x, W: Element>(
    layer: &LoraLinear<'_, W>,
    x: impl Into<Input<'x, f32>>,
    dy: MatrixRef<'_, f32>,
    t: &[f32],
    dx: Option<&mut MatrixMut<'_, f32>>,
    gradients: &mut [SegmentGradient<'_>],
    workspace: &mut Vec<f32>,
) -> fused_lora::Result<()> {
    let input = x.into();
    let needed = cpu::backward_workspace_len::<W, f32>(layer, input.x.rows())?;
    cpu::backward(layer, input, dy, t, dx, gradients, Accumulate::Overwrite, grown(workspace, needed))
}

/// Enlarges a workspace to at least `needed` elements. It is checked at every call, because a plan depends on the rayon
/// pool.
pub(super) fn grown(workspace: &mut Vec<f32>, needed: usize) -> &mut [f32] {
    if workspace.len() < needed {
        workspace.resize(needed, 0.0);
    }
    workspace
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_projection_has_its_own_index() {
        let numbers: Vec<_> =
            (0..5).flat_map(|i| Projection::ALL.map(|projection| projection_index(i, projection))).collect();
        assert_eq!(numbers, (0..20).collect::<Vec<_>>());
    }
}
