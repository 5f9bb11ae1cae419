//! One LoRA layer for any number of tokens in one launch, from checked views.

use std::marker::PhantomData;

use crate::abi::{LoraForward, LoraForwardTma, TensorMap};
use crate::device::Device;
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::launch::tensor_map::Tensor;
use crate::device::lora::call::{Operands, Planned};
use crate::device::lora::decode;
use crate::device::lora::dropout::DeviceDropout;
use crate::device::lora::layer::{DeviceLora, activation_code, segment_table};
use crate::device::lora::slot::SlotSegments;
use crate::device::memory::matrix::{CHUNK, DeviceMatrix, DeviceMatrixMut};
use crate::device::memory::workspace::Workspace;
use crate::dropout::NO_DROPOUT;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::Epilogue;
use crate::plan::lora::{ForwardPlan, Plan};
use crate::{ComputePath, WorkspaceLayout};

/// The outputs of a layer: y, with the activation and the residual on the way there, and optionally T. A matrix converts
/// to a plain y without either.
///
/// ```
/// use fused_lora::device::{DeviceMatrixMut, DeviceOutput};
/// use fused_lora::lora::{Activation, Epilogue, Residual};
///
/// fn onto<'a>(y: DeviceMatrixMut<'a, f32>) -> DeviceOutput<'a, f32> {
///     let epilogue = Epilogue { activation: Activation::GeluNew, residual: Residual::InPlace };
///     DeviceOutput { epilogue, ..y.into() }
/// }
/// ```
#[derive(Debug)]
pub struct DeviceOutput<'a, T> {
    /// y, `[tokens, d_out]`.
    pub y: DeviceMatrixMut<'a, T>,
    /// The activation of y, and the residual added to it.
    pub epilogue: Epilogue<DeviceMatrix<'a, T>>,
    /// T = x̂ Aᵀ without scales, `[tokens, sum of ranks]`, the segments side by side, as the backward pass reads it.
    /// Only for launches planned for [training](ForwardOptions::training).
    pub t: Option<DeviceMatrixMut<'a, T>>,
}

impl<'a, T> From<DeviceMatrixMut<'a, T>> for DeviceOutput<'a, T> {
    fn from(y: DeviceMatrixMut<'a, T>) -> Self {
        Self { y, epilogue: Epilogue::default(), t: None }
    }
}

/// The inputs of a layer: x, and optionally dropout of the adapters' input, or a slot with other adapters.
#[derive(Debug, Clone, Copy)]
pub struct DeviceInput<'a, T> {
    /// x, `[tokens, d_in]`.
    pub x: DeviceMatrix<'a, T>,
    /// The dropout of the adapters' input. Only for launches planned for [training](ForwardOptions::training).
    pub dropout: Option<DeviceDropout<'a>>,
    /// The slot from which the launch reads the factors of the layer's segments, in place of their own.
    pub slot: Option<SlotSegments<'a, T>>,
}

impl<'a, T> From<DeviceMatrix<'a, T>> for DeviceInput<'a, T> {
    fn from(x: DeviceMatrix<'a, T>) -> Self {
        Self { x, dropout: None, slot: None }
    }
}

/// Options of a launch's plan, besides the layer's shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ForwardOptions {
    /// Whether CUDA cores or matrix instructions multiply.
    pub path: ComputePath,
    /// Whether x may have any alignment, which takes a slower kernel. Otherwise, if the rows of W0 and of every A start
    /// and end at multiples of 16 bytes, the rows of x must do so as well.
    pub unaligned_x: bool,
    /// Whether launches may write T and apply dropout. Such launches use a forward kernel for any number of tokens.
    pub training: bool,
}

/// A layer's forward launch: planned once, its kernel loaded once, then launched any number of times.
///
/// `y = act(x W0ᵀ + bias + s·(x Aᵀ) Bᵀ) + residual` for x `[tokens, d_in]` and y `[tokens, d_out]`. The plan depends on
/// the number of tokens and on the layer's shapes, layout, type and alignment, but not on addresses or values: other
/// weights or adapters of the same ranks run on the same plan.
///
/// ```
/// use fused_lora::device::{Device, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Stream};
/// use fused_lora::device::{DeviceLora, DeviceSegment, Forward, Workspace};
/// use fused_lora::lora::Layout;
/// use half::bf16;
///
/// fn adapted(device: &Device, tokens: usize, [x, w0, a, b]: [&[bf16]; 4]) -> fused_lora::Result<Vec<bf16>> {
///     let d_in = x.len() / tokens;
///     let (d_out, rank) = (w0.len() / d_in, a.len() / d_in);
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
///     };
///     let forward = Forward::new(device, &layer, tokens)?;
///     println!("{}", forward.plan());
///     let mut workspace = Workspace::new(&stream, forward.workspace())?; // keep both from call to call
///     let mut y = DeviceBuffer::zeros(&stream, tokens * d_out)?;
///     let x = DeviceMatrix::new(x.as_slice(), tokens, d_in)?;
///     let out = DeviceMatrixMut::new(y.as_mut_slice(), tokens, d_out)?;
///     forward.launch(&stream, &layer, x, out, &mut workspace)?;
///     y.to_vec(&stream)
/// }
/// ```
///
/// [`DeviceOutput`] in place of `out` adds an activation and a residual. For training, [`ForwardOptions::training`]
/// plans a launch that takes `DeviceOutput { t: Some(t), ..out.into() }`, and [`DeviceInput`] with dropout in place of
/// `x`. For serving, [`DeviceInput`] takes the segments of a [`FactorSlot`](crate::device::FactorSlot), so that a
/// captured launch can run with different adapters.
#[derive(Debug, Clone)]
pub struct Forward<T> {
    kernel: PlannedKernel,
    plan: Plan,
    planned: Planned,
    training: bool,
    dtype: PhantomData<T>,
}

