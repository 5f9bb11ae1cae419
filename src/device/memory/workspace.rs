//! What launches of a layer keep between each other.

use crate::WorkspaceLayout;
use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::device::memory::buffer::DeviceBuffer;
use crate::device::memory::matrix::Extent;
use crate::error::{Error, Result};

/// A ticket counter, T with its flags, partial sums and their arrivals.
///
/// Every launch leaves it ready for the next, of any plan that it has room for. Launches that share one must be ordered: on
/// one stream they are. After a [`KernelFault`](Error::KernelFault) it must be [`reset`](Self::reset).
#[derive(Debug)]
pub struct Workspace {
    words: DeviceBuffer<u64>,
    layout: WorkspaceLayout,
}

impl Workspace {
    /// A workspace with room for plans of this layout: of several plans, their layouts'
    /// [`union`](WorkspaceLayout::union).
    ///
    /// # Errors
    /// As [`DeviceBuffer::zeros`].
    pub fn new(stream: &Stream, layout: WorkspaceLayout) -> Result<Self> {
        Ok(Self { words: DeviceBuffer::zeros(stream, layout.bytes().div_ceil(size_of::<u64>()))?, layout })
    }

    /// A workspace in memory of the caller's, which may have held anything.
    ///
    /// # Errors
    /// [`Error::BufferTooShort`] if it has fewer than the layout's bytes, [`Error::WrongDevice`], or what the driver
    /// refuses.
    pub fn in_buffer(stream: &Stream, words: DeviceBuffer<u64>, layout: WorkspaceLayout) -> Result<Self> {
        let (required, available) = (layout.bytes().div_ceil(size_of::<u64>()), words.len());
        if available < required {
            return Err(Error::BufferTooShort { rows: 1, cols: required, row_stride: required, required, available });
        }
        let mut workspace = Self { words, layout };
        workspace.reset(stream)?;
        Ok(workspace)
    }

    /// Issues what makes it as new.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], or what the driver refuses.
    pub fn reset(&mut self, stream: &Stream) -> Result<()> {
        self.words.as_mut_slice().fill(stream, 0)
    }

    /// That it is on this device, and has room for what is `required`.
    pub(crate) fn expect_serves(&self, device: &Device, required: WorkspaceLayout) -> Result<()> {
        device.expect_same("workspace", self.device())?;
        if self.layout.serves(&required) {
            return Ok(());
        }
        Err(Error::DeviceWorkspaceTooSmall { required, available: self.layout })
    }

    /// What it has room for.
    pub fn layout(&self) -> WorkspaceLayout {
        self.layout
    }

    /// The device that it is on.
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
