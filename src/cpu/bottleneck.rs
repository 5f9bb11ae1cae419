//! A bottleneck adapter on the CPU: the down projection, then the up projection, as two layers. In Adapter^L a
//! LayerNorm comes before them.

use super::layer::forward_with;
use super::layer_norm::layer_norm;
use super::shared::grow;
use crate::bottleneck::Bottleneck;
use crate::dtype::Element;
use crate::error::Result;
use crate::lora::{Epilogue, LoraLinear, Residual};
use crate::matrix::{MatrixMut, MatrixRef};

/// The buffers of a bottleneck adapter's intermediate results. Calls reuse them and make them larger as needed.
#[derive(Debug, Default)]
pub struct BottleneckBuffers<X> {
    normed: Vec<X>,
    hidden: Vec<X>,
    workspace: Vec<f32>,
}

impl<X: Element> BottleneckBuffers<X> {
    /// Empty buffers.
    pub fn new() -> Self {
        Self { normed: vec![], hidden: vec![], workspace: vec![] }
    }

    /// Runs one projection, with a workspace as large as its plan needs.
    fn layer<W: Element>(
        workspace: &mut Vec<f32>,
        layer: &LoraLinear<'_, W>,
        x: MatrixRef<'_, X>,
        y: &mut MatrixMut<'_, X>,
        epilogue: &Epilogue<MatrixRef<'_, X>>,
    ) -> Result<()> {
        grow(workspace, layer.plan_forward::<X>(x.rows())?.workspace_len());
        forward_with(layer, x, y, epilogue, None, workspace)
    }

    /// `hidden = act(down·norm(x) + bias)`
    fn compute_hidden<W: Element>(&mut self, adapter: &Bottleneck<'_, W>, x: MatrixRef<'_, X>) -> Result<()> {
        let (tokens, d, width) = (x.rows(), adapter.d(), adapter.width());
        adapter.validate()?;
        x.expect_shape("x", [tokens, d])?;
        let Self { normed, hidden, workspace } = self;
        grow(hidden, tokens * width);
        let x = match &adapter.norm {
            Some(norm) => {
                grow(normed, tokens * d);
                layer_norm(x, norm, &mut MatrixMut::new(normed, tokens, d)?)?;
                MatrixRef::new(normed, tokens, d)?
            }
            None => x,
        };
        let activated = Epilogue { activation: adapter.activation, residual: Residual::None };
        let [down, _] = adapter.layers();
        Self::layer(workspace, &down, x, &mut MatrixMut::new(hidden, tokens, width)?, &activated)
    }

    /// `y += up·hidden + bias`
    fn add_up_projection<W: Element>(&mut self, adapter: &Bottleneck<'_, W>, y: &mut MatrixMut<'_, X>) -> Result<()> {
        let hidden = MatrixRef::new(&self.hidden, y.rows(), adapter.width())?;
        let onto_y = Epilogue { residual: Residual::InPlace, ..Epilogue::default() };
        let [_, up] = adapter.layers();
        Self::layer(&mut self.workspace, &up, hidden, y, &onto_y)
    }
}

/// `y += up·act(down·norm(y) + bias) + bias` for y `[tokens, d]`, the output of the layer before the adapter. The
/// results of the LayerNorm and the hidden features are rounded to y's type.
///
/// # Errors
/// As [`Bottleneck::validate`]; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for y.
pub fn bottleneck<W: Element, X: Element>(
    adapter: &Bottleneck<'_, W>,
    y: &mut MatrixMut<'_, X>,
    buffers: &mut BottleneckBuffers<X>,
) -> Result<()> {
    buffers.compute_hidden(adapter, y.as_ref())?;
    buffers.add_up_projection(adapter, y)
}

/// `y += up·act(down·norm(x) + bias) + bias` for x and y `[tokens, d]`: the adapter reads one matrix and adds to
/// another.
///
/// # Errors
/// As [`bottleneck`], and [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for x.
pub fn bottleneck_onto<W: Element, X: Element>(
    adapter: &Bottleneck<'_, W>,
    x: MatrixRef<'_, X>,
    y: &mut MatrixMut<'_, X>,
    buffers: &mut BottleneckBuffers<X>,
) -> Result<()> {
    y.expect_shape("y", [x.rows(), adapter.d()])?;
    buffers.compute_hidden(adapter, x)?;
    buffers.add_up_projection(adapter, y)
}
