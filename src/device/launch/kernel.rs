//! Kernels: how they are loaded by name, their attributes, and how they are launched.

use std::sync::PoisonError;

use crate::abi;
use crate::device::Device;
use crate::device::backend::{Launch, LoadedKernel};
use crate::device::image;
use crate::device::launch::config::LaunchConfig;
use crate::device::launch::stream::Stream;
use crate::device::properties::KernelAttributes;
use crate::error::{Error, LaunchError, Result};

/// The first compute capability that has clusters.
const CLUSTERS: (u32, u32) = (9, 0);
/// The first compute capability whose code can wait for the preceding launch. Code compiled for an older one runs on
/// newer devices as well, but cannot wait.
const DEPENDENT_LAUNCH: (u32, u32) = (9, 0);
/// The largest number of CTAs of a cluster that every device with clusters supports.
const MAX_CLUSTER: u32 = 8;

/// A parameter struct of a kernel.
///
/// # Safety
/// The type is `repr(C)`, has no padding, and is the struct of kernels/abi.h that the kernel takes by value.
pub unsafe trait KernelParams: Copy {}

// SAFETY: made from kernels/abi.h, whose sizes and offsets it asserts: 920 bytes of fields without a gap.
unsafe impl KernelParams for abi::LoraDecode {}

// SAFETY: likewise, 992 bytes.
unsafe impl KernelParams for abi::LoraForward {}

// SAFETY: likewise, 1408 bytes.
unsafe impl KernelParams for abi::LoraForwardTma {}

// SAFETY: likewise, 816 bytes.
unsafe impl KernelParams for abi::LoraMerge {}

// SAFETY: likewise, 24 bytes.
unsafe impl KernelParams for abi::LoraRead {}

// SAFETY: likewise, 96 bytes.
unsafe impl KernelParams for abi::LoraAdamw {}

// SAFETY: likewise, 384 bytes.
unsafe impl KernelParams for abi::LoraTest {}

// SAFETY: likewise, 104 bytes.
unsafe impl KernelParams for abi::LoraLadder {}

// SAFETY: likewise, 928 bytes.
unsafe impl KernelParams for abi::LoraGradients {}

// SAFETY: likewise, 56 bytes.
unsafe impl KernelParams for abi::LoraLayerNorm {}

// SAFETY: likewise, 120 bytes.
unsafe impl KernelParams for abi::LoraEmbedding {}

// SAFETY: likewise, 1008 bytes.
unsafe impl KernelParams for abi::LoraAdapter {}

// SAFETY: likewise, 104 bytes.
unsafe impl KernelParams for abi::LoraAttention {}

// SAFETY: likewise, 48 bytes.
unsafe impl KernelParams for abi::LoraPointwise {}

impl Device {
    /// Loads the kernel of this name onto the device. The first call for a kernel may compile it, which takes seconds;
    /// later calls only look it up.
    ///
    /// # Errors
    /// [`Error::Kernel`]: there is no kernel of this name, it is not written for this device, or there is no machine
    /// code for it and NVRTC cannot compile it. [`Error::Driver`].
    pub fn kernel(&self, name: &str) -> Result<Kernel> {
        let mut kernels = self.0.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = match kernels.get(name) {
            Some(&loaded) => loaded,
            None => {
                image::expect_supported(name, self.properties().compute_capability)?;
                *kernels.entry(name.to_owned()).or_insert(self.backend().kernel(name)?)
            }
        };
        Ok(Kernel { device: self.clone(), name: name.to_owned(), loaded })
    }
}

/// A kernel, ready to be launched.
#[derive(Debug, Clone)]
pub struct Kernel {
    device: Device,
    name: String,
    loaded: LoadedKernel,
}

impl Kernel {
    /// The kernel's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The device that the kernel is on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The attributes of the compiled kernel.
    pub fn attributes(&self) -> &KernelAttributes {
        &self.loaded.attributes
    }

    /// Blocks that are resident on one SM at a time.
    ///
    /// # Errors
    /// [`LaunchError::LimitExceeded`] if the block exceeds the kernel's limits, or an error of the driver.
    pub fn resident_blocks(&self, block: u32, shared_bytes: u32) -> Result<u32> {
        self.check(&LaunchConfig { shared_bytes, ..LaunchConfig::new([1; 3], block) })?;
        // SAFETY: the kernel lives as long as its device, which is held.
        unsafe { self.device.backend().resident_blocks(self.loaded.handle, block, shared_bytes) }
    }

    /// Clusters of such a launch that are resident on the device at a time.
    ///
    /// # Errors
    /// [`LaunchError::LimitExceeded`] if the launch is not possible, or an error of the driver.
    pub fn resident_clusters(&self, config: &LaunchConfig) -> Result<u32> {
        self.check(config)?;
        if config.cluster == 1 {
            let blocks = self.resident_blocks(config.block, config.shared_bytes)?;
            return Ok(blocks * self.device.properties().multiprocessors);
        }
        // SAFETY: the kernel lives as long as its device, which is held.
        unsafe { self.device.backend().resident_clusters(&self.launch_of(config, &[])) }
    }

