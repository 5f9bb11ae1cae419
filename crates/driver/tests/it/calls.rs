//! The calls of the driver as tests make them: with plain numbers, and results that are codes.

mod kernels;

use std::ffi::{CStr, CString};
use std::ptr::null_mut;

use fused_lora_driver::calls::{context, error, event, graph, memory, stream};

pub(crate) use self::kernels::*;

/// Calls a function of the driver.
macro_rules! call {
    ($module:ident::$name:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: pointers are null or to values of this expression's, or the driver must refuse them unread.
        unsafe { $module::$name($($argument),*) }
    };
}

pub(crate) use call;

pub(crate) const DEFAULT: usize = 0;
pub(crate) const GLOBAL: u32 = 0;
pub(crate) const THREAD_LOCAL: u32 = 1;
pub(crate) const RELAXED: u32 = 2;

/// The driver's text about an error.
pub(crate) fn text_of(code: u32) -> String {
    let mut text = std::ptr::null();
    let code = call!(error::cuGetErrorString(code, &mut text));
    if code != 0 {
        return format!("no text, but {code}");
    }
    // SAFETY: on success the driver gives a text that lives as long as the process.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Expects success.
#[track_caller]
pub(crate) fn ok(code: u32) {
    assert_eq!(code, 0, "{}", text_of(code));
}

/// Expects success and a result.
#[track_caller]
pub(crate) fn made<T: Default>(call: impl FnOnce(&mut T) -> u32) -> T {
    let mut result = T::default();
    ok(call(&mut result));
    result
}

pub(crate) fn set(options: &str) {
    let options = CString::new(options).unwrap();
    // SAFETY: the text ends with a zero byte.
    assert_eq!(unsafe { error::fused_lora_driver_set(options.as_ptr()) }, 0);
}

pub(crate) fn violations() -> u64 {
    error::fused_lora_driver_violations()
}

pub(crate) fn init() -> u32 {
    call!(context::cuInit(0))
}

pub(crate) fn retain(device: i32) -> usize {
    made(|context| call!(context::cuDevicePrimaryCtxRetain(context, device)))
}

pub(crate) fn enter(context: usize) -> u32 {
    call!(context::cuCtxSetCurrent(context))
}

/// Initialises the driver and enters the first device's context.
pub(crate) fn start() {
    ok(init());
    ok(enter(retain(0)));
}

pub(crate) fn memory(bytes: usize) -> u64 {
    made(|address| allocate(address, bytes))
}

pub(crate) fn allocate(address: *mut u64, bytes: usize) -> u32 {
    call!(memory::cuMemAlloc_v2(address, bytes))
}

pub(crate) fn free(address: u64) -> u32 {
    call!(memory::cuMemFree_v2(address))
}

pub(crate) fn fill(address: u64, byte: u8, bytes: usize, on: usize) -> u32 {
    call!(memory::cuMemsetD8Async(address, byte, bytes, on))
}

pub(crate) fn upload(to: u64, from: &[u8], on: usize) -> u32 {
    call!(memory::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), on))
}

/// Issues a download, which must be waited for while `to` lives.
pub(crate) fn download(to: &mut [u8], from: u64, on: usize) -> u32 {
    call!(memory::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), on))
}

pub(crate) fn copy(to: u64, from: u64, bytes: usize, on: usize) -> u32 {
    call!(memory::cuMemcpyDtoDAsync_v2(to, from, bytes, on))
}

/// A stream that is not ordered with the default stream.
pub(crate) fn stream() -> usize {
    made(|stream| create_stream(stream, 1))
}

pub(crate) fn blocking_stream() -> usize {
    made(|stream| create_stream(stream, 0))
}

pub(crate) fn create_stream(stream: *mut usize, flags: u32) -> u32 {
    call!(stream::cuStreamCreate(stream, flags))
}

pub(crate) fn destroy_stream(stream: usize) -> u32 {
    call!(stream::cuStreamDestroy_v2(stream))
}

pub(crate) fn synchronize(stream: usize) -> u32 {
    call!(stream::cuStreamSynchronize(stream))
}

