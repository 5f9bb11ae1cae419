//! Loading kernels from built-in machine code, or from NVRTC's if that does not fit, and reading their attributes.

use std::ffi::{CStr, CString};

use sys::CUfunction_attribute as Attribute;

use crate::device::backend::{Handle, LoadedKernel};
use crate::device::cuda::driver::{self, Driver, Failure, sys};
use crate::device::image::Source;
use crate::device::image::nvrtc;
use crate::device::properties::KernelAttributes;
use crate::error::{Error, KernelError, Result};

/// `CUDA_ERROR_NOT_FOUND`.
const NOT_FOUND: u32 = 500;

/// Whether the driver may still accept another image after this failure: it found no code for its device, code that it
/// is too old for, or PTX that it cannot compile (`INVALID_IMAGE`, `NO_BINARY_FOR_GPU`, `INVALID_PTX`,
/// `JIT_COMPILER_NOT_FOUND`, `UNSUPPORTED_PTX_VERSION`, `JIT_COMPILATION_DISABLED`).
fn does_not_fit(failure: Failure) -> bool {
    matches!(failure.code(), 200 | 209 | 218 | 221..=223)
}

/// Loads a source file's kernels. A context must be current.
pub(super) fn load(driver: &Driver, source: &Source, kernel: &str, capability: (u32, u32)) -> Result<sys::CUmodule> {
    if let Some(code) = source.machine_code()? {
        let name = CString::new(kernel).map_err(|_| missing(kernel))?;
        // With lazy loading the driver looks at an image's code, or compiles its PTX, only when a function is loaded.
        // SAFETY: the caller's context is current, and the module was just loaded.
        let usable = |module| unsafe { function(driver, module, &name) }.map(|_| module);
        match load_image(&code).and_then(usable) {
            Err(failure) if does_not_fit(failure) => {}
            Err(failure) if failure.code() == NOT_FOUND => return Err(missing(kernel)),
            loaded => return Ok(loaded?),
        }
    }
    Ok(load_image(&nvrtc::image(source, kernel, capability)?)?)
}

fn load_image(image: &[u8]) -> Result<sys::CUmodule, Failure> {
    // The driver reads structs from the image, but built-in images and files have the alignment of bytes, so the image
    // is copied. Zero bytes at the end do no harm: PTX ends with one anyway.
    let mut words = vec![0u64; image.len() / 8 + 1];
    bytemuck::cast_slice_mut(&mut words)[..image.len()].copy_from_slice(image);
    let mut module = std::ptr::null_mut();
    // SAFETY: a cubin, fatbin or PTX that a compiler made, whole and aligned; the driver copies what it keeps. The
    // other pointer is to a live handle.
    unsafe { driver::cuModuleLoadData(&mut module, words.as_ptr().cast()) }?;
    Ok(module)
}

fn missing(kernel: &str) -> Error {
    Error::Kernel(KernelError::NoSuchKernel { kernel: kernel.to_owned() })
}

/// A module's function, with its code loaded onto the device.
///
/// # Safety
/// The module's context must be current, and the module must never be unloaded.
unsafe fn function(driver: &Driver, module: sys::CUmodule, name: &CStr) -> Result<sys::CUfunction, Failure> {
    let mut function = std::ptr::null_mut();
    // SAFETY: the caller's promise; the name ends with a zero byte, the pointer is to a live handle.
    unsafe { driver::cuModuleGetFunction(&mut function, module, name.as_ptr()) }?;
    // SAFETY: the function was found above.
    unsafe { driver.load_function(function) }?;
    Ok(function)
}

/// Finds a kernel, loads its code onto the device, and allows it all of a block's shared memory.
///
/// # Safety
/// The module's context must be current, and the module must never be unloaded.
pub(super) unsafe fn find(
    driver: &Driver,
    module: sys::CUmodule,
    name: &str,
    shared_bytes: u32,
) -> Result<LoadedKernel> {
    let c_name = CString::new(name).map_err(|_| missing(name))?;
    // SAFETY: the caller's promise.
    let function = match unsafe { function(driver, module, &c_name) } {
        Err(failure) if failure.code() == NOT_FOUND => return Err(missing(name)),
        found => found?,
    };
    let attribute = |attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the function was found above, the pointer is to a live integer.
        unsafe { driver::cuFuncGetAttribute(&mut value, attribute, function) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let static_shared_bytes = attribute(Attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    let max_dynamic_shared_bytes = shared_bytes.saturating_sub(static_shared_bytes);
    // The limit is raised once, here, so that launches can use more than 48 KiB without another call.
    // SAFETY: the function was found above.
    unsafe {
        let attribute = Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        driver::cuFuncSetAttribute(function, attribute, max_dynamic_shared_bytes.cast_signed())?;
    }
    let [binary, ptx] = [Attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION, Attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION];
    let compiled_for = attribute(binary)?.min(attribute(ptx)?);
    let attributes = KernelAttributes {
        max_threads: attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?,
        registers: attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?,
        local_bytes: attribute(Attribute::CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES)?,
        static_shared_bytes,
        max_dynamic_shared_bytes,
        // SAFETY: the function was found above.
        params_bytes: unsafe { driver.params_size(function) },
        compiled_for: (compiled_for / 10, compiled_for % 10),
    };
    Ok(LoadedKernel { handle: Handle(function as usize), attributes })
}
