//! Loaded kernels with the launch configuration of their plan.

use crate::device::Device;
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::kernel::{Kernel, KernelParams};
use crate::device::launch::stream::Stream;
use crate::error::Result;
use crate::plan::LaunchShape;

/// The methods of a type whose only kernel is its field `kernel`, a [`PlannedKernel`].
macro_rules! planned_kernel_methods {
    () => {
        /// As [`Forward::with_dependent_launch`](crate::device::Forward::with_dependent_launch).
        #[must_use]
        pub fn with_dependent_launch(self) -> Self {
            Self { kernel: self.kernel.with_dependent_launch(), ..self }
        }

        /// The kernel that is launched.
        pub fn kernel(&self) -> &$crate::device::Kernel {
            self.kernel.as_kernel()
        }
    };
}

pub(crate) use planned_kernel_methods;

/// A loaded kernel with the launch configuration of a plan.
#[derive(Debug, Clone)]
pub(crate) struct PlannedKernel {
    kernel: Kernel,
    config: LaunchConfig,
}

impl PlannedKernel {
    /// Loads the kernel of a launch, which starts after the preceding launch in the stream has ended.
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
