//! One LoRA layer for 1 to 16 tokens in one launch, from checked views.

use std::marker::PhantomData;

use crate::abi::LoraDecode;
use crate::device::Device;
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::lora::call::{Operands, Planned};
use crate::device::lora::layer::{DeviceLora, DeviceResidual, activation_code, segment_table};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut};
use crate::device::memory::workspace::Workspace;
use crate::dtype::Element;
use crate::error::Result;
use crate::plan::lora::decode::DecodePlan;
use crate::{ComputePath, WorkspaceLayout};

/// A layer's launch on a decode kernel, for 1 to 16 tokens: planned once, its kernel loaded once, then launched any
/// number of times. [`Forward`] uses the same kernels for so few tokens.
///
/// `y = act(x W0ᵀ + bias + s·(x Aᵀ) Bᵀ) + residual` for x `[tokens, d_in]` and y `[tokens, d_out]`. The plan depends on
/// the layer's shapes, layout, type and alignment, but not on addresses or values: other weights or adapters of the
/// same ranks run on the same plan.
///
/// [`Forward`]: crate::device::Forward
///
/// ```
/// use fused_lora::device::{Decode, DeviceLora, DeviceResidual, DeviceSegment, Workspace};
/// use fused_lora::device::{Device, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Stream};
/// use fused_lora::lora::{Activation, Layout};
///
/// fn adapted(device: &Device, x: &[f32], w0: &[f32], a: &[f32], b: &[f32]) -> fused_lora::Result<Vec<f32>> {
///     let (d_in, d_out, rank) = (x.len(), w0.len() / x.len(), a.len() / x.len());
///     let stream = Stream::new(device)?;
///     let [x, w0, a, b] = [x, w0, a, b].map(|host| DeviceBuffer::from_slice(&stream, host));
///     let (x, w0, a, b) = (x?, w0?, a?, b?);
///     let segment = DeviceSegment {
///         columns: 0..d_out,
///         a: DeviceMatrix::new(a.as_slice(), rank, d_in)?,
///         b: DeviceMatrix::new(b.as_slice(), d_out, rank)?,
///         scale: 16.0 / rank as f32,
///     };
///     let layer = DeviceLora {
///         weight: DeviceMatrix::new(w0.as_slice(), d_out, d_in)?,
///         layout: Layout::OutIn,
///         bias: None,
///         segments: &[segment],
///         activation: Activation::Identity,
///     };
///     let decode = Decode::new(device, &layer, 1)?;
///     let mut workspace = Workspace::new(&stream, decode.workspace())?; // keep both from call to call
///     let mut y = DeviceBuffer::zeros(&stream, d_out)?;
///     let x = DeviceMatrix::new(x.as_slice(), 1, d_in)?;
///     let out = DeviceMatrixMut::new(y.as_mut_slice(), 1, d_out)?;
///     decode.launch(&stream, &layer, x, DeviceResidual::None, out, &mut workspace)?;
///     y.to_vec(&stream)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Decode<T> {
    kernel: PlannedKernel,
    plan: DecodePlan,
    planned: Planned,
    dtype: PhantomData<T>,
}

impl<T: Element> Decode<T> {
    /// Plans launches for layers of this shape and `tokens` rows of x. If the rows of W0 and of every A start and end
    /// at multiples of 16 bytes, the rows of x must do so as well; [`for_any_x`](Self::for_any_x) plans a slower kernel
    /// without that condition.
    ///
    /// # Errors
    /// As [`DeviceLora::validate`], [`DecodePlan::new`] and [`Device::kernel`].
    pub fn new(device: &Device, layer: &DeviceLora<'_, T>, tokens: usize) -> Result<Self> {
        Self::with_path(device, layer, tokens, ComputePath::Auto)
    }

