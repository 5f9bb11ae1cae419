//! NVIDIA GPUs through the driver API.

mod context;
mod driver;
mod launch;
mod module;

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use context::{Context, Entered, Relaxed};
use driver::{Failure, sys};

use crate::abi::TensorMap;
use crate::device::backend::{Backend, Handle, Launch, LoadedKernel};
use crate::device::image;
use crate::device::launch::tensor_map::Tensor;
use crate::device::properties::Properties;
use crate::error::{DriverError, Error, KernelError, Result};

pub(super) use context::{device_count, properties};

/// `CU_STREAM_NON_BLOCKING`: not ordered with the default stream.
const NON_BLOCKING: u32 = 1;
/// `CU_EVENT_DISABLE_TIMING`.
const DISABLE_TIMING: u32 = 2;
/// `CUDA_ERROR_OUT_OF_MEMORY`.
const OUT_OF_MEMORY: u32 = 2;
/// `CUDA_ERROR_NOT_READY`.
const NOT_READY: u32 = 600;

/// A GPU of this process.
#[derive(Debug)]
pub(super) struct Cuda {
    context: Context,
    properties: Properties,
    /// Modules by the path of their source. They are never unloaded, since their kernels may run as long as the context
    /// exists.
    modules: Mutex<HashMap<&'static str, Handle>>,
}

fn stream(handle: Handle) -> sys::CUstream {
    handle.0 as sys::CUstream
}

fn event(handle: Handle) -> sys::CUevent {
    handle.0 as sys::CUevent
}

/// Waits for a copy from or to the host's memory, which may be freed as soon as this returns. If the driver refuses to wait,
/// the copy may still run, so it is asked once more. A driver that refuses twice has lost the device or the context, and with
/// it the copy.
///
/// # Safety
/// The stream is a live one of the current context.
unsafe fn await_copy(stream: sys::CUstream) -> Result<(), Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let waited = driver::cuStreamSynchronize(stream);
        if waited.is_err() {
            let _ = driver::cuStreamSynchronize(stream);
        }
        waited
    }
}

impl Cuda {
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        let properties = properties(ordinal)?;
        Ok(Self { context: Context::retain(ordinal)?, properties, modules: Mutex::default() })
    }

    fn enter(&self) -> Result<Entered, Failure> {
        self.context.enter()
    }

    /// The module of a source, loaded at the first call.
    fn module(&self, source: &'static image::Source, kernel: &str) -> Result<sys::CUmodule> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(module) = modules.get(source.path) {
            return Ok(module.0 as sys::CUmodule);
        }
        let module = module::load(self.context.driver, source, kernel, self.properties.compute_capability)?;
        modules.insert(source.path, Handle(module as usize));
        Ok(module)
    }
}

