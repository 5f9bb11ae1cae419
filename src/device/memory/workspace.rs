//! Device memory that launches of a layer reuse from one launch to the next.

use std::sync::Arc;

use crate::WorkspaceLayout;
use crate::device::Device;
use crate::device::launch::order::Order;
use crate::device::launch::stream::Stream;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::{CHUNK, Extent};
use crate::error::{Error, Result};

/// Device memory for launches: a ticket counter, T with its flags, partial sums and their arrival counters.
///
/// Every launch leaves the workspace ready for the next launch, of any plan that the workspace has room for. Launches
/// on different streams may share a workspace, also as parts of graphs: they are put in order, so they never run at the
/// same time. A launch waits for the launches before it on the device, not on the host. Streams that are meant to run
/// side by side need a workspace each. After a [fault](crate::LaunchError::Fault), call [`reset`](Self::reset).
#[derive(Debug)]
pub struct Workspace {
    words: DeviceBuffer<u64>,
    layout: WorkspaceLayout,
    order: Arc<Order>,
}

impl Workspace {
    /// A workspace with room for plans of this layout. For several plans, pass the [`union`](WorkspaceLayout::union) of
    /// their layouts.
    ///
    /// # Errors
    /// As [`DeviceBuffer::zeros`]; [`Error::CaptureRefused`] inside a capture.
    pub fn new(stream: &Stream, layout: WorkspaceLayout) -> Result<Self> {
        refuse_in_capture(stream)?;
        let order = Arc::<Order>::default();
        let words = order.issue(stream, || DeviceBuffer::zeros(stream, layout.bytes().div_ceil(size_of::<u64>())))?;
        Ok(Self { words, layout, order })
    }

    /// A workspace in the caller's memory, whatever its contents.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if the memory is smaller than the layout, [`Error::Misaligned`] if its address is not a
    /// multiple of 16, [`Error::WrongDevice`], [`Error::CaptureRefused`] inside a capture, or an error of the driver.
    ///
    /// # Safety
    /// From now on, nothing but this workspace may write the memory: no unfinished work on any stream, and no replay of a
    /// graph that was captured with it. A kernel that finds another number in its ticket counter waits for ever or
    /// writes out of bounds.
    pub unsafe fn in_buffer(stream: &Stream, words: DeviceBuffer<u64>, layout: WorkspaceLayout) -> Result<Self> {
        let (required, available) = (layout.bytes().div_ceil(size_of::<u64>()), words.len());
        if available < required {
            return Err(Error::BufferTooShort { rows: 1, cols: required, row_stride: required, required, available });
        }
        Extent::of_slice(&words.as_slice()).expect_aligned("the workspace", CHUNK)?;
        refuse_in_capture(stream)?;
        let mut workspace = Self { words, layout, order: Arc::default() };
        workspace.reset(stream)?;
        Ok(workspace)
    }

    /// Issues a fill that resets the workspace to its initial state.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], or an error of the driver.
    pub fn reset(&mut self, stream: &Stream) -> Result<()> {
        self.device().expect_same("stream", stream.device())?;
        let order = Arc::clone(&self.order);
        order.issue(stream, || self.words.as_mut_slice().fill(stream, 0))
    }

    /// Issues launches that use the workspace to a stream of its device, after all work that used it before.
    pub(crate) fn issue(&self, stream: &Stream, launches: impl FnOnce() -> Result<()>) -> Result<()> {
        self.order.issue(stream, launches)
    }

    /// Checks that the workspace is on this device and has room for `required`.
    pub(crate) fn expect_serves(&self, device: &Device, required: WorkspaceLayout) -> Result<()> {
        device.expect_same("workspace", self.device())?;
        if self.layout.serves(&required) {
            return Ok(());
        }
        Err(Error::DeviceWorkspaceTooSmall { required, available: self.layout })
    }

    /// The layout that the workspace has room for.
    pub fn layout(&self) -> WorkspaceLayout {
        self.layout
    }

    /// The device that the workspace is on.
    pub fn device(&self) -> &Device {
        self.words.device()
    }

    pub(crate) fn extent(&self) -> Extent {
        Extent::of_slice(&self.words.as_slice())
    }

    pub(crate) fn address(&self) -> u64 {
        self.words.address()
    }
}

/// The words of a workspace must be zeros before the first launch, also before one that does not belong to the graph.
fn refuse_in_capture(stream: &Stream) -> Result<()> {
    if stream.is_capturing()? {
        let reason = "a workspace must be zeroed before its first launch, not when a graph is replayed".to_owned();
        return Err(Error::CaptureRefused { operation: "making a workspace", reason });
    }
    Ok(())
}
