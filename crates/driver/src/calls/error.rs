//! The names and texts of errors, and what tests say to this driver.

use std::ffi::{CStr, c_char, c_void};

use crate::{entry, state};

/// `CUDA_ERROR_INVALID_VALUE`.
const INVALID_VALUE: u32 = 1;

/// Writes the name of an error.
///
/// # Safety
/// `text` is null or to a pointer that may be written.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorName(code: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { give(entry::name_of(code), text) }
}

/// Writes what was wrong with the calling thread's last call that returned this error; otherwise the error's name.
///
/// # Safety
/// As `cuGetErrorName`.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetErrorString(code: u32, text: *mut *const c_char) -> u32 {
    // SAFETY: the caller's promise.
    unsafe { give(entry::text_of(code), text) }
}

/// # Safety
/// As `cuGetErrorName`.
unsafe fn give(found: Option<*const c_char>, text: *mut *const c_char) -> u32 {
    if text.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise, and not null.
    unsafe { text.write(found.unwrap_or(std::ptr::null())) };
    if found.is_some() { 0 } else { INVALID_VALUE }
}

/// A table of functions that are not documented, of which this driver has none. NVRTC asks for one, if there is a driver, and
/// would call a function that is missing.
///
/// # Safety
/// `table` is null or to a pointer that may be written.
#[unsafe(no_mangle)]
#[allow(non_snake_case)]
pub unsafe extern "C" fn cuGetExportTable(table: *mut *const c_void, _id: *const c_void) -> u32 {
    /// `CUDA_ERROR_NOT_FOUND`.
    const NOT_FOUND: u32 = 500;
    if !table.is_null() {
        // SAFETY: the caller's promise, and not null.
        unsafe { table.write(std::ptr::null()) };
    }
    NOT_FOUND
}

/// Changes the options that a text names (see `options.rs`) and replaces all alterations of calls. Returns 0, or 1 if a
/// word is no option.
///
/// # Safety
/// `text` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fused_lora_driver_set(text: *const c_char) -> u32 {
    state::read_environment();
    // SAFETY: the caller's promise.
    let text = unsafe { CStr::from_ptr(text) }.to_string_lossy();
    match state::set_options(&text) {
        Ok(()) => 0,
        Err(wrong) => {
            eprintln!("stand-in driver: {wrong}");
            INVALID_VALUE
        }
    }
}

/// The number of calls in this process that have broken a rule.
#[unsafe(no_mangle)]
pub extern "C" fn fused_lora_driver_violations() -> u64 {
    entry::violations()
}
