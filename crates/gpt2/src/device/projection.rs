//! One planned projection: fused with its LoRA, or with the LoRA as separate launches.

use fused_lora::Element;
use fused_lora::WorkspaceLayout;
use fused_lora::device::{
    Device, DeviceInput, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceOutput, DeviceSegment, DeviceSliceMut,
    Forward, Merge, MergeReportBuffer, Pointwise, SlotSegments, Stream, Workspace,
};
use fused_lora::lora::{Activation, Epilogue, Layout, Residual};

use super::arena::{Sizes, matrix, matrix_mut};
use super::weights::DeviceLinear;
use crate::adapter::LoraMode;

/// How a projection runs.
#[derive(Debug)]
pub(super) struct PlannedProjection<W> {
    /// The base layer, with the segments inside where they are fused.
    layer: Forward<W>,
    beside: Beside<W>,
    /// Applied after separate launches, since they change the sum.
    activation: Option<(Pointwise<W>, Activation)>,
}

#[derive(Debug)]
enum Beside<W> {
    Nothing,
    /// x·Aᵀ, ·Bᵀ, scaled and added: three launches per segment.
    Products(Vec<Products<W>>),
    /// ΔW in full, then x·ΔW.
    DenseDelta(Box<DenseDelta<W>>),
}

#[derive(Debug)]
struct DenseDelta<W> {
    delta: Merge<W>,
    product: Forward<W>,
}

#[derive(Debug)]
struct Products<W> {
    down: Forward<W>,
    up: Forward<W>,
    add: Pointwise<W>,
}

/// A projection's weights, adapters and epilogue.
pub(super) struct Call<'a, W> {
    pub(super) linear: &'a DeviceLinear<W>,
    pub(super) segments: &'a [DeviceSegment<'a, W>],
    /// The slot from which fused segments take their factors, instead of their own.
    pub(super) slot: Option<SlotSegments<'a, W>>,
    pub(super) activation: Activation,
    /// Whether the result is added to y.
    pub(super) adds: bool,
}

/// The memory that a projection's launches write besides its output.
pub(super) struct Scratch<'p, 'a, W> {
    pub(super) t: &'p mut DeviceSliceMut<'a, W>,
    pub(super) beside: &'p mut DeviceSliceMut<'a, W>,
    pub(super) delta: &'p mut DeviceSliceMut<'a, W>,
    pub(super) zeros: &'p DeviceSliceMut<'a, W>,
    pub(super) report: &'p mut MergeReportBuffer,
    pub(super) workspace: &'p mut Workspace,
}