pub(crate) fn wait(stream: usize, event: usize) -> u32 {
    call!(stream::cuStreamWaitEvent(stream, event, 0))
}

pub(crate) fn is_capturing(stream: usize, status: *mut u32) -> u32 {
    call!(stream::cuStreamIsCapturing(stream, status))
}

pub(crate) fn capture_info(stream: usize, status: *mut u32, id: *mut u64) -> u32 {
    call!(stream::cuStreamGetCaptureInfo_v2(stream, status, id, null_mut(), null_mut(), null_mut()))
}

pub(crate) fn begin(stream: usize, mode: u32) -> u32 {
    call!(stream::cuStreamBeginCapture_v2(stream, mode))
}

pub(crate) fn end(stream: usize, graph: *mut usize) -> u32 {
    call!(stream::cuStreamEndCapture(stream, graph))
}

/// Sets the thread's mode, and returns the code.
pub(crate) fn exchange_mode(mut mode: u32) -> u32 {
    call!(stream::cuThreadExchangeStreamCaptureMode(&mut mode))
}

/// An event without timing.
pub(crate) fn event() -> usize {
    made(|event| create_event(event, 2))
}

pub(crate) fn timed_event() -> usize {
    made(|event| create_event(event, 0))
}

pub(crate) fn create_event(event: *mut usize, flags: u32) -> u32 {
    call!(event::cuEventCreate(event, flags))
}

pub(crate) fn destroy_event(event: usize) -> u32 {
    call!(event::cuEventDestroy_v2(event))
}

pub(crate) fn record(event: usize, stream: usize) -> u32 {
    call!(event::cuEventRecord(event, stream))
}

/// An event that was recorded on a stream.
pub(crate) fn recorded(stream: usize) -> usize {
    let event = event();
    ok(record(event, stream));
    event
}

pub(crate) fn query(event: usize) -> u32 {
    call!(event::cuEventQuery(event))
}

pub(crate) fn await_event(event: usize) -> u32 {
    call!(event::cuEventSynchronize(event))
}

pub(crate) fn elapsed(milliseconds: *mut f32, start: usize, end: usize) -> u32 {
    call!(event::cuEventElapsedTime(milliseconds, start, end))
}

pub(crate) fn instantiate(executable: *mut usize, graph: usize, flags: u64) -> u32 {
    call!(graph::cuGraphInstantiateWithFlags(executable, graph, flags))
}

pub(crate) fn upload_graph(executable: usize, stream: usize) -> u32 {
    call!(graph::cuGraphUpload(executable, stream))
}

pub(crate) fn replay(executable: usize, stream: usize) -> u32 {
    call!(graph::cuGraphLaunch(executable, stream))
}

pub(crate) fn destroy_executable(executable: usize) -> u32 {
    call!(graph::cuGraphExecDestroy(executable))
}

pub(crate) fn destroy_graph(graph: usize) -> u32 {
    call!(graph::cuGraphDestroy(graph))
}

/// A stream that is being captured, in relaxed mode.
pub(crate) fn capturing() -> usize {
    capturing_in(RELAXED)
}

pub(crate) fn capturing_in(mode: u32) -> usize {
    let stream = stream();
    ok(begin(stream, mode));
    stream
}

/// A graph of what `issue` issues to a new stream.
pub(crate) fn captured(issue: impl FnOnce(usize)) -> usize {
    let stream = stream();
    ok(begin(stream, RELAXED));
    issue(stream);
    made(|graph| end(stream, graph))
}

/// As `captured`, and executable.
pub(crate) fn executable(issue: impl FnOnce(usize)) -> usize {
    let graph = captured(issue);
    let executable = made(|executable| instantiate(executable, graph, 0));
    ok(destroy_graph(graph));
    executable
}

/// Calls `f` in another thread, in the first device's context.
pub(crate) fn in_thread<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    let enter = || {
        ok(enter(retain(0)));
        f()
    };
    std::thread::scope(|threads| threads.spawn(enter).join().unwrap())
}