impl Backend for Cuda {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        let mut address = 0;
        // SAFETY: in a context, the pointer is to a live address.
        match unsafe { driver::cuMemAlloc_v2(&mut address, bytes) } {
            Err(failure) if failure.code() == OUT_OF_MEMORY => Err(Error::Driver(DriverError::OutOfMemory { bytes })),
            result => Ok(result.map(|()| address)?),
        }
    }

    unsafe fn free(&self, address: u64) {
        let (Ok(_entered), Ok(_relaxed)) = (self.enter(), Relaxed::new()) else { return };
        // The driver first waits for all work on the device. If the call fails, the device is lost, and the memory with
        // it.
        // SAFETY: the caller's promise, and in the memory's context.
        let _ = unsafe { driver::cuMemFree_v2(address) };
    }

    unsafe fn fill(&self, on: Handle, address: u64, byte: u8, bytes: usize) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuMemsetD8Async(address, byte, bytes, stream(on)) }?)
    }

    unsafe fn copy(&self, on: Handle, from: u64, to: u64, bytes: usize) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuMemcpyDtoDAsync_v2(to, from, bytes, stream(on)) }?)
    }

    unsafe fn upload(&self, on: Handle, from: &[u8], to: u64) -> Result<()> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise; the host's memory is borrowed until the copy has been made.
        unsafe {
            driver::cuMemcpyHtoDAsync_v2(to, from.as_ptr().cast(), from.len(), stream(on))?;
            Ok(await_copy(stream(on))?)
        }
    }

    unsafe fn download(&self, on: Handle, from: u64, to: &mut [u8]) -> Result<()> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise; the host's memory is borrowed until the copy has been made.
        unsafe {
            driver::cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), stream(on))?;
            Ok(await_copy(stream(on))?)
        }
    }

    fn create_stream(&self) -> Result<Handle> {
        let _entered = self.enter()?;
        let mut stream = std::ptr::null_mut();
        // SAFETY: in a context, the pointer is to a live handle.
        unsafe { driver::cuStreamCreate(&mut stream, NON_BLOCKING) }?;
        Ok(Handle(stream as usize))
    }

    unsafe fn destroy_stream(&self, handle: Handle) {
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: the caller's promise.
        let _ = unsafe { driver::cuStreamDestroy_v2(stream(handle)) };
    }

    unsafe fn synchronize(&self, handle: Handle) -> Result<()> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuStreamSynchronize(stream(handle)) }?)
    }

    unsafe fn is_capturing(&self, handle: Handle) -> Result<bool> {
        let _entered = self.enter()?;
        let mut status = sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE;
        // SAFETY: the caller's promise, and the pointer is to a live status.
        unsafe { driver::cuStreamIsCapturing(stream(handle), &mut status) }?;
        Ok(status != sys::CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
    }

    unsafe fn capture_id(&self, handle: Handle) -> Result<Option<u64>> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { self.context.driver.capture_id(stream(handle)) }?)
    }

    fn create_event(&self, timed: bool) -> Result<Handle> {
        let _entered = self.enter()?;
        let mut event = std::ptr::null_mut();
        let flags = if timed { 0 } else { DISABLE_TIMING };
        // SAFETY: in a context, the pointer is to a live handle.
        unsafe { driver::cuEventCreate(&mut event, flags) }?;
        Ok(Handle(event as usize))
    }

    unsafe fn destroy_event(&self, handle: Handle) {
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: the caller's promise.
        let _ = unsafe { driver::cuEventDestroy_v2(event(handle)) };
    }

    unsafe fn record(&self, what: Handle, on: Handle) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuEventRecord(event(what), stream(on)) }?)
    }

    unsafe fn wait(&self, waiting: Handle, what: Handle) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuStreamWaitEvent(stream(waiting), event(what), 0) }?)
    }

    unsafe fn has_happened(&self, what: Handle) -> Result<bool> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise.
        match unsafe { driver::cuEventQuery(event(what)) } {
            Err(failure) if failure.code() == NOT_READY => Ok(false),
            queried => Ok(queried.map(|()| true)?),
        }
    }

    unsafe fn await_event(&self, what: Handle) -> Result<()> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuEventSynchronize(event(what)) }?)
    }

    unsafe fn elapsed(&self, start: Handle, end: Handle) -> Result<f32> {
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        // SAFETY: the caller's promise.
        unsafe {
            driver::cuEventSynchronize(event(end))?;
            Ok(self.context.driver.elapsed_time(event(start), event(end))?)
        }
    }

    unsafe fn begin_capture(&self, handle: Handle) -> Result<()> {
        let _entered = self.enter()?;
        // The capture restricts the calls of this thread only.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuStreamBeginCapture_v2(stream(handle), mode) }?)
    }

    unsafe fn end_capture(&self, handle: Handle) -> Result<Handle> {
        let _entered = self.enter()?;
        let mut graph = std::ptr::null_mut();
        // SAFETY: the caller's promise, and the pointer is to a live handle.
        unsafe { driver::cuStreamEndCapture(stream(handle), &mut graph) }?;
        Ok(Handle(graph as usize))
    }

    unsafe fn instantiate(&self, captured: Handle, handle: Handle) -> Result<Handle> {
        let _entered = self.enter()?;
        let (graph, mut executable) = (captured.0 as sys::CUgraph, std::ptr::null_mut());
        // SAFETY: the caller's promise; the pointer is to a live handle; the graph is destroyed once, which does not
        // affect the executable instantiated from it.
        unsafe {
            let made = driver::cuGraphInstantiateWithFlags(&mut executable, graph, 0);
            let _ = driver::cuGraphDestroy(graph);
            made?;
            // Uploading now makes the first replay cost no more than later ones.
            if let Err(failure) = driver::cuGraphUpload(executable, stream(handle)) {
                let _ = driver::cuGraphExecDestroy(executable);
                return Err(failure.into());
            }
        }
        Ok(Handle(executable as usize))
    }

    unsafe fn abandon_capture(&self, handle: Handle) {
        let Ok(_entered) = self.enter() else { return };
        let mut graph = std::ptr::null_mut();
        // SAFETY: the caller's promise; the graph, if there is one, is destroyed once.
        unsafe {
            let _ = driver::cuStreamEndCapture(stream(handle), &mut graph);
            if !graph.is_null() {
                let _ = driver::cuGraphDestroy(graph);
            }
        }
    }

    unsafe fn replay(&self, graph: Handle, on: Handle) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        Ok(unsafe { driver::cuGraphLaunch(graph.0 as sys::CUgraphExec, stream(on)) }?)
    }

    unsafe fn destroy_graph(&self, graph: Handle) {
        let Ok(_entered) = self.enter() else { return };
        // SAFETY: the caller's promise.
        let _ = unsafe { driver::cuGraphExecDestroy(graph.0 as sys::CUgraphExec) };
    }

    fn kernel(&self, name: &str) -> Result<LoadedKernel> {
        let source = image::source_of(name)
            .ok_or_else(|| Error::Kernel(KernelError::NoSuchKernel { kernel: name.to_owned() }))?;
        let (_entered, _relaxed) = (self.enter()?, Relaxed::new()?);
        let module = self.module(source, name)?;
        // SAFETY: in the context that the module was loaded in, and modules are never unloaded.
        unsafe { module::find(self.context.driver, module, name, self.properties.shared_bytes_per_block) }
    }

    unsafe fn resident_blocks(&self, kernel: Handle, block: u32, shared_bytes: u32) -> Result<u32> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { launch::resident_blocks(kernel, block, shared_bytes) }
    }

    unsafe fn resident_clusters(&self, what: &Launch<'_>) -> Result<u32> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { launch::resident_clusters(what) }
    }

    fn encode_tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap> {
        // The driver encodes for the device of the current context.
        let _entered = self.enter()?;
        let driver = driver::load()?;
        let bad = |reason: String| Error::BadTensorMap { reason };
        // SAFETY: the arrays are as long as the rank says.
        let encoded = unsafe { driver.encode_tensor_map(tensor) };
        encoded
            .ok_or_else(|| bad("the driver is older than CUDA 12.0".into()))?
            .map_err(|failure| bad(failure.reason()))
    }

    unsafe fn launch(&self, on: Handle, what: &Launch<'_>) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the caller's promise.
        unsafe { launch::launch(stream(on), what) }
    }
}
