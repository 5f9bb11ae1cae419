//! The driver itself, devices, and contexts.

use std::ffi::c_char;

use crate::entry::{driver_functions, put};
use crate::limits;
use crate::rules::{Outcome, Rule, refused};
use crate::state::{self, State, initialised};

/// The version that this driver reports: 1000 · major + 10 · minor.
const VERSION: i32 = 13_000;

fn expect_device(state: &State, device: i32) -> Outcome<usize> {
    let found = usize::try_from(device).ok().filter(|&device| device < state.options.devices);
    found.map_or_else(|| Rule::Ordinal.broken(format!("{device} is no device.")), Ok)
}

driver_functions! {
    /// Initialises the driver.
    fn cuInit(flags: u32) {
        /// `CUDA_ERROR_NO_DEVICE`.
        const NO_DEVICE: u32 = 100;
        Rule::NoInitFlags.expect(flags == 0, || format!("The flags are {flags:#x}."))?;
        let mut state = state::lock();
        if state.options.devices == 0 {
            return refused(NO_DEVICE, "there is no device");
        }
        state.is_initialised = true;
        Ok(())
    }

    /// The newest CUDA that this driver claims to support.
    fn cuDriverGetVersion(version: *mut i32) {
        // SAFETY: the caller's promise.
        unsafe { put(version, VERSION) }
    }

    /// How many devices there are.
    fn cuDeviceGetCount(count: *mut i32) {
        // SAFETY: the caller's promise.
        initialised(|state| unsafe { put(count, state.options.devices as i32) })
    }

    /// The device of this number.
    fn cuDeviceGet(device: *mut i32, ordinal: i32) {
        initialised(|state| {
            expect_device(state, ordinal)?;
            // SAFETY: the caller's promise.
            unsafe { put(device, ordinal) }
        })
    }

    /// The device's name, truncated to `len` bytes with the final zero.
    fn cuDeviceGetName(name: *mut c_char, len: i32, device: i32) {
        initialised(|state| {
            expect_device(state, device)?;
            let (major, minor) = state.options.capability;
            let text = format!("{} {major}.{minor}", limits::NAME);
            Rule::ResultPointer.expect(!name.is_null() && len > 0, || format!("{len} bytes at {name:p} are no text."))?;
            let len = text.len().min(len as usize - 1);
            // SAFETY: the caller's promise that there are `len` bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(text.as_ptr(), name.cast(), len);
                name.add(len).write(0);
            }
            Ok(())
        })
    }

    /// An attribute of the device.
    fn cuDeviceGetAttribute(value: *mut i32, attribute: u32, device: i32) {
        initialised(|state| {
            expect_device(state, device)?;
            let found = limits::attribute(attribute, &state.options);
            let Some(found) = found else { return Rule::KnownAttribute.broken(format!("Attribute {attribute}.")) };
            // SAFETY: the caller's promise.
            unsafe { put(value, found) }
        })
    }

    /// Bytes of the device's memory.
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: i32) {
        initialised(|state| {
            expect_device(state, device)?;
            // SAFETY: the caller's promise.
            unsafe { put(bytes, state.options.memory) }
        })
    }

    /// The device's primary context, which is made at the first call and never destroyed.
    fn cuDevicePrimaryCtxRetain(context: *mut usize, device: i32) {
        initialised(|state| {
            let device = expect_device(state, device)?;
            let handle = state.retain(device)?;
            // SAFETY: the caller's promise.
            unsafe { put(context, handle) }
        })
    }

    /// The calling thread's context; null if there is none.
    fn cuCtxGetCurrent(context: *mut usize) {
        // SAFETY: the caller's promise.
        initialised(|_| unsafe { put(context, state::current()) })
    }

    /// Makes a context current in the calling thread; null for none.
    fn cuCtxSetCurrent(context: usize) {
        initialised(|state| {
            if context != 0 {
                state.device_of(context)?;
            }
            state::set_current(context);
            Ok(())
        })
    }
}
