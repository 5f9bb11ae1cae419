//! The emulator as a device. Streams are eager: an operation has run, or has been captured, when the call returns.
//!
//! So two streams never run at the same time here. Launches that a GPU may run at the same time although they update one
//! allocation atomically are found by their places in the order of operations, and the second of them fails.

mod streams;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use fused_lora_emulator as emulator;
use fused_lora_emulator::{Config, Counters, Hazards, Machine, Strictness, Work, WorkPlace};

use crate::abi::TensorMap;
use crate::device::backend::{Backend, Handle, Launch, LoadedKernel};
use crate::device::emulator::streams::{Operation, Streams};
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::tensor_map::Tensor;
use crate::device::properties::{DeviceKind, KernelAttributes, Properties};
use crate::error::{DriverError, Error, KernelError, LaunchError, Result};

/// Bytes of dynamic shared memory that a block can have, on the emulator as on Hopper.
const SHARED_BYTES: u32 = 227 << 10;
/// Bytes of shared memory of an SM. Each resident block takes 1 KiB more than it requests.
const SHARED_BYTES_PER_SM: u32 = 228 << 10;
const THREADS_PER_SM: u32 = 2048;
/// Launches whose counters are kept: more than one call issues, and few enough not to matter.
const COUNTED: usize = 64;

/// An emulated machine, and the state that a driver would keep.
#[derive(Debug)]
pub(crate) struct Emulator {
    machine: Machine,
    properties: Properties,
    streams: Mutex<Streams>,
    /// Names of the kernels that were looked up; a kernel's handle is its index.
    kernels: Mutex<Vec<String>>,
    /// Counters of the latest launches that have not been taken yet, oldest first.
    counters: Mutex<VecDeque<Counters>>,
    /// What launches have accessed. Held while operations are performed, so that they run in the order of their places.
    hazards: Mutex<Hazards>,
    /// Launches left until the device is lost; `None` if it is never lost.
    left: Mutex<Option<u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs under these locks.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl From<emulator::Error> for Error {
    fn from(error: emulator::Error) -> Self {
        match error {
            emulator::Error::OutOfMemory { bytes } => Error::Driver(DriverError::OutOfMemory { bytes }),
            emulator::Error::Unavailable { reason } => Error::Driver(DriverError::NoEmulator { reason }),
            emulator::Error::NoSuchKernel(kernel) => Error::Kernel(KernelError::NoSuchKernel { kernel }),
            emulator::Error::WrongParameters { kernel, expected, actual } => {
                Error::Launch(LaunchError::WrongParameters { kernel, expected, actual })
            }
            emulator::Error::BadTensorMap { reason } => Error::BadTensorMap { reason },
            emulator::Error::BadLaunch { kernel, reason } => {
                Error::Launch(LaunchError::LimitExceeded { kernel, reason })
            }
            emulator::Error::Fault { kernel, report, .. } => Error::Launch(LaunchError::Fault { kernel, report }),
            other => Error::Driver(DriverError::NoEmulator { reason: other.to_string() }),
        }
    }
}

impl Emulator {
    pub(crate) fn new(config: Config) -> Result<Self> {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let machine = Machine::new(config, &crate::device::image::emulator_kernels())?;
        let properties = Properties {
            name: format!("emulator:{}", COUNT.fetch_add(1, Ordering::Relaxed)),
            kind: DeviceKind::Emulator,
            compute_capability: config.compute_capability,
            multiprocessors: config.multiprocessors,
            threads_per_multiprocessor: THREADS_PER_SM,
            shared_bytes_per_multiprocessor: SHARED_BYTES_PER_SM,
            shared_bytes_per_block: SHARED_BYTES,
            l2_bytes: 50 << 20,
            memory_bytes: 0,
            clock_khz: 0,
            memory_clock_khz: 0,
            memory_bus_bits: 0,
        };
        Ok(Self {
            machine,
            properties,
            streams: Mutex::default(),
            kernels: Mutex::default(),
            counters: Mutex::default(),
            hazards: Mutex::new(Hazards::new(Strictness::Updates)),
            left: Mutex::default(),
        })
    }

    fn expect_alive(&self) -> Result<()> {
        match *lock(&self.left) {
            Some(0) => Err(Error::Driver(DriverError::DeviceLost { reason: "as requested by lose_after".to_owned() })),
            _ => Ok(()),
        }
    }

    /// Counts a copy from or to the host, which waits for it.
    fn tick_and_await(&self, stream: Handle) {
        let (mut hazards, mut streams) = (lock(&self.hazards), lock(&self.streams));
        streams.tick(stream);
        streams.host_awaits(stream);
        hazards.waits(stream.0);
    }

