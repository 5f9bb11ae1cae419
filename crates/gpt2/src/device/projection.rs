//! A planned projection, with its LoRA fused or as separate launches.

use fused_lora::Element;
use fused_lora::WorkspaceLayout;
use fused_lora::device::{
    Device, DeviceInput, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceOutput, DeviceSegment, DeviceSliceMut,
    Forward, Merge, MergeReportBuffer, Pointwise, SlotSegments, Stream, Workspace,
};
use fused_lora::lora::{Activation, Epilogue, Layout, Residual};

use super::arena::{PartSizes, matrix, matrix_mut};
use super::weights::DeviceLinear;
use crate::adapter::LoraMode;

/// The planned launches of a projection.
#[derive(Debug)]
pub(super) struct PlannedProjection<W> {
    /// The base layer; with fused LoRA, its segments included.
    layer: Forward<W>,
    low_rank_product: UnfusedLora<W>,
    /// The activation, if it must be applied after a LoRA that is not fused.
    activation: Option<(Pointwise<W>, Activation)>,
}

/// The launches of a LoRA that is not fused.
#[derive(Debug)]
enum UnfusedLora<W> {
    None,
    /// x·Aᵀ, then T·Bᵀ, then scale and add: three launches per segment.
    SequentialProducts(Vec<SequentialProducts<W>>),
    /// The full matrix ΔW, then x·ΔW.
    DenseDelta(Box<DenseDelta<W>>),
}

#[derive(Debug)]
struct DenseDelta<W> {
    delta: Merge<W>,
    product: Forward<W>,
}

#[derive(Debug)]
struct SequentialProducts<W> {
    shrink: Forward<W>,
    expand: Forward<W>,
    add: Pointwise<W>,
}

/// A projection's weights, adapters and epilogue.
pub(super) struct ProjectionCall<'a, W> {
    pub(super) linear: &'a DeviceLinear<W>,
    pub(super) segments: &'a [DeviceSegment<'a, W>],
    /// The slot from which a fused LoRA takes its factors, if there is one.
    pub(super) slot: Option<SlotSegments<'a, W>>,
    pub(super) activation: Activation,
    /// Whether the result is added to y.
    pub(super) adds: bool,
}

