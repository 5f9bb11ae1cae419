//! AdamW on a device: all parameters in one launch, from checked views.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::Device;
use crate::device::launch::order::Order;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::expect_vector;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::Extent;
use crate::device::memory::slice::{DeviceSlice, DeviceSliceMut};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::optim::{AdamW, Factor, Step, expect_lengths};
use crate::plan::optim::{ParameterAddresses, STATE_WORDS, UpdatePlan, initial_state, read_state};

/// The operands of one trained tensor, in device memory. All views have the same length and may start at any element.
#[derive(Debug)]
pub struct DeviceParameter<'a, W> {
    /// Whether the tensor is A or B, which decides the learning rate.
    pub factor: Factor,
    /// The gradient.
    pub gradient: DeviceSlice<'a, f32>,
    /// The master copy of the parameter, in `f32` for every type `W` of the layer.
    pub value: DeviceSliceMut<'a, f32>,
    /// The first moment m; zeros before the first step.
    pub first_moment: DeviceSliceMut<'a, f32>,
    /// The second moment v; zeros before the first step.
    pub second_moment: DeviceSliceMut<'a, f32>,
    /// The copy that the layer reads; receives the new value, rounded.
    pub stored: Option<DeviceSliceMut<'a, W>>,
}

/// AdamW for every factor of every adapter: planned once for tensors at fixed addresses, then each step is one launch.
///
/// The mathematics is that of [`optim::AdamW`](crate::optim::AdamW); results differ from those of
/// [`cpu::adamw`](crate::cpu::adamw) by a few roundings. The device counts the steps taken, and a skipped step changes
/// nothing but the report, so a captured step can be replayed without waiting for the host. Steps
/// on different streams, also as parts of graphs, are put in order, so they never run at the same time. The parameters
/// are the caller's to order. Results are the same bits from run to run.
///
/// A table on the device holds the parameters' addresses, but the optimizer does not own their memory: every step takes
/// the views again, and fails if an address has changed.
///
/// ```
/// use fused_lora::device::{Device, DeviceBuffer, DeviceParameter, Graph, Optimizer, Stream};
/// use fused_lora::optim::{AdamW, Factor};
/// use half::bf16;
///
/// fn trained(device: &Device, factor: &[f32], gradient: &[f32]) -> fused_lora::Result<Vec<bf16>> {
///     let stream = Stream::new(device)?;
///     let gradient = DeviceBuffer::from_slice(&stream, gradient)?;
///     let mut value = DeviceBuffer::from_slice(&stream, factor)?;
///     let mut first = DeviceBuffer::<f32>::zeros(&stream, factor.len())?;
///     let mut second = DeviceBuffer::<f32>::zeros(&stream, factor.len())?;
///     let mut stored = DeviceBuffer::<bf16>::zeros(&stream, factor.len())?;
///     let mut parameters = [DeviceParameter {
///         factor: Factor::A,
///         gradient: gradient.as_slice(),
///         value: value.as_mut_slice(),
///         first_moment: first.as_mut_slice(),
///         second_moment: second.as_mut_slice(),
///         stored: Some(stored.as_mut_slice()),
///     }];
///     let config = AdamW { max_norm: Some(1.0), ..AdamW::default() };
///     let mut optimizer = Optimizer::new(&stream, config, &parameters)?;
///     let step = Graph::capture(&stream, |stream| optimizer.step(stream, &mut parameters))?;
///     for _ in 0..10 {
///         step.replay(&stream)?;
///     }
///     println!("{:?}", optimizer.last_step(&stream)?);
///     stored.to_vec(&stream)
/// }
/// ```
#[derive(Debug)]
pub struct Optimizer<W> {
    /// The hyperparameters, which may change between steps. A captured step keeps those of its capture.
    pub config: AdamW,
    plan: UpdatePlan,
    kernel: PlannedKernel,
    planned: Vec<PlannedParameter>,
    table: DeviceBuffer<u64>,
    state: DeviceBuffer<u64>,
    partial: DeviceBuffer<f64>,
    order: Arc<Order>,
    stored: PhantomData<W>,
}

/// The addresses and the length of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PlannedParameter {
    at: ParameterAddresses,
    len: usize,
    /// Bytes of an element of the stored copy.
    stored_bytes: usize,
}

