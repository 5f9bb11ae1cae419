//! Token and position embeddings on a device, and LayerNorm of their sums in the same launch.

use std::marker::PhantomData;

use crate::abi::LoraEmbedding;
use crate::device::Device;
#[cfg(doc)]
use crate::device::launch::kernel::Kernel;
use crate::device::launch::planned_kernel::{PlannedKernel, planned_kernel_methods};
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{expect_operand, expect_vector};
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut};
use crate::device::memory::slice::DeviceSlice;
use crate::device::transformer::layer_norm::DeviceNorm;
use crate::dtype::Element;
#[cfg(doc)]
use crate::error::Error;
use crate::error::Result;
use crate::plan::transformer::rows::RowPlan;

/// The ids to embed, and the embedding tables.
#[derive(Debug)]
pub struct EmbeddingInput<'a, T> {
    /// Token embeddings, `[vocabulary, width]`.
    pub tokens: DeviceMatrix<'a, T>,
    /// Further embeddings, `[n, width]`, for example of a trained prefix: id vocabulary + i is row i.
    pub extra: Option<DeviceMatrix<'a, T>>,
    /// Position embeddings, `[positions, width]`.
    pub positions: DeviceMatrix<'a, T>,
    /// The token id of each row, `[rows]`. Ids are read when the launch runs, so replays of a captured graph can use
    /// other ids. An id beyond both tables gives a row of NaN.
    pub ids: DeviceSlice<'a, u32>,
    /// The row of `positions` that is added to each row, `[rows]`. Read like the ids; a place beyond the table gives a
    /// row of NaN.
    pub places: DeviceSlice<'a, u32>,
}

// `derive` would require `T: Clone`, which views do not need.
impl<T> Clone for EmbeddingInput<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for EmbeddingInput<'_, T> {}

/// The embedding of a fixed number of rows: planned once, its kernel loaded once, then launched any number of times.
///
/// `x = tokens[id] + positions[place]`, rounded to the type of the tables, and optionally y =
/// [LayerNorm](crate::device::LayerNorm) of the rounded x, bit for bit as a separate launch with as many threads per
/// row would compute it. An id or a place beyond its table cannot be checked on the host: it makes the row of x, and of
/// y, NaN. Nothing outside the tables is read.
#[derive(Debug, Clone)]
pub struct Embedding<T> {
    kernel: PlannedKernel,
    plan: RowPlan,
    rows: usize,
    width: usize,
    dtype: PhantomData<T>,
}

impl<T: Element> Embedding<T> {
    /// Plans launches for `rows` ids and embeddings of `width` elements.
    ///
    /// # Errors
    /// As [`RowPlan::embedding`] and [`Device::kernel`].
    pub fn new(device: &Device, rows: usize, width: usize) -> Result<Self> {
        let plan = RowPlan::embedding(rows, width, T::DTYPE, device.properties().multiprocessors as usize)?;
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
    /// Before anything is launched: [`Error::WrongDevice`]; [`Error::ShapeMismatch`] for a table of another width, for
    /// x or y; [`Error::LengthMismatch`] for ids, places, or the norm's weight or bias; [`Error::Misaligned`] if an
    /// address is not a multiple of its element's size; [`Error::TooLarge`]; [`Error::Overlap`] if x or y shares memory
    /// with anything else. Afterwards as [`Kernel::launch`]. Ids and places beyond the tables are not an error: they
    /// give NaN.
    pub fn launch(
        &self,
        stream: &Stream,
        input: &EmbeddingInput<'_, T>,
        x: DeviceMatrixMut<'_, T>,
        normed: Option<(&DeviceNorm<'_>, DeviceMatrixMut<'_, T>)>,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        let x = x.as_ref();
        let normed = normed.as_ref().map(|(norm, y)| (*norm, y.as_ref()));
        let tables =
            [Some(("tokens", input.tokens)), input.extra.map(|e| ("extra", e)), Some(("positions", input.positions))];
        let mut read = vec![];
        for (operand, table) in tables.into_iter().flatten() {
            expect_operand(device, operand, &table)?;
            table.expect_shape(operand, [table.rows(), self.width])?;
            read.push((operand, table.extent()));
        }
        for (operand, vector) in [("ids", input.ids), ("places", input.places)] {
            read.push((operand, expect_vector(device, operand, &vector, self.rows)?));
        }
        let expect_output = |operand, matrix: &DeviceMatrix<'_, T>| {
            expect_operand(device, operand, matrix)?;
            matrix.expect_shape(operand, [self.rows, self.width])
        };
        expect_output("x", &x)?;
        if let Some((norm, y)) = &normed {
            expect_output("y", y)?;
            read.extend(norm.validate(device, self.width)?);
            x.extent().refuse_overlap("x", "y", &y.extent())?;
        }
        for (operand, extent) in read {
            x.extent().refuse_overlap("x", operand, &extent)?;
            if let Some((_, y)) = &normed {
                y.extent().refuse_overlap("y", operand, &extent)?;
            }
        }
        let params = self.params(input, &x, normed);
        // SAFETY: the parameters are this kernel's. Shapes, bounds, devices and alignments were checked above, and
        // neither output overlaps anything else. The kernel checks ids and places against the tables before it reads
        // them. The views borrow the memory during the call; afterwards it is freed only once this work is done.
        unsafe { self.kernel.launch(stream, &params) }
    }

    #[expect(clippy::cast_possible_truncation, reason = "checked: dimensions and strides fit 31 bits")]
    fn params(
        &self,
        input: &EmbeddingInput<'_, T>,
        x: &DeviceMatrix<'_, T>,
        normed: Option<(&DeviceNorm<'_>, DeviceMatrix<'_, T>)>,
    ) -> LoraEmbedding {
        let &EmbeddingInput { tokens, extra, positions, ids, places } = input;
        let norm = normed.map(|(norm, _)| norm);
        let y = normed.map(|(_, y)| y);
        LoraEmbedding {
            tokens: tokens.address() as *const _,
            extra: extra.map_or(std::ptr::null(), |extra| extra.address() as *const _),
            positions: positions.address() as *const _,
            ids: ids.address() as *const _,
            places: places.address() as *const _,
            x: x.address() as *mut _,
            weight: norm.map_or(std::ptr::null(), |norm| norm.weight.address() as *const _),
            bias: norm.map_or(std::ptr::null(), |norm| norm.bias.address() as *const _),
            y: y.map_or(std::ptr::null_mut(), |y| y.address() as *mut _),
            rows: self.rows as u32,
            width: self.width as u32,
            vocabulary: tokens.rows() as u32,
            extra_rows: extra.map_or(0, |extra| extra.rows() as u32),
            position_rows: positions.rows() as u32,
            tokens_stride: tokens.row_stride() as u32,
            extra_stride: extra.map_or(0, |extra| extra.row_stride() as u32),
            positions_stride: positions.row_stride() as u32,
            x_stride: x.row_stride() as u32,
            y_stride: y.map_or(0, |y| y.row_stride() as u32),
            row_threads_log2: self.plan.row_threads.ilog2(),
            epsilon: norm.map_or(0.0, |norm| norm.epsilon),
        }
    }
}
