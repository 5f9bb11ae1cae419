//! Runs a test's kernels in the emulator or, with `FUSED_LORA_TEST_DEVICE=cuda`, on the first GPU. The tests are the
//! same.

use std::cell::RefCell;
use std::collections::HashMap;

use bytemuck::{AnyBitPattern, NoUninit};
use fused_lora::abi::TensorMap;
use fused_lora::device::{Device, DeviceBuffer, KernelParams, LaunchConfig, Stream, Tensor, emulator_kernels};
use fused_lora::{Element, KernelError, WorkspaceLayout};
use fused_lora_emulator::{Build, Completion, Config, Counters, Error, Fault, Launch, Machine, Schedule};

use super::Buffer;

/// The environment variable that is set in a process started for the sanitizer build.
pub const SANITIZED: &str = "FUSED_LORA_TEST_SANITIZED";
/// The environment variable of the tests' depth: `proof`, or not set.
const DEPTH: &str = "FUSED_LORA_TEST_DEPTH";
/// The environment variable of the tests' device: `cuda`, or not set.
const DEVICE: &str = "FUSED_LORA_TEST_DEVICE";

/// A device and the memory that a test has allocated on it.
pub struct Rig(Kind);

enum Kind {
    Emulator(Box<Machine>),
    Cuda { device: Device, stream: Stream, buffers: RefCell<HashMap<u64, DeviceBuffer<u8>>> },
}

use Kind::{Cuda, Emulator};

/// Why a launch failed.
#[derive(Debug, Clone, PartialEq)]
pub enum Failure {
    /// A check of the emulator found a fault.
    Fault(Fault, String),
    /// The device lacks instructions that the kernel uses.
    Unsupported,
    /// The device module or the emulator refused the launch for another reason.
    Refused(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Fault(_, report) => f.write_str(report),
            Failure::Unsupported => f.write_str("the device lacks instructions of the kernel"),
            Failure::Refused(reason) => f.write_str(reason),
        }
    }
}

/// Three orders of threads, with one, three or all CTAs resident at a time. With one resident CTA, a CTA that waits for
/// a CTA that has not started hangs, and the emulator reports it.
pub const SCHEDULES: [(Schedule, u32); 3] =
    [(Schedule::FirstIn, 64), (Schedule::LastIn, 1), (Schedule::Random(0x5EED), 3)];

/// The shape of a launch.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared_bytes: u32,
    pub cluster: u32,
}

impl<'a> Call<'a> {
    /// The shape of a launch without clusters.
    pub fn new(kernel: &'a str, grid: [u32; 3], threads: u32, shared_bytes: u32) -> Self {
        Self { kernel, grid, threads, shared_bytes, cluster: 1 }
    }
}

/// Whether tests run on a real GPU.
pub fn on_gpu() -> bool {
    std::env::var(DEVICE).is_ok_and(|device| device == "cuda")
}

/// Whether tests run at the depth of `cargo xtask prove`: under every schedule and in every build; tests/instructions
/// also with early and late completion of asynchronous copies. Otherwise a test runs once, in the race build and under
/// a random schedule, which finds nearly all faults that the others find.
pub fn proving() -> bool {
    std::env::var(DEPTH).is_ok_and(|depth| depth == "proof")
}

/// The builds of the kernels that a test runs in. The sanitizer build needs a process of its own; a GPU has only one
/// build.
pub fn builds() -> Vec<Build> {
    match () {
        () if on_gpu() => vec![Build::Plain],
        () if is_sanitized() => vec![Build::Sanitize],
        () if proving() => vec![Build::Plain, Build::Race],
        () => vec![Build::Race],
    }
}

/// The build for tests that take long.
pub fn fastest() -> Build {
    if is_sanitized() { Build::Sanitize } else { Build::Plain }
}

/// Whether this process was started for the sanitizer build.
pub fn is_sanitized() -> bool {
    std::env::var_os(SANITIZED).is_some()
}

