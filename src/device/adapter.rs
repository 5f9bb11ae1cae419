//! A bottleneck adapter on a device, in one launch.

use std::marker::PhantomData;

use crate::abi::{LoraAdapter, LoraFactors, LoraForward, LoraSegment};
use crate::device::Device;
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{activation_code, expect_operand, expect_vector};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut, Extent};
use crate::device::memory::slice::DeviceSlice;
use crate::device::memory::workspace::Workspace;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Activation, MAX_RANK, Residual};
use crate::plan::adapter::AdapterProblem;
use crate::plan::lora::ForwardPlan;
use crate::{ComputePath, WorkspaceLayout};

/// A bottleneck adapter: `up·act(down·x + down_bias) + up_bias`.
#[derive(Debug)]
pub struct DeviceAdapter<'a, T> {
    /// The down projection, `[width, d]`.
    pub down: DeviceMatrix<'a, T>,
    /// The bias of the down projection, `[width]`.
    pub down_bias: Option<DeviceSlice<'a, T>>,
    /// The up projection, `[d, width]`.
    pub up: DeviceMatrix<'a, T>,
    /// The bias of the up projection, `[d]`.
    pub up_bias: Option<DeviceSlice<'a, T>>,
    /// The activation of the hidden features.
    pub activation: Activation,
}

// `derive` would require `T: Clone`, which views do not need.
impl<T> Clone for DeviceAdapter<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceAdapter<'_, T> {}

impl<T: Element> DeviceAdapter<'_, T> {
    /// Features of x and of y.
    pub fn d(&self) -> usize {
        self.down.cols()
    }

    /// Hidden features.
    pub fn width(&self) -> usize {
        self.down.rows()
    }

    /// Checks that all operands fit together and are on this device.
    ///
    /// # Errors
    /// [`Error::RankOutOfRange`] for the width; otherwise the error names the first operand that does not fit:
    /// [`Error::WrongDevice`], [`Error::Misaligned`] if an address is not a multiple of the element's size,
    /// [`Error::TooLarge`], [`Error::ShapeMismatch`], [`Error::LengthMismatch`].
    pub fn validate(&self, device: &Device) -> Result<()> {
        let (d, width) = (self.d(), self.width());
        if width == 0 || width > MAX_RANK {
            return Err(Error::RankOutOfRange { rank: width, max: MAX_RANK });
        }
        expect_operand(device, "down", &self.down)?;
        expect_operand(device, "up", &self.up)?;
        self.up.expect_shape("up", [d, width])?;
        for (operand, bias, expected) in [("down bias", &self.down_bias, width), ("up bias", &self.up_bias, d)] {
            let Some(bias) = bias else { continue };
            expect_vector(device, operand, bias, expected)?;
        }
        Ok(())
    }

    /// The memory of the adapter that a launch reads, with the operands' names.
    fn operands(&self) -> impl Iterator<Item = (&'static str, Extent)> {
        let biases = [("down bias", self.down_bias), ("up bias", self.up_bias)];
        let biases = biases.into_iter().filter_map(|(name, bias)| Some((name, Extent::of_slice(&bias?))));
        [("down", self.down.extent()), ("up", self.up.extent())].into_iter().chain(biases)
    }
}

/// The launch of adapters of one shape: planned once, its kernels loaded once, then issued any number of times.
///
/// `y = up·act(down·x + down_bias) + up_bias [+ x] [+ residual]` for x and y `[tokens, d]`, any d, a width of 1 to 512.
/// Hidden features are rounded to the type of the operands. Rows of x and of the down projection that start and end at
/// multiples of 16 bytes are read faster; each launch checks whether they do, and the result is the same to the bit.
#[derive(Debug, Clone)]
pub struct Adapter<T> {
    /// The kernel for aligned rows, and the kernel for any rows.
    kernels: [PlannedKernel; 2],
    plan: ForwardPlan,
    tokens: usize,
    d: usize,
    width: usize,
    dtype: PhantomData<T>,
}

impl<T: Element> Adapter<T> {
    /// Plans launches for adapters of this shape and `tokens` rows of x.
    ///
    /// # Errors
    /// As [`DeviceAdapter::validate`], [`ForwardPlan::adapter`] and [`Device::kernel`].
    pub fn new(device: &Device, adapter: &DeviceAdapter<'_, T>, tokens: usize) -> Result<Self> {
        adapter.validate(device)?;
        let (d, width) = (adapter.d(), adapter.width());
        let properties = device.properties();
        let plan = |aligned| {
            ForwardPlan::adapter(&AdapterProblem {
                tokens,
                d,
                width,
                dtype: T::DTYPE,
                aligned,
                multiprocessors: properties.multiprocessors as usize,
                compute_capability: properties.compute_capability,
                path: ComputePath::Auto,
            })
        };
        let (aligned, any) = (plan(true)?, plan(false)?);
        let find = |plan: &ForwardPlan| PlannedKernel::find(device, &plan.launch);
        let kernels = [find(&aligned)?, find(&any)?];
        let plan = if adapter.down.is_aligned() { aligned } else { any };
        Ok(Self { kernels, plan, tokens, d, width, dtype: PhantomData })
    }

    /// As [`Forward::with_dependent_launch`](crate::device::Forward::with_dependent_launch).
    #[must_use]
    pub fn with_dependent_launch(self) -> Self {
        Self { kernels: self.kernels.map(PlannedKernel::with_dependent_launch), ..self }
    }

    /// The plan of a launch whose rows of x are aligned like those of the planned down projection.
    pub fn plan(&self) -> &ForwardPlan {
        &self.plan
    }