impl<W: Element> PlannedProjection<W> {
    pub(super) fn new(
        device: &Device,
        linear: &DeviceLinear<W>,
        segments: &[DeviceSegment<'_, W>],
        mode: LoraMode,
        activation: Activation,
        rows: usize,
    ) -> fused_lora::Result<Self> {
        let (d_in, d_out) = linear.shape();
        if segments.is_empty() || mode == LoraMode::Fused {
            let layer = Forward::new(device, &linear.layer(segments)?, rows)?;
            return Ok(Self { layer, beside: Beside::Nothing, activation: None });
        }
        let layer = Forward::new(device, &linear.layer(&[])?, rows)?;
        let beside = if mode == LoraMode::DenseDelta {
            let product = Forward::new(device, &base(linear.weight()?, Layout::InOut), rows)?;
            let delta = Merge::new(device, d_in, d_out, Layout::InOut)?;
            Beside::DenseDelta(Box::new(DenseDelta { delta, product }))
        } else {
            let products = segments.iter().map(|segment| {
                let cols = segment.columns.len();
                Ok(Products {
                    down: Forward::new(device, &base(segment.a, Layout::OutIn), rows)?,
                    up: Forward::new(device, &base(segment.b, Layout::OutIn), rows)?,
                    add: Pointwise::new(device, rows, cols)?,
                })
            });
            Beside::Products(products.collect::<fused_lora::Result<_>>()?)
        };
        let activated = activation != Activation::Identity;
        let activation = activated.then(|| Pointwise::new(device, rows, d_out)).transpose()?.map(|p| (p, activation));
        Ok(Self { layer, beside, activation })
    }

    /// Makes all launches dependent except those of a dense ΔW: its product loads its weight before it waits, while the
    /// preceding merge may still be writing that weight.
    pub(super) fn with_dependent_launches(self) -> Self {
        let beside = match self.beside {
            Beside::Nothing => Beside::Nothing,
            Beside::Products(products) => {
                let dependent = |Products { down, up, add }| Products {
                    down: Forward::with_dependent_launch(down),
                    up: Forward::with_dependent_launch(up),
                    add: Pointwise::with_dependent_launch(add),
                };
                Beside::Products(products.into_iter().map(dependent).collect())
            }
            Beside::DenseDelta(dense) => Beside::DenseDelta(dense),
        };
        let activation = self.activation.map(|(pointwise, code)| (pointwise.with_dependent_launch(), code));
        Self { layer: self.layer.with_dependent_launch(), beside, activation }
    }

    /// Elements that the projection needs of an arena's parts, besides its input and its output.
    pub(super) fn sizes(&self, linear: &DeviceLinear<W>, segments: &[DeviceSegment<'_, W>], rows: usize) -> Sizes {
        let (d_in, d_out) = linear.shape();
        match &self.beside {
            Beside::Nothing => Sizes::default(),
            Beside::Products(_) => Sizes {
                t: segments.iter().map(|s| rows * s.a.rows()).max().unwrap_or(0),
                beside: segments.iter().map(|s| rows * s.columns.len()).max().unwrap_or(0),
                ..Sizes::default()
            },
            Beside::DenseDelta(_) => Sizes { delta: d_in * d_out, zeros: d_in * d_out, ..Sizes::default() },
        }
    }

    pub(super) fn workspace(&self) -> WorkspaceLayout {
        let more = match &self.beside {
            Beside::Nothing => vec![],
            Beside::Products(products) => {
                products.iter().flat_map(|p| [p.down.workspace(), p.up.workspace()]).collect()
            }
            Beside::DenseDelta(dense) => vec![dense.product.workspace()],
        };
        more.iter().fold(self.layer.workspace(), |all, one| all.union(one))
    }

    /// Kernels that a call launches.
    pub(super) fn launches(&self) -> usize {
        let beside = match &self.beside {
            Beside::Nothing => 0,
            Beside::Products(products) => 3 * products.len(),
            Beside::DenseDelta(_) => 2,
        };
        1 + beside + usize::from(self.activation.is_some())
    }

    /// `y = act(x·W + bias + LoRA) [+ y]`.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        call: &Call<'_, W>,
        x: DeviceMatrix<'_, W>,
        y: &mut DeviceSliceMut<'_, W>,
        scratch: &mut Scratch<'_, '_, W>,
    ) -> fused_lora::Result<()> {
        let &Call { linear, segments, slot, activation, adds } = call;
        let (rows, (_, d_out)) = (x.rows(), linear.shape());
        let residual = if adds { Residual::InPlace } else { Residual::None };
        let Scratch { t, beside, delta, zeros, report, workspace } = scratch;
        let (segments_inside, slot, activation) = match &self.beside {
            Beside::Nothing => (segments, slot, activation),
            _ => (&[][..], None, Activation::Identity),
        };
        let (layer, input) = (linear.layer(segments_inside)?, DeviceInput { slot, ..x.into() });
        let epilogue = Epilogue { activation, residual };
        let output = DeviceOutput { epilogue, ..matrix_mut(y, rows, d_out)?.into() };
        self.layer.launch(stream, &layer, input, output, workspace)?;
        match &self.beside {
            Beside::Nothing => {}
            Beside::Products(products) => {
                for (Products { down, up, add }, segment) in products.iter().zip(segments) {
                    let (rank, cols) = (segment.a.rows(), segment.columns.len());
                    let (a, b) = (base(segment.a, Layout::OutIn), base(segment.b, Layout::OutIn));
                    down.launch(stream, &a, x, matrix_mut(t, rows, rank)?, workspace)?;
                    let product = matrix_mut(beside, rows, cols)?;
                    up.launch(stream, &b, matrix(t, rows, rank)?, product, workspace)?;
                    let added = (matrix(beside, rows, cols)?, segment.scale);
                    let part = y.slice_mut(segment.columns.start..rows * d_out - (d_out - segment.columns.end));
                    let part = DeviceMatrixMut::with_stride(part, rows, cols, d_out)?;
                    add.launch(stream, part, Some(added), Activation::Identity)?;
                }
            }
            Beside::DenseDelta(dense) => {
                let DenseDelta { delta: merge, product } = &**dense;
                let (d_in, d_out) = linear.shape();
                let zeros = matrix(zeros, d_in, d_out)?;
                merge.merge_into(stream, zeros, matrix_mut(delta, d_in, d_out)?, segments, report)?;
                let delta = base(matrix(delta, d_in, d_out)?, Layout::InOut);
                let epilogue = Epilogue { residual: Residual::InPlace, ..Epilogue::default() };
                let output = DeviceOutput { epilogue, ..matrix_mut(y, rows, d_out)?.into() };
                product.launch(stream, &delta, x, output, workspace)?;
            }
        }
        if let Some((pointwise, activation)) = &self.activation {
            pointwise.launch(stream, matrix_mut(y, rows, d_out)?, None, *activation)?;
        }
        Ok(())
    }
}

/// A layer that is only a product.
fn base<W: Element>(weight: DeviceMatrix<'_, W>, layout: Layout) -> DeviceLora<'_, W> {
    DeviceLora { weight, layout, bias: None, segments: &[] }
}
