//! What a device and a kernel on it are capable of.

/// What runs the kernels.
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

/// What a device is and has.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Properties {
    /// What the driver calls it.
    pub name: String,
    /// GPU or emulator.
    pub kind: DeviceKind,
    /// Major and minor compute capability, (9, 0) for Hopper.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors (SMs).
    pub multiprocessors: u32,
    /// Threads that one SM holds at most.
    pub threads_per_multiprocessor: u32,
    /// Bytes of shared memory of one SM.
    pub shared_bytes_per_multiprocessor: u32,
    /// Bytes of shared memory that one block can have at most, static and dynamic together.
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

/// What the compiler made of a kernel, and what a launch of it may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelAttributes {
    /// Threads of a block at most.
    pub max_threads: u32,
    /// Registers of a thread; 0 on the emulator.
    pub registers: u32,
    /// Bytes of local memory (spills, arrays with a variable index) of a thread; 0 on the emulator.
    pub local_bytes: u32,
    /// Bytes of shared memory that every block has without asking.
    pub static_shared_bytes: u32,
    /// Bytes of dynamic shared memory that a launch may ask for.
    pub max_dynamic_shared_bytes: u32,
    /// Bytes of its parameter struct, where the driver can tell (from CUDA 12.4 on).
    pub params_bytes: Option<usize>,
    /// Major and minor of the architecture that the running code was compiled for; where the driver made it from PTX, what that
    /// was compiled for. The device's own on the emulator.
    pub compiled_for: (u32, u32),
}
