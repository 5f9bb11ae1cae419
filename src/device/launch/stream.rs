//! Streams and events: the order of work, and how long it took.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::device::Device;
use crate::device::backend::Handle;
use crate::error::{Error, Result};

/// A queue of work for one device, which runs in the order in which it was issued.
///
/// Calls of launches, fills, and copies within device memory return before the work has run; copies from and to the
/// host wait until they are done.
#[derive(Debug)]
pub struct Stream(Arc<Inner>);

/// A stream, which lives until its last holder is dropped: the user's value, or memory that the stream used last.
#[derive(Debug)]
struct Inner {
    device: Device,
    handle: Handle,
    owned: bool,
    /// The stream's latest capture, and an event after the work that was issued to the stream before that capture.
    before_capture: Mutex<Option<(u64, Event)>>,
}

impl Stream {
    /// A new stream, independent of all others, the device's default stream included.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self::of(device, device.backend().create_stream()?, true))
    }

    /// Borrows a stream of another library: a `CUstream` or `cudaStream_t` of the device's primary context, null for
    /// its default stream. Dropping this value does not destroy the stream. On the emulator any number names a stream.
    ///
    /// # Safety
    /// The stream must be one of this device's and live as long as this value does, and as long as any
    /// [`Workspace`](crate::device::Workspace), [`Optimizer`](crate::device::Optimizer) or
    /// [`Graph`](crate::device::Graph) that was used on it last. It must be the same stream for every thread, which
    /// `CU_STREAM_PER_THREAD` is not.
    ///
    /// If the stream's owner captures a graph that uses memory of this library, the graph must not be replayed after
    /// that memory is dropped, and the owner must order its replays with all other work that uses the same workspaces
    /// or optimizers.
    pub unsafe fn from_raw(device: &Device, stream: *mut c_void) -> Self {
        Self::of(device, Handle(stream as usize), false)
    }

    fn of(device: &Device, handle: Handle, owned: bool) -> Self {
        Self(Arc::new(Inner { device: device.clone(), handle, owned, before_capture: Mutex::default() }))
    }

    /// The same stream, for a holder that may outlive this value.
    pub(super) fn share(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// The driver's handle, a `CUstream`.
    pub fn as_raw(&self) -> *mut c_void {
        self.0.handle.0 as *mut c_void
    }

    /// The stream's device.
    pub fn device(&self) -> &Device {
        &self.0.device
    }

    /// Waits until all work issued so far has been done.
    ///
    /// # Errors
    /// [`Error::Driver`] if a kernel failed, [`Error::CaptureRefused`] inside a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("synchronising")?;
        // SAFETY: the stream lives.
        unsafe { self.device().backend().synchronize(self.handle()) }
    }

    /// Whether a graph is being captured on this stream, by this library or by the stream's owner.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn is_capturing(&self) -> Result<bool> {
        // SAFETY: the stream lives.
        unsafe { self.device().backend().is_capturing(self.handle()) }
    }

    #[cfg(all(test, feature = "emulator"))]
    pub(super) fn holders(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The number of the capture that the stream belongs to, a foreign one included.
    pub(super) fn capture_id(&self) -> Result<Option<u64>> {
        // SAFETY: the stream lives.
        unsafe { self.device().backend().capture_id(self.handle()) }
    }

    /// An event after all work that has been issued to the stream.
    pub(super) fn mark(&self) -> Result<Event> {
        let event = Event::untimed(self.device())?;
        event.record(self)?;
        Ok(event)
    }

    /// Keeps a [mark](Self::mark) that was made before the stream began or joined a capture.
    pub(super) fn set_before_capture(&self, id: u64, mark: Event) {
        *self.0.before_capture.lock().unwrap_or_else(PoisonError::into_inner) = Some((id, mark));
    }

    /// Makes another stream wait for the work that was issued to this one before it began or joined the capture that it
    /// belongs to.
    pub(super) fn wait_for_what_came_before_capture(&self, id: u64, waiting: &Stream) -> Result<()> {
        match &*self.0.before_capture.lock().unwrap_or_else(PoisonError::into_inner) {
            Some((captured, mark)) if *captured == id => waiting.wait_for(mark),
            _ => Err(Error::CaptureRefused {
                operation: "using memory that another stream used last",
                reason: "that stream is being captured by its owner".to_owned(),
            }),
        }
    }

    /// Makes all later work of this stream wait for an event of the same device.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::EventNotRecorded`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device().expect_same("event", &event.device)?;
        event.expect_recorded()?;
        self.device().captures().joining(self, || self.wait_for(event))
    }

    /// [`wait`](Self::wait) for a recorded event of this device by which the stream joins no capture.
    pub(super) fn wait_for(&self, event: &Event) -> Result<()> {
        // SAFETY: stream and event live and belong to the same device.
        unsafe { self.device().backend().wait(self.handle(), event.handle) }
    }

    /// Refuses an operation during a capture. The capture goes on, while a refusal by the driver would invalidate it.
    pub(crate) fn refuse_in_capture(&self, operation: &'static str) -> Result<()> {
        if self.is_capturing()? {
            let reason = "a captured graph cannot wait for the host".to_owned();
            return Err(Error::CaptureRefused { operation, reason });
        }
        Ok(())
    }

    pub(crate) fn handle(&self) -> Handle {
        self.0.handle
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.owned {
            // SAFETY: created by this device, and destroyed once. The driver lets its work finish first.
            unsafe { self.device.backend().destroy_stream(self.handle) };
        }
    }
}

