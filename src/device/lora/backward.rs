//! The backward pass of one LoRA layer in two launches, from checked views.

use crate::abi::{LoraForward, LoraGradients, LoraGradientsSegment};
use crate::device::Device;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::lora::dropout::DeviceDropout;
use crate::device::lora::forward::with_maps;
use crate::device::lora::layer::{DeviceLora, expect_operand, expect_vector, segment_table};
use crate::device::memory::matrix::{CHUNK, DeviceMatrix, DeviceMatrixMut, Extent};
use crate::device::memory::slice::DeviceSliceMut;
use crate::device::memory::workspace::Workspace;
use crate::dropout::NO_DROPOUT;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::Accumulate;
use crate::plan::lora::forward::ForwardPlan;
use crate::plan::lora::{BackwardPlan, BackwardProblem, GradientsPlan, GradientsSegment};
use crate::{ComputePath, WorkspaceLayout};

/// The inputs of a backward pass, besides the layer.
#[derive(Debug, Clone, Copy)]
pub struct BackwardInput<'a, T> {
    /// x, `[tokens, d_in]`, as the forward pass read it.
    pub x: DeviceMatrix<'a, T>,
    /// The gradient of the layer's output before the activation, `[tokens, d_out]`.
    pub dy: DeviceMatrix<'a, T>,
    /// T = x̂ Aᵀ, `[tokens, sum of ranks]`, as the forward pass [wrote it](crate::device::DeviceOutput::t).
    pub t: DeviceMatrix<'a, T>,
    /// The forward pass's dropout, at the same offset.
    pub dropout: Option<DeviceDropout<'a>>,
}

/// The buffers of one segment's gradients, always `f32`.
#[derive(Debug)]
pub struct FactorGradient<'a> {
    /// dA, `[rank, d_in]`.
    pub da: DeviceMatrixMut<'a, f32>,
    /// dB, `[columns.len(), rank]`.
    pub db: DeviceMatrixMut<'a, f32>,
}

/// The outputs of a backward pass. W0 is frozen and gets no gradient.
#[derive(Debug)]
pub struct BackwardOutput<'a, T> {
    /// dx, `[tokens, d_in]`; given if and only if it was planned.
    pub dx: Option<DeviceMatrixMut<'a, T>>,
    /// Whether dx replaces the buffer's contents or is added to them, for example at a residual connection.
    pub dx_accumulate: Accumulate,
    /// One entry per segment.
    pub factors: &'a mut [FactorGradient<'a>],
    /// The bias's gradient, `[d_out]`, the sums of dy's columns; given if and only if it was planned.
    pub bias: Option<DeviceSliceMut<'a, f32>>,
    /// Whether the other gradients replace their buffers' contents or are added to them, for example over
    /// micro-batches.
    pub accumulate: Accumulate,
}

/// Options of a backward pass's plan, besides the layer's shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackwardOptions {
    /// Whether CUDA cores or matrix instructions multiply.
    pub path: ComputePath,
    /// Whether dy may have any alignment, which takes a slower kernel. Otherwise, if the rows of W0 start and end at
    /// multiples of 16 bytes, the rows of dy must do so as well.
    pub unaligned_dy: bool,
    /// Whether dx is computed. It is not needed below the lowest adapter of a model.
    pub dx: bool,
    /// Whether the bias's gradient is computed, which reads all of dy, also columns without an adapter.
    pub bias: bool,
}

impl Default for BackwardOptions {
    /// Computes dx, but not the bias's gradient.
    fn default() -> Self {
        Self { path: ComputePath::Auto, unaligned_dy: false, dx: true, bias: false }
    }
}

/// A layer's backward pass: planned once, its kernels loaded once, then launched any number of times.
///
/// ```text
/// Q = s·dy·B      dx = dy·W0 + mask/(1 − p) ⊙ Q·A      dA = Qᵀ·x̂      dB = s·dyᵀ·T
/// ```
///
/// The first launch computes Q, which it leaves in the workspace, and dx; the second computes dA and dB of all
/// segments. Sums run in a fixed order, so results are the same bits from run to run.
#[derive(Debug, Clone)]
pub struct Backward<T> {
    device: Device,
    plan: BackwardPlan,
    kernels: [Option<PlannedKernel>; 2],
    shape: Shape,
    options: BackwardOptions,
    dtype: std::marker::PhantomData<T>,
}

