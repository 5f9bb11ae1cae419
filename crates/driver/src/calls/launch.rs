//! Launches, and how many of their blocks and clusters are resident at a time.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{CUlaunchAttribute, CUlaunchAttributeID as Id, CUlaunchConfig};

use crate::alter;
use crate::calls::module;
use crate::entry::{driver_functions, put};
use crate::limits;
use crate::rules::{Outcome, Rule, refused};
use crate::state::{Function, State, in_context};
use crate::work::{Launch, Work};

/// The largest cluster that every device supports.
const MAX_CLUSTER: u32 = 8;
const MAX_THREADS: u32 = 1024;
/// `CUDA_ERROR_UNKNOWN`: what the emulator cannot do.
const UNKNOWN: u32 = 999;

/// A launch's configuration, read from the caller's struct.
struct Config {
    grid: [u32; 3],
    block: u32,
    shared_bytes: u32,
    /// Blocks of a cluster, if the launch has clusters.
    cluster: Option<u32>,
    dependent: bool,
    stream: usize,
}

/// Reads a configuration and holds it to the limits of the device and of the function.
///
/// # Safety
/// `config` is null or to a configuration whose list of attributes is as long as it says.
unsafe fn read(call: &'static str, config: *const CUlaunchConfig, state: &State, of: &Function) -> Outcome<Config> {
    Rule::ResultPointer.expect(!config.is_null() && config.is_aligned(), || "The configuration is.".into())?;
    // SAFETY: the caller's promise, and not null. The struct holds integers and pointers only.
    let config = unsafe { &*config };
    let field = |name, value: u32| alter::field(call, name, u64::from(value)) as u32;
    let grid = [field("gridDimX", config.gridDimX), config.gridDimY, config.gridDimZ];
    let block = field("blockDimX", config.blockDimX)
        .checked_mul(config.blockDimY)
        .and_then(|threads| threads.checked_mul(config.blockDimZ));
    let block = block.unwrap_or(u32::MAX);
    let shared_bytes = field("sharedMemBytes", config.sharedMemBytes);
    let count = field("numAttrs", config.numAttrs) as usize;
    // SAFETY: the caller's promise.
    let (cluster, dependent) = unsafe { attributes(call, config.attrs, count) }?;

    let fits = (1..=i32::MAX as u32).contains(&grid[0]) && grid[1..].iter().all(|size| (1..=0xffff).contains(size));
    Rule::GridSize.expect(fits, || format!("{} has a grid of {grid:?}.", of.name))?;
    let most = of.image.max_threads.min(MAX_THREADS);
    let fits = (1..=most).contains(&block);
    Rule::BlockSize.expect(fits, || format!("{} has a block of {block} threads, and may have {most}.", of.name))?;
    if (config.blockDimY, config.blockDimZ) != (1, 1) {
        return refused(UNKNOWN, "the emulator has blocks of one dimension only");
    }
    let registers = (of.image.registers * 32).next_multiple_of(256) * block.div_ceil(32);
    Rule::BlockRegisters.expect(registers <= limits::REGISTERS, || format!("{} takes {registers}.", of.name))?;
    Rule::SharedLimit.expect(shared_bytes <= of.max_dynamic_shared, || {
        format!("{} asks for {shared_bytes} bytes, and its limit is {}.", of.name, of.max_dynamic_shared)
    })?;
    let device = limits::of(state.options.capability);
    Rule::ClusterDevice.expect(cluster.is_none() || device.has_clusters, String::new)?;
    Rule::DependentDevice.expect(!dependent || device.has_clusters, String::new)?;
    let size = cluster.unwrap_or(1);
    let fits = (1..=MAX_CLUSTER).contains(&size) && grid[0].is_multiple_of(size);
    Rule::ClusterSize.expect(fits, || format!("{} has clusters of {size} in a grid of {grid:?}.", of.name))?;
    Ok(Config { grid, block, shared_bytes, cluster, dependent, stream: config.hStream.expose_provenance() })
}

