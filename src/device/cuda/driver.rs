//! The driver functions this library calls, each with its result checked.
//!
//! The types and signatures are `cudarc`'s, but the addresses are not. `cudarc` looks each function up at its first
//! call, in the first library that is called libcuda.so, which may be a toolkit's stub, and panics if the function is
//! missing. This module looks all functions up at once, in the driver's own library, and a call before that returns an
//! error. A result is read as a number, since a driver may return errors that the bindings do not know.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

pub(super) use cudarc::driver::sys;
use libloading::Library;
use sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUgraph,
    CUgraphExec, CUlaunchConfig, CUmodule, CUresult, CUstream, CUstreamCaptureMode, CUstreamCaptureStatus,
};

use crate::abi::TensorMap;
use crate::device::launch::tensor_map::Tensor;
use crate::error::{DriverError, Error, Result};

/// A result of the driver: 0, or the number of an error.
type Code = c_uint;
const SUCCESS: Code = 0;
/// `CUDA_ERROR_NOT_INITIALIZED`.
const NOT_INITIALIZED: Code = 3;
/// `CUDA_ERROR_NO_DEVICE`.
const NO_DEVICE: Code = 100;

/// A driver call that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) operation: &'static str,
    code: Code,
}

impl Failure {
    /// The error's number, which, unlike the enum's names, is the same in every version of the bindings.
    pub(super) fn code(self) -> Code {
        self.code
    }

    /// The driver's name and description of the error.
    pub(super) fn reason(self) -> String {
        let text = |f: Describe| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: on success the driver returns a string of its own that is never freed; otherwise it leaves the
            // pointer null.
            unsafe {
                let _ = f(self.code, &mut text);
                (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
            }
        };
        let functions = FUNCTIONS.get();
        let name = functions.and_then(|f| text(f.error_name)).unwrap_or_else(|| format!("CUDA error {}", self.code));
        let sentence = functions.and_then(|f| text(f.error_string)).unwrap_or_default();
        format!("{name} ({sentence}) from {}", self.operation)
    }
}

fn checked(operation: &'static str, code: Code) -> Result<(), Failure> {
    if code == SUCCESS { Ok(()) } else { Err(Failure { operation, code }) }
}

/// Errors after which every call in the context returns the same error.
fn is_sticky(code: u32) -> bool {
    matches!(code, 214 | 220 | 226 | 700 | 702 | 709 | 710 | 714..=719 | 721)
}

/// Errors about stream capture.
fn is_capture(code: u32) -> bool {
    matches!(code, 900..=908)
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let (operation, reason) = (failure.operation, failure.reason());
        match failure.code() {
            34 => Error::Driver(DriverError::NotInstalled { reason }),
            code if is_sticky(code) => Error::Driver(DriverError::DeviceLost { reason }),
            code if is_capture(code) => Error::CaptureRefused { operation, reason },
            code => Error::Driver(DriverError::Refused { operation, code, reason }),
        }
    }
}

type Describe = unsafe extern "C" fn(Code, *mut *const c_char) -> Code;

static FUNCTIONS: OnceLock<Functions> = OnceLock::new();

/// A function of the driver's library, as type `F`.
///
/// # Safety
/// `F` must be the function's type in cuda.h.
unsafe fn look_up<F: Copy>(library: &Library, symbol: &'static str) -> Result<F> {
    // SAFETY: the caller's promise.
    let found = unsafe { library.get::<F>(symbol.as_bytes()) };
    found.map(|function| *function).map_err(|_| Error::Driver(DriverError::TooOld { symbol: symbol.to_owned() }))
}

