//! The driver functions this library calls, each with its result checked.
//!
//! `cudarc` declares them and looks each up at its first call, panicking where the driver does not have it. So the list
//! here is made by the same macro as the functions, and [`load`] asks for every one of them before any is called.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub(super) use cudarc::driver::sys;
use libloading::Library;
use sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUlaunchConfig, CUmodule, CUresult, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus,
};

use crate::error::{Error, Result};

/// A driver call that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) operation: &'static str,
    pub(super) result: CUresult,
}

impl Failure {
    /// The number of the error: unlike the enum's names, the same for every version of the bindings.
    pub(super) fn code(self) -> u32 {
        self.result as u32
    }

    /// The driver's name and sentence for the error.
    pub(super) fn reason(self) -> String {
        let text = |f: unsafe fn(CUresult, *mut *const c_char) -> CUresult| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: a failure comes from a driver that `load` found complete; on success the driver answers with a
            // string of its own that is never freed, else it leaves the pointer null.
            unsafe {
                let _ = f(self.result, &mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let name = text(sys::cuGetErrorName).unwrap_or_else(|| format!("CUDA error {}", self.code()));
        let sentence = text(sys::cuGetErrorString).unwrap_or_default();
        format!("{name} ({sentence}) from {}", self.operation)
    }
}

/// Errors after which the context answers every call with the same error.
fn is_sticky(code: u32) -> bool {
    matches!(code, 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721)
}

/// Errors of the 900s that speak of stream capture.
fn is_capture(code: u32) -> bool {
    matches!(code, 900..=908)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (operation, reason) = (failure.operation, failure.reason());
        match failure.code() {
            34 => Error::NoDriver { reason },
            code if is_sticky(code) => Error::DeviceLost { reason },
            code if is_capture(code) => Error::CaptureRefused { operation, reason },
            code => Error::Driver { operation, code, reason },
        }
    }
}

macro_rules! driver_functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        $(
            /// The driver function of this name.
            ///
            /// # Safety
            /// As the driver API says, and after [`load`].
            #[allow(non_snake_case)]
            pub(super) unsafe fn $name($($argument: $type),*) -> Result<(), Failure> {
                // SAFETY: the caller's promise.
                match unsafe { sys::$name($($argument),*) } {
                    CUresult::CUDA_SUCCESS => Ok(()),
                    result => Err(Failure { operation: stringify!($name), result }),
                }
            }
        )*

        /// Every function above.
        const REQUIRED: &[&str] = &[$(stringify!($name)),*];
    };
}

driver_functions! {
    cuInit(flags: c_uint);
    cuDriverGetVersion(version: *mut c_int);
    cuDeviceGetCount(count: *mut c_int);
    cuDeviceGet(device: *mut CUdevice, ordinal: c_int);
    cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice);
    cuDeviceGetAttribute(value: *mut c_int, attribute: CUdevice_attribute, device: CUdevice);
    cuDeviceTotalMem_v2(bytes: *mut usize, device: CUdevice);
    cuDevicePrimaryCtxRetain(context: *mut CUcontext, device: CUdevice);
    cuCtxGetCurrent(context: *mut CUcontext);
    cuCtxSetCurrent(context: CUcontext);
    cuMemAlloc_v2(address: *mut CUdeviceptr, bytes: usize);
    cuMemFree_v2(address: CUdeviceptr);
    cuMemsetD8Async(address: CUdeviceptr, byte: u8, count: usize, stream: CUstream);
    cuMemcpyHtoDAsync_v2(to: CUdeviceptr, from: *const c_void, bytes: usize, stream: CUstream);
    cuMemcpyDtoHAsync_v2(to: *mut c_void, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuMemcpyDtoDAsync_v2(to: CUdeviceptr, from: CUdeviceptr, bytes: usize, stream: CUstream);
    cuStreamCreate(stream: *mut CUstream, flags: c_uint);
    cuStreamDestroy_v2(stream: CUstream);
    cuStreamSynchronize(stream: CUstream);
    cuStreamWaitEvent(stream: CUstream, event: CUevent, flags: c_uint);
    cuStreamIsCapturing(stream: CUstream, status: *mut CUstreamCaptureStatus);
    cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode);
    cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph);
    cuThreadExchangeStreamCaptureMode(mode: *mut CUstreamCaptureMode);
    cuEventCreate(event: *mut CUevent, flags: c_uint);
    cuEventDestroy_v2(event: CUevent);
    cuEventRecord(event: CUevent, stream: CUstream);
    cuEventSynchronize(event: CUevent);
    cuGraphInstantiateWithFlags(executable: *mut CUgraphExec, graph: CUgraph, flags: u64);
    cuGraphUpload(executable: CUgraphExec, stream: CUstream);
    cuGraphLaunch(executable: CUgraphExec, stream: CUstream);
    cuGraphExecDestroy(executable: CUgraphExec);
    cuGraphDestroy(graph: CUgraph);
    cuModuleLoadData(module: *mut CUmodule, image: *const c_void);
    cuModuleGetFunction(function: *mut CUfunction, module: CUmodule, name: *const c_char);
    cuFuncGetAttribute(value: *mut c_int, attribute: CUfunction_attribute, function: CUfunction);
    cuFuncSetAttribute(function: CUfunction, attribute: CUfunction_attribute, value: c_int);
    cuOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut c_int, function: CUfunction, block: c_int, shared: usize);
    cuOccupancyMaxActiveClusters(count: *mut c_int, function: CUfunction, config: *const CUlaunchConfig);
    cuLaunchKernelEx(
        config: *const CUlaunchConfig, function: CUfunction, params: *mut *mut c_void, extra: *mut *mut c_void
    );
}

