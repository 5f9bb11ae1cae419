//! Slots: launches read from device memory, when they run, which adapter's factors they use.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::device::launch::stream::{Event, Stream};
use crate::device::lora::factors::{DeviceFactors, SegmentShape, upload_table};
use crate::device::lora::layer::DeviceSegment;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::ledger::KeepAlive;
use crate::device::memory::slice::DeviceSlice;
use crate::dtype::Element;
use crate::error::{Error, Result};

/// A slot for one adapter's [factors](DeviceFactors), of one layer or of all layers of a model. Launches read the slot
/// when they run.
///
/// A slot is one word in device memory: the address of a table. Exchanging the adapter copies 8 bytes in stream order,
/// whatever the adapter's size, and does not wait. Launches and graph replays that come later in the stream run with
/// the new adapter. An adapter of lower ranks fits as well, down to [none](Self::clear).
///
/// A launch makes two dependent loads through the slot before it can load A and B. Passing segments without a slot
/// avoids them.
///
/// The slot releases the old adapter once the exchange has run: at a later exchange, or when the slot is dropped. The
/// adapter's memory is then freed with its last owner, but only after every [`Graph`](crate::device::Graph) that was
/// captured while the memory existed, because such a graph may still use it.
///
/// ```
/// use fused_lora::device::{DeviceFactors, FactorSlot, Graph, Stream};
/// use half::f16;
///
/// fn serve(stream: &Stream, graph: &Graph, slot: &mut FactorSlot<f16>, adapter: &DeviceFactors<f16>) -> fused_lora::Result<()> {
///     slot.put(stream, adapter)?;
///     graph.replay(stream)
/// }
/// ```
#[derive(Debug)]
pub struct FactorSlot<T> {
    word: DeviceBuffer<u64>,
    /// The table of an adapter whose ranks are all 0.
    none: Arc<DeviceBuffer<u64>>,
    /// The segments that the slot accepts, with their highest ranks.
    accepted: Vec<SegmentShape>,
    /// Recorded after the last exchange. The next one waits for it, so exchanges run in call order on any streams.
    last: Arc<Event>,
    /// The adapter before each exchange, kept until the exchange has run.
    retired: Vec<(Arc<Event>, Option<KeepAlive>)>,
    dtype: PhantomData<T>,
}

/// The segments of one layer, with the factors that are in a slot when a launch runs. Part of a
/// [`DeviceInput`](crate::device::DeviceInput).
#[derive(Debug)]
pub struct SlotSegments<'a, T> {
    slot: &'a FactorSlot<T>,
    first: usize,
    len: usize,
}

// `derive` would require `T: Clone`, which a view does not need.
impl<T> Clone for SlotSegments<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SlotSegments<'_, T> {}

impl<T: Element> FactorSlot<T> {
    /// A slot for adapters with the segments of `factors`, each of at most the same rank. At first, it holds `factors`.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::CaptureRefused`] inside a capture; errors of the driver.
    pub fn new(stream: &Stream, factors: &DeviceFactors<T>) -> Result<Self> {
        stream.device().expect_same("factors", factors.device())?;
        // The copy is done when this returns, so every stream sees the word.
        let mut word = DeviceBuffer::from_slice(stream, &[factors.table().address()])?;
        word.keep(factors.keep());
        // Kernels read nothing through rank 0; the addresses only have to be valid.
        let none = upload_table(stream, factors.shapes().map(|_| [word.address(), word.address(), 0, 0]))?;
        let (accepted, last) = (factors.shapes().cloned().collect(), Event::new(stream.device())?);
        last.record(stream)?;
        Ok(Self { word, none: Arc::new(none), accepted, last: Arc::new(last), retired: vec![], dtype: PhantomData })
    }

