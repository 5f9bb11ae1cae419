//! The interface between this library and the devices that run its kernels, CUDA and the emulator.

use crate::abi::TensorMap;
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::tensor_map::Tensor;
use crate::device::properties::{KernelAttributes, Properties};
use crate::error::Result;

/// A backend's handle of a stream, an event, a graph or a kernel: a driver's pointer, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Handle(pub(crate) usize);

/// A kernel that was loaded onto a device.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadedKernel {
    pub(crate) handle: Handle,
    pub(crate) attributes: KernelAttributes,
}

/// One launch of one kernel.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: Handle,
    pub(crate) config: &'a LaunchConfig,
    /// Whether the launch may start before the preceding one has ended: it was requested, and the kernel's code can
    /// wait.
    pub(crate) dependent: bool,
    /// The parameter struct.
    pub(crate) params: &'a [u8],
}

/// A device. Its methods may be called from any thread.
///
/// # Safety of the methods
/// Handles are live and come from this backend (streams may also be foreign ones of the same context); addresses are
/// inside memory that stays allocated on this device as long as work on it lasts. A backend does not repeat the checks
/// of the public types.
pub(crate) trait Backend: Send + Sync + std::fmt::Debug {
    fn properties(&self) -> &Properties;

    /// Allocates at least one byte, aligned to 256.
    fn allocate(&self, bytes: usize) -> Result<u64>;
    /// Frees memory once all work issued before has finished.
    unsafe fn free(&self, address: u64);

    unsafe fn fill(&self, stream: Handle, address: u64, byte: u8, bytes: usize) -> Result<()>;
    unsafe fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()>;
    /// Copies to the device; returns when the copy has been made.
    unsafe fn upload(&self, stream: Handle, from: &[u8], to: u64) -> Result<()>;
    /// Copies to the host; returns when the copy has been made.
    unsafe fn download(&self, stream: Handle, from: u64, to: &mut [u8]) -> Result<()>;

    fn create_stream(&self) -> Result<Handle>;
    unsafe fn destroy_stream(&self, stream: Handle);
    unsafe fn synchronize(&self, stream: Handle) -> Result<()>;
    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool>;
    /// The number of the stream's capture, which no other capture of the process has.
    unsafe fn capture_id(&self, stream: Handle) -> Result<Option<u64>>;

    fn create_event(&self, timed: bool) -> Result<Handle>;
    unsafe fn destroy_event(&self, event: Handle);
    unsafe fn record(&self, event: Handle, stream: Handle) -> Result<()>;
    /// Makes the stream's later work wait for the event.
    unsafe fn wait(&self, stream: Handle, event: Handle) -> Result<()>;
    /// Whether the work before a recorded event has been done.
    unsafe fn has_happened(&self, event: Handle) -> Result<bool>;
    /// Waits on the host until the work before a recorded event has been done.
    unsafe fn await_event(&self, event: Handle) -> Result<()>;
    /// Waits for the second of two recorded events and returns the milliseconds between them.
    unsafe fn elapsed(&self, start: Handle, end: Handle) -> Result<f32>;

    unsafe fn begin_capture(&self, stream: Handle) -> Result<()>;
    /// Ends a capture and returns what was captured, for `instantiate`.
    unsafe fn end_capture(&self, stream: Handle) -> Result<Handle>;
    /// Makes an executable graph of what was captured, which is used up, for replays on this stream before all.
    unsafe fn instantiate(&self, captured: Handle, stream: Handle) -> Result<Handle>;
    /// Ends a capture, if there still is one, and discards the captured work.
    unsafe fn abandon_capture(&self, stream: Handle);
    unsafe fn replay(&self, graph: Handle, stream: Handle) -> Result<()>;
    unsafe fn destroy_graph(&self, graph: Handle);

    /// Finds a kernel and loads its code onto the device.
    fn kernel(&self, name: &str) -> Result<LoadedKernel>;
    /// Blocks of a kernel that are resident on one SM at a time.
    unsafe fn resident_blocks(&self, kernel: Handle, block: u32, shared_bytes: u32) -> Result<u32>;
    /// Clusters of a launch that are resident on the device at a time.
    unsafe fn resident_clusters(&self, launch: &Launch<'_>) -> Result<u32>;
    unsafe fn launch(&self, stream: Handle, launch: &Launch<'_>) -> Result<()>;

    /// Encodes a tensor map. The tensor's arrays must be as long as its rank says.
    fn encode_tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap>;

    #[cfg(feature = "emulator")]
    fn take_counters(&self) -> Vec<fused_lora_emulator::Counters> {
        vec![]
    }
    #[cfg(feature = "emulator")]
    fn lose_after(&self, _launches: u32) {}
    #[cfg(feature = "emulator")]
    fn machine(&self) -> Option<&fused_lora_emulator::Machine> {
        None
    }
}