type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;
type FuncLoad = unsafe extern "C" fn(CUfunction) -> CUresult;
type FuncGetParamInfo = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> CUresult;

/// What is looked up here because its name depends on the version of the bindings or of the driver.
#[derive(Debug)]
pub(super) struct Driver {
    elapsed_time: ElapsedTime,
    func_load: Option<FuncLoad>,
    func_get_param_info: Option<FuncGetParamInfo>,
    /// 1000 · major + 10 · minor of the newest CUDA that the driver supports.
    pub(super) version: i32,
    /// Keeps the functions above loaded.
    _library: Library,
}

impl Driver {
    /// Milliseconds from one event to the other.
    ///
    /// `cudarc` calls `cuEventElapsedTime_v2` where it is built for CUDA 13, which drivers older than 12.8 lack; the
    /// first version is in all of them.
    ///
    /// # Safety
    /// Both must be live events.
    pub(super) unsafe fn elapsed_time(&self, start: CUevent, end: CUevent) -> Result<f32, Failure> {
        let mut milliseconds = 0.0;
        // SAFETY: the caller's promise about the events, and the pointer is to a live float.
        match unsafe { (self.elapsed_time)(&mut milliseconds, start, end) } {
            CUresult::CUDA_SUCCESS => Ok(milliseconds),
            result => Err(Failure { operation: "cuEventElapsedTime", result }),
        }
    }

    /// Brings a function's code to the device now rather than at its first launch. Drivers older than 12.4 cannot; they
    /// do it when an attribute is set.
    ///
    /// # Safety
    /// A live function.
    pub(super) unsafe fn load_function(&self, function: CUfunction) -> Result<(), Failure> {
        let Some(load) = self.func_load else { return Ok(()) };
        // SAFETY: the caller's promise.
        match unsafe { load(function) } {
            CUresult::CUDA_SUCCESS => Ok(()),
            result => Err(Failure { operation: "cuFuncLoad", result }),
        }
    }

    /// Bytes of a function's only parameter. `None` if it has none or several, or the driver is older than 12.4.
    ///
    /// # Safety
    /// A live function.
    pub(super) unsafe fn params_size(&self, function: CUfunction) -> Option<usize> {
        let info = self.func_get_param_info?;
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the caller's promise, and the pointers are to live integers.
        let (first, second) =
            unsafe { (info(function, 0, &mut offset, &mut bytes), info(function, 1, &mut offset, &mut 0)) };
        (first == CUresult::CUDA_SUCCESS && second != CUresult::CUDA_SUCCESS).then_some(bytes)
    }
}

/// The names of the driver's library, the one that every driver installs first.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// Loads and initialises the driver, once a process.
///
/// # Errors
/// [`Error::NoDriver`], [`Error::DriverTooOld`], or [`Error::NoDevice`] if the driver finds no GPU.
pub(super) fn load() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    DRIVER.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Driver> {
    // SAFETY: the driver's library runs no code on loading that has requirements on its caller.
    let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = library.ok_or_else(|| Error::NoDriver { reason: format!("{} is not there", LIBRARIES[0]) })?;
    let too_old = |symbol: &str| Error::DriverTooOld { symbol: symbol.to_owned() };
    for symbol in REQUIRED.iter().chain(&["cuGetErrorName", "cuGetErrorString"]) {
        // SAFETY: the address is only asked for.
        unsafe { library.get::<*const c_void>(symbol.as_bytes()) }.map_err(|_| too_old(symbol))?;
    }
    // SAFETY: the signatures are those of cuda.h, which both versions of the function share.
    let elapsed_time = unsafe { library.get::<ElapsedTime>(b"cuEventElapsedTime") };
    let elapsed_time = *elapsed_time.map_err(|_| too_old("cuEventElapsedTime"))?;
    // SAFETY: the signatures are those of cuda.h.
    let (func_load, func_get_param_info) = unsafe {
        let load = library.get::<FuncLoad>(b"cuFuncLoad").ok().map(|f| *f);
        (load, library.get::<FuncGetParamInfo>(b"cuFuncGetParamInfo").ok().map(|f| *f))
    };
    let mut version = 0;
    // SAFETY: cuInit comes first and takes no flags; the pointer is to a live integer.
    unsafe {
        cuInit(0).map_err(|failure| match failure.code() {
            100 => Error::NoDevice { ordinal: 0, count: 0 },
            _ => Error::NoDriver { reason: failure.reason() },
        })?;
        cuDriverGetVersion(&mut version)?;
    }
    Ok(Driver { elapsed_time, func_load, func_get_param_info, version, _library: library })
}
