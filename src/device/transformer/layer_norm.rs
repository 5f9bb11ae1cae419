//! LayerNorm of rows on a device.

use std::marker::PhantomData;

use crate::abi::LoraLayerNorm;
use crate::device::Device;
#[cfg(doc)]
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::{PlannedKernel, planned_kernel_methods};
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{expect_operand, expect_vector};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut, Extent};
use crate::device::memory::slice::DeviceSlice;
use crate::dtype::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::plan::transformer::rows::RowPlan;

/// LayerNorm's parameters, f32 for every type of the rows.
#[derive(Debug, Clone, Copy)]
pub struct DeviceNorm<'a> {
    /// The factors of the normalised elements, `[width]`.
    pub weight: DeviceSlice<'a, f32>,
    /// The terms added to these products, `[width]`.
    pub bias: DeviceSlice<'a, f32>,
    /// Added to the variance. With 0, a row of equal elements becomes NaN.
    pub epsilon: f32,
}

impl DeviceNorm<'_> {
    /// Checks that both vectors are on the device and as long as a row. Returns their names and their memory.
    pub(crate) fn validate(&self, device: &Device, width: usize) -> Result<[(&'static str, Extent); 2]> {
        let weight = expect_vector(device, "norm weight", &self.weight, width)?;
        let bias = expect_vector(device, "norm bias", &self.bias, width)?;
        Ok([("norm weight", weight), ("norm bias", bias)])
    }
}

/// LayerNorm of rows of one width: planned once, its kernel loaded once, then launched any number of times.
///
/// `y = (x − mean)/√(variance + ε)·weight + bias` for x and y `[rows, width]`, computed in f32 for every storage type.
/// The variance is the mean of squares (divided by the width). Rows may have any width and alignment; rows that start
/// and end at multiples of 16 bytes are faster, if the parameters start at such multiples as well. The bits of a result
/// depend on the width and on how many threads [`RowPlan`] gives a row, not on alignments or other rows.
#[derive(Debug, Clone)]
pub struct LayerNorm<T> {
    kernel: PlannedKernel,
    plan: RowPlan,
    rows: usize,
    width: usize,
    dtype: PhantomData<T>,
}

impl<T: Element> LayerNorm<T> {
    /// Plans launches for `rows` rows of `width` elements.
    ///
    /// # Errors
    /// As [`RowPlan::layer_norm`] and [`Device::kernel`].
    pub fn new(device: &Device, rows: usize, width: usize) -> Result<Self> {
        let plan = RowPlan::layer_norm(rows, width, T::DTYPE, device.properties().multiprocessors as usize)?;
        let kernel = PlannedKernel::find(device, &plan.launch)?;
        Ok(Self { kernel, plan, rows, width, dtype: PhantomData })
    }

    planned_kernel_methods!();

    /// The plan of the launch.
    pub fn plan(&self) -> &RowPlan {
        &self.plan
    }

    /// Issues one launch to a stream. The call allocates no device memory and does not wait, so it can be captured in a
    /// [`Graph`](crate::device::Graph).
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`]; [`Error::ShapeMismatch`] for x or y,
    /// [`Error::LengthMismatch`] for the weight or the bias; [`Error::Misaligned`] if an address is not a multiple of
    /// its element's size; [`Error::TooLarge`]; [`Error::Overlap`] if y shares memory with anything else. Afterwards as
    /// [`Kernel::launch`].
    pub fn launch(
        &self,
        stream: &Stream,
        x: DeviceMatrix<'_, T>,
        norm: &DeviceNorm<'_>,
        y: DeviceMatrixMut<'_, T>,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        let y = y.as_ref();
        for (operand, matrix) in [("x", &x), ("y", &y)] {
            expect_operand(device, operand, matrix)?;
            matrix.expect_shape(operand, [self.rows, self.width])?;
        }
        let vectors = norm.validate(device, self.width)?;
        for (operand, extent) in vectors.into_iter().chain([("x", x.extent())]) {
            y.extent().refuse_overlap("y", operand, &extent)?;
        }
        let params = self.params(&x, norm, &y);
        // SAFETY: the parameters are this kernel's. Shapes, bounds, devices and alignments were checked above, and y
        // overlaps nothing that is read. The views borrow the memory during the call; afterwards it is freed only once
        // this work is done.
        unsafe { self.kernel.launch(stream, &params) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
    fn params(&self, x: &DeviceMatrix<'_, T>, norm: &DeviceNorm<'_>, y: &DeviceMatrix<'_, T>) -> LoraLayerNorm {
        LoraLayerNorm {
            x: x.address() as *const _,
            weight: norm.weight.address() as *const _,
            bias: norm.bias.address() as *const _,
            y: y.address() as *mut _,
            rows: self.rows as u32,
            width: self.width as u32,
            x_stride: x.row_stride() as u32,
            y_stride: y.row_stride() as u32,
            row_threads_log2: self.plan.row_threads.ilog2(),
            epsilon: norm.epsilon,
        }
    }
}