impl<T: Element> Forward<T> {
    /// Plans launches for layers of this shape and `tokens` rows of x. If the rows of W0 and of every A start and end
    /// at multiples of 16 bytes, the rows of x must do so as well, unless [`ForwardOptions::unaligned_x`] is set.
    ///
    /// # Errors
    /// As [`DeviceLora::validate`], [`Plan::new`] and [`Device::kernel`].
    pub fn new(device: &Device, layer: &DeviceLora<'_, T>, tokens: usize) -> Result<Self> {
        Self::with_options(device, layer, tokens, ForwardOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(
        device: &Device,
        layer: &DeviceLora<'_, T>,
        tokens: usize,
        options: ForwardOptions,
    ) -> Result<Self> {
        let ForwardOptions { path, unaligned_x, training } = options;
        let planned = Planned::new(device, layer, tokens, !unaligned_x)?;
        let plan = Plan::new(&planned.problem::<T>(path), training)?;
        let kernel = PlannedKernel::find(device, plan.launch())?;
        Ok(Self { kernel, plan, planned, training, dtype: PhantomData })
    }

    /// Lets launches begin before the preceding launch in the stream has ended
    /// ([`LaunchConfig::dependent_launch`](crate::device::LaunchConfig::dependent_launch)): the work before the
    /// kernel's wait overlaps with the end of the preceding launch. The kernel loads W0 before its wait, and weights
    /// through a cache that the wait does not clear. So between work that writes W0, A, B or a bias (a merge, an
    /// optimizer's step, a copy) and this launch, the stream must have a launch that is not dependent, such as the
    /// first one of a model's pass, or the host must have waited for that work.
    #[must_use]
    pub fn with_dependent_launch(self) -> Self {
        Self { kernel: self.kernel.with_dependent_launch(), ..self }
    }

    /// The plan of the launch.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The kernel that is launched.
    pub fn kernel(&self) -> &Kernel {
        self.kernel.as_kernel()
    }

    /// The layout that a [`Workspace`] must have room for.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace()
    }

    /// Issues one launch to a stream. The call allocates no device memory and does not wait, so it can be captured in a
    /// [`Graph`](crate::device::Graph).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::TrainingNotPlanned`]; [`Error::WrongDevice`]; as [`DeviceLora::validate`];
    /// [`Error::PlanMismatch`] if the layer differs from the planned one; [`Error::ShapeMismatch`],
    /// [`Error::Misaligned`] or [`Error::TooLarge`] for x, y, T or the residual; [`Error::LengthMismatch`] for
    /// dropout's step or the number of a slot's segments, [`Error::SlotMismatch`] for one of these segments;
    /// [`Error::Overlap`] if y, T or the workspace shares memory with anything else;
    /// [`Error::DeviceWorkspaceTooSmall`]. Afterwards as [`Kernel::launch`].
    pub fn launch<'i, 'o>(
        &self,
        stream: &Stream,
        layer: &DeviceLora<'_, T>,
        input: impl Into<DeviceInput<'i, T>>,
        output: impl Into<DeviceOutput<'o, T>>,
        workspace: &mut Workspace,
    ) -> Result<()>
    where
        T: 'i + 'o,
    {
        let DeviceOutput { y, epilogue, t } = output.into();
        let DeviceInput { x, dropout, slot } = input.into();
        for (what, asked) in [("leaving T", t.is_some()), ("dropout", dropout.is_some())] {
            if asked && !self.training {
                return Err(Error::TrainingNotPlanned { what });
            }
        }
        let t = t.as_ref().map(DeviceMatrixMut::as_ref);
        let operands = Operands { layer, x, dropout, slot, y: y.as_ref(), epilogue, t, workspace };
        self.planned.check(stream, &operands, self.plan.workspace())?;
        match &self.plan {
            Plan::Decode(plan) => {
                let params = decode::params(plan, &operands);
                // SAFETY: the parameters are the decode kernels'. Shapes, bounds, devices and alignments were checked
                // above, and no output overlaps any other operand except a residual that is y itself, which the kernels
                // allow. The views borrow the memory during the call; afterwards it is freed only once this work is
                // done. A slot holds a table that fits, and keeps its adapter alive as long as a launch may read it.
                // Work that uses the workspace is in order.
                operands.workspace.issue(stream, || unsafe { self.kernel.launch(stream, &params) })
            }
            Plan::Forward(plan) if plan.tensor_maps => {
                let device = self.kernel.device();
                let params = with_maps(device, plan, layer, &x, Some(&operands.y), params(plan, &operands))?;
                // SAFETY: the parameters are those of the forward kernels with tensor maps; otherwise as above.
                operands.workspace.issue(stream, || unsafe { self.kernel.launch(stream, &params) })
            }
            Plan::Forward(plan) => {
                let params = params(plan, &operands);
                // SAFETY: the parameters are those of the other forward kernels; otherwise as above.
                operands.workspace.issue(stream, || unsafe { self.kernel.launch(stream, &params) })
            }
        }
    }
}

/// The parameters of a launch whose operands were checked, with tensor maps of x, of W0 and, if its rows are aligned,
/// of y.
pub(crate) fn with_maps<T: Element>(
    device: &Device,
    plan: &ForwardPlan,
    layer: &DeviceLora<'_, T>,
    x: &DeviceMatrix<'_, T>,
    y: Option<&DeviceMatrix<'_, T>>,
    forward: LoraForward,
) -> Result<LoraForwardTma> {
    let [x_box, weight_box, y_box] = plan.boxes(layer.layout);
    let mapped_y = y.filter(|y| y.extent().misalignment(CHUNK).is_none());
    let no_map = TensorMap { opaque: [0; 16] };
    Ok(LoraForwardTma {
        x: tensor_map(device, x, &x_box)?,
        weight: tensor_map(device, &layer.weight, &weight_box)?,
        y: mapped_y.map(|y| tensor_map(device, y, &y_box)).transpose()?.unwrap_or(no_map),
        forward,
        y_mapped: mapped_y.is_some().into(),
        reserved: [0; 7],
    })
}

#[expect(clippy::cast_possible_truncation, reason = "elements are of 2 or 4 bytes")]
fn tensor_map<T: Element>(device: &Device, matrix: &DeviceMatrix<'_, T>, boxes: &[u32]) -> Result<TensorMap> {
    let bytes = |elements: usize| (elements * size_of::<T>()) as u64;
    // A single row may have any stride, but a tensor map needs a multiple of 16 bytes.
    let row_stride =
        if matrix.rows() > 1 { bytes(matrix.row_stride()) } else { bytes(matrix.cols()).next_multiple_of(16) };
    device.tensor_map(&Tensor {
        address: matrix.address(),
        element_bytes: T::DTYPE.size() as u32,
        dims: &[matrix.cols() as u64, matrix.rows() as u64],
        strides: &[row_stride],
        boxes,
        swizzle_128: true,
    })
}

/// The parameters of a launch whose operands were checked.
#[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
fn params<T: Element>(plan: &ForwardPlan, operands: &Operands<'_, T>) -> LoraForward {
    let &Operands { layer, x, dropout, slot, y, epilogue, t, workspace } = operands;
    let added = operands.added();
    let (slot, slot_begin) = slot.map_or((0, 0), |slot| slot.params());
    let (table, _) = segment_table(layer.segments, 1.0);
    LoraForward {
        x: x.address() as *const _,
        weight: layer.weight.address() as *const _,
        bias: layer.bias.map_or(std::ptr::null(), |bias| bias.address() as *const _),
        residual: added.map_or(std::ptr::null(), |added| added.address() as *const _),
        y: y.address() as *mut _,
        t_out: t.map_or(std::ptr::null_mut(), |t| t.address() as *mut _),
        dropout: dropout.map_or(NO_DROPOUT, |dropout| dropout.params()),
        slot: slot as *const _,
        slot_begin,
        tokens: x.rows() as u32,
        depth: x.cols() as u32,
        columns: y.cols() as u32,
        x_stride: x.row_stride() as u32,
        weight_stride: layer.weight.row_stride() as u32,
        y_stride: y.row_stride() as u32,
        residual_stride: added.map_or(0, |added| added.row_stride() as u32),
        t_out_stride: t.map_or(0, |t| t.row_stride() as u32),
        activation: activation_code(epilogue.activation),
        ..plan.params(&table[..layer.segments.len()], workspace.address(), &workspace.layout())
    }
}