    /// Performs an operation, or adds it to the graph that is being captured.
    ///
    /// # Safety
    /// As the backend's methods.
    unsafe fn issue(&self, stream: Handle, operation: Operation) -> Result<()> {
        self.expect_alive()?;
        let (mut hazards, mut streams) = (lock(&self.hazards), lock(&self.streams));
        let Some(operation) = streams.capture(stream, operation) else { return Ok(()) };
        let place = WorkPlace { issued: streams.tick(stream), captured: None };
        drop(streams);
        // SAFETY: the caller's promise.
        unsafe { self.perform(stream, &operation, &place, &mut hazards) }
    }

    /// # Safety
    /// As the backend's methods.
    unsafe fn perform(
        &self,
        stream: Handle,
        operation: &Operation,
        place: &WorkPlace,
        hazards: &mut Hazards,
    ) -> Result<()> {
        if !matches!(operation, Operation::Launch { .. }) {
            hazards.waits(stream.0);
        }
        match operation {
            // SAFETY: the caller's promise.
            Operation::Fill { address, byte, bytes } => unsafe { self.machine.fill(*address, *byte, *bytes) },
            // SAFETY: the caller's promise.
            Operation::Copy { from, to, bytes } => unsafe { self.machine.copy(*from, *to, *bytes) },
            Operation::Launch { kernel, config, params } => {
                if let Some(left) = &mut *lock(&self.left) {
                    *left -= 1;
                }
                let LaunchConfig { grid, block, shared_bytes, cluster, .. } = *config;
                let name = lock(&self.kernels)[kernel.0].clone();
                let launch = emulator::Launch { kernel: &name, grid, block, shared_bytes, cluster, params };
                // SAFETY: the caller's promise.
                let (counters, accessed) = unsafe { self.machine.launch_and_list(&launch) }?;
                let dependent = config.dependent_launch;
                let work = Work { name: &name, stream: stream.0, place, dependent, accessed: &accessed };
                if let Err(report) = hazards.note(&work) {
                    return Err(Error::Launch(LaunchError::Fault { kernel: name, report }));
                }
                let threads = grid.iter().map(|&ctas| u64::from(ctas)).product::<u64>() * u64::from(block);
                if config.dependent_launch && counters.dependency_waits != threads {
                    let waits = counters.dependency_waits;
                    let report = format!(
                        "it may start before the preceding launch has ended, but {waits} of {threads} threads wait"
                    );
                    return Err(Error::Launch(LaunchError::Fault { kernel: name.clone(), report }));
                }
                let mut kept = lock(&self.counters);
                if kept.len() == COUNTED {
                    kept.pop_front();
                }
                kept.push_back(counters);
            }
        }
        Ok(())
    }
}

impl Backend for Emulator {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.expect_alive()?;
        Ok(self.machine.allocate(bytes)?)
    }

    unsafe fn free(&self, address: u64) {
        lock(&self.hazards).forget(address);
        // SAFETY: the caller's promise; no work is in flight.
        unsafe { self.machine.free(address) };
    }