    /// Issues an exchange: the slot's adapter is replaced by these factors, which the slot keeps alive. Work issued to
    /// the stream before the exchange runs with the old adapter. The caller must order work on other streams with
    /// events; unordered work runs with either adapter.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::LengthMismatch`] for another number of segments, [`Error::SlotMismatch`] for a
    /// segment with other columns, other inputs, or too high a rank; [`Error::CaptureRefused`] inside a capture; errors
    /// of the driver.
    pub fn put(&mut self, stream: &Stream, factors: &DeviceFactors<T>) -> Result<()> {
        self.device().expect_same("factors", factors.device())?;
        let (expected, actual) = (self.len(), factors.len());
        if expected != actual {
            return Err(Error::LengthMismatch { operand: "the factors' segments", expected, actual });
        }
        for (i, (accepted, given)) in self.accepted.iter().zip(factors.shapes()).enumerate() {
            accepted.expect_fits(i, given)?;
        }
        self.exchange(stream, factors.table().as_slice(), factors.keep())
    }

    /// Issues the removal of the slot's adapter. Layers then run without adapter, except that zeros are added to the
    /// columns of their segments.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::CaptureRefused`] inside a capture; errors of the driver.
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        let none = Arc::clone(&self.none);
        self.exchange(stream, none.as_slice(), Arc::clone(&none) as _)
    }

    fn exchange(&mut self, stream: &Stream, table: DeviceSlice<'_, u64>, keep: KeepAlive) -> Result<()> {
        self.device().expect_same("stream", stream.device())?;
        // A replayed exchange could put in an adapter that has been freed.
        let operation = "putting factors into a slot";
        stream.refuse_in_capture(operation)?;
        let happened = Arc::new(Event::new(stream.device())?);
        stream.wait(&self.last)?;
        self.word.as_mut_slice().copy_from(stream, table.slice(table.len() - 1..table.len()))?;
        // Until the copy has run, the word may name either table, so both are kept alive.
        let before = self.word.keep(keep.clone());
        if stream.refuse_in_capture(operation).is_err() {
            // Another thread has begun a capture meanwhile, and the copy belongs to its graph.
            self.word.keep(Arc::new((before, keep)));
            return stream.refuse_in_capture(operation);
        }
        let recorded = happened.record(stream);
        self.retired.push((Arc::clone(&happened), before));
        recorded?;
        self.last = happened;
        // If the device is lost, the event is not recorded, and the old adapter is kept until the slot is dropped.
        self.retired.retain(|(happened, _)| !happened.has_happened().unwrap_or(false));
        Ok(())
    }

    /// The device that the slot is on.
    pub fn device(&self) -> &Device {
        self.word.device()
    }

    /// Number of segments of the adapters that the slot accepts.
    pub fn len(&self) -> usize {
        self.accepted.len()
    }

    /// Whether these adapters have no segments.
    pub fn is_empty(&self) -> bool {
        self.accepted.is_empty()
    }

    /// The segments of one layer. Panics if `range` is out of bounds.
    pub fn segments(&self, range: Range<usize>) -> SlotSegments<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len(), "segments {range:?} of {}", self.len());
        SlotSegments { slot: self, first: range.start, len: range.len() }
    }
}

impl<T> Drop for FactorSlot<T> {
    fn drop(&mut self) {
        // A graph may still read the word after this. The word then names the table that it keeps alive.
        let _ = self.last.synchronize();
    }
}

impl<T: Element> SlotSegments<'_, T> {
    /// Checks that a layer with these segments can run with every adapter that the slot accepts.
    pub(crate) fn validate(&self, device: &Device, segments: &[DeviceSegment<'_, T>]) -> Result<()> {
        device.expect_same("slot", self.slot.device())?;
        if self.len != segments.len() {
            return Err(Error::LengthMismatch {
                operand: "the slot's segments",
                expected: segments.len(),
                actual: self.len,
            });
        }
        let accepted = &self.slot.accepted[self.first..self.first + self.len];
        for (i, (segment, accepted)) in segments.iter().zip(accepted).enumerate() {
            SegmentShape::of(segment).expect_fits(self.first + i, accepted)?;
        }
        Ok(())
    }

    /// The slot's address, and the index of the first of these segments in its table.
    pub(crate) fn params(&self) -> (u64, u32) {
        (self.slot.word.address(), u32::try_from(self.first).expect("tables of fewer than 2^32 segments"))
    }
}
