//! Merging adapters into a weight on a device, and removing them again.

use std::marker::PhantomData;
use std::sync::Arc;

use crate::abi::{LoraMerge, LoraMergeReport};
use crate::device::Device;
use crate::device::launch::order::Order;
use crate::device::launch::planned_kernel::PlannedKernel;
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::{DeviceSegment, expect_operand, segment_table, validate_segments};
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::{DeviceMatrix, DeviceMatrixMut, Extent};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::Layout;
use crate::plan::lora::merge::MergePlan;

/// The effect of a merge on a weight in device memory.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DeviceMergeReport {
    /// The largest rounding error of an element: the distance between its stored value and the f32 sum of the old value
    /// and the change.
    pub largest_rounding: f32,
    /// The largest change of an element, |s·B·A|.
    pub largest_change: f32,
    /// Number of elements that became infinite or NaN. Unlike the CPU's merge, the merge on a device has stored them.
    pub not_finite: u32,
}

/// Device memory for the report of a merge, which is read later, so that the merge itself need not wait.
#[derive(Debug)]
pub struct MergeReportBuffer {
    words: DeviceBuffer<u32>,
    order: Arc<Order>,
}

const REPORT_WORDS: usize = size_of::<LoraMergeReport>() / size_of::<u32>();

impl MergeReportBuffer {
    /// Memory for one report.
    ///
    /// # Errors
    /// As [`DeviceBuffer::zeros`].
    pub fn new(stream: &Stream) -> Result<Self> {
        let order = Arc::<Order>::default();
        Ok(Self { words: order.issue(stream, || DeviceBuffer::zeros(stream, REPORT_WORDS))?, order })
    }

    /// Waits for the stream's work and the last merge, and reads the report of that merge.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::CaptureRefused`] inside a capture, or an error of the driver.
    pub fn read(&self, stream: &Stream) -> Result<DeviceMergeReport> {
        let mut words = [0; REPORT_WORDS];
        self.words.device().expect_same("stream", stream.device())?;
        stream.refuse_in_capture("copying to the host")?;
        self.order.issue(stream, || self.words.as_slice().download(stream, &mut words))?;
        let [rounding, change, not_finite] = words;
        Ok(DeviceMergeReport {
            largest_rounding: f32::from_bits(rounding),
            largest_change: f32::from_bits(change),
            not_finite,
        })
    }
}

/// Merges into weights of one shape: planned once, the kernel loaded once, then issued any number of times.
///
/// Sums are f32, and each element is rounded once, after the segments that cover it were added up. Elements outside all
/// segments keep their bits.
#[derive(Debug, Clone)]
pub struct Merge<T> {
    kernel: PlannedKernel,
    rows: usize,
    cols: usize,
    layout: Layout,
    dtype: PhantomData<T>,
}

