//! Modules, functions and their attributes.

use std::ffi::{CStr, c_char, c_void};

use crate::entry::{driver_functions, put};
use crate::image;
use crate::limits;
use crate::rules::{Outcome, Rule, refused};
use crate::state::{Function, State, in_context};

/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID_VALUE: u32 = 1;

/// `CUfunction_attribute`, those that this driver knows.
mod attribute {
    pub(super) const MAX_THREADS: u32 = 0;
    pub(super) const SHARED_BYTES: u32 = 1;
    pub(super) const LOCAL_BYTES: u32 = 3;
    pub(super) const REGISTERS: u32 = 4;
    pub(super) const PTX_VERSION: u32 = 5;
    pub(super) const BINARY_VERSION: u32 = 6;
    pub(super) const MAX_DYNAMIC_SHARED_BYTES: u32 = 8;
}

/// Compiles the function's source for the emulator, and expects its parameters to be those of the image.
pub(crate) fn load(state: &mut State, function: usize, device: usize) -> Outcome<Function> {
    let function = state.functions.get(function, device)?.clone();
    let kernel = match state.device(device).machine.kernel(&function.name) {
        Ok(kernel) => kernel,
        Err(error) => return refused(999, error.to_string()),
    };
    let of_image: Vec<usize> = function.image.parameters.iter().map(|(_, bytes)| *bytes).collect();
    let of_source = kernel.params_bytes;
    Rule::SameSources.expect(of_image == [of_source], || {
        format!("{} takes {of_image:?} bytes in the image and {of_source} in the source.", function.name)
    })?;
    Ok(function)
}

driver_functions! {
    /// Loads an image.
    fn cuModuleLoadData(module: *mut usize, image: *const c_void) {
        in_context(|state, device| {
            state.captures.expect_safe()?;
            let capability = state.options.capability;
            // SAFETY: the caller's promise that a whole image lies there.
            let image = unsafe { image::read(image.cast(), capability) }?;
            let handle = state.new_module(device, image);
            // SAFETY: the caller's promise.
            unsafe { put(module, handle) }
        })
    }

    /// Finds a kernel of a module.
    fn cuModuleGetFunction(function: *mut usize, module: usize, name: *const c_char) {
        in_context(|state, device| {
            Rule::ResultPointer.expect(!name.is_null(), || "The name is.".into())?;
            // SAFETY: the caller's promise that the name ends with a zero byte.
            let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
            let handle = state.new_function(device, module, &name)?;
            // SAFETY: the caller's promise.
            unsafe { put(function, handle) }
        })
    }

    /// Loads a function's code onto the device.
    fn cuFuncLoad(function: usize) {
        in_context(|state, device| {
            state.functions.get(function, device)?;
            state.captures.expect_safe()?;
            load(state, function, device).map(drop)
        })
    }

    /// An attribute of a function.
    fn cuFuncGetAttribute(value: *mut i32, attribute: u32, function: usize) {
        in_context(|state, device| {
            let Function { image, capability: (major, minor), max_dynamic_shared, .. } =
                state.functions.get(function, device)?;
            let found = match attribute {
                attribute::MAX_THREADS => image.max_threads,
                attribute::SHARED_BYTES => image.static_shared_bytes,
                attribute::LOCAL_BYTES => image.local_bytes,
                attribute::REGISTERS => image.registers,
                attribute::PTX_VERSION | attribute::BINARY_VERSION => 10 * *major + *minor,
                attribute::MAX_DYNAMIC_SHARED_BYTES => *max_dynamic_shared,
                _ => return Rule::KnownAttribute.broken(format!("Attribute {attribute} of a function.")),
            };
            // SAFETY: the caller's promise.
            unsafe { put(value, found as i32) }
        })
    }

    /// Sets how much dynamic shared memory a launch may ask for.
    fn cuFuncSetAttribute(function: usize, attribute: u32, value: i32) {
        in_context(|state, device| {
            let limit = limits::of(state.options.capability).shared_bytes_per_block;
            let function = state.functions.get(function, device)?;
            let known = attribute == attribute::MAX_DYNAMIC_SHARED_BYTES;
            Rule::KnownAttribute.expect(known, || format!("Attribute {attribute} of a function is set."))?;
            let room = limit.saturating_sub(function.image.static_shared_bytes);
            let fits = u32::try_from(value).is_ok_and(|value| value <= room);
            Rule::FunctionLimit.expect(fits, || format!("{value} bytes, and {room} are left."))?;
            function.max_dynamic_shared = value as u32;
            Ok(())
        })
    }

    /// Offset and size of a parameter. Asking for one more than there are is how their number is found.
    fn cuFuncGetParamInfo(function: usize, index: usize, offset: *mut usize, bytes: *mut usize) {
        in_context(|state, device| {
            let parameters = state.functions.get(function, device)?.image.parameters.clone();
            let Some(&(at, size)) = parameters.get(index) else {
                return refused(INVALID_VALUE, format!("the function has {} parameters", parameters.len()));
            };
            // SAFETY: the caller's promise.
            unsafe {
                put(offset, at)?;
                if bytes.is_null() { Ok(()) } else { put(bytes, size) }
            }
        })
    }
}
