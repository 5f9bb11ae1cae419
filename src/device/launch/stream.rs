//! Streams and events: what happens in which order, and how long it took.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::device::Device;
use crate::device::backend::Handle;
use crate::error::{Error, Result};

/// Work of one device that happens in the order in which it was issued.
///
/// Launches, copies between device memory and fills return before they have happened; copies from and to the host wait
/// for them.
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
    /// What the driver refuses.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { handle: device.backend().create_stream()?, device: device.clone(), owned: true })
    }

    /// Borrows a stream of another library: a `CUstream` or `cudaStream_t` of the device's primary context, null for
    /// its default stream. It is not destroyed with this value. On the emulator any number names a stream.
    ///
    /// # Safety
    /// The stream must be one of this device's and live as long as this value does. Work that its owner captures into a
    /// graph of its own must not be replayed after the buffers of this library in it are dropped.
    pub unsafe fn from_raw(device: &Device, stream: *mut c_void) -> Self {
        Self { device: device.clone(), handle: Handle(stream as usize), owned: false }
    }

    /// The driver's handle, a `CUstream`.
    pub fn as_raw(&self) -> *mut c_void {
        self.handle.0 as *mut c_void
    }

    /// The device it belongs to.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Waits until everything issued so far has happened.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] if a kernel failed, [`Error::CaptureRefused`] inside a capture.
    pub fn synchronize(&self) -> Result<()> {
        self.refuse_in_capture("synchronising")?;
        // SAFETY: the stream lives.
        unsafe { self.device.backend().synchronize(self.handle) }
    }

    /// Whether a graph is being captured on this stream, by this library or its owner.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn is_capturing(&self) -> Result<bool> {
        // SAFETY: the stream lives.
        unsafe { self.device.backend().is_capturing(self.handle) }
    }

    /// Lets all later work of this stream wait for an event of the same device.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::EventNotRecorded`].
    pub fn wait(&self, event: &Event) -> Result<()> {
        self.device.expect_same("event", &event.device)?;
        event.expect_recorded()?;
        // SAFETY: stream and event live and belong to the same device.
        unsafe { self.device.backend().wait(self.handle, event.handle) }
    }

    /// Refused here, the capture goes on; refused by the driver, it would be lost.
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
    /// An event that has not been recorded yet. It measures time.
    ///
    /// # Errors
    /// What the driver refuses.
    pub fn new(device: &Device) -> Result<Self> {
        Ok(Self { handle: device.backend().create_event()?, device: device.clone(), recorded: AtomicBool::new(false) })
    }

    /// Marks the stream's work up to here. An event may be recorded again; the last time counts.
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

    /// Whether the work before it has been done.
    ///
    /// # Errors
    /// [`Error::EventNotRecorded`], [`Error::DeviceLost`] if a kernel failed.
    pub fn has_happened(&self) -> Result<bool> {
        self.expect_recorded()?;
        // SAFETY: the event lives.
        unsafe { self.device.backend().has_happened(self.handle) }
    }

    /// Waits on the host until the work before it has been done.
    ///
    /// # Errors
    /// As [`has_happened`](Self::has_happened).
    pub fn synchronize(&self) -> Result<()> {
        self.expect_recorded()?;
        // SAFETY: the event lives.
        unsafe { self.device.backend().await_event(self.handle) }
    }

    /// Waits for `end` and gives the milliseconds from this event to it, to about half a microsecond.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`Error::EventNotRecorded`], [`Error::DeviceLost`] if a kernel in between failed,
    /// [`Error::CaptureRefused`] if one was recorded inside a capture.
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
