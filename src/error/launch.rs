//! Why a launch of a loaded kernel is refused, or how it failed.

/// Why a loaded kernel cannot be launched as asked, or how its launch failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LaunchError {
    /// The launch exceeds the limits of the device or of the kernel.
    #[error("{kernel} cannot be launched: {reason}")]
    LimitExceeded {
        /// The kernel.
        kernel: String,
        /// Which limit, and the value given.
        reason: String,
    },
    /// The parameter struct given differs in size from the kernel's.
    #[error("{kernel} takes {expected} bytes of parameters, not {actual}")]
    WrongParameters {
        /// The kernel.
        kernel: String,
        /// Bytes of its parameter struct.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// The emulator stopped the kernel because one of its checks failed.
    #[error("{kernel}: {report}")]
    Fault {
        /// The kernel.
        kernel: String,
        /// What happened and where, and the positions of all other threads.
        report: String,
    },
}