macro_rules! driver_functions {
    ($($name:ident($($argument:ident: $type:ty),*);)*) => {
        /// The addresses of the functions.
        #[allow(non_snake_case)]
        struct Functions {
            $($name: unsafe extern "C" fn($($type),*) -> Code,)*
            error_name: Describe,
            error_string: Describe,
        }

        impl Functions {
            fn look_up(library: &Library) -> Result<Self> {
                // SAFETY: the types are those of cuda.h: checked below against the bindings, except for the result,
                // which is an enum of the same size there.
                unsafe {
                    Ok(Self {
                        $($name: look_up(library, stringify!($name))?,)*
                        error_name: look_up(library, "cuGetErrorName")?,
                        error_string: look_up(library, "cuGetErrorString")?,
                    })
                }
            }
        }

        $(
            const _: unsafe fn($($type),*) -> CUresult = sys::$name;

            /// The driver function of this name.
            ///
            /// # Safety
            /// As the driver API requires.
            #[allow(non_snake_case)]
            pub(super) unsafe fn $name($($argument: $type),*) -> Result<(), Failure> {
                let Some(functions) = FUNCTIONS.get() else { return checked(stringify!($name), NOT_INITIALIZED) };
                // SAFETY: the caller's promise.
                checked(stringify!($name), unsafe { (functions.$name)($($argument),*) })
            }
        )*
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
    cuEventQuery(event: CUevent);
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

type ElapsedTime = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> Code;
type StreamCaptureInfo =
    unsafe extern "C" fn(CUstream, *mut c_uint, *mut u64, *mut CUgraph, *mut *const c_void, *mut usize) -> Code;
type FuncLoad = unsafe extern "C" fn(CUfunction) -> Code;
type TensorMapEncodeTiled = unsafe extern "C" fn(
    *mut c_void,
    c_uint,
    u32,
    *mut c_void,
    *const u64,
    *const u64,
    *const u32,
    *const u32,
    c_uint,
    c_uint,
    c_uint,
    c_uint,
) -> Code;
type FuncGetParamInfo = unsafe extern "C" fn(CUfunction, usize, *mut usize, *mut usize) -> Code;

/// Functions that are not in the list above because their names depend on the version of the bindings or of the driver.
#[derive(Debug)]
pub(super) struct Driver {
    elapsed_time: ElapsedTime,
    capture_info: StreamCaptureInfo,
    func_load: Option<FuncLoad>,
    func_get_param_info: Option<FuncGetParamInfo>,
    encode_tiled: Option<TensorMapEncodeTiled>,
    /// 1000 · major + 10 · minor of the newest CUDA that the driver supports.
    pub(super) version: i32,
}

impl Driver {
    /// Milliseconds from one event to the other.
    ///
    /// Bindings made for CUDA 13 call `cuEventElapsedTime_v2`, which drivers older than 12.8 lack; all drivers have the
    /// first version.
    ///
    /// # Safety
    /// `start` and `end` must be live events.
    pub(super) unsafe fn elapsed_time(&self, start: CUevent, end: CUevent) -> Result<f32, Failure> {
        let mut milliseconds = 0.0;
        // SAFETY: the caller's promise about the events, and the pointer is to a live float.
        checked("cuEventElapsedTime", unsafe { (self.elapsed_time)(&mut milliseconds, start, end) })?;
        Ok(milliseconds)
    }

    /// The number of the capture that the stream belongs to.
    ///
    /// Bindings made for CUDA 13 lack the second version of `cuStreamGetCaptureInfo`; all drivers since 11.3 have it.
    ///
    /// # Safety
    /// `stream` must be a live stream.
    pub(super) unsafe fn capture_id(&self, stream: CUstream) -> Result<Option<u64>, Failure> {
        let (mut status, mut id) = (0, 0);
        let null = (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the caller's promise; the pointers are to live integers, or null where the result is optional.
        let code = unsafe { (self.capture_info)(stream, &mut status, &mut id, null.0, null.1, null.2) };
        checked("cuStreamGetCaptureInfo", code)?;
        let not_capturing = CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE as c_uint;
        Ok((status != not_capturing).then_some(id))
    }

    /// Loads a function's code onto the device now rather than at its first launch. Drivers older than 12.4 cannot do
    /// so; they load the code when an attribute is set.
    ///
    /// # Safety
    /// `function` must be a live function.
    pub(super) unsafe fn load_function(&self, function: CUfunction) -> Result<(), Failure> {
        let Some(load) = self.func_load else { return Ok(()) };
        // SAFETY: the caller's promise.
        checked("cuFuncLoad", unsafe { load(function) })
    }

    /// Encodes a tensor map. Drivers older than 12.0 cannot.
    ///
    /// # Safety
    /// The description's arrays are as long as its rank says.
    pub(super) unsafe fn encode_tensor_map(&self, tensor: &Tensor<'_>) -> Option<Result<TensorMap, Failure>> {
        // The driver's numbers of the enums. Elements count as unsigned integers of their size, whose zero has the bits
        // of every type's zero.
        let data_type = match tensor.element_bytes {
            1 => 0,
            2 => 1,
            4 => 2,
            _ => 4,
        };
        let (no_interleave, l2_promotion_256, no_nan_fill) = (0, 3, 0);
        let swizzle = if tensor.swizzle_128 { 3 } else { 0 };
        let element_strides = [1; 5];
        let mut map = TensorMap { opaque: [0; 16] };
        let encode = self.encode_tiled?;
        // SAFETY: the map is 128 bytes at a multiple of 128; the arrays' lengths are the caller's promise.
        let code = unsafe {
            encode(
                map.opaque.as_mut_ptr().cast(),
                data_type,
                tensor.dims.len() as u32,
                tensor.address as *mut c_void,
                tensor.dims.as_ptr(),
                tensor.strides.as_ptr(),
                tensor.boxes.as_ptr(),
                element_strides.as_ptr(),
                no_interleave,
                swizzle,
                l2_promotion_256,
                no_nan_fill,
            )
        };
        Some(checked("cuTensorMapEncodeTiled", code).map(|()| map))
    }

    /// Bytes of a function's only parameter. `None` if it has no parameter or several, or if the driver is older than
    /// 12.4.
    ///
    /// # Safety
    /// `function` must be a live function.
    pub(super) unsafe fn params_size(&self, function: CUfunction) -> Option<usize> {
        let info = self.func_get_param_info?;
        let (mut offset, mut bytes) = (0, 0);
        // SAFETY: the caller's promise, and the pointers are to live integers.
        let (first, second) =
            unsafe { (info(function, 0, &mut offset, &mut bytes), info(function, 1, &mut offset, &mut 0)) };
        (first == SUCCESS && second != SUCCESS).then_some(bytes)
    }
}

/// The names of the driver's library, beginning with the name that every driver installs.
const LIBRARIES: &[&str] = if cfg!(windows) { &["nvcuda.dll"] } else { &["libcuda.so.1", "libcuda.so"] };

/// Loads and initialises the driver, once per process.
///
/// # Errors
/// [`DriverError::NotInstalled`], [`DriverError::TooOld`], or [`DriverError::NoDevice`] if the driver finds no GPU.
pub(super) fn load() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    DRIVER.get_or_init(open).as_ref().map_err(Clone::clone)
}

fn open() -> Result<Driver> {
    // SAFETY: the driver's library runs no code on loading that has requirements on its caller.
    let library = LIBRARIES.iter().find_map(|name| unsafe { Library::new(*name) }.ok());
    let library = library.ok_or_else(|| {
        Error::Driver(DriverError::NotInstalled { reason: format!("{} was not found", LIBRARIES[0]) })
    })?;
    // The functions are used until the process ends, so the library is never unloaded.
    let library: &'static Library = Box::leak(Box::new(library));
    let functions = Functions::look_up(library)?;
    FUNCTIONS.get_or_init(|| functions);
    // SAFETY: the types are those of cuda.h.
    let capture_info = unsafe { look_up(library, "cuStreamGetCaptureInfo_v2") }?;
    // SAFETY: the types are those of cuda.h; both versions of cuEventElapsedTime have this one.
    let (elapsed_time, func_load, func_get_param_info, encode_tiled) = unsafe {
        let (load, info) = (look_up(library, "cuFuncLoad").ok(), look_up(library, "cuFuncGetParamInfo").ok());
        (look_up(library, "cuEventElapsedTime")?, load, info, look_up(library, "cuTensorMapEncodeTiled").ok())
    };
    let mut version = 0;
    // SAFETY: cuInit comes first and takes no flags; the pointer is to a live integer.
    unsafe {
        cuInit(0).map_err(|failure| match failure.code() {
            NO_DEVICE => Error::Driver(DriverError::NoDevice { ordinal: 0, count: 0 }),
            _ => Error::Driver(DriverError::NotInstalled { reason: failure.reason() }),
        })?;
        cuDriverGetVersion(&mut version)?;
    }
    Ok(Driver { elapsed_time, capture_info, func_load, func_get_param_info, encode_tiled, version })
}