/// The schedules that a test runs under, out of `all`: all of them at the depth of the proof, otherwise the last one,
/// which is random. The sanitizer build always runs under the last one only: whether an address or an operation is
/// valid depends on the order only if there is a race, and the race build looks for races under every schedule.
pub fn schedules(all: &[(Schedule, u32)]) -> &[(Schedule, u32)] {
    if (proving() && !is_sanitized()) || on_gpu() { all } else { &all[all.len() - 1..] }
}

impl Rig {
    pub fn new(build: Build) -> Self {
        Self::with(Config { build, ..Config::default() })
    }

    pub fn with(config: Config) -> Self {
        if on_gpu() {
            let device = Device::cuda(0).unwrap();
            let stream = Stream::new(&device).unwrap();
            return Self(Cuda { device, stream, buffers: RefCell::default() });
        }
        Self::emulator(Machine::new(config, &emulator_kernels()).unwrap())
    }

    pub fn emulator(machine: Machine) -> Self {
        Self(Emulator(Box::new(machine)))
    }

    /// Sets the emulator's schedule. Has no effect on a GPU.
    pub fn set_schedule(&self, schedule: Schedule, completion: Completion, resident_ctas: u32) {
        if let Emulator(machine) = &self.0 {
            machine.set_schedule(schedule, completion);
            machine.set_resident_ctas(resident_ctas);
        }
    }

    pub fn compute_capability(&self) -> (u32, u32) {
        match &self.0 {
            Emulator(machine) => machine.config().compute_capability,
            Cuda { device, .. } => device.properties().compute_capability,
        }
    }

    pub fn tensor_map(&self, tensor: &Tensor<'_>) -> Result<TensorMap, String> {
        match &self.0 {
            Emulator(machine) => {
                let Tensor { address, element_bytes, dims, strides, boxes, swizzle_128 } = *tensor;
                let tensor =
                    fused_lora_emulator::TensorMap { address, element_bytes, dims, strides, boxes, swizzle_128 };
                let encoded = machine.encode_tensor_map(&tensor).map_err(|error| error.to_string())?;
                Ok(TensorMap { opaque: encoded })
            }
            Cuda { device, .. } => device.tensor_map(tensor).map_err(|error| error.to_string()),
        }
    }

    pub fn upload<T: NoUninit>(&self, data: &[T]) -> u64 {
        let address = self.allocate(size_of_val(data));
        self.write(address, data);
        address
    }

    pub fn allocate(&self, bytes: usize) -> u64 {
        match &self.0 {
            Emulator(machine) => machine.allocate(bytes).unwrap(),
            Cuda { stream, buffers, .. } => {
                let buffer = DeviceBuffer::<u8>::zeros(stream, bytes.max(1)).unwrap();
                let address = buffer.as_slice().address();
                buffers.borrow_mut().insert(address, buffer);
                address
            }
        }
    }

    pub fn free(&self, address: u64) {
        match &self.0 {
            // SAFETY: tests free what they have allocated, once, and no launch runs.
            Emulator(machine) => unsafe { machine.free(address) },
            Cuda { buffers, .. } => drop(buffers.borrow_mut().remove(&address)),
        }
    }

    /// Copies data from the host to an address inside an allocation.
    pub fn write<T: NoUninit>(&self, address: u64, data: &[T]) {
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.is_empty() {
            return; // a plan without T has no address of T
        }
        match &self.0 {
            // SAFETY: the emulator checks the bounds; no launch runs.
            Emulator(machine) => unsafe { machine.write(address, bytes) },
            Cuda { stream, buffers, .. } => {
                let mut buffers = buffers.borrow_mut();
                let (base, buffer) = buffers.iter_mut().find(|(base, b)| within(**base, b.len(), address)).unwrap();
                let at = (address - base) as usize;
                let mut slice = buffer.as_mut_slice();
                slice.slice_mut(at..at + bytes.len()).upload(stream, bytes).unwrap();
            }
        }
    }

