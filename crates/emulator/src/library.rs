//! The compiled libraries, each loaded once and kept until the process ends.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::Library;

use crate::compiler::Compiler;
use crate::config::{Build, Counters, RawConfig};
use crate::error::Error;
use crate::kernels::Kernels;
use crate::machine::AccessedRange;

/// A kernel that can be launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KernelInfo {
    /// The kernel's name.
    pub name: String,
    /// Bytes of the kernel's parameter struct.
    pub params_bytes: usize,
    /// The largest number of threads of a CTA.
    pub max_threads: u32,
    /// The kernel's index in the machine's table.
    pub(crate) index: u32,
}

/// `emu::Machine` on the C++ side.
#[repr(C)]
pub(crate) struct RawMachine {
    private: [u8; 0],
}

#[repr(C)]
pub(crate) struct RawKernel {
    name: *const c_char,
    params_bytes: u32,
    max_threads: u32,
}

#[repr(C)]
pub(crate) struct RawLaunch {
    pub(crate) kernel: u32,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) shared_bytes: u32,
    pub(crate) cluster: u32,
    pub(crate) params_bytes: u32,
    pub(crate) params: *const c_void,
}

type LaunchFn = unsafe extern "C" fn(
    *mut RawMachine,
    *const RawLaunch,
    *const RawConfig,
    *mut Counters,
    *mut c_char,
    usize,
) -> c_int;

type EncodeTensorMapFn = unsafe extern "C" fn(
    *mut c_void,
    u32,
    u32,
    u64,
    *const u64,
    *const u64,
    *const u32,
    u32,
    *mut c_char,
    usize,
) -> c_int;

/// The C functions of one build's machine (`capi.cpp`).
pub(crate) struct MachineApi {
    pub(crate) create: unsafe extern "C" fn() -> *mut RawMachine,
    pub(crate) destroy: unsafe extern "C" fn(*mut RawMachine),
    pub(crate) allocate: unsafe extern "C" fn(*mut RawMachine, usize) -> *mut c_char,
    pub(crate) release: unsafe extern "C" fn(*mut RawMachine, *mut c_void) -> c_int,
    pub(crate) accessible: unsafe extern "C" fn(*const RawMachine, *const c_void, usize) -> c_int,
    kernel_count: unsafe extern "C" fn() -> u32,
    kernel: unsafe extern "C" fn(u32) -> RawKernel,
    library_of: unsafe extern "C" fn(u32) -> *const c_char,
    site: unsafe extern "C" fn(u32, *mut c_char, usize) -> u64,
    pub(crate) launch: LaunchFn,
    pub(crate) accessed: unsafe extern "C" fn(*const RawMachine, u32, *mut AccessedRange, usize) -> usize,
    pub(crate) encode_tensor_map: EncodeTensorMapFn,
    build: Build,
    /// The kernels of each library that was loaded.
    loaded: Mutex<HashMap<PathBuf, Vec<KernelInfo>>>,
}

fn load_error(error: &libloading::Error) -> Error {
    // The dynamic loader's message is the source of the error.
    let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
    Error::Load { reason: format!("{error}{cause}") }
}