/// A point in a stream's work, with its time.
#[derive(Debug)]
pub struct Event {
    device: Device,
    handle: Handle,
    recorded: AtomicBool,
}

impl Event {
    /// An event that has not been recorded yet and that measures time.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn new(device: &Device) -> Result<Self> {
        Self::create(device, true)
    }

    /// An event that measures no time, which costs less.
    pub(super) fn untimed(device: &Device) -> Result<Self> {
        Self::create(device, false)
    }

    fn create(device: &Device, timed: bool) -> Result<Self> {
        let handle = device.backend().create_event(timed)?;
        Ok(Self { handle, device: device.clone(), recorded: AtomicBool::new(false) })
    }

    /// Marks the work issued to the stream so far. An event may be recorded again; the last recording counts.
    ///
    /// # Errors
    /// [`Error::WrongDevice`] if the stream is another device's.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.expect_same("stream", stream.device())?;
        // SAFETY: stream and event live and belong to the same device.
        unsafe { self.device.backend().record(self.handle, stream.handle()) }?;
        self.recorded.store(true, Ordering::Release);
        Ok(())
    }

    /// Whether the work before the event has been done.
    ///
    /// # Errors
    /// [`Error::EventNotRecorded`], [`Error::Driver`] if a kernel failed.
    pub fn has_happened(&self) -> Result<bool> {
        self.expect_recorded()?;
        // SAFETY: the event lives.
        unsafe { self.device.backend().has_happened(self.handle) }
    }

    /// Waits on the host until the work before the event has been done.
    ///
    /// # Errors
    /// As [`has_happened`](Self::has_happened).
    pub fn synchronize(&self) -> Result<()> {
        self.expect_recorded()?;
        // SAFETY: the event lives.
        unsafe { self.device.backend().await_event(self.handle) }
    }

    /// Waits for `end` and returns the milliseconds from this event to `end`, to about half a microsecond.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::EventNotRecorded`], [`Error::Driver`] if a kernel in between failed,
    /// [`Error::CaptureRefused`] if one of the events was recorded inside a capture.
    pub fn milliseconds_to(&self, end: &Event) -> Result<f32> {
        self.device.expect_same("event", &end.device)?;
        self.expect_recorded()?;
        end.expect_recorded()?;
        // SAFETY: both events live and belong to the same device.
        unsafe { self.device.backend().elapsed(self.handle, end.handle) }
    }

    fn expect_recorded(&self) -> Result<()> {
        if self.recorded.load(Ordering::Acquire) { Ok(()) } else { Err(Error::EventNotRecorded) }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by this device, and destroyed once.
        unsafe { self.device.backend().destroy_event(self.handle) };
    }
}
