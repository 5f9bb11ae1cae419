//! One LoRA layer for 1 to 16 tokens in one launch, from checked views.

use std::marker::PhantomData;

use super::Device;
use super::kernel::{Kernel, LaunchConfig};
use super::layer::{DeviceLora, DeviceResidual, expect_operand, segment_table};
use super::matrix::{CHUNK, DeviceMatrix, DeviceMatrixMut};
use super::stream::Stream;
use super::workspace::Workspace;
use crate::abi::{self, LoraDecode};
use crate::decode::DecodePlan;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Activation, Layout};
use crate::{ComputePath, LayerProblem, WorkspaceLayout};

/// A layer's decode launch: planned once, its kernel found, then launched any number of times.
///
/// `y = act(x W0ᵀ + bias + s·(x Aᵀ) Bᵀ) + residual` for x `[tokens, d_in]` and y `[tokens, d_out]`. The plan depends on
/// the layer's shapes, layout, type and alignment, not on what it points to: other weights or adapters of the same ranks
/// run on the same plan.
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
    kernel: Kernel,
    plan: DecodePlan,
    config: LaunchConfig,
    shape: Shape,
    aligned: bool,
    dtype: PhantomData<T>,
}

/// What a plan is made for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    layout: Layout,
    ranks: Vec<usize>,
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} to {} stored {:?} with ranks {:?}", self.d_in, self.d_out, self.layout, self.ranks)
    }
}

