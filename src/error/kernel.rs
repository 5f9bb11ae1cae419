//! Why a kernel cannot be loaded.

use std::path::PathBuf;

/// Why a kernel cannot be loaded: there is none of this name, or no machine code of it for the device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// There is no kernel of this name.
    #[error("there is no kernel '{kernel}'")]
    NoSuchKernel {
        /// The name requested.
        kernel: String,
    },
    /// The device cannot run this kernel.
    #[error("{kernel} does not run on compute capability {}.{}: it is written for {needs}", capability.0, capability.1)]
    Unsupported {
        /// The kernel.
        kernel: String,
        /// The device's compute capability.
        capability: (u32, u32),
        /// The targets that the kernel is written for.
        needs: String,
    },
    /// No machine code for the device is built in, and NVRTC cannot compile it.
    #[error(
        "{kernel} is not built in for compute capability {}.{}, and NVRTC cannot compile it ({reason}): build with \
         nvcc in $PATH, $CUDA_HOME or $FUSED_LORA_NVCC, or install libnvrtc (set $FUSED_LORA_NVRTC to its path if it \
         is not found)",
        capability.0, capability.1
    )]
    NoImage {
        /// The kernel.
        kernel: String,
        /// The device's compute capability.
        capability: (u32, u32),
        /// Why NVRTC cannot compile it.
        reason: String,
    },
    /// This build keeps its machine code in files, and one of them cannot be read.
    #[error(
        "cannot read {} ({reason}): this build loads its kernels from files in a folder 'images' beside the program or \
         in the folder that $FUSED_LORA_IMAGES names", path.display()
    )]
    UnreadableImage {
        /// Where the file was looked for.
        path: PathBuf,
        /// Why it cannot be read.
        reason: String,
    },
    /// NVRTC could not compile a kernel.
    #[error("NVRTC cannot compile {file} for {target}: {log}")]
    CompilationFailed {
        /// The source file.
        file: String,
        /// The target architecture.
        target: String,
        /// The compiler's log.
        log: String,
    },
}
