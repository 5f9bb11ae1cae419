//! Causal attention in one launch, from checked views.

use std::marker::PhantomData;

use crate::abi::LoraAttention;
use crate::device::Device;
#[cfg(doc)]
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::{PlannedKernel, planned_kernel_methods};
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{expect_operand, expect_vector};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut};
use crate::device::memory::slice::DeviceSlice;
use crate::device::memory::workspace::Workspace;
use crate::dtype::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::plan::transformer::attention::{AttentionPlan, AttentionProblem, AttentionShape};
use crate::{ComputePath, WorkspaceLayout};

/// Keys and values that a call's queries attend to, besides its own.
#[derive(Debug)]
pub enum AttentionMemory<'a, T> {
    /// No further keys and values.
    None,
    /// A prefix that every sequence attends to before its own tokens (prefix tuning): `[capacity, d]` each.
    Prefix {
        /// Keys, head by head.
        keys: DeviceMatrix<'a, T>,
        /// Values, head by head.
        values: DeviceMatrix<'a, T>,
    },
    /// A KV cache: `[sequences·capacity, d]` each. Sequence s has its rows from row s·capacity on, of which the first
    /// `lengths[s]` are filled. The launch appends this call's keys and values behind them. It does not change the
    /// lengths; the caller advances them.
    ///
    /// The lengths are read when the launch runs, so they cannot be checked before. A sequence with
    /// `lengths[s] + tokens > capacity` gets rows of NaN, and its cache is neither read nor written.
    Cache {
        /// Keys of all sequences.
        keys: DeviceMatrixMut<'a, T>,
        /// Values of all sequences.
        values: DeviceMatrixMut<'a, T>,
        /// Filled rows, `[sequences]`.
        lengths: DeviceSlice<'a, u32>,
    },
}

impl<T: Element> AttentionMemory<'_, T> {
    /// Keys and values, if there are any.
    fn rows(&self) -> Option<[(&'static str, DeviceMatrix<'_, T>); 2]> {
        match self {
            Self::None => None,
            Self::Prefix { keys, values } => Some([("keys", *keys), ("values", *values)]),
            Self::Cache { keys, values, .. } => Some([("keys", keys.as_ref()), ("values", values.as_ref())]),
        }
    }
}

/// Options of an attention's plan, besides its shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct AttentionOptions {
    /// Whether CUDA cores or matrix instructions multiply.
    pub path: ComputePath,
}

/// Attention of one shape: planned once, its kernel loaded once, then launched any number of times. A call is one
/// launch: a decode if there is one token per sequence, otherwise a prefill.
///
/// [`AttentionShape`] defines the mathematics. Sums, scores and the softmax are `f32`. On matrix instructions, which
/// [`ComputePath::Auto`] uses for 16-bit types if the device has them, the softmax weights are rounded to the type
/// before the product with the values. Scores and values must be finite: a weight of zero times an infinity is NaN.
/// Results are the same bits from run to run, whatever the schedule.
///
/// ```
/// use fused_lora::device::AttentionShape;
/// use fused_lora::device::{Attention, AttentionMemory, Workspace};
/// use fused_lora::device::{Device, DeviceBuffer, DeviceMatrix, DeviceMatrixMut, Stream};
///
/// fn attended(device: &Device, qkv: &[f32], heads: usize, head_size: usize) -> fused_lora::Result<Vec<f32>> {
///     let (d, stream) = (heads * head_size, Stream::new(device)?);
///     let tokens = qkv.len() / (3 * d);
///     let scale = 1.0 / (head_size as f32).sqrt();
///     let shape = AttentionShape { sequences: 1, tokens, heads, head_size, capacity: 0, scale };
///     let attention = Attention::<f32>::new(device, &shape)?;
///     let mut workspace = Workspace::new(&stream, attention.workspace())?; // keep both from call to call
///     let qkv = DeviceBuffer::from_slice(&stream, qkv)?;
///     let mut out = DeviceBuffer::zeros(&stream, tokens * d)?;
///     let rows = DeviceMatrix::new(qkv.as_slice(), tokens, 3 * d)?;
///     let results = DeviceMatrixMut::new(out.as_mut_slice(), tokens, d)?;
///     attention.launch(&stream, rows, AttentionMemory::None, results, &mut workspace)?;
///     out.to_vec(&stream)
/// }
/// ```
#[derive(Debug, Clone)]
pub struct Attention<T> {
    kernel: PlannedKernel,
    plan: AttentionPlan,
    dtype: PhantomData<T>,
}

impl<T: Element> Attention<T> {
    /// Plans launches of this shape.
    ///
    /// # Errors
    /// As [`AttentionPlan::new`] and [`Device::kernel`].
    pub fn new(device: &Device, shape: &AttentionShape) -> Result<Self> {
        Self::with_options(device, shape, AttentionOptions::default())
    }