impl PlannedParameter {
    /// Checks one parameter and takes its addresses.
    fn new<W: Element>(device: &Device, parameter: &DeviceParameter<'_, W>) -> Result<Self> {
        let DeviceParameter { factor, gradient, value, first_moment, second_moment, stored } = parameter;
        let len = value.len();
        let lengths = [
            ("the gradient", gradient.len()),
            ("the first moment", first_moment.len()),
            ("the second moment", second_moment.len()),
            ("the stored parameter", stored.as_ref().map_or(len, DeviceSliceMut::len)),
        ];
        expect_lengths(len, lengths)?;
        if i32::try_from(len).is_err() {
            return Err(Error::TooLarge { operand: "a parameter", value: len });
        }
        let devices = [
            ("the gradient", gradient.device()),
            ("the value", value.device()),
            ("the first moment", first_moment.device()),
            ("the second moment", second_moment.device()),
            ("the stored parameter", stored.as_ref().map_or(device, DeviceSliceMut::device)),
        ];
        devices.into_iter().try_for_each(|(operand, of)| device.expect_same(operand, of))?;
        let planned = Self {
            at: ParameterAddresses {
                factor: *factor,
                gradient: gradient.address(),
                value: value.address(),
                first_moment: first_moment.address(),
                second_moment: second_moment.address(),
                stored: stored.as_ref().map_or(0, DeviceSliceMut::address),
            },
            len,
            stored_bytes: size_of::<W>(),
        };
        planned.extents().try_for_each(|(operand, extent, _)| extent.expect_aligned(operand, extent.element))?;
        Ok(planned)
    }

    /// The extents of the parameter's non-empty tensors, each with its name and whether a step writes it.
    fn extents(&self) -> impl Iterator<Item = (&'static str, Extent, bool)> {
        let extent = |address, element| {
            let row = self.len * element;
            Extent { address, rows: 1, row, stride: row, element }
        };
        let at = &self.at;
        [
            ("the gradient", extent(at.gradient, 4), false),
            ("the value", extent(at.value, 4), true),
            ("the first moment", extent(at.first_moment, 4), true),
            ("the second moment", extent(at.second_moment, 4), true),
            ("the stored parameter", extent(at.stored, self.stored_bytes), true),
        ]
        .into_iter()
        .filter(|(_, extent, _)| extent.row > 0 && extent.address != 0)
    }
}

impl std::fmt::Display for PlannedParameter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ParameterAddresses { factor, gradient, value, first_moment, second_moment, stored } = self.at;
        write!(f, "{factor:?} of {} elements at ", self.len)?;
        write!(f, "{gradient:#x}, {value:#x}, {first_moment:#x}, {second_moment:#x}, {stored:#x}")
    }
}

