//! A bottleneck adapter on the CPU: two layers one after the other, with a LayerNorm before them in Adapter^L.

use super::layer::forward_with;
use super::layer_norm::layer_norm;
use super::shared::grow;
use crate::bottleneck::Bottleneck;
use crate::dtype::Element;
use crate::error::Result;
use crate::lora::{Epilogue, LoraLinear, Residual};
use crate::matrix::{MatrixMut, MatrixRef};

/// The temporaries of a bottleneck adapter, kept from call to call and grown as needed.
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
    fn hide<W: Element>(&mut self, adapter: &Bottleneck<'_, W>, x: MatrixRef<'_, X>) -> Result<()> {
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
    fn add<W: Element>(&mut self, adapter: &Bottleneck<'_, W>, y: &mut MatrixMut<'_, X>) -> Result<()> {
        let hidden = MatrixRef::new(&self.hidden, y.rows(), adapter.width())?;
        let onto_y = Epilogue { residual: Residual::InPlace, ..Epilogue::default() };
        let [_, up] = adapter.layers();
        Self::layer(&mut self.workspace, &up, hidden, y, &onto_y)
    }
}

/// `y += up·act(down·norm(y) + bias) + bias` for y `[tokens, d]`: an adapter behind the layer that has computed y.
/// Hidden and normalised features are rounded to y's type.
///
/// # Errors
/// As [`Bottleneck::validate`]; [`Error::ShapeMismatch`](crate::Error::ShapeMismatch) for y.
pub fn bottleneck<W: Element, X: Element>(
    adapter: &Bottleneck<'_, W>,
    y: &mut MatrixMut<'_, X>,
    buffers: &mut BottleneckBuffers<X>,
) -> Result<()> {
    buffers.hide(adapter, y.as_ref())?;
    buffers.add(adapter, y)
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
    buffers.hide(adapter, x)?;
    buffers.add(adapter, y)
}
