//! The description of a LoRA layer in device memory, and the checks that its parts fit together.

use std::ops::Range;

use bytemuck::Pod;

use crate::abi::{self, LoraFactors, LoraSegment};
use crate::device::Device;
use crate::device::memory::matrix::{DeviceMatrix, Extent};
use crate::device::memory::slice::DeviceSlice;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Activation, Layout, MAX_RANK};

/// One low-rank product added to some output columns of a layer, in device memory.
#[derive(Debug, Clone)]
pub struct DeviceSegment<'a, T> {
    /// Output columns that the product is added to.
    pub columns: Range<usize>,
    /// A, `[rank, d_in]`.
    pub a: DeviceMatrix<'a, T>,
    /// B, `[columns.len(), rank]`.
    pub b: DeviceMatrix<'a, T>,
    /// s = α/r.
    pub scale: f32,
}

/// A linear layer with any number of low-rank segments, in device memory; with none it is the base layer itself.
#[derive(Debug, Clone, Copy)]
pub struct DeviceLora<'a, T> {
    /// The frozen weight W0, `[d_out, d_in]` or `[d_in, d_out]` as `layout` says.
    pub weight: DeviceMatrix<'a, T>,
    /// The storage order of W0.
    pub layout: Layout,
    /// The bias, `[d_out]`, added once.
    pub bias: Option<DeviceSlice<'a, T>>,
    /// The adapters.
    pub segments: &'a [DeviceSegment<'a, T>],
}

impl<'a, T: Element> DeviceLora<'a, T> {
    /// Input features.
    pub fn d_in(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.weight.cols(),
            Layout::InOut => self.weight.rows(),
        }
    }

    /// Output features.
    pub fn d_out(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.weight.rows(),
            Layout::InOut => self.weight.cols(),
        }
    }

    /// The segments' ranks, in order.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = usize> {
        self.segments.iter().map(|segment| segment.a.rows())
    }

    /// Whether all rows of W0 and of every A start and end at multiples of 16 bytes.
    pub(crate) fn is_aligned(&self) -> bool {
        self.weight.is_aligned() && self.segments.iter().all(|segment| segment.a.is_aligned())
    }

    /// Checks that all operands fit together and are on this device.
    ///
    /// # Errors
    /// The error names the first operand that does not fit: [`Error::WrongDevice`], [`Error::Misaligned`] if an address
    /// is not a multiple of the element's size, [`Error::TooLarge`]; [`Error::LengthMismatch`] for the bias;
    /// [`Error::TooManySegments`]; [`Error::SegmentOutOfRange`], [`Error::RankOutOfRange`], [`Error::ShapeMismatch`],
    /// [`Error::ScaleNotFinite`] for a segment.
    pub fn validate(&self, device: &Device) -> Result<()> {
        let (d_in, d_out) = (self.d_in(), self.d_out());
        expect_operand(device, "weight", &self.weight)?;
        if let Some(bias) = &self.bias {
            expect_vector(device, "bias", bias, d_out)?;
        }
        validate_segments(device, self.segments, d_in, d_out)
    }

    /// The memory of the layer that a launch reads, with the operands' names.
    pub(crate) fn operands(&self) -> impl Iterator<Item = (&'static str, Extent)> {
        let bias = self.bias.iter().map(|bias| ("bias", Extent::of_slice(bias)));
        let segments = self.segments.iter().flat_map(|s| [("A", s.a.extent()), ("B", s.b.extent())]);
        [("weight", self.weight.extent())].into_iter().chain(bias).chain(segments)
    }
}

/// Checks the properties that do not depend on an operand's role: its device, its alignment, and its size.
pub(crate) fn expect_operand<T: Element>(
    device: &Device,
    operand: &'static str,
    matrix: &DeviceMatrix<'_, T>,
) -> Result<()> {
    device.expect_same(operand, matrix.device())?;
    matrix.extent().expect_aligned(operand, size_of::<T>())?;
    let value = matrix.rows().max(matrix.row_stride());
    // Kernels round dimensions up to whole tiles in 32 bits, so dimensions may use only half of the range.
    if value > i32::MAX as usize { Err(Error::TooLarge { operand, value }) } else { Ok(()) }
}

/// Checks that a vector is on the device, aligned to its elements and of this length. Returns its memory.
pub(crate) fn expect_vector<T: Pod>(
    device: &Device,
    operand: &'static str,
    vector: &DeviceSlice<'_, T>,
    expected: usize,
) -> Result<Extent> {
    device.expect_same(operand, vector.device())?;
    let extent = Extent::of_slice(vector);
    extent.expect_aligned(operand, extent.element)?;
    if vector.len() != expected {
        return Err(Error::LengthMismatch { operand, expected, actual: vector.len() });
    }
    Ok(extent)
}

/// Checks that segments fit a layer and are on this device.
pub(crate) fn validate_segments<T: Element>(
    device: &Device,
    segments: &[DeviceSegment<'_, T>],
    d_in: usize,
    d_out: usize,
) -> Result<()> {
    let max = abi::LORA_MAX_SEGMENTS as usize;
    if segments.len() > max {
        return Err(Error::TooManySegments { segments: segments.len(), max });
    }
    for segment in segments {
        let Range { start, end } = segment.columns;
        if start >= end || end > d_out {
            return Err(Error::SegmentOutOfRange { start, end, d_out });
        }
        let rank = segment.a.rows();
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::RankOutOfRange { rank, max: MAX_RANK });
        }
        expect_operand(device, "A", &segment.a)?;
        expect_operand(device, "B", &segment.b)?;
        segment.a.expect_shape("A", [rank, d_in])?;
        segment.b.expect_shape("B", [end - start, rank])?;
        if !segment.scale.is_finite() {
            return Err(Error::ScaleNotFinite { scale: segment.scale });
        }
    }
    Ok(())
}

/// The segments in the kernels' format, with their scales times `sign`, and the sum of their ranks.
#[expect(clippy::cast_possible_truncation, reason = "validated: dimensions and strides fit 31 bits")]
pub(crate) fn segment_table<T: Element>(
    segments: &[DeviceSegment<'_, T>],
    sign: f32,
) -> ([LoraSegment; abi::LORA_MAX_SEGMENTS as usize], u32) {
    let mut table = [LoraSegment::NONE; abi::LORA_MAX_SEGMENTS as usize];
    let mut t_begin = 0;
    for (place, segment) in table.iter_mut().zip(segments) {
        *place = LoraSegment {
            factors: LoraFactors {
                a: segment.a.address() as *const _,
                b: segment.b.address() as *const _,
                a_stride: segment.a.row_stride() as u32,
                b_stride: segment.b.row_stride() as u32,
                rank: segment.a.rows() as u32,
                scale: sign * segment.scale,
            },
            begin: segment.columns.start as u32,
            end: segment.columns.end as u32,
            t_begin,
            packed_begin: 0,
        };
        t_begin += place.factors.rank;
    }
    (table, t_begin)
}

/// The kernels' number of an activation.
pub(crate) fn activation_code(activation: Activation) -> u32 {
    match activation {
        Activation::Identity => abi::LORA_IDENTITY,
        Activation::Relu => abi::LORA_RELU,
        Activation::GeluNew => abi::LORA_GELU_NEW,
    }
}