impl<T: Element> Merge<T> {
    /// Plans merges into weights stored as `rows` by `cols`.
    ///
    /// # Errors
    /// [`Error::EmptyOperand`], and as [`Device::kernel`].
    pub fn new(device: &Device, rows: usize, cols: usize, layout: Layout) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::EmptyOperand { operand: "weight", shape: [rows, cols] });
        }
        let plan = MergePlan::new(rows, cols, layout, T::DTYPE);
        let kernel = PlannedKernel::find(device, &plan.launch)?;
        Ok(Self { kernel, rows, cols, layout, dtype: PhantomData })
    }

    /// `weight += s·B·A` for every segment, in place.
    ///
    /// # Errors
    /// Before anything is launched: [`Error::WrongDevice`], [`Error::ShapeMismatch`], [`Error::Misaligned`],
    /// [`Error::TooLarge`]; for a segment as [`DeviceLora::validate`](crate::device::DeviceLora::validate);
    /// [`Error::Overlap`] if the weight or the report shares memory with anything else. Afterwards as
    /// [`Kernel::launch`](crate::device::Kernel::launch).
    pub fn merge(
        &self,
        stream: &Stream,
        weight: DeviceMatrixMut<'_, T>,
        segments: &[DeviceSegment<'_, T>],
        report: &mut MergeReportBuffer,
    ) -> Result<()> {
        self.launch(stream, None, weight, segments, 1.0, report)
    }

    /// Undoes [`merge`](Self::merge): restores `original` exactly if it is given, and otherwise computes
    /// `weight − s·B·A`.
    ///
    /// # Errors
    /// As [`merge`](Self::merge).
    pub fn unmerge(
        &self,
        stream: &Stream,
        weight: DeviceMatrixMut<'_, T>,
        segments: &[DeviceSegment<'_, T>],
        original: Option<DeviceMatrix<'_, T>>,
        report: &mut MergeReportBuffer,
    ) -> Result<()> {
        match original {
            Some(original) => self.launch(stream, Some(original), weight, &[], 1.0, report),
            None => self.launch(stream, None, weight, segments, -1.0, report),
        }
    }

    /// `weight = source + s·B·A`: with the base weight as `source`, replaces one merged adapter by another in one pass.
    ///
    /// # Errors
    /// As [`merge`](Self::merge).
    pub fn merge_into(
        &self,
        stream: &Stream,
        source: DeviceMatrix<'_, T>,
        weight: DeviceMatrixMut<'_, T>,
        segments: &[DeviceSegment<'_, T>],
        report: &mut MergeReportBuffer,
    ) -> Result<()> {
        self.launch(stream, Some(source), weight, segments, 1.0, report)
    }

    fn launch(
        &self,
        stream: &Stream,
        source: Option<DeviceMatrix<'_, T>>,
        weight: DeviceMatrixMut<'_, T>,
        segments: &[DeviceSegment<'_, T>],
        sign: f32,
        report: &mut MergeReportBuffer,
    ) -> Result<()> {
        let device = self.kernel.device();
        device.expect_same("stream", stream.device())?;
        device.expect_same("the report", report.words.device())?;
        let (d_in, d_out) = dimensions(self.rows, self.cols, self.layout);
        validate_segments(device, segments, d_in, d_out)?;
        let output = weight.as_ref();
        expect_operand(device, "weight", &output)?;
        output.expect_shape("weight", [self.rows, self.cols])?;
        if let Some(source) = &source {
            expect_operand(device, "source", source)?;
            source.expect_shape("source", [self.rows, self.cols])?;
            output.extent().refuse_overlap("weight", "source", &source.extent())?;
        }
        let words = Extent::of_slice(&report.words.as_slice());
        words.refuse_overlap("the report", "weight", &output.extent())?;
        for segment in segments {
            output.extent().refuse_overlap("weight", "A", &segment.a.extent())?;
            output.extent().refuse_overlap("weight", "B", &segment.b.extent())?;
        }
        let params = self.params(source.as_ref().unwrap_or(&output), &output, segments, sign, &words);
        let order = Arc::clone(&report.order);
        order.issue(stream, || {
            report.words.as_mut_slice().fill(stream, 0)?;
            // SAFETY: the parameters are the merge kernels'. Shapes, bounds, devices and alignments were checked above,
            // and no output overlaps any other operand except a source that is the weight itself, which the kernels
            // allow. The views borrow the memory during the call; afterwards it is freed only once this work is done.
            // Merges with one report are in order.
            unsafe { self.kernel.launch(stream, &params) }
        })
    }

    #[expect(clippy::cast_possible_truncation, reason = "validated: dimensions and strides fit 31 bits")]
    fn params(
        &self,
        source: &DeviceMatrix<'_, T>,
        weight: &DeviceMatrix<'_, T>,
        segments: &[DeviceSegment<'_, T>],
        sign: f32,
        report: &Extent,
    ) -> LoraMerge {
        LoraMerge {
            source: source.address() as *const _,
            weight: weight.address() as *mut _,
            report: report.address as *mut _,
            rows: self.rows as u32,
            columns: self.cols as u32,
            source_stride: source.row_stride() as u32,
            weight_stride: weight.row_stride() as u32,
            segment_count: segments.len() as u32,
            reserved: 0,
            segments: segment_table(segments, sign).0,
        }
    }
}

/// Input and output features of a weight as stored.
fn dimensions(rows: usize, cols: usize, layout: Layout) -> (usize, usize) {
    match layout {
        Layout::OutIn => (cols, rows),
        Layout::InOut => (rows, cols),
    }
}