    /// Issues a launch to a stream. Returns before the launch has run, except on the emulator.
    ///
    /// # Errors
    /// [`Error::WrongDevice`], [`LaunchError::LimitExceeded`], [`LaunchError::WrongParameters`] before anything is
    /// launched; [`LaunchError::Fault`] on the emulator; errors of the driver.
    ///
    /// # Safety
    /// `params` is of the kernel's own type, and every address in it stays valid for the kernel's accesses until the
    /// launch has run.
    pub unsafe fn launch<P: KernelParams>(&self, stream: &Stream, config: &LaunchConfig, params: &P) -> Result<()> {
        self.device.expect_same("stream", stream.device())?;
        self.check(config)?;
        if let Some(expected) = self.loaded.attributes.params_bytes.filter(|&bytes| bytes != size_of::<P>()) {
            return Err(Error::Launch(LaunchError::WrongParameters {
                kernel: self.name.clone(),
                expected,
                actual: size_of::<P>(),
            }));
        }
        // SAFETY: a parameter struct is plain data without padding.
        let bytes = unsafe { std::slice::from_raw_parts(std::ptr::from_ref(params).cast::<u8>(), size_of::<P>()) };
        // SAFETY: stream and kernel are this device's; the rest is the caller's promise.
        unsafe { self.device.backend().launch(stream.handle(), &self.launch_of(config, bytes)) }
    }

    fn launch_of<'a>(&'a self, config: &'a LaunchConfig, params: &'a [u8]) -> Launch<'a> {
        let dependent = config.dependent_launch && self.loaded.attributes.compiled_for >= DEPENDENT_LAUNCH;
        Launch { kernel: self.loaded.handle, config, dependent, params }
    }

    fn check(&self, config: &LaunchConfig) -> Result<()> {
        let capability = self.device.properties().compute_capability;
        match refusal(config, &self.loaded.attributes, capability) {
            Some(reason) => Err(Error::Launch(LaunchError::LimitExceeded { kernel: self.name.clone(), reason })),
            None => Ok(()),
        }
    }
}

/// Why a device of this compute capability refuses this launch of the kernel; `None` if it does not.
fn refusal(config: &LaunchConfig, kernel: &KernelAttributes, capability: (u32, u32)) -> Option<String> {
    let &LaunchConfig { grid, block, shared_bytes, cluster, .. } = config;
    if block == 0 || block > kernel.max_threads {
        Some(format!("{block} threads per block (limit {})", kernel.max_threads))
    } else if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
        Some(format!("a grid of {grid:?} blocks"))
    } else if shared_bytes > kernel.max_dynamic_shared_bytes {
        Some(format!("{shared_bytes} bytes of shared memory (limit {})", kernel.max_dynamic_shared_bytes))
    } else if cluster == 0 || cluster > MAX_CLUSTER || !grid[0].is_multiple_of(cluster) {
        Some(format!("clusters of {cluster} blocks in a grid of {grid:?}"))
    } else if cluster > 1 && capability < CLUSTERS {
        Some(format!("clusters on compute capability {}.{}", capability.0, capability.1))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: KernelAttributes = KernelAttributes {
        max_threads: 512,
        registers: 64,
        local_bytes: 0,
        static_shared_bytes: 0,
        max_dynamic_shared_bytes: 1000,
        params_bytes: None,
        compiled_for: (9, 0),
    };

    #[test]
    fn each_limit_of_a_launch_is_kept() {
        let good = LaunchConfig { shared_bytes: 1000, cluster: 4, ..LaunchConfig::new([8, 2, 1], 512) };
        let refused = |config: LaunchConfig| refusal(&config, &KERNEL, (9, 0)).unwrap_or_default();
        assert_eq!(refused(good.clone()), "");
        assert!(refused(LaunchConfig { block: 513, ..good.clone() }).contains("threads"));
        assert!(refused(LaunchConfig { block: 0, ..good.clone() }).contains("threads"));
        assert!(refused(LaunchConfig { grid: [8, 65536, 1], ..good.clone() }).contains("grid"));
        assert!(refused(LaunchConfig { grid: [8, 0, 1], ..good.clone() }).contains("grid"));
        assert!(refused(LaunchConfig { shared_bytes: 1001, ..good.clone() }).contains("shared"));
        assert!(refused(LaunchConfig { cluster: 3, ..good.clone() }).contains("clusters"));
        assert!(refusal(&good, &KERNEL, (8, 9)).unwrap_or_default().contains("8.9"));
    }
}
