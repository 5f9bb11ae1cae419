//! A kernel and how a plan has it launched.

use crate::device::Device;
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::kernel::{Kernel, KernelParams};
use crate::device::launch::stream::Stream;
use crate::error::Result;
use crate::plan::LaunchShape;

/// A kernel, found once, and how a plan has it launched.
#[derive(Debug, Clone)]
pub(crate) struct PlannedKernel {
    kernel: Kernel,
    config: LaunchConfig,
}

impl PlannedKernel {
    /// Finds the kernel of a launch that starts when the one ahead of it has ended.
    pub(crate) fn find(device: &Device, shape: &LaunchShape) -> Result<Self> {
        let &LaunchShape { ref kernel, grid, threads, shared_bytes, cluster } = shape;
        let config = LaunchConfig { shared_bytes, cluster, ..LaunchConfig::new(grid, threads) };
        Ok(Self { kernel: device.kernel(kernel)?, config })
    }

    pub(crate) fn with_dependent_launch(mut self) -> Self {
        self.config.dependent_launch = true;
        self
    }

    pub(crate) fn as_kernel(&self) -> &Kernel {
        &self.kernel
    }

    pub(crate) fn device(&self) -> &Device {
        self.kernel.device()
    }

    /// As [`Kernel::launch`].
    ///
    /// # Safety
    /// As [`Kernel::launch`].
    pub(crate) unsafe fn launch<P: KernelParams>(&self, stream: &Stream, params: &P) -> Result<()> {
        // SAFETY: the caller's promise is the same.
        unsafe { self.kernel.launch(stream, &self.config, params) }
    }
}