/// The properties of a layer that a plan depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    tokens: usize,
    d_in: usize,
    d_out: usize,
    layout: crate::lora::Layout,
    segments: Vec<GradientsSegment>,
    /// Whether the rows of W0 and dy must start and end at multiples of 16 bytes.
    aligned: bool,
}

impl Shape {
    fn of<T: Element>(layer: &DeviceLora<'_, T>, tokens: usize, aligned: bool) -> Self {
        let segments = layer.segments.iter();
        let segments = segments.map(|s| GradientsSegment { columns: s.columns.clone(), rank: s.a.rows() }).collect();
        Self { tokens, d_in: layer.d_in(), d_out: layer.d_out(), layout: layer.layout, segments, aligned }
    }

    fn total_rank(&self) -> usize {
        self.segments.iter().map(|segment| segment.rank).sum()
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { d_in, d_out, layout, segments, .. } = self;
        write!(f, "{d_in} to {d_out} stored {layout:?} with segments")?;
        segments.iter().try_for_each(|s| write!(f, " {:?} of rank {}", s.columns, s.rank))
    }
}

impl<T: Element> Backward<T> {
    /// Plans launches for layers of this shape and `tokens` rows of x and dy. Unlike a forward plan, the plan depends
    /// on the adapters' columns as well as on their ranks. It does not depend on the layer's bias. dx is
    /// computed, the bias's gradient is not; if the rows of W0 start and end at multiples of 16 bytes, the rows of dy
    /// must do so as well.
    ///
    /// # Errors
    /// As [`DeviceLora::validate`], [`BackwardPlan::new`] and [`Device::kernel`].
    pub fn new(device: &Device, layer: &DeviceLora<'_, T>, tokens: usize) -> Result<Self> {
        Self::with_options(device, layer, tokens, BackwardOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(
        device: &Device,
        layer: &DeviceLora<'_, T>,
        tokens: usize,
        options: BackwardOptions,
    ) -> Result<Self> {
        layer.validate(device)?;
        // dy has no gap to read behind a row that ends within a chunk.
        let whole_chunks = (layer.d_out() * size_of::<T>()).is_multiple_of(CHUNK);
        let shape = Shape::of(layer, tokens, !options.unaligned_dy && whole_chunks && layer.weight.is_aligned());
        let properties = device.properties();
        let plan = BackwardPlan::new(&BackwardProblem {
            tokens,
            d_in: shape.d_in,
            d_out: shape.d_out,
            layout: shape.layout,
            dtype: T::DTYPE,
            segments: &shape.segments,
            aligned: shape.aligned,
            multiprocessors: properties.multiprocessors as usize,
            compute_capability: properties.compute_capability,
            path: options.path,
            dx: options.dx,
            bias: options.bias,
        })?;
        let input = plan.input.as_ref().map(|plan| {
            let kernel = PlannedKernel::find(device, &plan.launch)?;
            Ok::<_, Error>(kernel)
        });
        let gradients = plan.gradients.as_ref();
        let gradients = gradients.map(|p| PlannedKernel::find(device, &p.launch));
        let kernels = [input.transpose()?, gradients.transpose()?];
        Ok(Self { device: device.clone(), plan, kernels, shape, options, dtype: std::marker::PhantomData })
    }

    /// The plan of the launches.
    pub fn plan(&self) -> &BackwardPlan {
        &self.plan
    }

    /// The layout that a [`Workspace`] must have room for. Forward and backward launches may use one workspace in turn.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace()
    }

    /// Issues the launches to a stream, one after the other. The call allocates no device memory and does not wait, so
    /// it can be captured in a [`Graph`](crate::device::Graph).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`]; as [`DeviceLora::validate`]; [`Error::PlanMismatch`] if the
    /// layer differs from the planned one; [`Error::OutputNotPlanned`] and [`Error::OutputMissing`] for dx and the
    /// bias's gradient; [`Error::SegmentCountMismatch`]; [`Error::ShapeMismatch`], [`Error::LengthMismatch`],
    /// [`Error::Misaligned`] or [`Error::TooLarge`] for an operand; [`Error::Overlap`] if an output or the workspace
    /// shares memory with anything else; [`Error::DeviceWorkspaceTooSmall`]. Afterwards as
    /// [`Kernel::launch`](crate::device::Kernel::launch).
    pub fn launch(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        input: &BackwardInput<'_, T>,
        output: &mut BackwardOutput<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        self.check(stream, layer, input, output, workspace)?;
        // No other work that uses the workspace comes between the two launches.
        workspace.issue(stream, || self.issue(stream, layer, input, output, (workspace.address(), workspace.layout())))
    }

    /// Issues the launches, whose operands were checked, in order with other work that uses the workspace.
    fn issue(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        input: &BackwardInput<'_, T>,
        output: &mut BackwardOutput<'_, T>,
        workspace: (u64, WorkspaceLayout),
    ) -> Result<()> {
        if let (Some(plan), Some(kernel)) = (&self.plan.input, &self.kernels[0]) {
            let dx = output.dx.as_ref().map(DeviceMatrixMut::as_ref);
            let params = input_params(plan, layer, input, dx.as_ref(), output.dx_accumulate, workspace);
            if plan.tensor_maps {
                let params = with_maps(&self.device, plan, layer, &input.dy, dx.as_ref(), params)?;
                // SAFETY: the parameters are those of the kernels of dx with tensor maps. Shapes, bounds, devices and
                // alignments were checked above, and no output overlaps any other operand except a dx that is
                // accumulated in place, which the kernels allow. The views borrow the memory during the call;
                // afterwards it is freed only once this work is done.
                unsafe { kernel.launch(stream, &params) }?;
            } else {
                // SAFETY: the parameters are those of the other kernels of dx; otherwise as above.
                unsafe { kernel.launch(stream, &params) }?;
            }
        }
        if let (Some(plan), Some(kernel)) = (&self.plan.gradients, &self.kernels[1]) {
            let params = gradients_params(plan, layer, input, output, workspace);
            // SAFETY: the parameters are the gradient kernels', otherwise as above. The launch before leaves Q in the
            // workspace, at the same place in both plans.
            unsafe { kernel.launch(stream, &params) }?;
        }
        Ok(())
    }

    /// Checks everything that the kernels rely on.
    fn check(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        input: &BackwardInput<'_, T>,
        output: &BackwardOutput<'_, T>,
        workspace: &Workspace,
    ) -> Result<()> {
        let (device, shape) = (&self.device, &self.shape);
        device.expect_same("stream", stream.device())?;
        layer.validate(device)?;
        let actual = Shape::of(layer, shape.tokens, shape.aligned);
        if actual != *shape {
            return Err(Error::PlanMismatch { planned: shape.to_string(), actual: actual.to_string() });
        }
        let &Shape { tokens, d_in, d_out, aligned, .. } = shape;
        let expect = |operand, matrix: &DeviceMatrix<'_, T>, dims| {
            expect_operand(device, operand, matrix)?;
            matrix.expect_shape(operand, dims)
        };
        expect("x", &input.x, [tokens, d_in])?;
        expect("dy", &input.dy, [tokens, d_out])?;
        expect("T", &input.t, [tokens, shape.total_rank()])?;
        if aligned {
            layer.weight.extent().expect_aligned("weight", CHUNK)?;
            input.dy.extent().expect_aligned("dy", CHUNK)?;
        }
        let step = input.dropout.map(|dropout| dropout.validate(device)).transpose()?.flatten();

        let mut written: Vec<(&'static str, Extent)> = vec![("the workspace", workspace.extent())];
        expect_planned("dx", self.options.dx, output.dx.is_some())?;
        if let Some(dx) = &output.dx {
            expect("dx", &dx.as_ref(), [tokens, d_in])?;
            written.push(("dx", dx.as_ref().extent()));
        }
        expect_planned("the bias's gradient", self.options.bias, output.bias.is_some())?;
        if let Some(bias) = &output.bias {
            let operand = "the bias's gradient";
            written.push((operand, expect_vector(device, operand, &bias.as_ref(), d_out)?));
        }
        if output.factors.len() != shape.segments.len() {
            let (expected, actual) = (shape.segments.len(), output.factors.len());
            return Err(Error::SegmentCountMismatch { expected, actual });
        }
        for (segment, FactorGradient { da, db }) in shape.segments.iter().zip(output.factors.iter()) {
            for (operand, matrix, dims) in
                [("dA", da.as_ref(), [segment.rank, d_in]), ("dB", db.as_ref(), [segment.columns.len(), segment.rank])]
            {
                expect_operand(device, operand, &matrix)?;
                matrix.expect_shape(operand, dims)?;
                written.push((operand, matrix.extent()));
            }
        }
        workspace.expect_serves(device, self.workspace())?;

        let operands = [("x", input.x.extent()), ("dy", input.dy.extent()), ("T", input.t.extent())];
        for (operand, extent) in layer.operands().chain(operands).chain(step) {
            for (output, written) in &written {
                written.refuse_overlap(output, operand, &extent)?;
            }
        }
        for (i, (other, extent)) in written.iter().enumerate() {
            for (output, written) in written.iter().skip(i + 1) {
                written.refuse_overlap(output, other, extent)?;
            }
        }
        Ok(())
    }
}

fn expect_planned(output: &'static str, planned: bool, given: bool) -> Result<()> {
    match (planned, given) {
        (false, true) => Err(Error::OutputNotPlanned { output }),
        (true, false) => Err(Error::OutputMissing { output }),
        _ => Ok(()),
    }
}

/// The parameters of the first launch, whose operands were checked.
#[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
fn input_params<T: Element>(
    plan: &ForwardPlan,
    layer: &DeviceLora<'_, T>,
    input: &BackwardInput<'_, T>,
    dx: Option<&DeviceMatrix<'_, T>>,
    accumulate: Accumulate,
    (workspace, room): (u64, WorkspaceLayout),
) -> LoraForward {
    let &BackwardInput { dy, dropout, .. } = input;
    let (table, _) = segment_table(layer.segments, 1.0);
    let (address, stride) = dx.map_or((0, 0), |dx| (dx.address(), dx.row_stride() as u32));
    let added = if accumulate == Accumulate::Add { address } else { 0 };
    LoraForward {
        x: dy.address() as *const _,
        weight: layer.weight.address() as *const _,
        residual: added as *const _,
        y: address as *mut _,
        dropout: dropout.map_or(NO_DROPOUT, |dropout| dropout.params()),
        tokens: dy.rows() as u32,
        depth: dy.cols() as u32,
        columns: layer.d_in() as u32,
        x_stride: dy.row_stride() as u32,
        weight_stride: layer.weight.row_stride() as u32,
        y_stride: stride,
        residual_stride: stride,
        ..plan.params(&table[..layer.segments.len()], workspace, &room)
    }
}

/// The parameters of the second launch, whose operands were checked.
#[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
fn gradients_params<T: Element>(
    plan: &GradientsPlan,
    layer: &DeviceLora<'_, T>,
    input: &BackwardInput<'_, T>,
    output: &mut BackwardOutput<'_, T>,
    (workspace, room): (u64, WorkspaceLayout),
) -> LoraGradients {
    let &BackwardInput { x, dy, t, dropout } = input;
    let (table, _) = segment_table(layer.segments, 1.0);
    let segments: Vec<_> = table
        .iter()
        .zip(output.factors.iter())
        .map(|(segment, FactorGradient { da, db })| LoraGradientsSegment {
            da: da.address() as *mut _,
            db: db.address() as *mut _,
            da_stride: da.row_stride() as u32,
            db_stride: db.row_stride() as u32,
            begin: segment.begin,
            end: segment.end,
            rank: segment.factors.rank,
            t_begin: 0,
            packed_begin: 0,
            scale: segment.factors.scale,
        })
        .collect();
    LoraGradients {
        x: x.address() as *const _,
        dy: dy.address() as *const _,
        t: t.address() as *const _,
        dbias: output.bias.as_ref().map_or(std::ptr::null_mut(), |bias| bias.address() as *mut _),
        dropout: dropout.map_or(NO_DROPOUT, |dropout| dropout.params()),
        tokens: x.rows() as u32,
        d_in: x.cols() as u32,
        d_out: dy.cols() as u32,
        x_stride: x.row_stride() as u32,
        dy_stride: dy.row_stride() as u32,
        t_stride: t.row_stride() as u32,
        accumulate: (output.accumulate == Accumulate::Add).into(),
        ..plan.params(&segments, workspace, &room)
    }
}
