//! The checks of a call of a planned layer: its operands must fit the plan, the device, and each other.

use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::device::lora::dropout::DeviceDropout;
use crate::device::lora::layer::{DeviceLora, expect_operand};
use crate::device::lora::slot::SlotSegments;
use crate::device::memory::matrix::{CHUNK, DeviceMatrix};
use crate::device::memory::workspace::Workspace;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Epilogue, Layout, Residual};
use crate::{ComputePath, LayerProblem, WorkspaceLayout};

/// The properties that a launch is planned for. Every call is checked against them.
#[derive(Debug, Clone)]
pub(crate) struct Planned {
    device: Device,
    shape: Shape,
    /// Whether the rows of x, W0 and every A must start and end at multiples of 16 bytes.
    aligned: bool,
}

/// The properties of a layer and its input that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    layout: Layout,
    ranks: Vec<usize>,
}

impl Shape {
    fn of<T: Element>(layer: &DeviceLora<'_, T>, tokens: usize) -> Self {
        let (d_in, d_out, layout) = (layer.d_in(), layer.d_out(), layer.layout);
        Self { tokens, d_in, d_out, layout, ranks: layer.ranks().collect() }
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {} stored {:?} with ranks {:?}", self.d_in, self.d_out, self.layout, self.ranks)
    }
}

/// The operands of a call.
pub(crate) struct Operands<'a, T> {
    pub(crate) layer: &'a DeviceLora<'a, T>,
    pub(crate) x: DeviceMatrix<'a, T>,
    pub(crate) dropout: Option<DeviceDropout<'a>>,
    /// Owns its memory, so no output can overlap it.
    pub(crate) slot: Option<SlotSegments<'a, T>>,
    /// Written; the caller borrows it mutably.
    pub(crate) y: DeviceMatrix<'a, T>,
    pub(crate) epilogue: Epilogue<DeviceMatrix<'a, T>>,
    /// T = x Aᵀ. Written; the caller borrows it mutably.
    pub(crate) t: Option<DeviceMatrix<'a, T>>,
    pub(crate) workspace: &'a Workspace,
}

impl<'a, T: Element> Operands<'a, T> {
    /// The residual, added after the activation.
    pub(crate) fn added(&self) -> Option<DeviceMatrix<'a, T>> {
        match self.epilogue.residual {
            Residual::None => None,
            Residual::InPlace => Some(self.y),
            Residual::From(matrix) => Some(matrix),
        }
    }
}

impl Planned {
    /// For layers of this shape. `aligned` says whether x must be aligned if the layer is.
    pub(crate) fn new<T: Element>(
        device: &Device,
        layer: &DeviceLora<'_, T>,
        tokens: usize,
        aligned: bool,
    ) -> Result<Self> {
        layer.validate(device)?;
        // x has no gap to read behind a row that ends within a chunk.
        let whole_chunks = (layer.d_in() * size_of::<T>()).is_multiple_of(CHUNK);
        let aligned = aligned && layer.is_aligned() && whole_chunks;
        Ok(Self { device: device.clone(), shape: Shape::of(layer, tokens), aligned })
    }

    /// The input of the plan.
    pub(crate) fn problem<T: Element>(&self, path: ComputePath) -> LayerProblem<'_> {
        let &Shape { tokens, d_in, d_out, layout, ref ranks } = &self.shape;
        let properties = self.device.properties();
        LayerProblem {
            tokens,
            d_in,
            d_out,
            layout,
            dtype: T::DTYPE,
            ranks,
            aligned: self.aligned,
            multiprocessors: properties.multiprocessors as usize,
            compute_capability: properties.compute_capability,
            path,
        }
    }

    /// Checks everything that a kernel relies on: all operands are on the device and of the planned shapes and
    /// alignment, the workspace has room for `required`, and no output overlaps any other operand except a residual
    /// that is y itself.
    pub(crate) fn check<T: Element>(
        &self,
        stream: &Stream,
        operands: &Operands<'_, T>,
        required: WorkspaceLayout,
    ) -> Result<()> {
        let &Operands { layer, x, dropout, slot, y, epilogue, t, workspace } = operands;
        let device = &self.device;
        device.expect_same("stream", stream.device())?;
        layer.validate(device)?;
        self.expect_planned(layer)?;
        if let Some(slot) = &slot {
            slot.validate(device, layer.segments)?;
        }
        let &Shape { tokens, d_in, d_out, ref ranks, .. } = &self.shape;
        let expect = |operand, matrix: &DeviceMatrix<'_, T>, shape| {
            expect_operand(device, operand, matrix)?;
            matrix.expect_shape(operand, shape)
        };
        expect("x", &x, [tokens, d_in])?;
        if self.aligned {
            x.extent().expect_aligned("x", CHUNK)?;
        }
        expect("y", &y, [tokens, d_out])?;
        if let Residual::From(matrix) = &epilogue.residual {
            expect("residual", matrix, [tokens, d_out])?;
        }
        if let Some(t) = &t {
            expect("T", t, [tokens, ranks.iter().sum()])?;
        }
        let step = dropout.map(|dropout| dropout.validate(device)).transpose()?.flatten();
        workspace.expect_serves(device, required)?;
        let apart = match epilogue.residual {
            Residual::From(matrix) => Some(("residual", matrix.extent())),
            _ => None,
        };
        let written =
            [t.map(|t| ("T", t.extent())), Some(("y", y.extent())), Some(("the workspace", workspace.extent()))];
        for (operand, extent) in layer.operands().chain([("x", x.extent())]).chain(apart).chain(step) {
            for (output, written) in written.iter().flatten() {
                written.refuse_overlap(output, operand, &extent)?;
            }
        }
        for (i, (other, extent)) in written.iter().flatten().enumerate() {
            for (output, written) in written.iter().flatten().skip(i + 1) {
                written.refuse_overlap(output, other, extent)?;
            }
        }
        Ok(())
    }

    fn expect_planned<T: Element>(&self, layer: &DeviceLora<'_, T>) -> Result<()> {
        let shape = &self.shape;
        let same = (layer.d_in(), layer.d_out(), layer.layout) == (shape.d_in, shape.d_out, shape.layout)
            && layer.ranks().eq(shape.ranks.iter().copied());
        if !same {
            let actual = Shape::of(layer, shape.tokens);
            return Err(Error::PlanMismatch { planned: shape.to_string(), actual: actual.to_string() });
        }
        if self.aligned {
            layer.weight.extent().expect_aligned("weight", CHUNK)?;
            for segment in layer.segments {
                segment.a.extent().expect_aligned("A", CHUNK)?;
            }
        }
        Ok(())
    }
}
