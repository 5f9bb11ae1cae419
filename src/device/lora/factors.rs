//! An adapter's factors in device memory, with the table in which kernels look them up.

use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::device::lora::layer::DeviceSegment;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::ledger::KeepAlive;
use crate::device::memory::matrix::{CHUNK, DeviceMatrix};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Segment, validate_segments};

/// 64-bit words of a `LoraFactors`.
const RECORD_WORDS: usize = 4;

/// A and B of an adapter's segments, of one layer or of all layers of a model, in two allocations.
///
/// Layers take the factors directly as [segments](Self::segment), or through a
/// [`FactorSlot`](crate::device::FactorSlot), in which another adapter can replace them. A clone shares the memory.
#[derive(Debug, Clone)]
pub struct DeviceFactors<T>(Arc<FactorMemory<T>>);

#[derive(Debug)]
struct FactorMemory<T> {
    values: DeviceBuffer<T>,
    /// A `LoraFactors` for each segment, then the table's own address.
    table: DeviceBuffer<u64>,
    segments: Vec<UploadedSegment>,
}

/// A segment, and where its factors begin in the values.
#[derive(Debug)]
struct UploadedSegment {
    shape: SegmentShape,
    scale: f32,
    a: usize,
    b: usize,
}

/// What must agree between a layer's segment, a slot and an adapter's factors.
#[derive(Debug, Clone)]
pub(crate) struct SegmentShape {
    columns: Range<usize>,
    d_in: usize,
    rank: usize,
}

impl<T: Element> DeviceFactors<T> {
    /// Copies factors to the stream's device; returns when the copy is done. Every A and every B starts at a multiple
    /// of 16 bytes.
    ///
    /// # Errors
    /// [`Error::SegmentOutOfRange`] for a segment without columns; [`Error::RankOutOfRange`], [`Error::ShapeMismatch`],
    /// [`Error::ScaleNotFinite`]; [`Error::CaptureRefused`] inside a capture; errors of the driver.
    pub fn upload(stream: &Stream, segments: &[Segment<'_, T>]) -> Result<Self> {
        let chunk = CHUNK / size_of::<T>();
        let (mut values, mut uploaded) = (vec![], vec![]);
        for segment in segments {
            let &Segment { ref columns, a, b, scale } = segment;
            validate_segments(std::slice::from_ref(segment), a.cols(), columns.end)?;
            let mut append = |rows: usize, row: &dyn Fn(usize) -> Vec<T>| {
                let begin = values.len().next_multiple_of(chunk);
                values.resize(begin, T::zeroed());
                (0..rows).for_each(|i| values.extend(row(i)));
                begin
            };
            let (a_begin, b_begin) =
                (append(a.rows(), &|i| a.row(i).to_vec()), append(b.rows(), &|i| b.row(i).to_vec()));
            let shape = SegmentShape { columns: columns.clone(), d_in: a.cols(), rank: a.rows() };
            uploaded.push(UploadedSegment { shape, scale, a: a_begin, b: b_begin });
        }
        let values = DeviceBuffer::from_slice(stream, &values)?;
        let record = |segment: &UploadedSegment| {
            let address = |begin: usize| values.address() + (begin * size_of::<T>()) as u64;
            let (d_in, rank) = (segment.shape.d_in as u64, segment.shape.rank as u64);
            [address(segment.a), address(segment.b), d_in | rank << 32, rank | u64::from(segment.scale.to_bits()) << 32]
        };
        let table = upload_table(stream, uploaded.iter().map(record))?;
        Ok(Self(Arc::new(FactorMemory { values, table, segments: uploaded })))
    }

    /// The device that the factors are on.
    pub fn device(&self) -> &Device {
        self.0.values.device()
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.0.segments.len()
    }

    /// Whether there are no segments.
    pub fn is_empty(&self) -> bool {
        self.0.segments.is_empty()
    }

    /// Bytes of device memory that the factors take.
    pub fn bytes(&self) -> usize {
        self.0.values.len() * size_of::<T>() + self.0.table.len() * size_of::<u64>()
    }

    /// Segment `index`. Panics if `index` is out of bounds.
    pub fn segment(&self, index: usize) -> DeviceSegment<'_, T> {
        let &UploadedSegment { ref shape, scale, a, b } = &self.0.segments[index];
        let SegmentShape { columns, d_in, rank } = shape.clone();
        let matrix = |begin: usize, rows: usize, cols: usize| {
            let values = self.0.values.slice(begin..begin + rows * cols);
            DeviceMatrix::new(values, rows, cols).expect("as long as it was made")
        };
        DeviceSegment { a: matrix(a, rank, d_in), b: matrix(b, columns.len(), rank), columns, scale }
    }

    pub(crate) fn shapes(&self) -> impl ExactSizeIterator<Item = &SegmentShape> {
        self.0.segments.iter().map(|segment| &segment.shape)
    }

    pub(crate) fn table(&self) -> &DeviceBuffer<u64> {
        &self.0.table
    }

    /// An owner that keeps the memory alive.
    pub(crate) fn keep(&self) -> KeepAlive {
        Arc::clone(&self.0) as _
    }
}

/// Uploads a table: the records, followed by the table's own address.
pub(crate) fn upload_table(
    stream: &Stream,
    records: impl ExactSizeIterator<Item = [u64; RECORD_WORDS]>,
) -> Result<DeviceBuffer<u64>> {
    let mut table = DeviceBuffer::zeros(stream, records.len() * RECORD_WORDS + 1)?;
    let words: Vec<u64> = records.flatten().chain([table.address()]).collect();
    table.upload(stream, &words)?;
    Ok(table)
}

impl SegmentShape {
    pub(crate) fn of<T: Element>(segment: &DeviceSegment<'_, T>) -> Self {
        Self { columns: segment.columns.clone(), d_in: segment.a.cols(), rank: segment.a.rows() }
    }

    /// Checks that `other`, segment number `segment`, fits in the place of this segment: with the same columns and
    /// inputs, and at most the same rank.
    pub(crate) fn expect_fits(&self, segment: usize, other: &SegmentShape) -> Result<()> {
        if self.columns == other.columns && self.d_in == other.d_in && self.rank >= other.rank {
            return Ok(());
        }
        Err(Error::SlotMismatch { segment, expected: self.to_string(), actual: other.to_string() })
    }
}

impl std::fmt::Display for SegmentShape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} inputs, columns {:?}, rank {}", self.d_in, self.columns, self.rank)
    }
}
