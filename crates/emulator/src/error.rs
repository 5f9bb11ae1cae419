//! The errors of the emulator.

/// The check that ended a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Fault {
    /// An address outside every allocation.
    OutOfBounds,
    /// An address that is not a multiple of the access width.
    Misaligned,
    /// Shared memory read before anything wrote it.
    Uninitialised,
    /// Two unordered accesses to one address, one of them a write.
    Race,
    /// An asynchronous copy's destination accessed, or its source changed, before the copy completed.
    InFlight,
    /// Ordinary writes read by a copy engine or wgmma without a proxy fence between.
    Proxy,
    /// A barrier with contradicting thread counts, too many arrivals, or no initialisation.
    Barrier,
    /// A warp instruction that not all its lanes reach: some exited, diverged or are not in the mask.
    Collective,
    /// A tensor map or matrix descriptor that the hardware would refuse.
    Descriptor,
    /// A matrix operand that was not rounded to the instruction's input type.
    Operand,
    /// Every thread waits for another.
    Deadlock,
    /// Every remaining thread spins on a value that no thread can change any more.
    Livelock,
    /// More shared memory or parameters than the launch may have.
    Resources,
    /// A signal of the host: a segmentation fault or, on x86-64, an integer division by zero.
    Crash,
}

impl Fault {
    pub(crate) fn from_code(code: i32) -> Self {
        use Fault::*;
        [
            OutOfBounds,
            Misaligned,
            Uninitialised,
            Race,
            InFlight,
            Proxy,
            Barrier,
            Collective,
            Descriptor,
            Operand,
            Deadlock,
            Livelock,
            Resources,
        ]
        .get((code - 1) as usize)
        .copied()
        .unwrap_or(Crash)
    }
}

/// Why a call failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// This machine lacks something that the emulator needs.
    #[error("the emulator is not available: {reason}")]
    Unavailable {
        /// What is missing.
        reason: String,
    },
    /// AddressSanitizer was not loaded when the process started.
    #[error("the sanitize build runs only in a process started with LD_PRELOAD={preload}")]
    SanitizerNotPreloaded {
        /// The library to preload.
        preload: String,
    },
    /// The machine or a kernel could not be compiled or loaded.
    #[error("cannot load the emulator: {reason}")]
    Load {
        /// The message of the compiler, the loader or the file system.
        reason: String,
    },
    /// The emulated device memory is full.
    #[error("no room for {bytes} bytes of emulated device memory")]
    OutOfMemory {
        /// Bytes requested.
        bytes: usize,
    },
    /// The driver would refuse to encode this tensor map.
    #[error("cannot encode a tensor map: {reason}")]
    BadTensorMap {
        /// The rule that the driver would enforce.
        reason: String,
    },
    /// The machine has no kernel of this name.
    #[error("there is no kernel '{0}'")]
    NoSuchKernel(String),
    /// The given parameter struct has another size than the kernel's.
    #[error("kernel '{kernel}' takes {expected} bytes of parameters, not {actual}")]
    WrongParameters {
        /// The kernel.
        kernel: String,
        /// Bytes of its parameter struct.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A launch shape that no GPU, or not this kernel, accepts.
    #[error("kernel '{kernel}' cannot be launched: {reason}")]
    BadLaunch {
        /// The kernel.
        kernel: String,
        /// What is wrong with the shape.
        reason: String,
    },
    /// One of the emulator's checks ended the kernel.
    #[error("kernel '{kernel}': {report}")]
    Fault {
        /// The kernel.
        kernel: String,
        /// Which check caught it.
        fault: Fault,
        /// What happened and where, and what all other threads wait for.
        report: String,
    },
}
