//! Graphs: work captured once and replayed as a whole, for less than the cost of issuing it again.

use std::cell::Cell;
use std::marker::PhantomData;

use crate::device::backend::Handle;
use crate::device::launch::stream::Stream;
use crate::device::memory::ledger::{Captured, Capturing};
use crate::error::Result;

/// Work of a stream that can be issued again at once.
///
/// It holds the addresses and parameters of the time of its capture: replayed, it reads and writes the same memory.
/// Device memory that existed at its capture is given back only after the graph is dropped, whenever its buffer is.
#[derive(Debug)]
pub struct Graph {
    handle: Handle,
    memory: Captured,
    /// A graph is replayed by one thread at a time: the driver does not guard it.
    not_sync: PhantomData<Cell<()>>,
}

/// A capture that is undone unless it is ended, even if what is being captured panics.
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
    /// Captures what `work` issues to `stream`, instead of doing it. Kernels that it needs are best found before; found
    /// inside, their code is brought to the device at once all the same.
    ///
    /// # Errors
    /// What `work` answers; then nothing is left of the capture. [`Error::CaptureRefused`] if the stream is being
    /// captured already, or what was issued cannot be captured.
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
    /// [`Error::WrongDevice`](crate::Error::WrongDevice), and what the driver refuses.
    pub fn replay(&self, stream: &Stream) -> Result<()> {
        self.memory.device.expect_same("stream", stream.device())?;
        // SAFETY: graph and stream live and belong to the same device; the memory that the graph uses is kept.
        unsafe { self.memory.device.backend().replay(self.handle, stream.handle()) }
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by this device, destroyed once; the driver lets it finish first. Its memory is let go after
        // this.
        unsafe { self.memory.device.backend().destroy_graph(self.handle) };
    }
}