    /// Copies data from an address inside an allocation to the host.
    pub fn read<T: NoUninit + AnyBitPattern>(&self, address: u64, data: &mut [T]) {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(data);
        if bytes.is_empty() {
            return;
        }
        match &self.0 {
            // SAFETY: the emulator checks the bounds; no launch runs.
            Emulator(machine) => unsafe { machine.read(address, bytes) },
            Cuda { stream, buffers, .. } => {
                let buffers = buffers.borrow();
                let (base, buffer) = buffers.iter().find(|(base, b)| within(**base, b.len(), address)).unwrap();
                let at = (address - base) as usize;
                buffer.as_slice().slice(at..at + bytes.len()).download(stream, bytes).unwrap();
            }
        }
    }

    /// Launches a kernel and waits for its end. On a GPU the counters are zeros.
    pub fn launch<P: KernelParams>(&self, call: &Call<'_>, params: &P) -> Result<Counters, Failure> {
        match &self.0 {
            Emulator(machine) => {
                // SAFETY: a parameter struct is plain data without padding.
                let params =
                    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast::<u8>(), size_of::<P>()) };
                let Call { kernel, grid, threads, shared_bytes, cluster } = *call;
                let launch = Launch { kernel, grid, block: threads, shared_bytes, cluster, params };
                // SAFETY: tests pass addresses of this rig's allocations.
                unsafe { machine.launch(&launch) }.map_err(|error| match error {
                    Error::Fault { fault, report, .. } => Failure::Fault(fault, report),
                    other => Failure::Refused(other.to_string()),
                })
            }
            Cuda { device, stream, .. } => {
                let refused = |error: fused_lora::Error| Failure::Refused(error.to_string());
                let kernel = match device.kernel(call.kernel) {
                    Err(fused_lora::Error::Kernel(KernelError::Unsupported { .. })) => {
                        return Err(Failure::Unsupported);
                    }
                    kernel => kernel.map_err(refused)?,
                };
                let config = LaunchConfig {
                    shared_bytes: call.shared_bytes,
                    cluster: call.cluster,
                    ..LaunchConfig::new(call.grid, call.threads)
                };
                // SAFETY: tests pass addresses of this rig's allocations, which live until the stream was synchronised.
                unsafe { kernel.launch(stream, &config, params) }.map_err(refused)?;
                stream.synchronize().map_err(refused)?;
                Ok(Counters::default())
            }
        }
    }
}

/// A ticket counter (kernels/tile/ticket.h) before the launch with the last epoch, so that the launches of a test lie on both
/// sides of the epoch's wrap.
pub const BEFORE_THE_LAST_EPOCH: u64 = (u32::MAX as u64 - 1) << 32;

/// Buffers uploaded to a rig, which are freed on drop.
pub struct Uploads<'m> {
    rig: &'m Rig,
    addresses: Vec<u64>,
}

impl<'m> Uploads<'m> {
    pub fn new(rig: &'m Rig) -> Self {
        Self { rig, addresses: vec![] }
    }

    pub fn add<T: NoUninit>(&mut self, data: &[T]) -> u64 {
        let address = self.rig.upload(data);
        self.addresses.push(address);
        address
    }

    /// Adds a workspace of zeros, but for the ticket counter at its start.
    pub fn add_workspace(&mut self, layout: &WorkspaceLayout) -> u64 {
        let workspace = self.add(&vec![0u8; layout.bytes()]);
        self.rig.write(workspace, &[BEFORE_THE_LAST_EPOCH]);
        workspace
    }

    /// Adds a matrix with the elements that precede it. Returns the address of its first element.
    pub fn place<T: Element>(&mut self, matrix: &Buffer<T>) -> u64 {
        self.add_behind(matrix.shift, &matrix.data)
    }

    /// Adds values behind as many elements of NaN. Returns the address of the first value.
    pub fn add_behind<T: Element>(&mut self, shift: usize, values: &[T]) -> u64 {
        let mut data = vec![T::from_f64(f64::NAN); shift];
        data.extend_from_slice(values);
        self.add(&data) + (shift * size_of::<T>()) as u64
    }
}

impl Drop for Uploads<'_> {
    fn drop(&mut self) {
        self.addresses.iter().for_each(|&address| self.rig.free(address));
    }
}

fn within(base: u64, len: usize, address: u64) -> bool {
    address >= base && address < base + len as u64
}
