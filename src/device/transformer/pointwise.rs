//! Element-wise launches: adding a scaled matrix to a layer's output, and applying an activation.

use std::marker::PhantomData;

use crate::abi::{self, LoraPointwise};
use crate::device::Device;
#[cfg(doc)]
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::{PlannedKernel, planned_kernel_methods};
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{activation_code, expect_operand};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::Activation;
use crate::plan::LaunchShape;
use crate::plan::problem::expect_elements;

/// `y = act(y + scale·added)` for `[rows, cols]`: the kernel is loaded once, then launched any number of times.
///
/// A fused layer does not need this launch; a LoRA that runs separately from its layer does.
#[derive(Debug, Clone)]
pub struct Pointwise<T> {
    kernel: PlannedKernel,
    rows: usize,
    cols: usize,
    row_ctas: u32,
    dtype: PhantomData<T>,
}

impl<T: Element> Pointwise<T> {
    /// Plans launches for matrices of this shape.
    ///
    /// # Errors
    /// [`Error::EmptyOperand`], [`Error::TooLarge`] if the grid would have 2³¹ blocks or more, and as
    /// [`Device::kernel`].
    pub fn new(device: &Device, rows: usize, cols: usize) -> Result<Self> {
        expect_elements("y", [rows, cols])?;
        let row_ctas = cols.div_ceil(abi::LORA_POINTWISE_THREADS as usize * 16 / T::DTYPE.size());
        let ctas = rows.saturating_mul(row_ctas);
        let Ok(grid) = i32::try_from(ctas) else { return Err(Error::TooLarge { operand: "y", value: ctas }) };
        let (name, grid) = (format!("lora_pointwise_{}", T::DTYPE), [grid.unsigned_abs(), 1, 1]);
        let kernel = PlannedKernel::find(
            device,
            &LaunchShape { kernel: name, grid, threads: abi::LORA_POINTWISE_THREADS, shared_bytes: 0, cluster: 1 },
        )?;
        Ok(Self { kernel, rows, cols, row_ctas: row_ctas as u32, dtype: PhantomData })
    }

    planned_kernel_methods!();

    /// Issues one launch. `added` is a matrix `[rows, cols]` and its scale, or `None`.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::ShapeMismatch`], [`Error::Misaligned`], [`Error::TooLarge`], [`Error::Overlap`]
    /// before anything is launched; afterwards as [`Kernel::launch`].
    #[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
    pub fn launch(
        &self,
        stream: &Stream,
        y: DeviceMatrixMut<'_, T>,
        added: Option<(DeviceMatrix<'_, T>, f32)>,
        activation: Activation,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        let y = y.as_ref();
        expect_operand(device, "y", &y)?;
        y.expect_shape("y", [self.rows, self.cols])?;
        if let Some((added, _)) = &added {
            expect_operand(device, "what is added", added)?;
            added.expect_shape("what is added", [self.rows, self.cols])?;
            y.extent().refuse_overlap("y", "what is added", &added.extent())?;
        }
        let params = LoraPointwise {
            y: y.address() as *mut _,
            added: added.map_or(std::ptr::null(), |(added, _)| added.address() as *const _),
            rows: self.rows as u32,
            columns: self.cols as u32,
            y_stride: y.row_stride() as u32,
            added_stride: added.map_or(0, |(added, _)| added.row_stride() as u32),
            activation: activation_code(activation),
            scale: added.map_or(0.0, |(_, scale)| scale),
            row_ctas: self.row_ctas,
            reserved: 0,
        };
        // SAFETY: the parameters are this kernel's. Shapes, bounds, devices and alignments were checked above, and y
        // overlaps nothing that is read. The views borrow the memory during the call; afterwards it is freed only once
        // this work is done.
        unsafe { self.kernel.launch(stream, &params) }
    }
}