    /// The kernel of the [plan](Self::plan).
    pub fn kernel(&self) -> &Kernel {
        let [aligned, any] = self.kernels.each_ref().map(PlannedKernel::as_kernel);
        if aligned.name() == self.plan.launch.kernel { aligned } else { any }
    }

    /// The layout that a [`Workspace`] must have room for. Layers may use the same workspace.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace
    }

    /// Issues one launch to a stream. The call allocates no device memory and does not wait, so it can be captured in a
    /// [`Graph`](crate::device::Graph).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`]; as [`DeviceAdapter::validate`]; [`Error::PlanMismatch`] if
    /// the adapter differs from the planned one; [`Error::ShapeMismatch`], [`Error::Misaligned`] or [`Error::TooLarge`]
    /// for x, y or the residual; [`Error::Overlap`] if y or the workspace shares memory with anything else, except a
    /// residual that is y itself; [`Error::DeviceWorkspaceTooSmall`]. Afterwards as [`Kernel::launch`].
    #[expect(clippy::too_many_arguments, reason = "one for each operand")]
    pub fn launch(
        &self,
        stream: &Stream,
        adapter: &DeviceAdapter<'_, T>,
        x: DeviceMatrix<'_, T>,
        adds_input: bool,
        residual: Residual<DeviceMatrix<'_, T>>,
        y: DeviceMatrixMut<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let y = y.as_ref();
        self.check(stream, adapter, &x, &residual, &y, workspace)?;
        let is_aligned = x.is_aligned() && adapter.down.is_aligned();
        let kernel = &self.kernels[usize::from(!is_aligned)];
        let added = match residual {
            Residual::None => None,
            Residual::InPlace => Some(y),
            Residual::From(matrix) => Some(matrix),
        };
        let params = self.params(adapter, &x, adds_input, added.as_ref(), &y, workspace);
        // SAFETY: the parameters are these kernels', and the plan of the kernel for any alignment differs from the
        // other only in the kernel's name. Shapes, bounds, devices and alignments were checked above, and no output
        // overlaps any other operand except a residual that is y itself, which the kernels allow. The views borrow the
        // memory during the call; afterwards it is freed only once this work is done. Work that uses the workspace is
        // in order.
        workspace.issue(stream, || unsafe { kernel.launch(stream, &params) })
    }

    /// Checks everything that the kernels rely on.
    fn check(
        &self,
        stream: &Stream,
        adapter: &DeviceAdapter<'_, T>,
        x: &DeviceMatrix<'_, T>,
        residual: &Residual<DeviceMatrix<'_, T>>,
        y: &DeviceMatrix<'_, T>,
        workspace: &Workspace,
    ) -> Result<()> {
        let device = self.kernels[0].device();
        device.expect_same("stream", stream.device())?;
        adapter.validate(device)?;
        let actual = (adapter.d(), adapter.width());
        if actual != (self.d, self.width) {
            let name = |(d, width): (usize, usize)| format!("an adapter of {width} hidden features for {d}");
            return Err(Error::PlanMismatch { planned: name((self.d, self.width)), actual: name(actual) });
        }
        let apart = match residual {
            Residual::From(matrix) => Some(("residual", *matrix)),
            Residual::None | Residual::InPlace => None,
        };
        for (operand, matrix) in [("x", *x), ("y", *y)].into_iter().chain(apart) {
            expect_operand(device, operand, &matrix)?;
            matrix.expect_shape(operand, [self.tokens, self.d])?;
        }
        workspace.expect_serves(device, self.workspace())?;
        let read = [("x", x.extent())].into_iter().chain(apart.map(|(name, matrix)| (name, matrix.extent())));
        for (operand, extent) in adapter.operands().chain(read) {
            y.extent().refuse_overlap("y", operand, &extent)?;
            workspace.extent().refuse_overlap("the workspace", operand, &extent)?;
        }
        y.extent().refuse_overlap("y", "the workspace", &workspace.extent())
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
    fn params(
        &self,
        adapter: &DeviceAdapter<'_, T>,
        x: &DeviceMatrix<'_, T>,
        adds_input: bool,
        added: Option<&DeviceMatrix<'_, T>>,
        y: &DeviceMatrix<'_, T>,
        workspace: &Workspace,
    ) -> LoraAdapter {
        let segment = LoraSegment {
            factors: LoraFactors {
                a: adapter.down.address() as *const _,
                b: adapter.up.address() as *const _,
                a_stride: adapter.down.row_stride() as u32,
                b_stride: adapter.up.row_stride() as u32,
                rank: self.width as u32,
                scale: 1.0,
            },
            begin: 0,
            end: self.d as u32,
            t_begin: 0,
            packed_begin: 0,
        };
        let address = |bias: &Option<DeviceSlice<'_, T>>| bias.map_or(0, |bias| bias.address());
        let forward = LoraForward {
            x: x.address() as *const _,
            bias: address(&adapter.up_bias) as *const _,
            residual: added.map_or(0, DeviceMatrix::address) as *const _,
            y: y.address() as *mut _,
            tokens: self.tokens as u32,
            depth: self.d as u32,
            columns: self.d as u32,
            x_stride: x.row_stride() as u32,
            y_stride: y.row_stride() as u32,
            residual_stride: added.map_or(0, |added| added.row_stride() as u32),
            ..self.plan.params(&[segment], workspace.address(), &workspace.layout())
        };
        LoraAdapter {
            forward,
            hidden_bias: address(&adapter.down_bias) as *const _,
            hidden_activation: activation_code(adapter.activation),
            adds_input: adds_input.into(),
        }
    }
}