/// Refuses tensors that a step writes and that share memory with another tensor, of the same parameter or another.
fn refuse_overlaps(parameters: &[PlannedParameter]) -> Result<()> {
    let mut all: Vec<_> = parameters.iter().flat_map(PlannedParameter::extents).collect();
    all.sort_by_key(|(_, extent, _)| extent.address);
    // The extents that reach furthest so far: of those that are read, and of those that are written.
    let mut furthest: [Option<(&'static str, Extent)>; 2] = [None; 2];
    for (operand, extent, is_written) in all {
        for (before_is_written, before) in [false, true].into_iter().zip(&furthest) {
            let Some((other, before)) = before.filter(|_| is_written || before_is_written) else { continue };
            let (output, other) = if is_written { (operand, other) } else { (other, operand) };
            extent.refuse_overlap(output, other, &before)?;
        }
        let reaches = |(_, e): (_, Extent)| e.address + e.row as u64;
        let kind = &mut furthest[usize::from(is_written)];
        if kind.is_none_or(|before| reaches(before) < reaches((operand, extent))) {
            *kind = Some((operand, extent));
        }
    }
    Ok(())
}

impl<W: Element> Optimizer<W> {
    /// An optimizer for these parameters, with no steps taken. Copies the table to the device and waits for the copy.
    ///
    /// # Errors
    /// [`Error::HyperparameterOutOfRange`]; for a parameter [`Error::LengthMismatch`], [`Error::TooLarge`],
    /// [`Error::WrongDevice`], [`Error::Misaligned`] if a view's address is not a multiple of its elements' size;
    /// [`Error::Overlap`] if a view that a step writes shares memory with another view; [`Error::NothingToTrain`];
    /// otherwise as [`Device::kernel`] and [`DeviceBuffer::from_slice`].
    pub fn new(stream: &Stream, config: AdamW, parameters: &[DeviceParameter<'_, W>]) -> Result<Self> {
        config.validate()?;
        let device = stream.device();
        let planned = parameters.iter().map(|p| PlannedParameter::new(device, p)).collect::<Result<Vec<_>>>()?;
        refuse_overlaps(&planned)?;
        let lengths: Vec<usize> = planned.iter().map(|parameter| parameter.len).collect();
        let plan = UpdatePlan::new(&lengths, W::DTYPE, device.properties().multiprocessors as usize);
        if plan.chunks == 0 {
            return Err(Error::NothingToTrain);
        }
        if plan.chunks >= 1 << 30 {
            return Err(Error::TooLarge { operand: "the optimizer's table", value: plan.chunks });
        }
        let kernel = PlannedKernel::find(device, &plan.launch)?;
        let lines: Vec<_> =
            planned.iter().flat_map(|parameter| plan.lines(&parameter.at, parameter.len, W::DTYPE)).collect();
        let table = DeviceBuffer::from_slice(stream, lines.as_flattened())?;
        let state = DeviceBuffer::from_slice(stream, &initial_state(0))?;
        let order = Arc::<Order>::default();
        let partial = order.issue(stream, || DeviceBuffer::zeros(stream, plan.chunks))?;
        Ok(Self { config, plan, kernel, planned, table, state, partial, order, stored: PhantomData })
    }

    /// The plan of a step.
    pub fn plan(&self) -> &UpdatePlan {
        &self.plan
    }

    /// Issues one step on all parameters that the optimizer was made for. The call allocates nothing and does not wait,
    /// so it can be captured in a graph.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::HyperparameterOutOfRange`], [`Error::WrongDevice`],
    /// [`Error::LengthMismatch`], [`Error::Misaligned`], [`Error::PlanMismatch`] if a parameter has another address,
    /// length or factor than planned. Afterwards as [`Kernel::launch`](crate::device::Kernel::launch).
    pub fn step(&mut self, stream: &Stream, parameters: &mut [DeviceParameter<'_, W>]) -> Result<()> {
        self.issue(stream, parameters, None)
    }

    /// [`step`](Self::step) with both learning rates multiplied by a number that the launch reads from device memory,
    /// so that replays of a captured graph can follow a schedule. The step is skipped if a rate becomes negative or not
    /// a finite `f32`.
    ///
    /// # Errors
    /// As [`step`](Self::step), also for `lr_scale`; [`Error::Overlap`] if a step would write it.
    pub fn step_scaled(
        &mut self,
        stream: &Stream,
        parameters: &mut [DeviceParameter<'_, W>],
        lr_scale: DeviceSlice<'_, f32>,
    ) -> Result<()> {
        self.issue(stream, parameters, Some(lr_scale))
    }

    fn issue(
        &mut self,
        stream: &Stream,
        parameters: &mut [DeviceParameter<'_, W>],
        lr_scale: Option<DeviceSlice<'_, f32>>,
    ) -> Result<()> {
        self.config.validate()?;
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        if parameters.len() != self.planned.len() {
            let [planned, actual] = [self.planned.len(), parameters.len()].map(|count| format!("{count} parameters"));
            return Err(Error::PlanMismatch { planned, actual });
        }
        for (planned, parameter) in self.planned.iter().zip(&*parameters) {
            let actual = PlannedParameter::new(device, parameter)?;
            if actual != *planned {
                return Err(Error::PlanMismatch { planned: planned.to_string(), actual: actual.to_string() });
            }
        }
        if let Some(scale) = &lr_scale {
            let extent = expect_vector(device, "the learning rates' scale", scale, 1)?;
            for (operand, written, _) in
                self.planned.iter().flat_map(PlannedParameter::extents).filter(|(.., is_written)| *is_written)
            {
                written.refuse_overlap(operand, "the learning rates' scale", &extent)?;
            }
        }
        let mut params = self.plan.params(&self.config);
        params.chunks = self.table.address() as *const _;
        params.state = self.state.address() as *mut _;
        params.partial = self.partial.address() as *mut _;
        params.lr_scale = lr_scale.map_or(std::ptr::null(), |scale| scale.address() as *const _);
        // SAFETY: `params` is this kernel's struct. The table's addresses are those of the given views, which were
        // checked above and, for overlaps, when the table was made; table, state and partial sums are the optimizer's
        // own. The views borrow their memory during the call; afterwards the memory is freed only once this work is
        // done and no graph uses it. Steps are in order.
        self.order.issue(stream, || unsafe { self.kernel.launch(stream, &params) })
    }

    /// Waits for the stream's work and the last step, and returns the outcome of that step; `None` before the first.
    ///
    /// # Errors
    /// As [`DeviceSlice::download`].
    pub fn last_step(&self, stream: &Stream) -> Result<Option<Step>> {
        Ok(self.read(stream)?.1)
    }

    /// Waits for the stream's work and the last step, and returns the number of steps taken, not counting skipped ones.
    ///
    /// # Errors
    /// As [`DeviceSlice::download`].
    pub fn steps(&self, stream: &Stream) -> Result<u64> {
        Ok(self.read(stream)?.0)
    }

    fn read(&self, stream: &Stream) -> Result<(u64, Option<Step>)> {
        self.table.device().expect_same("stream", stream.device())?;
        stream.refuse_in_capture("copying to the host")?;
        let mut words = [0; STATE_WORDS];
        self.order.issue(stream, || self.state.as_slice().download(stream, &mut words))?;
        Ok(read_state(&words))
    }

    /// Sets the number of steps taken, to continue from a checkpoint with its moments. Also resets the optimizer's
    /// state on the device after a [fault](crate::LaunchError::Fault).
    ///
    /// # Errors
    /// As [`DeviceSliceMut::upload`].
    pub fn set_steps(&mut self, stream: &Stream, steps: u64) -> Result<()> {
        self.table.device().expect_same("stream", stream.device())?;
        stream.refuse_in_capture("copying from the host")?;
        self.order.issue(stream, || self.state.upload(stream, &initial_state(steps)))
    }
}