impl MachineApi {
    /// The machine of `build`, compiled if need be and loaded at the first call.
    pub(crate) fn of(build: Build) -> Result<&'static Self, Error> {
        static LOADED: [OnceLock<Result<MachineApi, Error>>; 3] = [const { OnceLock::new() }; 3];
        LOADED[build as usize].get_or_init(|| Self::load(build)).as_ref().map_err(Clone::clone)
    }

    fn load(build: Build) -> Result<Self, Error> {
        let compiler = Compiler::get()?;
        if build == Build::Sanitize && !std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("asan")) {
            let preload = compiler.sanitizer_preload().unwrap_or_default();
            return Err(Error::SanitizerNotPreloaded { preload: preload.to_string_lossy().into_owned() });
        }
        let library = open(&compiler.machine(build)?)?;
        macro_rules! entry {
            ($name:literal) => {
                // SAFETY: the types are those of capi.cpp.
                *unsafe { library.get(concat!("fused_lora_emulator_", $name, "\0").as_bytes()) }
                    .map_err(|error| load_error(&error))?
            };
        }
        Ok(Self {
            create: entry!("create"),
            destroy: entry!("destroy"),
            allocate: entry!("allocate"),
            release: entry!("release"),
            accessible: entry!("accessible"),
            kernel_count: entry!("kernel_count"),
            kernel: entry!("kernel"),
            library_of: entry!("library_of"),
            site: entry!("site"),
            launch: entry!("launch"),
            accessed: entry!("accessed"),
            encode_tensor_map: entry!("encode_tensor_map"),
            build,
            loaded: Mutex::default(),
        })
    }

    /// The kernels of a source, compiled if need be and loaded at the first call.
    pub(crate) fn kernels_of(&self, kernels: &Kernels, source: &str) -> Result<Vec<KernelInfo>, Error> {
        // Compiled outside the lock, so that two threads can compile two sources at once.
        let path = Compiler::get()?.kernels(self.build, kernels, source)?;
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(infos) = loaded.get(&path) {
            return Ok(infos.clone());
        }
        open(&path)?;
        // The library may have been loaded before, by another copy of this crate in the same process.
        // SAFETY: an entry point of the loaded machine.
        let count = unsafe { (self.kernel_count)() };
        let infos: Vec<_> =
            (0..count).filter(|&index| self.is_in(index, &path)).map(|index| self.info(index)).collect();
        loaded.insert(path, infos.clone());
        Ok(infos)
    }

    fn is_in(&self, index: u32, library: &Path) -> bool {
        // SAFETY: the index is below the count; the text ends with a zero byte and lives as long as the library.
        let found = unsafe { CStr::from_ptr((self.library_of)(index)) };
        found.to_bytes() == library.as_os_str().as_encoded_bytes()
    }

    fn info(&self, index: u32) -> KernelInfo {
        // SAFETY: the index is below the count; the name is a literal in a library that stays loaded.
        let (name, kernel) = unsafe {
            let kernel = (self.kernel)(index);
            (CStr::from_ptr(kernel.name), kernel)
        };
        let name = name.to_string_lossy().into_owned();
        KernelInfo { name, params_bytes: kernel.params_bytes as usize, max_threads: kernel.max_threads, index }
    }

    /// The library of the code address that a report gives by number, and the address within that library.
    pub(crate) fn site(&self, number: u32) -> Option<(String, u64)> {
        let mut path = [0u8; 4096];
        // SAFETY: the buffer is as long as its length says, and the call writes a text with a final zero.
        let offset = unsafe { (self.site)(number, path.as_mut_ptr().cast(), path.len()) };
        let path = CStr::from_bytes_until_nul(&path).ok()?.to_str().ok()?;
        (!path.is_empty()).then(|| (path.to_owned(), offset))
    }
}

fn open(path: &Path) -> Result<&'static Library, Error> {
    // SAFETY: the library was compiled from this crate's machine or from kernels. Their initialisers only add to the
    // table of kernels.
    let library = unsafe { Library::new(path) }.map_err(|error| load_error(&error))?;
    Ok(Box::leak(Box::new(library)))
}

/// The library that `LD_PRELOAD` must name in a process that uses [`Build::Sanitize`].
///
/// # Errors
/// [`Error::Unavailable`] without a C++ compiler, [`Error::Load`] if the compiler has no AddressSanitizer.
pub fn sanitizer_preload() -> Result<PathBuf, Error> {
    let found = Compiler::get()?.sanitizer_preload();
    found.ok_or_else(|| Error::Load { reason: "the C++ compiler has no AddressSanitizer".to_owned() })
}

/// Checks that the emulator can run here: on Linux, with a C++ compiler.
///
/// # Errors
/// [`Error::Unavailable`], which says what is missing.
pub fn expect_available() -> Result<(), Error> {
    Compiler::get().map(|_| ())
}
