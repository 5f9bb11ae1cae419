//! A kernel and how a plan has it launched.

use crate::device::Device;
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::kernel::{Kernel, KernelParams};
use crate::device::launch::stream::Stream;
use crate::error::Result;

/// A kernel, found once, and how a plan has it launched.
#[derive(Debug, Clone)]
pub(crate) struct PlannedKernel {
    kernel: Kernel,
    config: LaunchConfig,
}

impl PlannedKernel {
    /// For launches in order and without clusters.
    pub(crate) fn find(device: &Device, name: &str, grid: [u32; 3], threads: u32, shared_bytes: u32) -> Result<Self> {
        let config = LaunchConfig { shared_bytes, ..LaunchConfig::new(grid, threads) };
        Ok(Self { kernel: device.kernel(name)?, config })
    }

    pub(crate) fn with_cluster(mut self, cluster: u32) -> Self {
        self.config.cluster = cluster;
        self
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