/// The blocks of a cluster, if there is that attribute, and whether the launch is dependent.
///
/// # Safety
/// The list is null or as long as `count` says.
unsafe fn attributes(call: &'static str, list: *const CUlaunchAttribute, count: usize) -> Outcome<(Option<u32>, bool)> {
    let (mut cluster, mut dependent) = (None, None);
    Rule::LaunchAttribute.expect(count == 0 || !list.is_null(), || "The list is null.".into())?;
    for at in 0..count {
        // SAFETY: the caller's promise. The number is read as an integer, since it may be none of the enum's.
        let (id, attribute) = unsafe {
            let attribute = list.add(at);
            (attribute.cast::<u32>().read(), &attribute.cast::<[u32; 5]>().read())
        };
        let id = alter::field(call, "attribute", u64::from(id)) as u32;
        let [_, padding, x, y, z] = *attribute;
        if id == Id::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION as u32 {
            let x = alter::field(call, "clusterDimX", u64::from(x)) as u32;
            let fits = cluster.replace(x).is_none() && padding == 0;
            Rule::LaunchAttribute.expect(fits, || "The cluster's size is given twice.".into())?;
            Rule::ClusterSize.expect(y == 1 && z == 1, || format!("The cluster is {x} x {y} x {z}."))?;
        } else if id == Id::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as u32 {
            let fits = dependent.replace(x == 1).is_none() && x <= 1 && padding == 0;
            Rule::LaunchAttribute.expect(fits, || format!("A dependent launch is allowed by {x}."))?;
        } else {
            return Rule::LaunchAttribute.broken(format!("Attribute {id}."));
        }
    }
    Ok((cluster, dependent.unwrap_or(false)))
}

driver_functions! {
    /// Issues a launch.
    fn cuLaunchKernelEx(
        config: *const CUlaunchConfig,
        function: usize,
        params: *mut *mut c_void,
        extra: *mut *mut c_void,
    ) {
        in_context(|state, device| {
            let function = module::load(state, function, device)?;
            // SAFETY: the caller's promise.
            let config = unsafe { read("cuLaunchKernelEx", config, state, &function) }?;
            let given = extra.is_null() && !params.is_null();
            Rule::LaunchParameters.expect(given, || format!("{} gets none.", function.name))?;
            let mut parameters = vec![];
            for (at, &(_, bytes)) in function.image.parameters.iter().enumerate() {
                // SAFETY: the caller's promise that there is a pointer for each parameter.
                let from: *const u8 = unsafe { params.add(at).read() }.cast();
                Rule::LaunchParameters.expect(!from.is_null(), || format!("Parameter {at} is null."))?;
                // SAFETY: the caller's promise that the parameter is as long as the kernel's.
                parameters.extend_from_slice(unsafe { std::slice::from_raw_parts(from, bytes) });
            }
            let Config { grid, block, shared_bytes, cluster, dependent, stream } = config;
            let (kernel, cluster) = (function.name, cluster.unwrap_or(1));
            let launch = Launch { kernel, grid, block, shared_bytes, cluster, dependent, parameters };
            state.issue(stream, device, Work::Launch(Arc::new(launch))).map(drop)
        })
    }

    /// Blocks that are resident on an SM at a time.
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(count: *mut i32, function: usize, block: i32, shared: usize) {
        in_context(|state, device| {
            let Function { name, image, max_dynamic_shared, .. } = state.functions.get(function, device)?.clone();
            let fits = u32::try_from(block).is_ok_and(|block| (1..=image.max_threads).contains(&block));
            Rule::BlockSize.expect(fits, || format!("{name} has a block of {block} threads."))?;
            Rule::SharedLimit.expect(shared <= max_dynamic_shared as usize, || format!("{name} asks for {shared} bytes."))?;
            let shared = shared as u32 + image.static_shared_bytes;
            let found = limits::resident_blocks(state.options.capability, block as u32, image.registers, shared);
            // SAFETY: the caller's promise.
            unsafe { put(count, found as i32) }
        })
    }

    /// Clusters of a launch that are resident on the device at a time, if every SM could be of any cluster.
    fn cuOccupancyMaxActiveClusters(count: *mut i32, function: usize, config: *const CUlaunchConfig) {
        in_context(|state, device| {
            let function = state.functions.get(function, device)?.clone();
            // SAFETY: the caller's promise.
            let config = unsafe { read("cuOccupancyMaxActiveClusters", config, state, &function) }?;
            let Some(cluster) = config.cluster else { return Rule::ClusterSize.broken("None is given.") };
            let shared = config.shared_bytes + function.image.static_shared_bytes;
            let blocks =
                limits::resident_blocks(state.options.capability, config.block, function.image.registers, shared);
            // SAFETY: the caller's promise.
            unsafe { put(count, (blocks * state.options.multiprocessors / cluster) as i32) }
        })
    }
}
