//! Device memory that launches of a layer reuse from one launch to the next.

use crate::WorkspaceLayout;
use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::Extent;
use crate::error::{Error, Result};

/// Device memory for launches: a ticket counter, T with its flags, partial sums and their arrival counters.
///
/// Every launch leaves the workspace ready for the next launch, of any plan that the workspace has room for. Launches
/// that share a workspace must be ordered, as they are on one stream. After a [fault](crate::LaunchError::Fault), call
/// [`reset`](Self::reset).
#[derive(Debug)]
pub struct Workspace {
    words: DeviceBuffer<u64>,
    layout: WorkspaceLayout,
}

impl Workspace {
    /// A workspace with room for plans of this layout. For several plans, pass the [`union`](WorkspaceLayout::union) of
    /// their layouts.
    ///
    /// # Errors
    /// As [`DeviceBuffer::zeros`].
    pub fn new(stream: &Stream, layout: WorkspaceLayout) -> Result<Self> {
        Ok(Self { words: DeviceBuffer::zeros(stream, layout.bytes().div_ceil(size_of::<u64>()))?, layout })
    }

    /// A workspace in the caller's memory, whatever its contents.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if the memory is smaller than the layout, [`Error::WrongDevice`], or an error of the
    /// driver.
    pub fn in_buffer(stream: &Stream, words: DeviceBuffer<u64>, layout: WorkspaceLayout) -> Result<Self> {
        let (required, available) = (layout.bytes().div_ceil(size_of::<u64>()), words.len());
        if available < required {
            return Err(Error::BufferTooShort { rows: 1, cols: required, row_stride: required, required, available });
        }
        let mut workspace = Self { words, layout };
        workspace.reset(stream)?;
        Ok(workspace)
    }

    /// Issues a fill that resets the workspace to its initial state.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], or an error of the driver.
    pub fn reset(&mut self, stream: &Stream) -> Result<()> {
        self.words.as_mut_slice().fill(stream, 0)
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
