//! Buffers: owned device memory.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::device::memory::ledger::{Allocation, KeepAlive};
use crate::device::memory::slice::{DeviceSlice, DeviceSliceMut};
use crate::error::{DriverError, Error, Result};

/// An owned array in device memory. It may be dropped while work uses it: the memory is freed afterwards.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    storage: Storage,
    len: usize,
    elements: PhantomData<T>,
}

#[derive(Debug)]
enum Storage {
    Owned(Allocation),
    Foreign { device: Device, address: u64 },
}

impl<T: Pod> DeviceBuffer<T> {
    /// `len` elements whose bytes are all zero. Inside a capture, the memory is allocated at once, but zeroed when the
    /// graph is replayed.
    ///
    /// # Errors
    /// [`DriverError::OutOfMemory`], or an error of the driver.
    pub fn zeros(stream: &Stream, len: usize) -> Result<Self> {
        let mut buffer = Self::allocate(stream.device(), len)?;
        buffer.as_mut_slice().fill(stream, 0)?;
        Ok(buffer)
    }

    /// A copy of a slice; returns when the copy is done.
    ///
    /// # Errors
    /// As [`zeros`](Self::zeros); [`Error::CaptureRefused`] inside a capture.
    pub fn from_slice(stream: &Stream, from: &[T]) -> Result<Self> {
        let mut buffer = Self::allocate(stream.device(), from.len())?;
        buffer.upload(stream, from)?;
        Ok(buffer)
    }

    fn allocate(device: &Device, len: usize) -> Result<Self> {
        let bytes =
            len.checked_mul(size_of::<T>()).ok_or(Error::Driver(DriverError::OutOfMemory { bytes: usize::MAX }))?;
        Ok(Self { storage: Storage::Owned(Allocation::new(device, bytes)?), len, elements: PhantomData })
    }

    /// Keeps `kept` alive as long as this memory may be read, also by graphs, because the memory points to it. Returns
    /// the object that was kept before.
    pub(crate) fn keep(&mut self, kept: KeepAlive) -> Option<KeepAlive> {
        match &mut self.storage {
            Storage::Owned(allocation) => allocation.kept.replace(kept),
            Storage::Foreign { .. } => unreachable!("memory of others lives as long as they say"),
        }
    }

    /// Memory of another library, which stays its owner: dropping the buffer frees nothing.
    ///
    /// # Safety
    /// The `len` elements from `address` on must be in one allocation on this device that outlives the buffer, all work
    /// issued with it, and every graph that captured such work. Nothing else may use them meanwhile.
    pub unsafe fn from_raw(device: &Device, address: u64, len: usize) -> Self {
        Self { storage: Storage::Foreign { device: device.clone(), address }, len, elements: PhantomData }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The device that the memory is on.
    pub fn device(&self) -> &Device {
        match &self.storage {
            Storage::Owned(Allocation { device, .. }) | Storage::Foreign { device, .. } => device,
        }
    }

    /// The first element's address, a `CUdeviceptr`; 0 if there are no elements. Owned memory is aligned to 256 bytes.
    pub fn address(&self) -> u64 {
        match &self.storage {
            Storage::Owned(Allocation { address, .. }) | Storage::Foreign { address, .. } => *address,
        }
    }

    /// All elements.
    pub fn as_slice(&self) -> DeviceSlice<'_, T> {
        // SAFETY: the buffer owns these elements, or `from_raw`'s caller vouched for them, and the buffer is borrowed.
        unsafe { DeviceSlice::from_raw(self.device(), self.address(), self.len) }
    }

    /// All elements, writable.
    pub fn as_mut_slice(&mut self) -> DeviceSliceMut<'_, T> {
        // SAFETY: as in `as_slice`, and the buffer is borrowed mutably for this view.
        unsafe { DeviceSliceMut::from_raw(self.device(), self.address(), self.len) }
    }

    /// The elements of `range`. Panics if `range` is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'_, T> {
        self.as_slice().slice(range)
    }

    /// Copies from the host to the whole buffer; returns when the copy is done.
    ///
    /// # Errors
    /// As [`DeviceSliceMut::upload`].
    pub fn upload(&mut self, stream: &Stream, from: &[T]) -> Result<()> {
        self.as_mut_slice().upload(stream, from)
    }

    /// Copies all elements to a new vector; returns when the copy is done.
    ///
    /// # Errors
    /// As [`DeviceSlice::download`].
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        self.as_slice().to_vec(stream)
    }
}
