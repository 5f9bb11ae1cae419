//! Graphs: work captured once and replayed as a whole, for less than the cost of issuing it again.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::Arc;

use crate::device::backend::Handle;
use crate::device::launch::order::{Capture, Order};
use crate::device::launch::stream::Stream;
use crate::device::memory::ledger::{Captured, Capturing};
use crate::error::Result;

/// Captured work of a stream that can be issued again as a whole.
///
/// A graph holds the addresses and parameters of its capture, so every replay reads and writes the same memory. Device
/// memory that existed at the capture is freed only after the graph is dropped, even if its buffer is dropped earlier.
///
/// Replays on any streams may use one [`Workspace`](crate::device::Workspace) or
/// [`Optimizer`](crate::device::Optimizer), also in turn with other graphs and with launches: each replay is put in
/// order with the work that used them before.
#[derive(Debug)]
pub struct Graph {
    handle: Handle,
    memory: Captured,
    /// The orders of the memory that the captured launches update atomically.
    orders: Vec<Arc<Order>>,
    /// Only one thread at a time may replay a graph, because the driver does not synchronise replays.
    not_sync: PhantomData<Cell<()>>,
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
        let capture = Capture::begin(stream)?;
        work(stream)?;
        let (captured, orders) = capture.end()?;
        // SAFETY: the stream lives, and the capture has just ended.
        let handle = unsafe { backend.instantiate(captured, stream.handle()) }?;
        Ok(Self { handle, memory: memory.into_captured(), orders, not_sync: PhantomData })
    }

    /// Issues the captured work to a stream of the same device.
    ///
    /// # Errors
    /// [`Error::WrongDevice`](crate::Error::WrongDevice), or an error of the driver.
    pub fn replay(&self, stream: &Stream) -> Result<()> {
        self.memory.device.expect_same("stream", stream.device())?;
        Order::issue_all(&self.orders, stream, || {
            // SAFETY: graph and stream live and belong to the same device; the memory that the graph uses is kept, and
            // work that updates it atomically is put in order.
            unsafe { self.memory.device.backend().replay(self.handle, stream.handle()) }
        })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph was made by this device and is destroyed once; the driver lets it finish first. Its memory
        // is released afterwards.
        unsafe { self.memory.device.backend().destroy_graph(self.handle) };
    }
}
