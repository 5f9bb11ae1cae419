//! What the driver of a GPU says, or the emulator in its place.

/// Why a device cannot be opened or refuses a call: the answer of the CUDA driver, or of the emulator in its place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The driver of the GPU is not installed, or does not start.
    #[error("no CUDA driver: {reason}; it comes with NVIDIA's driver package")]
    NotInstalled {
        /// The library that was not found, or the driver's message.
        reason: String,
    },
    /// The driver lacks a function that this library calls.
    #[error("the CUDA driver has no {symbol}; version 520 (CUDA 11.8) or later is needed")]
    TooOld {
        /// The missing function.
        symbol: String,
    },
    /// The driver has no device with this number.
    #[error("there is no CUDA device {ordinal}, the driver finds {count}")]
    NoDevice {
        /// The number requested.
        ordinal: usize,
        /// How many devices the driver finds.
        count: usize,
    },
    /// A kernel failed. This process cannot use the device any more.
    #[error("the device is lost: {reason}")]
    DeviceLost {
        /// The driver's message.
        reason: String,
    },
    /// The device has no memory left.
    #[error("no room for {bytes} bytes of device memory")]
    OutOfMemory {
        /// Bytes requested.
        bytes: usize,
    },
    /// The driver refused a call for any other reason.
    #[error("the CUDA driver refused {operation}: {reason}")]
    Refused {
        /// The driver function that was called.
        operation: &'static str,
        /// The driver's error number.
        code: u32,
        /// The driver's name and description of the error.
        reason: String,
    },
    /// The emulator is not available on this machine.
    #[error("no emulator: {reason}")]
    NoEmulator {
        /// What is missing.
        reason: String,
    },
}
