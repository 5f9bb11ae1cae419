//! What a module's image says about its kernels: read from the real thing, as nvcc and NVRTC make it.

mod cubin;
mod fatbin;

use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::rules::{Outcome, Rule, refused};

/// `CUDA_ERROR_NO_BINARY_FOR_GPU`.
const NO_BINARY: u32 = 209;
/// `CUDA_ERROR_JIT_COMPILER_NOT_FOUND`: this driver compiles no PTX.
const NO_COMPILER: u32 = 221;

/// One kernel of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct KernelImage {
    pub(crate) registers: u32,
    pub(crate) local_bytes: u32,
    pub(crate) static_shared_bytes: u32,
    /// The largest block that the kernel was compiled for.
    pub(crate) max_threads: u32,
    /// Offset and bytes of each parameter. The first one's offset is not 0 if it is aligned to more than 16 bytes.
    pub(crate) parameters: Vec<(usize, usize)>,
}

/// Machine code for one compute capability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Image {
    pub(crate) capability: (u32, u32),
    pub(crate) kernels: BTreeMap<String, KernelImage>,
}

/// Whether machine code for one compute capability runs on a device of another: the major versions are equal and the
/// minor version is not above the device's.
fn runs_on(code: (u32, u32), device: (u32, u32)) -> bool {
    code.0 == device.0 && code.1 <= device.1
}

/// The image in memory at this address: a fatbin, a cubin or PTX.
///
/// # Safety
/// A whole image must lie there.
pub(crate) unsafe fn read(address: *const u8, device: (u32, u32)) -> Outcome<Image> {
    Rule::Image.expect(!address.is_null() && address.align_offset(8) == 0, || format!("{address:p} is no image."))?;
    // SAFETY: every image has at least four bytes: PTX begins with a directive.
    let magic = unsafe { std::slice::from_raw_parts(address, 4) };
    if magic == cubin::MAGIC {
        // SAFETY: the caller's promise, and it begins like a cubin.
        return of_cubin(unsafe { cubin::whole(address) }?, device);
    }
    if magic == fatbin::MAGIC {
        // SAFETY: the caller's promise, and it begins like a fatbin.
        let entries = fatbin::entries(unsafe { fatbin::whole(address) })?;
        let fits = entries.iter().filter(|entry| entry.is_machine_code && runs_on(entry.capability, device));
        return match fits.max_by_key(|entry| entry.capability) {
            Some(entry) => of_cubin(&entry.code()?, device),
            None if entries.iter().any(|entry| !entry.is_machine_code) => no_compiler(),
            None => no_binary(entries.iter().map(|entry| entry.capability), device),
        };
    }
    if magic.is_ascii() {
        return no_compiler();
    }
    Rule::Image.broken(format!("It begins with {magic:02x?}."))
}

fn no_compiler<T>() -> Outcome<T> {
    refused(NO_COMPILER, "the stand-in driver has no compiler for PTX")
}

fn no_binary<T>(found: impl Iterator<Item = (u32, u32)>, device: (u32, u32)) -> Outcome<T> {
    let found: Vec<String> = found.map(|(major, minor)| format!("{major}.{minor}")).collect();
    refused(NO_BINARY, format!("machine code for {} only, not for {}.{}", found.join(", "), device.0, device.1))
}

fn of_cubin(bytes: &[u8], device: (u32, u32)) -> Outcome<Image> {
    let image = cubin::parse(bytes)?;
    if runs_on(image.capability, device) { Ok(image) } else { no_binary([image.capability].into_iter(), device) }
}

/// The bytes of a part of an image, as they are or decompressed.
type Code<'a> = Cow<'a, [u8]>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_runs_on_later_devices_of_its_major_version() {
        assert!(runs_on((8, 0), (8, 6)) && runs_on((9, 0), (9, 0)));
        assert!(!runs_on((8, 6), (8, 0)) && !runs_on((8, 0), (9, 0)));
    }

    #[test]
    fn what_is_no_image_is_refused() {
        let words = [0x1234_5678_9abc_def1_u64; 8];
        // SAFETY: 64 bytes lie there, of which the magic number is read.
        let refusal = unsafe { read(words.as_ptr().cast(), (9, 0)) }.unwrap_err();
        assert_eq!(refusal.rule, Some(Rule::Image));
        // SAFETY: as above; the misaligned address is not read.
        let refusal = unsafe { read(words.as_ptr().cast::<u8>().add(1), (9, 0)) }.unwrap_err();
        assert_eq!(refusal.rule, Some(Rule::Image));
        // SAFETY: a text of more than four bytes.
        let refusal = unsafe { read(b".version 9.0\n\0\0\0".to_vec().as_ptr().cast(), (9, 0)) };
        assert!(refusal.is_err());
    }
}