    /// As [`new`](Self::new), with options.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_options(device: &Device, shape: &AttentionShape, options: AttentionOptions) -> Result<Self> {
        let properties = device.properties();
        let plan = AttentionPlan::new(&AttentionProblem {
            shape: *shape,
            dtype: T::DTYPE,
            multiprocessors: properties.multiprocessors as usize,
            compute_capability: properties.compute_capability,
            path: options.path,
        })?;
        let kernel = PlannedKernel::find(device, &plan.launch)?;
        Ok(Self { kernel, plan, dtype: PhantomData })
    }

    planned_kernel_methods!();

    /// The plan of the launch.
    pub fn plan(&self) -> &AttentionPlan {
        &self.plan
    }

    /// The layout that a [`Workspace`] must have room for.
    pub fn workspace(&self) -> WorkspaceLayout {
        self.plan.workspace
    }

    /// Issues one launch to a stream: qkv `[sequences·tokens, 3·d]` holds q, k and v side by side, out is
    /// `[sequences·tokens, d]`. The call allocates nothing and does not wait, so it can be captured in a
    /// [`Graph`](crate::device::Graph), whose replays read the lengths of a cache anew.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`], [`Error::ShapeMismatch`], [`Error::LengthMismatch`] for the
    /// lengths, [`Error::Misaligned`] if an operand's address is not a multiple of its elements' size,
    /// [`Error::TooLarge`], [`Error::DeviceWorkspaceTooSmall`], [`Error::Overlap`] if an output, the cache or the
    /// workspace shares memory with anything else. Afterwards as [`Kernel::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        qkv: DeviceMatrix<'_, T>,
        memory: AttentionMemory<'_, T>,
        out: DeviceMatrixMut<'_, T>,
        workspace: &mut Workspace,
    ) -> Result<()> {
        let results = out.as_ref();
        self.check(stream, &qkv, &memory, &results, workspace)?;
        let params = self.params(&qkv, &memory, &results, workspace);
        // SAFETY: the parameters are the attention kernels'. Shapes, devices and alignments were checked above, and no
        // memory that is written overlaps any other operand. A cache's lengths cannot be checked here; the kernel
        // checks them against the capacity. The views borrow the memory during the call; afterwards it is freed only
        // once this work is done. Work that uses the workspace is in order.
        workspace.issue(stream, || unsafe { self.kernel.launch(stream, &params) })
    }

    fn check(
        &self,
        stream: &Stream,
        qkv: &DeviceMatrix<'_, T>,
        memory: &AttentionMemory<'_, T>,
        out: &DeviceMatrix<'_, T>,
        workspace: &Workspace,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        let shape = &self.plan.shape;
        let expect = |operand, matrix: &DeviceMatrix<'_, T>, shape| {
            expect_operand(device, operand, matrix)?;
            matrix.expect_shape(operand, shape)
        };
        expect("qkv", qkv, [shape.rows(), 3 * shape.width()])?;
        expect("out", out, [shape.rows(), shape.width()])?;
        let (mut read, mut written) = (vec![("qkv", qkv.extent())], vec![("out", out.extent())]);
        let sequences = if matches!(memory, AttentionMemory::Cache { .. }) { shape.sequences } else { 1 };
        for (operand, matrix) in memory.rows().into_iter().flatten() {
            expect(operand, &matrix, [sequences * shape.capacity, shape.width()])?;
            let list = if matches!(memory, AttentionMemory::Cache { .. }) { &mut written } else { &mut read };
            list.push((operand, matrix.extent()));
        }
        if let AttentionMemory::Cache { lengths, .. } = memory {
            read.push(("lengths", expect_vector(device, "lengths", lengths, shape.sequences)?));
        }
        workspace.expect_serves(device, self.plan.workspace)?;
        written.push(("the workspace", workspace.extent()));
        for (i, (output, extent)) in written.iter().enumerate() {
            for (other, apart) in read.iter().chain(&written[i + 1..]) {
                extent.refuse_overlap(output, other, apart)?;
            }
        }
        Ok(())
    }

    /// The parameters of a launch whose operands were checked.
    #[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
    fn params(
        &self,
        qkv: &DeviceMatrix<'_, T>,
        memory: &AttentionMemory<'_, T>,
        out: &DeviceMatrix<'_, T>,
        workspace: &Workspace,
    ) -> LoraAttention {
        let mut params = self.plan.params(workspace.address(), &workspace.layout());
        params.qkv = qkv.address() as *const _;
        params.qkv_stride = qkv.row_stride() as u32;
        params.out = out.address() as *mut _;
        params.out_stride = out.row_stride() as u32;
        if let Some([(_, keys), (_, values)]) = memory.rows() {
            params.keys = keys.address() as *mut _;
            params.keys_stride = keys.row_stride() as u32;
            params.values = values.address() as *mut _;
            params.values_stride = values.row_stride() as u32;
            params.capacity = self.plan.shape.capacity as u32;
        }
        if let AttentionMemory::Cache { lengths, .. } = memory {
            params.lengths = lengths.address() as *const _;
        }
        params
    }
}
