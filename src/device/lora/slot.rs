//! Slots: which adapter's factors a launch runs with is read from device memory, as it runs.

use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

use crate::device::Device;
use crate::device::launch::stream::{Event, Stream};
use crate::device::lora::factors::{DeviceFactors, Place, upload_table};
use crate::device::lora::layer::DeviceSegment;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::ledger::Kept;
use crate::device::memory::slice::DeviceSlice;
use crate::dtype::Element;
use crate::error::{Error, Result};

/// A place for one adapter's [factors](DeviceFactors), of a layer or of all layers of a model, that launches read when they run.
///
/// One word in device memory: the address of a table. Putting another adapter in is a copy of 8 bytes, whatever the adapter's
/// size, in the order of a stream and without waiting; from then on whatever was captured with the slot runs with the other
/// adapter. An adapter of lower ranks fits as well, down to [none](Self::clear).
///
/// A launch pays two dependent loads for it before it can ask for A and B. Segments that are given alone spare it those.
///
/// What was in the slot is let go when the exchange has happened, at the next one or when the slot is dropped. Its memory is given
/// back with its last owner then, unless it was there when a living [`Graph`](crate::device::Graph) was captured: that may still use it.
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
    /// The table of an adapter without ranks.
    none: Arc<DeviceBuffer<u64>>,
    /// Segments that its own take.
    takes: Vec<Place>,
    /// Exchanges happen in the order in which they are called, whatever their streams.
    last: Arc<Event>,
    /// What the word named before an exchange, until that has happened.
    retired: Vec<(Arc<Event>, Option<Kept>)>,
    dtype: PhantomData<T>,
}

/// The segments of one layer, with whatever factors are in a slot: what
/// [`DeviceInput`](crate::device::DeviceInput) takes.
#[derive(Debug)]
pub struct SlotSegments<'a, T> {
    slot: &'a FactorSlot<T>,
    first: usize,
    len: usize,
}

// Derived, these would ask for `T: Clone`, which a view does not need.
impl<T> Clone for SlotSegments<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for SlotSegments<'_, T> {}

impl<T: Element> FactorSlot<T> {
    /// A slot for adapters with the segments of this one, each of at most its rank; it holds this one at first.
    ///
    /// # Errors
    /// [`Error::OutOfDeviceMemory`], [`Error::WrongDevice`]; [`Error::CaptureRefused`] inside a capture.
    pub fn new(stream: &Stream, factors: &DeviceFactors<T>) -> Result<Self> {
        stream.device().expect_same("factors", factors.device())?;
        // There when this returns, for any stream.
        let mut word = DeviceBuffer::from_slice(stream, &[factors.table().address()])?;
        word.keep(factors.keep());
        // Without ranks nothing is read; the addresses are some that could be.
        let none = upload_table(stream, factors.places().iter().map(|_| [word.address(), word.address(), 0, 0]))?;
        let (takes, last) = (factors.places().to_vec(), Event::new(stream.device())?);
        last.record(stream)?;
        Ok(Self { word, none: Arc::new(none), takes, last: Arc::new(last), retired: vec![], dtype: PhantomData })
    }

    /// Issues the exchange of whatever is in the slot for these factors, which are kept alive while they are in it. What was
    /// issued to the stream before still runs with what was there; work of other streams is the caller's to order, by events,
    /// or it runs with either.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::LengthMismatch`] for another number of segments, [`Error::SlotMismatch`] for one with
    /// other columns, another input, or too high a rank; [`Error::CaptureRefused`] inside a capture; what the driver refuses.
    pub fn put(&mut self, stream: &Stream, factors: &DeviceFactors<T>) -> Result<()> {
        self.device().expect_same("factors", factors.device())?;
        let (expected, actual) = (self.len(), factors.len());
        if expected != actual {
            return Err(Error::LengthMismatch { operand: "the factors' segments", expected, actual });
        }
        for (i, (own, other)) in self.takes.iter().zip(factors.places()).enumerate() {
            if !own.takes(other) {
                return Err(own.mismatch(i, other));
            }
        }
        self.exchange(stream, factors.table().as_slice(), factors.keep())
    }

    /// Issues the removal of whatever is in the slot: layers run as if they had no adapter, but that columns of a segment have
    /// zeros added to them.
    ///
    /// # Errors
    /// [`Error::WrongDevice`]; [`Error::CaptureRefused`] inside a capture; what the driver refuses.
    pub fn clear(&mut self, stream: &Stream) -> Result<()> {
        let none = Arc::clone(&self.none);
        self.exchange(stream, none.as_slice(), Arc::clone(&none) as _)
    }

    fn exchange(&mut self, stream: &Stream, table: DeviceSlice<'_, u64>, keep: Kept) -> Result<()> {
        self.device().expect_same("stream", stream.device())?;
        // Replayed later, it would put in what nobody keeps any more.
        let operation = "putting factors into a slot";
        stream.refuse_in_capture(operation)?;
        let happened = Arc::new(Event::new(stream.device())?);
        stream.wait(&self.last)?;
        self.word.as_mut_slice().copy_from(stream, table.slice(table.len() - 1..table.len()))?;
        // The word names either from now on, until the copy has happened: both are kept.
        let before = self.word.keep(keep.clone());
        if stream.refuse_in_capture(operation).is_err() {
            // Another thread has begun a capture meanwhile, and the copy is the graph's.
            self.word.keep(Arc::new((before, keep)));
            return stream.refuse_in_capture(operation);
        }
        let recorded = happened.record(stream);
        self.retired.push((Arc::clone(&happened), before));
        recorded?;
        self.last = happened;
        // An event that was not recorded, on a device that is lost, keeps what it is for until the end.
        self.retired.retain(|(happened, _)| !happened.has_happened().unwrap_or(false));
        Ok(())
    }

    /// The device that it is on.
    pub fn device(&self) -> &Device {
        self.word.device()
    }

    /// Segments of the adapters that it takes.
    pub fn len(&self) -> usize {
        self.takes.len()
    }

    /// Whether they have none.
    pub fn is_empty(&self) -> bool {
        self.takes.is_empty()
    }

    /// The segments of one layer. Panics if there are not so many.
    pub fn segments(&self, range: Range<usize>) -> SlotSegments<'_, T> {
        assert!(range.start <= range.end && range.end <= self.len(), "segments {range:?} of {}", self.len());
        SlotSegments { slot: self, first: range.start, len: range.len() }
    }
}

impl<T> Drop for FactorSlot<T> {
    fn drop(&mut self) {
        // A graph may read the word after this: then it names what the word keeps.
        let _ = self.last.synchronize();
    }
}

impl<T: Element> SlotSegments<'_, T> {
    /// Checks that a layer with these segments can run with whatever the slot takes.
    pub(crate) fn validate(&self, device: &Device, segments: &[DeviceSegment<'_, T>]) -> Result<()> {
        device.expect_same("slot", self.slot.device())?;
        if self.len != segments.len() {
            return Err(Error::LengthMismatch {
                operand: "the slot's segments",
                expected: segments.len(),
                actual: self.len,
            });
        }
        let places = &self.slot.takes[self.first..self.first + self.len];
        for (i, (segment, place)) in segments.iter().zip(places).enumerate() {
            let own = Place::of(segment);
            if !own.takes(place) {
                return Err(own.mismatch(self.first + i, place));
            }
        }
        Ok(())
    }

    /// The slot's address, and the index of the first of these segments in its table.
    pub(crate) fn params(&self) -> (u64, u32) {
        (self.slot.word.address(), u32::try_from(self.first).expect("tables of fewer than 2^32 segments"))
    }
}
