//! Launches, and the number of their blocks and clusters that are resident at a time.

use std::ffi::{c_int, c_void};

use sys::{CUlaunchAttribute, CUlaunchAttributeID as Id, CUlaunchConfig};

use crate::device::backend::{Handle, Launch};
use crate::device::cuda::driver::{self, sys};
use crate::device::launch::config::LaunchConfig;
use crate::error::Result;

fn function(kernel: Handle) -> sys::CUfunction {
    kernel.0 as sys::CUfunction
}

/// The driver's attributes of a launch, and how many of them are used.
fn attributes(config: &LaunchConfig, dependent: bool) -> ([CUlaunchAttribute; 2], u32) {
    // SAFETY: the structs are plain integers, whose identifier 0 means "ignore".
    let mut list: [CUlaunchAttribute; 2] = unsafe { std::mem::zeroed() };
    let mut count = 0;
    if config.cluster > 1 {
        list[count].id = Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
        list[count].value.clusterDim.x = config.cluster;
        list[count].value.clusterDim.y = 1;
        list[count].value.clusterDim.z = 1;
        count += 1;
    }
    if dependent {
        list[count].id = Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        list[count].value.programmaticStreamSerializationAllowed = 1;
        count += 1;
    }
    (list, count as u32)
}

fn driver_config(
    config: &LaunchConfig,
    stream: sys::CUstream,
    list: &mut [CUlaunchAttribute],
    count: u32,
) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: config.grid[0],
        gridDimY: config.grid[1],
        gridDimZ: config.grid[2],
        blockDimX: config.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: config.shared_bytes,
        hStream: stream,
        attrs: list.as_mut_ptr(),
        numAttrs: count,
    }
}

/// Issues a launch.
///
/// # Safety
/// As [`Kernel::launch`](crate::device::Kernel::launch), in the context of kernel and stream.
pub(super) unsafe fn launch(stream: sys::CUstream, what: &Launch<'_>) -> Result<()> {
    let (mut list, count) = attributes(what.config, what.dependent);
    let config = driver_config(what.config, stream, &mut list, count);
    // The driver only reads the struct, although the pointer's type is mutable.
    let mut params = [what.params.as_ptr().cast_mut().cast::<c_void>()];
    // SAFETY: the caller's promise; the driver copies the attributes and the parameter struct before it returns.
    Ok(unsafe { driver::cuLaunchKernelEx(&config, function(what.kernel), params.as_mut_ptr(), std::ptr::null_mut()) }?)
}

/// Blocks of a kernel that are resident on one SM at a time.
///
/// # Safety
/// The kernel's context must be current.
pub(super) unsafe fn resident_blocks(kernel: Handle, block: u32, shared_bytes: u32) -> Result<u32> {
    let mut count: c_int = 0;
    let (block, shared_bytes) = (block.cast_signed(), shared_bytes as usize);
    // SAFETY: the caller's promise, and the pointer is to a live integer.
    unsafe { driver::cuOccupancyMaxActiveBlocksPerMultiprocessor(&mut count, function(kernel), block, shared_bytes) }?;
    Ok(u32::try_from(count).unwrap_or(0))
}

/// Clusters of a launch that are resident on the device at a time.
///
/// # Safety
/// The kernel's context must be current.
pub(super) unsafe fn resident_clusters(what: &Launch<'_>) -> Result<u32> {
    let (mut list, attributes) = attributes(what.config, false);
    let config = driver_config(what.config, std::ptr::null_mut(), &mut list, attributes);
    let mut count: c_int = 0;
    // SAFETY: the caller's promise, and the pointers are to a live integer and a live configuration.
    unsafe { driver::cuOccupancyMaxActiveClusters(&mut count, function(what.kernel), &config) }?;
    Ok(u32::try_from(count).unwrap_or(0))
}