impl<T: Element> Decode<T> {
    /// Plans launches for layers like this one and `tokens` rows of x. If the rows of W0 and of every A start and end at
    /// multiples of 16 bytes, those of x must, too; [`for_any_x`](Self::for_any_x) plans a slower kernel without that
    /// condition.
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
        Self::plan_for(device, layer, tokens, layer.is_aligned(), path)
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
        layer.validate(device)?;
        let (d_in, d_out, layout) = (layer.d_in(), layer.d_out(), layer.layout);
        let shape = Shape { tokens, d_in, d_out, layout, ranks: layer.ranks().collect() };
        let plan = DecodePlan::new(&LayerProblem {
            tokens,
            d_in,
            d_out,
            layout,
            dtype: T::DTYPE,
            ranks: &shape.ranks,
            aligned,
            multiprocessors: device.properties().multiprocessors as usize,
            compute_capability: device.properties().compute_capability,
            path,
        })?;
        let kernel = device.kernel(&plan.kernel)?;
        let config = LaunchConfig { shared_bytes: plan.shared_bytes, ..LaunchConfig::new(plan.grid, plan.threads) };
        Ok(Self { kernel, plan, config, shape, aligned, dtype: PhantomData })
    }

    /// How it will run.
    pub fn plan(&self) -> &DecodePlan {
        &self.plan
    }

    /// The kernel that it launches.
    pub fn kernel(&self) -> &Kernel {
        &self.kernel
    }

    /// What a [`Workspace`] must have room for.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace
    }

    /// Issues one launch to a stream. Nothing is allocated and nothing waits, so it may be captured in a
    /// [`Graph`](super::Graph).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`]; as [`DeviceLora::validate`]; [`Error::PlanMismatch`] if the
    /// layer is not like the planned one; [`Error::ShapeMismatch`], [`Error::Misaligned`] or [`Error::TooLarge`] for x, y
    /// or the residual; [`Error::Overlap`] if y or the workspace shares memory with anything else;
    /// [`Error::DeviceWorkspaceTooSmall`]. Afterwards as [`Kernel::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        x: DeviceMatrix<'_, T>,
        residual: DeviceResidual<'_, T>,
        y: DeviceMatrixMut<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        layer.validate(device)?;
        self.expect_planned(layer)?;
        let output = y.as_ref();
        let added = match residual {
            DeviceResidual::None => None,
            DeviceResidual::InPlace => Some(output),
            DeviceResidual::From(matrix) => Some(matrix),
        };
        let Shape { tokens, d_in, d_out, .. } = self.shape;
        expect_operand(device, "x", &x)?;
        x.expect_shape("x", [tokens, d_in])?;
        if self.aligned {
            x.extent().expect_aligned("x", CHUNK)?;
        }
        expect_operand(device, "y", &output)?;
        output.expect_shape("y", [tokens, d_out])?;
        if let Some(added) = &added {
            expect_operand(device, "residual", added)?;
            added.expect_shape("residual", [tokens, d_out])?;
        }
        self.expect_workspace(workspace)?;
        let apart = match residual {
            DeviceResidual::From(matrix) => Some(("residual", matrix.extent())),
            _ => None,
        };
        let words = workspace.extent();
        for (operand, extent) in layer.operands().chain([("x", x.extent())]).chain(apart) {
            output.extent().refuse_overlap("y", operand, &extent)?;
            words.refuse_overlap("the workspace", operand, &extent)?;
        }
        words.refuse_overlap("the workspace", "y", &output.extent())?;

        let params = self.params(layer, &x, added.as_ref(), &output, workspace);
        // SAFETY: the parameters are the decode kernels'. Shapes, bounds, devices and alignments were checked above, and
        // nothing that is written overlaps anything else but the residual that is y itself, which the kernels allow. The
        // views borrow the memory during the call; afterwards it is given back only when this work is done.
        unsafe { self.kernel.launch(stream, &self.config, &params) }
    }

    fn expect_planned(&self, layer: &DeviceLora<'_, T>) -> Result<()> {
        let shape = &self.shape;
        let same = (layer.d_in(), layer.d_out(), layer.layout) == (shape.d_in, shape.d_out, shape.layout)
            && layer.ranks().eq(shape.ranks.iter().copied());
        if !same {
            let (d_in, d_out, layout) = (layer.d_in(), layer.d_out(), layer.layout);
            let actual = Shape { tokens: shape.tokens, d_in, d_out, layout, ranks: layer.ranks().collect() };
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

    fn expect_workspace(&self, workspace: &Workspace) -> Result<()> {
        self.kernel.device().expect_same("workspace", workspace.device())?;
        let required = self.plan.workspace;
        if workspace.layout().serves(&required) {
            return Ok(());
        }
        Err(Error::DeviceWorkspaceTooSmall { required, available: workspace.layout() })
    }

    #[expect(clippy::cast_possible_truncation, reason = "validated: dimensions and strides fit 31 bits")]
    fn params(
        &self,
        layer: &DeviceLora<'_, T>,
        x: &DeviceMatrix<'_, T>,
        residual: Option<&DeviceMatrix<'_, T>>,
        y: &DeviceMatrix<'_, T>,
        workspace: &Workspace,
    ) -> LoraDecode {
        let (segments, total_rank) = segment_table(layer.segments, 1.0);
        LoraDecode {
            x: x.address() as *const _,
            weight: layer.weight.address() as *const _,
            bias: layer.bias.map_or(std::ptr::null(), |bias| bias.address() as *const _),
            residual: residual.map_or(std::ptr::null(), |residual| residual.address() as *const _),
            y: y.address() as *mut _,
            ticket: workspace.ticket() as *mut _,
            t: workspace.t() as *mut _,
            partial: workspace.partial() as *mut _,
            arrivals: workspace.arrivals() as *mut _,
            tokens: self.shape.tokens as u32,
            depth: self.shape.d_in as u32,
            columns: self.shape.d_out as u32,
            total_rank,
            x_stride: x.row_stride() as u32,
            weight_stride: layer.weight.row_stride() as u32,
            y_stride: y.row_stride() as u32,
            residual_stride: residual.map_or(0, |residual| residual.row_stride() as u32),
            tile_columns: self.plan.tile_columns,
            row_threads: self.plan.row_threads,
            splits: self.plan.splits,
            split_depth: self.plan.split_depth,
            shrink_rows: self.plan.shrink_rows,
            widest_rank: self.plan.widest_rank,
            activation: match layer.activation {
                Activation::Identity => abi::LORA_IDENTITY,
                Activation::Relu => abi::LORA_RELU,
                Activation::GeluNew => abi::LORA_GELU_NEW,
            },
            segment_count: layer.segments.len() as u32,
            segments,
        }
    }
}
