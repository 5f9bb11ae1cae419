//! Views of device memory: device, address and number of elements.

use std::marker::PhantomData;
use std::ops::Range;

use bytemuck::Pod;

use crate::device::Device;
use crate::device::launch::stream::Stream;
use crate::error::{Error, Result};

/// What both kinds of views say about their memory.
macro_rules! slice_accessors {
    ($lifetime:lifetime) => {
        /// Number of elements.
        pub fn len(&self) -> usize {
            self.len
        }

        /// Whether there are no elements.
        pub fn is_empty(&self) -> bool {
            self.len == 0
        }

        /// The device that the memory is on.
        pub fn device(&self) -> &$lifetime Device {
            self.device
        }

        /// The first element's address, a `CUdeviceptr`.
        pub fn address(&self) -> u64 {
            self.address
        }
    };
}

/// A read-only view of elements in device memory.
#[derive(Debug)]
pub struct DeviceSlice<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    elements: PhantomData<&'a T>,
}

// `derive` would require `T: Clone`, which a view does not need.
impl<T> Clone for DeviceSlice<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceSlice<'_, T> {}

impl<'a, T: Pod> DeviceSlice<'a, T> {
    /// Memory of another library, `len` elements from `address` on.
    ///
    /// # Safety
    /// The elements must be in one allocation on this device that outlives the view and all work issued with it, and
    /// nothing may write them meanwhile.
    pub unsafe fn from_raw(device: &'a Device, address: u64, len: usize) -> Self {
        Self { device, address, len, elements: PhantomData }
    }

    slice_accessors!('a);

    /// The elements of `range`. Panics if `range` is out of bounds.
    pub fn slice(&self, range: Range<usize>) -> DeviceSlice<'a, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        DeviceSlice { address, len, ..*self }
    }

    /// Copies the elements to the host; returns when the copy is done.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::WrongDevice`], [`Error::CaptureRefused`] inside a capture, or an error of
    /// the driver.
    pub fn download(&self, stream: &Stream, to: &mut [T]) -> Result<()> {
        expect_len("the host's slice", self.len, to.len())?;
        self.device.expect_same("stream", stream.device())?;
        stream.refuse_in_capture("copying to the host")?;
        if to.is_empty() {
            return Ok(());
        }
        // SAFETY: the view's memory is this device's and as long as it says; the stream is the same device's.
        unsafe { self.device.backend().download(stream.handle(), self.address, bytemuck::cast_slice_mut(to)) }
    }

    /// [`download`](Self::download) into a new vector.
    ///
    /// # Errors
    /// As [`download`](Self::download).
    pub fn to_vec(&self, stream: &Stream) -> Result<Vec<T>> {
        let mut host = vec![T::zeroed(); self.len];
        self.download(stream, &mut host)?;
        Ok(host)
    }
}

/// A writable view of elements in device memory.
#[derive(Debug)]
pub struct DeviceSliceMut<'a, T> {
    device: &'a Device,
    address: u64,
    len: usize,
    elements: PhantomData<&'a mut T>,
}

impl<'a, T: Pod> DeviceSliceMut<'a, T> {
    /// Memory of another library, `len` elements from `address` on.
    ///
    /// # Safety
    /// The elements must be in one allocation on this device that outlives the view and all work issued with it, and
    /// nothing else may use them meanwhile.
    pub unsafe fn from_raw(device: &'a Device, address: u64, len: usize) -> Self {
        Self { device, address, len, elements: PhantomData }
    }

    slice_accessors!('a);

    /// The same elements, read-only.
    pub fn as_ref(&self) -> DeviceSlice<'_, T> {
        DeviceSlice { device: self.device, address: self.address, len: self.len, elements: PhantomData }
    }

    /// The elements of `range`. Panics if `range` is out of bounds.
    pub fn slice_mut(&mut self, range: Range<usize>) -> DeviceSliceMut<'_, T> {
        let (address, len) = part::<T>(self.address, self.len, range);
        DeviceSliceMut { device: self.device, address, len, elements: PhantomData }
    }

    /// The elements before `at`, and those from `at` on. Panics if `at` is beyond the end.
    pub fn split_at(self, at: usize) -> (DeviceSliceMut<'a, T>, DeviceSliceMut<'a, T>) {
        let half = |range| {
            let (address, len) = part::<T>(self.address, self.len, range);
            DeviceSliceMut { device: self.device, address, len, elements: PhantomData }
        };
        (half(0..at), half(at..self.len))
    }

    /// Copies the elements from the host; returns when the copy is done.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::WrongDevice`], [`Error::CaptureRefused`] inside a capture, or an error of
    /// the driver.
    pub fn upload(&mut self, stream: &Stream, from: &[T]) -> Result<()> {
        expect_len("the host's slice", self.len, from.len())?;
        self.device.expect_same("stream", stream.device())?;
        stream.refuse_in_capture("copying from the host")?;
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the view's memory is this device's and as long as it says; the stream is the same device's.
        unsafe { self.device.backend().upload(stream.handle(), bytemuck::cast_slice(from), self.address) }
    }

    /// Issues a copy from elsewhere on the device.
    ///
    /// # Errors
    /// [`Error::LengthMismatch`], [`Error::WrongDevice`], [`Error::Overlap`], or an error of the driver.
    pub fn copy_from(&mut self, stream: &Stream, from: DeviceSlice<'_, T>) -> Result<()> {
        expect_len("the copy's source", self.len, from.len)?;
        self.device.expect_same("stream", stream.device())?;
        self.device.expect_same("the copy's source", from.device)?;
        let bytes = size_of::<T>() * self.len;
        if bytes == 0 {
            return Ok(());
        }
        if self.address.abs_diff(from.address) < bytes as u64 {
            return Err(Error::Overlap { output: "the copy's destination", other: "its source" });
        }
        // SAFETY: both ranges are this device's and as long as they say; the stream is the same device's.
        unsafe { self.device.backend().copy(stream.handle(), from.address, self.address, bytes) }
    }

    /// Issues a fill with one byte: 0 gives zeros, 0xff gives NaN in every floating-point type.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], or an error of the driver.
    pub fn fill(&mut self, stream: &Stream, byte: u8) -> Result<()> {
        self.device.expect_same("stream", stream.device())?;
        let bytes = size_of::<T>() * self.len;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the view's memory is this device's and as long as it says; the stream is the same device's.
        unsafe { self.device.backend().fill(stream.handle(), self.address, byte, bytes) }
    }
}

fn part<T>(address: u64, len: usize, range: Range<usize>) -> (u64, usize) {
    assert!(range.start <= range.end && range.end <= len, "elements {range:?} of {len}");
    (address + (range.start * size_of::<T>()) as u64, range.len())
}

fn expect_len(operand: &'static str, expected: usize, actual: usize) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(Error::LengthMismatch { operand, expected, actual }) }
}
