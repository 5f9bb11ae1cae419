//! Streams and events: the order of work, and how long it took.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::Device;
use crate::device::backend::Handle;
use crate::error::{Error, Result};

/// A queue of work for one device, which runs in the order in which it was issued.
///
/// Calls of launches, fills, and copies within device memory return before the work has run; copies from and to the
/// host wait until they are done.
#[derive(Debug)]
pub struct Stream {
    device: Device,
    handle: Handle,
    owned: bool,
}

impl Stream {
    /// A new stream, independent of all others, the device's default stream included.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { handle: device.backend().create_stream()?, device: device.clone(), owned: true })
    }

    /// Borrows a stream of another library: a `CUstream` or `cudaStream_t` of the device's primary context, null for
    /// its default stream. Dropping this value does not destroy the stream. On the emulator any number names a stream.
    ///
    /// # Safety
    /// The stream must be one of this device's and live as long as this value does. If the stream's owner captures a
    /// graph that uses buffers of this library, the graph must not be replayed after these buffers are dropped.
    pub unsafe fn from_raw(device: &Device, stream: *mut c_void) -> Self {
        Self { device: device.clone(), handle: Handle(stream as usize), owned: false }
    }

    /// The driver's handle, a `CUstream`.
    pub fn as_raw(&self) -> *mut c_void {
        self.handle.0 as *mut c_void
    }

    /// The stream's device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until all work issued so far has been done.
    ///
    /// # Errors
    /// [`Error::Driver`] if a kernel failed, [`Error::CaptureRefused`] inside a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("synchronising")?;
        // SAFETY: the stream lives.
        unsafe { self.device.backend().synchronize(self.handle) }
    }

    /// Whether a graph is being captured on this stream, by this library or by the stream's owner.
    ///
    /// # Errors
    /// Errors of the driver.
    pub fn is_capturing(&self) -> Result<bool> {
        // SAFETY: the stream lives.
        unsafe { self.device.backend().is_capturing(self.handle) }
    }

    /// Makes all later work of this stream wait for an event of the same device.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::EventNotRecorded`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.expect_same("event", &event.device)?;
        event.expect_recorded()?;
        // SAFETY: stream and event live and belong to the same device.
        unsafe { self.device.backend().wait(self.handle, event.handle) }
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
        self.handle
    }
}

impl Drop for Stream {
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
        Ok(Self { handle: device.backend().create_event()?, device: device.clone(), recorded: AtomicBool::new(false) })
    }

    /// Marks the work issued to the stream so far. An event may be recorded again; the last recording counts.
    ///
    /// # Errors
    /// [`Error::WrongDevice`] if the stream is another device's.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.device.expect_same("stream", &stream.device)?;
        // SAFETY: stream and event live and belong to the same device.
        unsafe { self.device.backend().record(self.handle, stream.handle) }?;
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