    unsafe fn fill(&self, stream: Handle, address: u64, byte: u8, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.issue(stream, Operation::Fill { address, byte, bytes }) }
    }

    unsafe fn copy(&self, stream: Handle, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.issue(stream, Operation::Copy { from, to, bytes }) }
    }

    unsafe fn upload(&self, stream: Handle, from: &[u8], to: u64) -> Result<()> {
        self.expect_alive()?;
        self.tick_and_await(stream);
        // SAFETY: the caller's promise.
        unsafe { self.machine.write(to, from) };
        Ok(())
    }

    unsafe fn download(&self, stream: Handle, from: u64, to: &mut [u8]) -> Result<()> {
        self.expect_alive()?;
        self.tick_and_await(stream);
        // SAFETY: the caller's promise.
        unsafe { self.machine.read(from, to) };
        Ok(())
    }

    fn create_stream(&self) -> Result<Handle> {
        self.expect_alive()?;
        Ok(lock(&self.streams).new_handle())
    }

    unsafe fn destroy_stream(&self, stream: Handle) {
        lock(&self.streams).forget_stream(stream);
    }

    unsafe fn synchronize(&self, stream: Handle) -> Result<()> {
        self.expect_alive()?;
        lock(&self.hazards).waits(stream.0);
        lock(&self.streams).host_awaits(stream);
        Ok(())
    }

    unsafe fn is_capturing(&self, stream: Handle) -> Result<bool> {
        self.expect_alive()?;
        Ok(lock(&self.streams).is_capturing(stream))
    }

    unsafe fn capture_id(&self, stream: Handle) -> Result<Option<u64>> {
        self.expect_alive()?;
        Ok(lock(&self.streams).capture_of(stream).map(|id| id as u64))
    }

    fn create_event(&self, _timed: bool) -> Result<Handle> {
        self.expect_alive()?;
        Ok(lock(&self.streams).new_handle())
    }

    unsafe fn destroy_event(&self, event: Handle) {
        lock(&self.streams).forget_event(event);
    }

    unsafe fn record(&self, event: Handle, stream: Handle) -> Result<()> {
        self.expect_alive()?;
        lock(&self.streams).record(event, stream);
        Ok(())
    }

    unsafe fn wait(&self, stream: Handle, event: Handle) -> Result<()> {
        lock(&self.streams).wait(stream, event)
    }

    unsafe fn has_happened(&self, event: Handle) -> Result<bool> {
        self.expect_alive()?;
        lock(&self.streams).host_awaits_event(event);
        Ok(true)
    }

    unsafe fn await_event(&self, event: Handle) -> Result<()> {
        self.expect_alive()?;
        lock(&self.streams).host_awaits_event(event);
        Ok(())
    }

    unsafe fn elapsed(&self, start: Handle, end: Handle) -> Result<f32> {
        self.expect_alive()?;
        let mut streams = lock(&self.streams);
        streams.host_awaits_event(end);
        streams.elapsed(start, end)
    }

    unsafe fn begin_capture(&self, stream: Handle) -> Result<()> {
        lock(&self.streams).begin(stream);
        Ok(())
    }

    unsafe fn end_capture(&self, stream: Handle) -> Result<Handle> {
        self.expect_alive()?;
        lock(&self.streams).end(stream)
    }

    unsafe fn instantiate(&self, captured: Handle, _: Handle) -> Result<Handle> {
        Ok(captured)
    }

    unsafe fn abandon_capture(&self, stream: Handle) {
        lock(&self.streams).abandon(stream);
    }

    unsafe fn replay(&self, graph: Handle, stream: Handle) -> Result<()> {
        self.expect_alive()?;
        let (mut hazards, mut streams) = (lock(&self.hazards), lock(&self.streams));
        let graph = streams.graph(graph);
        if streams.is_capturing(stream) {
            // A graph replayed inside a capture becomes part of that capture, its operations one after the other.
            for captured in graph.iter() {
                let _ = streams.capture(stream, captured.operation.clone());
            }
            return Ok(());
        }
        let issued = streams.tick(stream);
        drop(streams);
        hazards.waits(stream.0);
        for captured in graph.iter() {
            self.expect_alive()?;
            let place = WorkPlace { issued: issued.clone(), captured: Some(captured.place.clone()) };
            // SAFETY: the caller's promise; the graph's memory is kept.
            unsafe { self.perform(stream, &captured.operation, &place, &mut hazards) }?;
        }
        Ok(())
    }

    unsafe fn destroy_graph(&self, graph: Handle) {
        lock(&self.streams).forget_graph(graph);
    }

    fn kernel(&self, name: &str) -> Result<LoadedKernel> {
        let kernel = self.machine.kernel(name)?;
        let mut kernels = lock(&self.kernels);
        let index = kernels.iter().position(|known| known == name).unwrap_or(kernels.len());
        if index == kernels.len() {
            kernels.push(name.to_owned());
        }
        let attributes = KernelAttributes {
            max_threads: kernel.max_threads,
            registers: 0,
            local_bytes: 0,
            static_shared_bytes: 0,
            max_dynamic_shared_bytes: SHARED_BYTES,
            params_bytes: Some(kernel.params_bytes),
            compiled_for: self.properties.compute_capability,
        };
        Ok(LoadedKernel { handle: Handle(index), attributes })
    }

    unsafe fn resident_blocks(&self, _: Handle, block: u32, shared_bytes: u32) -> Result<u32> {
        let room = (THREADS_PER_SM / block).min(SHARED_BYTES_PER_SM / (shared_bytes + 1024)).min(32);
        let side_by_side = self.machine.config().resident_ctas / self.properties.multiprocessors.max(1);
        Ok(room.min(side_by_side).max(1))
    }

    unsafe fn resident_clusters(&self, launch: &Launch<'_>) -> Result<u32> {
        Ok((self.machine.config().resident_ctas / launch.config.cluster).max(1))
    }

    unsafe fn launch(&self, stream: Handle, launch: &Launch<'_>) -> Result<()> {
        let (config, params) = (launch.config.clone(), launch.params.to_vec());
        // SAFETY: the caller's promise.
        unsafe { self.issue(stream, Operation::Launch { kernel: launch.kernel, config, params }) }
    }

    fn encode_tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap> {
        let Tensor { address, element_bytes, dims, strides, boxes, swizzle_128 } = *tensor;
        let tensor = emulator::TensorMap { address, element_bytes, dims, strides, boxes, swizzle_128 };
        Ok(TensorMap { opaque: self.machine.encode_tensor_map(&tensor)? })
    }

    fn take_counters(&self) -> Vec<Counters> {
        lock(&self.counters).drain(..).collect()
    }

    fn lose_after(&self, launches: u32) {
        *lock(&self.left) = Some(launches);
    }

    fn machine(&self) -> Option<&Machine> {
        Some(&self.machine)
    }
}