    /// As [`new`](Self::new), on CUDA cores or on matrix instructions as asked.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_path(device: &Device, layer: &DeviceLora<'_, T>, tokens: usize, path: ComputePath) -> Result<Self> {
        Self::plan_for(device, layer, tokens, true, path)
    }

    /// As [`new`](Self::new), for an x of any alignment.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn for_any_x(device: &Device, layer: &DeviceLora<'_, T>, tokens: usize) -> Result<Self> {
        Self::plan_for(device, layer, tokens, false, ComputePath::Auto)
    }

    fn plan_for(
        device: &Device,
        layer: &DeviceLora<'_, T>,
        tokens: usize,
        aligned: bool,
        path: ComputePath,
    ) -> Result<Self> {
        let planned = Planned::new(device, layer, tokens, aligned)?;
        let plan = DecodePlan::new(&planned.problem::<T>(path))?;
        let kernel = PlannedKernel::find(device, &plan.launch)?;
        Ok(Self { kernel, plan, planned, dtype: PhantomData })
    }

    /// The plan of the launch.
    pub fn plan(&self) -> &DecodePlan {
        &self.plan
    }

    /// The kernel that is launched.
    pub fn kernel(&self) -> &Kernel {
        self.kernel.as_kernel()
    }

    /// The layout that a [`Workspace`] must have room for.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace
    }

    /// Issues one launch to a stream. The call allocates nothing and does not wait, so it can be captured in a
    /// [`Graph`](crate::device::Graph).
    ///
    /// # Errors
    /// As [`Forward::launch`](crate::device::Forward::launch), without the errors of T.
    pub fn launch(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        x: DeviceMatrix<'_, T>,
        residual: DeviceResidual<'_, T>,
        y: DeviceMatrixMut<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let operands = Operands { layer, x, dropout: None, slot: None, residual, y: y.as_ref(), t: None, workspace };
        self.planned.check(stream, &operands, self.plan.workspace)?;
        let params = params(&self.plan, &operands);
        // SAFETY: the parameters are the decode kernels'. Shapes, bounds, devices and alignments were checked above,
        // and no output overlaps any other operand except a residual that is y itself, which the kernels allow. The
        // views borrow the memory during the call; afterwards it is freed only once this work is done.
        unsafe { self.kernel.launch(stream, &params) }
    }
}

/// The parameters of a launch whose operands were checked.
#[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
pub(crate) fn params<T: Element>(plan: &DecodePlan, operands: &Operands<'_, T>) -> LoraDecode {
    let &Operands { layer, x, slot, y, workspace, .. } = operands;
    let (slot, slot_begin) = slot.map_or((0, 0), |slot| slot.params());
    let added = operands.added();
    let (segments, total_rank) = segment_table(layer.segments, 1.0);
    LoraDecode {
        x: x.address() as *const _,
        weight: layer.weight.address() as *const _,
        bias: layer.bias.map_or(std::ptr::null(), |bias| bias.address() as *const _),
        residual: added.map_or(std::ptr::null(), |added| added.address() as *const _),
        y: y.address() as *mut _,
        ticket: workspace.address() as *mut _,
        t: (workspace.address() + WorkspaceLayout::T_OFFSET as u64) as *mut _,
        partial: (workspace.address() + workspace.layout().partial_offset() as u64) as *mut _,
        arrivals: (workspace.address() + workspace.layout().arrivals_offset() as u64) as *mut _,
        slot: slot as *const _,
        tokens: x.rows() as u32,
        depth: x.cols() as u32,
        columns: y.cols() as u32,
        total_rank,
        x_stride: x.row_stride() as u32,
        weight_stride: layer.weight.row_stride() as u32,
        y_stride: y.row_stride() as u32,
        residual_stride: added.map_or(0, |added| added.row_stride() as u32),
        tile_columns: plan.tile_columns,
        row_threads: plan.row_threads,
        splits: plan.splits,
        split_depth: plan.split_depth,
        shrink_rows: plan.shrink_rows,
        widest_rank: plan.widest_rank,
        activation: activation_code(layer.activation),
        segment_count: layer.segments.len() as u32,
        slot_begin,
        sums_stride: plan.sums_stride,
        segments,
    }
}
