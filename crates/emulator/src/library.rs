//! The three shared libraries that build.rs made, loaded once each.

use std::ffi::{c_char, c_int, c_void};
use std::path::Path;
use std::sync::OnceLock;

use libloading::Library;

use crate::config::{Build, Counters, RawConfig};
use crate::error::Error;

/// The machine as the C++ side knows it.
#[repr(C)]
pub(crate) struct RawMachine {
    private: [u8; 0],
}

#[repr(C)]
pub(crate) struct RawKernel {
    pub(crate) name: *const c_char,
    pub(crate) params_bytes: u32,
    pub(crate) max_threads: u32,
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

/// The entry points of one build.
pub(crate) struct Functions {
    pub(crate) create: unsafe extern "C" fn() -> *mut RawMachine,
    pub(crate) destroy: unsafe extern "C" fn(*mut RawMachine),
    pub(crate) allocate: unsafe extern "C" fn(*mut RawMachine, usize) -> *mut c_void,
    pub(crate) release: unsafe extern "C" fn(*mut RawMachine, *mut c_void) -> c_int,
    pub(crate) accessible: unsafe extern "C" fn(*const RawMachine, *const c_void, usize) -> c_int,
    pub(crate) kernel_count: unsafe extern "C" fn() -> u32,
    pub(crate) kernel: unsafe extern "C" fn(u32) -> RawKernel,
    pub(crate) launch: LaunchFn,
    pub(crate) encode_tensor_map: EncodeTensorMapFn,
    pub(crate) path: &'static str,
}

impl Functions {
    /// The entry points of `build`, loading its library at the first call.
    pub(crate) fn of(build: Build) -> Result<&'static Self, Error> {
        static LOADED: [OnceLock<Result<Functions, Error>>; 3] = [const { OnceLock::new() }; 3];
        LOADED[build as usize].get_or_init(|| Self::load(build)).as_ref().map_err(Clone::clone)
    }

    fn load(build: Build) -> Result<Self, Error> {
        let path = file(build).ok_or(Error::Unavailable)?;
        if build == Build::Sanitize && !std::env::var("LD_PRELOAD").is_ok_and(|list| list.contains("asan")) {
            return Err(Error::SanitizerNotPreloaded { preload: env!("EMULATOR_PRELOAD").to_owned() });
        }
        Self::open(path)
    }

    /// Loads a library that was built like ours: a variant of the kernels.
    pub(crate) fn open(path: &'static str) -> Result<Self, Error> {
        let failed = |error: libloading::Error| Error::Load(error.to_string());
        // SAFETY: the library is the one that build.rs made, or a test made the same way; its initialisers only fill the
        // table of kernels.
        let library = Box::leak(Box::new(unsafe { Library::new(path) }.map_err(failed)?));
        macro_rules! entry {
            ($name:literal) => {
                // SAFETY: the types are those of capi.cpp.
                *unsafe { library.get(concat!("fused_lora_emulator_", $name, "\0").as_bytes()) }.map_err(failed)?
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
            launch: entry!("launch"),
            encode_tensor_map: entry!("encode_tensor_map"),
            path,
        })
    }
}

fn file(build: Build) -> Option<&'static str> {
    let path = match build {
        Build::Plain => env!("EMULATOR_PLAIN"),
        Build::Race => env!("EMULATOR_RACE"),
        Build::Sanitize => env!("EMULATOR_SANITIZE"),
    };
    Some(path).filter(|path| !path.is_empty())
}

/// The shared library of a build.
pub(crate) fn path(build: Build) -> Option<&'static Path> {
    file(build).map(Path::new)
}

/// The library that must be named in `LD_PRELOAD` of a process that uses [`Build::Sanitize`].
pub fn sanitizer_preload() -> Option<&'static Path> {
    Some(env!("EMULATOR_PRELOAD")).filter(|path| !path.is_empty()).map(Path::new)
}

/// The C++ compiler that the kernels were compiled with.
pub fn compiler() -> Option<&'static str> {
    Some(env!("EMULATOR_COMPILER")).filter(|name| !name.is_empty())
}

/// The folder with the kernels' sources.
pub fn kernel_sources() -> Option<&'static Path> {
    Some(env!("EMULATOR_KERNELS")).filter(|path| !path.is_empty()).map(Path::new)
}