/// Buffers that a projection's launches use besides its input and output.
pub(super) struct Scratch<'p, 'a, W> {
    pub(super) t: &'p mut DeviceSliceMut<'a, W>,
    pub(super) low_rank_product: &'p mut DeviceSliceMut<'a, W>,
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
            return Ok(Self { layer, low_rank_product: UnfusedLora::None, activation: None });
        }
        let layer = Forward::new(device, &linear.layer(&[])?, rows)?;
        let low_rank_product = if mode == LoraMode::DenseDelta {
            let product = Forward::new(device, &product_layer(linear.weight()?, Layout::InOut), rows)?;
            let delta = Merge::new(device, d_in, d_out, Layout::InOut)?;
            UnfusedLora::DenseDelta(Box::new(DenseDelta { delta, product }))
        } else {
            let products = segments.iter().map(|segment| {
                let cols = segment.columns.len();
                Ok(SequentialProducts {
                    shrink: Forward::new(device, &product_layer(segment.a, Layout::OutIn), rows)?,
                    expand: Forward::new(device, &product_layer(segment.b, Layout::OutIn), rows)?,
                    add: Pointwise::new(device, rows, cols)?,
                })
            });
            UnfusedLora::SequentialProducts(products.collect::<fused_lora::Result<_>>()?)
        };
        let activated = activation != Activation::Identity;
        let activation = activated.then(|| Pointwise::new(device, rows, d_out)).transpose()?.map(|p| (p, activation));
        Ok(Self { layer, low_rank_product, activation })
    }

    /// Makes all launches dependent except those of a dense ΔW: its product would load its weight, ΔW, while the
    /// preceding launch may still be writing it.
    pub(super) fn with_dependent_launches(self) -> Self {
        let low_rank_product = match self.low_rank_product {
            UnfusedLora::None => UnfusedLora::None,
            UnfusedLora::SequentialProducts(products) => {
                let dependent = |SequentialProducts { shrink, expand, add }| SequentialProducts {
                    shrink: Forward::with_dependent_launch(shrink),
                    expand: Forward::with_dependent_launch(expand),
                    add: Pointwise::with_dependent_launch(add),
                };
                UnfusedLora::SequentialProducts(products.into_iter().map(dependent).collect())
            }
            UnfusedLora::DenseDelta(dense) => UnfusedLora::DenseDelta(dense),
        };
        let activation = self.activation.map(|(pointwise, code)| (pointwise.with_dependent_launch(), code));
        Self { layer: self.layer.with_dependent_launch(), low_rank_product, activation }
    }

    /// The sizes of the arena's parts that the projection needs besides its input and output.
    pub(super) fn sizes(&self, linear: &DeviceLinear<W>, segments: &[DeviceSegment<'_, W>], rows: usize) -> PartSizes {
        let (d_in, d_out) = linear.shape();
        match &self.low_rank_product {
            UnfusedLora::None => PartSizes::default(),
            UnfusedLora::SequentialProducts(_) => PartSizes {
                t: segments.iter().map(|s| rows * s.a.rows()).max().unwrap_or(0),
                low_rank_product: segments.iter().map(|s| rows * s.columns.len()).max().unwrap_or(0),
                ..PartSizes::default()
            },
            UnfusedLora::DenseDelta(_) => {
                PartSizes { delta: d_in * d_out, zeros: d_in * d_out, ..PartSizes::default() }
            }
        }
    }

    pub(super) fn workspace(&self) -> WorkspaceLayout {
        let more = match &self.low_rank_product {
            UnfusedLora::None => vec![],
            UnfusedLora::SequentialProducts(products) => {
                products.iter().flat_map(|p| [p.shrink.workspace(), p.expand.workspace()]).collect()
            }
            UnfusedLora::DenseDelta(dense) => vec![dense.product.workspace()],
        };
        more.iter().fold(self.layer.workspace(), |all, one| all.union(one))
    }

    /// Number of kernels that a call launches.
    pub(super) fn launches(&self) -> usize {
        let low_rank_product = match &self.low_rank_product {
            UnfusedLora::None => 0,
            UnfusedLora::SequentialProducts(products) => 3 * products.len(),
            UnfusedLora::DenseDelta(_) => 2,
        };
        1 + low_rank_product + usize::from(self.activation.is_some())
    }

    /// `y = act(x·W + bias + LoRA) [+ y]`.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        call: &ProjectionCall<'_, W>,
        x: DeviceMatrix<'_, W>,
        y: &mut DeviceSliceMut<'_, W>,
        scratch: &mut Scratch<'_, '_, W>,
    ) -> fused_lora::Result<()> {
        let &ProjectionCall { linear, segments, slot, activation, adds } = call;
        let (rows, (_, d_out)) = (x.rows(), linear.shape());
        let residual = if adds { Residual::InPlace } else { Residual::None };
        let Scratch { t, low_rank_product, delta, zeros, report, workspace } = scratch;
        let (segments_inside, slot, activation) = match &self.low_rank_product {
            UnfusedLora::None => (segments, slot, activation),
            _ => (&[][..], None, Activation::Identity),
        };
        let (layer, input) = (linear.layer(segments_inside)?, DeviceInput { slot, ..x.into() });
        let epilogue = Epilogue { activation, residual };
        let output = DeviceOutput { epilogue, ..matrix_mut(y, rows, d_out)?.into() };
        self.layer.launch(stream, &layer, input, output, workspace)?;
        match &self.low_rank_product {
            UnfusedLora::None => {}
            UnfusedLora::SequentialProducts(products) => {
                for (SequentialProducts { shrink, expand, add }, segment) in products.iter().zip(segments) {
                    let (rank, cols) = (segment.a.rows(), segment.columns.len());
                    let (a, b) = (product_layer(segment.a, Layout::OutIn), product_layer(segment.b, Layout::OutIn));
                    shrink.launch(stream, &a, x, matrix_mut(t, rows, rank)?, workspace)?;
                    let product = matrix_mut(low_rank_product, rows, cols)?;
                    expand.launch(stream, &b, matrix(t, rows, rank)?, product, workspace)?;
                    let added = (matrix(low_rank_product, rows, cols)?, segment.scale);
                    let part = y.slice_mut(segment.columns.start..rows * d_out - (d_out - segment.columns.end));
                    let part = DeviceMatrixMut::with_stride(part, rows, cols, d_out)?;
                    add.launch(stream, part, Some(added), Activation::Identity)?;
                }
            }
            UnfusedLora::DenseDelta(dense) => {
                let DenseDelta { delta: merge, product } = &**dense;
                let (d_in, d_out) = linear.shape();
                let zeros = matrix(zeros, d_in, d_out)?;
                merge.merge_into(stream, zeros, matrix_mut(delta, d_in, d_out)?, segments, report)?;
                let delta = product_layer(matrix(delta, d_in, d_out)?, Layout::InOut);
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
fn product_layer<W: Element>(weight: DeviceMatrix<'_, W>, layout: Layout) -> DeviceLora<'_, W> {
    DeviceLora { weight, layout, bias: None, segments: &[] }
}
