//! Properties of a device and of a kernel on it.

/// The kind of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceKind {
    /// An NVIDIA GPU.
    Cuda {
        /// The driver's number of the device.
        ordinal: usize,
        /// Major and minor version of the newest CUDA that the driver supports.
        driver_version: (u32, u32),
    },
    /// The emulator: every CUDA thread executed on the CPU, stricter than hardware.
    Emulator,
}

/// The properties of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Properties {
    /// The driver's name for the device.
    pub name: String,
    /// GPU or emulator.
    pub kind: DeviceKind,
    /// Major and minor compute capability, (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors (SMs).
    pub multiprocessors: u32,
    /// The largest number of threads resident on one SM.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory of one SM.
    pub shared_bytes_per_multiprocessor: u32,
    /// The largest number of bytes of shared memory of one block, static and dynamic together.
    pub shared_bytes_per_block: u32,
    /// Bytes of L2 cache.
    pub l2_bytes: usize,
    /// Bytes of device memory.
    pub memory_bytes: usize,
    /// Peak clock of the SMs in kHz; 0 if unknown.
    pub clock_khz: u32,
    /// Peak clock of the memory in kHz; 0 if unknown.
    pub memory_clock_khz: u32,
    /// Width of the memory's bus in bits; 0 if unknown.
    pub memory_bus_bits: u32,
}

impl std::fmt::Display for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.kind {
            DeviceKind::Cuda { ordinal, .. } => write!(f, "cuda:{ordinal} ({})", self.name),
            DeviceKind::Emulator => f.write_str(&self.name),
        }
    }
}

/// The resources that a compiled kernel needs, and the limits of its launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelAttributes {
    /// The largest number of threads of a block.
    pub max_threads: u32,
    /// Registers of a thread; 0 on the emulator.
    pub registers: u32,
    /// Bytes of local memory (spills, arrays with a variable index) of a thread; 0 on the emulator.
    pub local_bytes: u32,
    /// Bytes of static shared memory of a block.
    pub static_shared_bytes: u32,
    /// The largest number of bytes of dynamic shared memory of a block.
    pub max_dynamic_shared_bytes: u32,
    /// Bytes of the parameter struct, if the driver reports them (from CUDA 12.4 on).
    pub params_bytes: Option<usize>,
    /// Major and minor of the architecture that the code was compiled for; if the driver compiled it from PTX, of the
    /// architecture of the PTX. The device's own on the emulator.
    pub compiled_for: (u32, u32),
}
