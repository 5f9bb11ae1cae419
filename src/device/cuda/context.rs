//! A device's primary context, which all CUDA libraries of a process share, and making it current for a while.

use sys::CUdevice_attribute as Attribute;

use crate::device::cuda::driver::{self, Driver, Failure, sys};
use crate::device::properties::{DeviceKind, Properties};
use crate::error::{DriverError, Error, Result};

/// A retained primary context. It is never released: kernels, and work on other libraries' streams, may outlive every
/// value of this library, and the process's end releases it.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) driver: &'static Driver,
    raw: sys::CUcontext,
}

// SAFETY: the driver API is thread-safe, and a context may be current in any number of threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

/// While this value lives, the context is current in the calling thread. Dropping it restores the previous context.
pub(super) struct Entered {
    previous: Option<sys::CUcontext>,
}

impl Context {
    pub(super) fn retain(ordinal: usize) -> Result<Self> {
        let (device, driver) = (device(ordinal)?, driver::load()?);
        let mut raw = std::ptr::null_mut();
        // SAFETY: the device comes from the driver, the pointer is to a live handle.
        unsafe { driver::cuDevicePrimaryCtxRetain(&mut raw, device) }?;
        Ok(Self { driver, raw })
    }

    /// Makes the context current until the result is dropped. Other libraries in the same thread, such as PyTorch, rely
    /// on finding their own context again.
    pub(super) fn enter(&self) -> Result<Entered, Failure> {
        let mut current = std::ptr::null_mut();
        // SAFETY: the pointer is to a live handle; the context is retained and never released.
        unsafe {
            driver::cuCtxGetCurrent(&mut current)?;
            if current == self.raw {
                return Ok(Entered { previous: None });
            }
            driver::cuCtxSetCurrent(self.raw)?;
        }
        Ok(Entered { previous: Some(current) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Some(previous) = self.previous {
            // SAFETY: `previous` was current in this thread, or null, when the guard was made. If another library has
            // destroyed it since, the driver refuses, and the current context stays.
            let _ = unsafe { driver::cuCtxSetCurrent(previous) };
        }
    }
}

/// While this value lives, calls that a capture would forbid are allowed: allocating, loading code, waiting and querying.
/// A capture by this thread forbids them, and so does another library's capture in global mode on any thread, which such a
/// call would invalidate. They take effect at once and are not part of the captured graph.
pub(super) struct Relaxed {
    previous: sys::CUstreamCaptureMode,
}

impl Relaxed {
    pub(super) fn new() -> Result<Self, Failure> {
        let mut mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        // SAFETY: the pointer is to a live mode, and the driver has been loaded, since the caller is in a context.
        unsafe { driver::cuThreadExchangeStreamCaptureMode(&mut mode) }?;
        Ok(Self { previous: mode })
    }
}

impl Drop for Relaxed {
    fn drop(&mut self) {
        // SAFETY: as in `new`; the mode is the one that was exchanged there.
        let _ = unsafe { driver::cuThreadExchangeStreamCaptureMode(&mut self.previous) };
    }
}

/// How many devices the driver sees.
pub(in crate::device) fn device_count() -> Result<usize> {
    driver::load()?;
    let mut count = 0;
    // SAFETY: the driver has been loaded, the pointer is to a live integer.
    unsafe { driver::cuDeviceGetCount(&mut count) }?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn device(ordinal: usize) -> Result<sys::CUdevice> {
    let count = match device_count() {
        // Without any GPU, the driver's initialisation fails.
        Err(Error::Driver(DriverError::NoDevice { count, .. })) => count,
        count => count?,
    };
    let missing = Error::Driver(DriverError::NoDevice { ordinal, count });
    if ordinal >= count {
        return Err(missing);
    }
    let mut device = 0;
    // SAFETY: the driver has been loaded, the pointer is to a live integer.
    unsafe { driver::cuDeviceGet(&mut device, i32::try_from(ordinal).map_err(|_| missing)?) }?;
    Ok(device)
}

/// The properties of a device; needs no context.
pub(in crate::device) fn properties(ordinal: usize) -> Result<Properties> {
    let (device, driver) = (device(ordinal)?, driver::load()?);
    let attribute = |attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the device comes from the driver, the pointer is to a live integer.
        unsafe { driver::cuDeviceGetAttribute(&mut value, attribute, device) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut name = [0u8; 256];
    let mut memory_bytes = 0;
    // SAFETY: the device comes from the driver; the buffer is as long as it says, the pointer is to a live integer.
    unsafe {
        driver::cuDeviceGetName(name.as_mut_ptr().cast(), name.len() as i32, device)?;
        driver::cuDeviceTotalMem_v2(&mut memory_bytes, device)?;
    }
    let version = u32::try_from(driver.version).unwrap_or(0);
    Ok(Properties {
        name: String::from_utf8_lossy(name.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned(),
        kind: DeviceKind::Cuda { ordinal, driver_version: (version / 1000, version % 1000 / 10) },
        compute_capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        threads_per_multiprocessor: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR)?,
        shared_bytes_per_multiprocessor: attribute(
            Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR,
        )?,
        shared_bytes_per_block: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2_bytes: attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        memory_bytes,
        clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock_khz: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus_bits: attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
    })
}
