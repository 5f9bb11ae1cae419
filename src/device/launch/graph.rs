//! Graphs: work captured once and replayed as a whole, for less than the cost of issuing it again.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::device::backend::Handle;
use crate::device::launch::stream::Stream;
use crate::device::memory::ledger::{Captured, Capturing};
use crate::error::Result;

/// Captured work of a stream that can be issued again as a whole.
///
/// A graph holds the addresses and parameters of its capture, so every replay reads and writes the same memory. Device
/// memory that existed at the capture is freed only after the graph is dropped, even if its buffer is dropped earlier.
#[derive(Debug)]
pub struct Graph {
    handle: Handle,
    memory: Captured,
    /// Only one thread at a time may replay a graph, because the driver does not synchronise replays.
    not_sync: PhantomData<Cell<()>>,
}

/// A capture that is abandoned on drop unless it was ended, also if the captured work panics.
struct Capture<'a> {
    stream: &'a Stream,
    ended: bool,
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // SAFETY: the stream lives, and its capture was begun by `Graph::capture`.
            unsafe { self.stream.device().backend().abandon_capture(self.stream.handle()) };
        }
    }
}

impl Graph {
    /// Captures the operations that `work` issues to `stream`, without running them. Kernels are best loaded before the
    /// capture; if they are loaded inside, their code is still loaded onto the device at once.
    ///
    /// # Errors
    /// The error of `work`, after which the capture is discarded. [`Error::CaptureRefused`] if the stream is being
    /// captured already, or if an operation cannot be captured.
    ///
    /// [`Error::CaptureRefused`]: crate::Error::CaptureRefused
    pub fn capture(stream: &Stream, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Self> {
        let backend = stream.device().backend();
        stream.refuse_in_capture("capturing")?;
        let memory = Capturing::new(stream.device());
        // SAFETY: the stream lives.
        unsafe { backend.begin_capture(stream.handle()) }?;
        let mut capture = Capture { stream, ended: false };
        work(stream)?;
        capture.ended = true;
        // SAFETY: the stream lives, and its capture was begun above.
        let handle = unsafe { backend.end_capture(stream.handle()) }?;
        Ok(Self { handle, memory: memory.into_captured(), not_sync: PhantomData })
    }

    /// Issues the captured work to a stream of the same device.
    ///
    /// # Errors
    /// [`Error::WrongDevice`](crate::Error::WrongDevice), or an error of the driver.
    pub fn replay(&self, stream: &Stream) -> Result<()> {
        self.memory.device.expect_same("stream", stream.device())?;
        // SAFETY: graph and stream live and belong to the same device; the memory that the graph uses is kept.
        unsafe { self.memory.device.backend().replay(self.handle, stream.handle()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph was made by this device and is destroyed once; the driver lets it finish first. Its memory
        // is released afterwards.
        unsafe { self.memory.device.backend().destroy_graph(self.handle) };
    }
}
