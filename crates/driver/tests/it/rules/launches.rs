//! Rules of launches.

use std::ptr::{null, null_mut};

use fused_lora_driver::Rule;

use super::{CASE, Case};
use crate::calls::*;
use crate::cubin::{Kernel, POINTWISE};

/// Bytes of shared memory that a block gets without asking for more, and that it may ask for at compute capability 9.0.
const DEFAULT_SHARED: u32 = 48 << 10;
const MOST_SHARED: i32 = 227 << 10;

/// A launch of one block.
fn launch() -> Launch {
    launch_on(memory(16), 4, stream())
}

/// A kernel with 1 KiB of static shared memory.
fn with_shared() -> usize {
    function_of(&Kernel { static_shared_bytes: 1 << 10, ..POINTWISE })
}

/// A kernel for large blocks, with so many registers.
fn with_registers(registers: u32) -> usize {
    function_of(&Kernel { registers, max_threads: None, ..POINTWISE })
}

/// Launches a kernel of which no more is asked than what its image says.
fn code_of(launch: Launch) -> u32 {
    launch.issue(pointwise())
}

/// Loads the kernel for another compute capability than 9.0.
fn pointwise_of(capability: (u32, u32)) -> usize {
    let image = crate::cubin::cubin(capability, &[POINTWISE]);
    let module = made(|module| load(module, image.as_ptr()));
    made(|function| find(function, module, POINTWISE.name))
}

pub(super) const CASES: &[Case] = &[
    Case {
        rule: Rule::FunctionLimit,
        call: "cuFuncSetAttribute",
        name: "all shared memory beside static shared memory",
        broken: || set_attribute(with_shared(), 8, MOST_SHARED - 1023),
        kept: || set_attribute(with_shared(), 8, MOST_SHARED - 1024),
        ..CASE
    },
    Case {
        rule: Rule::FunctionLimit,
        call: "cuFuncSetAttribute",
        name: "shared memory of -1 byte",
        broken: || set_attribute(pointwise(), 8, -1),
        kept: || set_attribute(pointwise(), 8, 0),
        ..CASE
    },
    Case {
        rule: Rule::GridSize,
        call: "cuLaunchKernelEx",
        name: "grid of no block",
        broken: || code_of(Launch { grid: [0, 1, 1], ..launch() }),
        kept: || code_of(Launch { grid: [1, 1, 1], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::GridSize,
        call: "cuLaunchKernelEx",
        name: "grid too deep",
        broken: || code_of(Launch { grid: [1, 1, 0x1_0000], ..launch() }),
        kept: || code_of(Launch { grid: [1, 1, 0xffff], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::BlockSize,
        call: "cuLaunchKernelEx",
        name: "block larger than the kernel's",
        broken: || code_of(Launch { block: [129, 1, 1], ..launch() }),
        kept: || code_of(Launch { block: [128, 1, 1], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::BlockSize,
        call: "cuLaunchKernelEx",
        name: "block of 2^32 threads",
        broken: || code_of(Launch { block: [1 << 16, 1 << 16, 1], ..launch() }),
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::BlockSize,
        call: "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        name: "residency of blocks without threads",
        broken: || max_active_blocks(pointwise(), 0, 0),
        kept: || max_active_blocks(pointwise(), 1, 0),
        ..CASE
    },
    Case {
        rule: Rule::BlockRegisters,
        call: "cuLaunchKernelEx",
        name: "block with more registers than an SM",
        // 1024 · 72 = 73,728.
        broken: || Launch { block: [1024, 1, 1], ..launch() }.issue(with_registers(72)),
        kept: || Launch { block: [1024, 1, 1], ..launch() }.issue(with_registers(64)),
        ..CASE
    },
    Case {
        rule: Rule::BlockRegisters,
        call: "cuOccupancyMaxActiveClusters",
        name: "residency of clusters with more registers than an SM",
        broken: || {
            let launch = Launch { block: [1024, 1, 1], attributes: vec![clusters_of(1)], ..launch() };
            launch.max_active_clusters(with_registers(65))
        },
        kept: || {
            let launch = Launch { block: [1024, 1, 1], attributes: vec![clusters_of(1)], ..launch() };
            launch.max_active_clusters(with_registers(64))
        },
        ..CASE
    },
    Case {
        rule: Rule::SharedLimit,
        call: "cuLaunchKernelEx",
        name: "more than 48 KiB of shared memory",
        broken: || code_of(Launch { shared_bytes: DEFAULT_SHARED + 1, ..launch() }),
        kept: || code_of(Launch { shared_bytes: DEFAULT_SHARED, ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::SharedLimit,
        call: "cuLaunchKernelEx",
        name: "48 KiB beside static shared memory",
        broken: || Launch { shared_bytes: DEFAULT_SHARED, ..launch() }.issue(with_shared()),
        kept: || {
            let function = with_shared();
            ok(set_attribute(function, 8, DEFAULT_SHARED as i32));
            Launch { shared_bytes: DEFAULT_SHARED, ..launch() }.issue(function)
        },
        ..CASE
    },
    Case {
        rule: Rule::SharedLimit,
        call: "cuOccupancyMaxActiveBlocksPerMultiprocessor",
        name: "residency with more than 48 KiB of shared memory",
        broken: || max_active_blocks(pointwise(), 128, DEFAULT_SHARED as usize + 1),
        kept: || max_active_blocks(pointwise(), 128, DEFAULT_SHARED as usize),
        ..CASE
    },
    Case {
        rule: Rule::ClusterSize,
        call: "cuLaunchKernelEx",
        name: "clusters of two in a grid of three",
        broken: || code_of(Launch { grid: [3, 1, 1], attributes: vec![clusters_of(2)], ..launch() }),
        kept: || code_of(Launch { grid: [4, 1, 1], attributes: vec![clusters_of(2)], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::ClusterSize,
        call: "cuLaunchKernelEx",
        name: "cluster of 16 blocks",
        broken: || code_of(Launch { grid: [16, 1, 1], attributes: vec![clusters_of(16)], ..launch() }),
        kept: || code_of(Launch { grid: [16, 1, 1], attributes: vec![clusters_of(8)], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::ClusterSize,
        call: "cuOccupancyMaxActiveClusters",
        name: "residency of clusters without a size",
        broken: || launch().max_active_clusters(pointwise()),
        kept: || Launch { attributes: vec![clusters_of(1)], ..launch() }.max_active_clusters(pointwise()),
        ..CASE
    },
    Case {
        rule: Rule::ClusterDevice,
        call: "cuLaunchKernelEx",
        name: "clusters before compute capability 9.0",
        options: "capability=8.0",
        broken: || Launch { attributes: vec![clusters_of(1)], ..launch() }.issue(pointwise_of((8, 0))),
        kept: || launch().issue(pointwise_of((8, 0))),
        ..CASE
    },
    Case {
        rule: Rule::DependentDevice,
        call: "cuLaunchKernelEx",
        name: "dependent launch before compute capability 9.0",
        options: "capability=8.0",
        broken: || Launch { attributes: vec![DEPENDENT], ..launch() }.issue(pointwise_of((8, 0))),
        kept: || Launch { attributes: vec![[6, 0, 0, 0, 0]], ..launch() }.issue(pointwise_of((8, 0))),
        ..CASE
    },
    Case {
        rule: Rule::LaunchAttribute,
        call: "cuLaunchKernelEx",
        name: "cooperative launch",
        broken: || code_of(Launch { attributes: vec![[2, 0, 1, 0, 0]], ..launch() }),
        kept: || code_of(Launch { attributes: vec![DEPENDENT], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::LaunchAttribute,
        call: "cuLaunchKernelEx",
        name: "attribute given twice",
        broken: || code_of(Launch { attributes: vec![DEPENDENT, DEPENDENT], ..launch() }),
        kept: || code_of(Launch { attributes: vec![DEPENDENT, clusters_of(1)], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::LaunchAttribute,
        call: "cuOccupancyMaxActiveClusters",
        name: "padding that is not zero",
        broken: || Launch { attributes: vec![[4, 7, 1, 1, 1]], ..launch() }.max_active_clusters(pointwise()),
        kept: || Launch { attributes: vec![[4, 0, 1, 1, 1]], ..launch() }.max_active_clusters(pointwise()),
        ..CASE
    },
    Case {
        rule: Rule::LaunchAttribute,
        call: "cuLaunchKernelEx",
        name: "attributes at null",
        broken: || {
            let function = pointwise();
            launch().with_config(|config| {
                // SAFETY: the configuration lives during this call; its attributes are not owned by it.
                let mut config = unsafe { config.read() };
                (config.attrs, config.numAttrs) = (null_mut(), 1);
                issue(&config, function, null_mut(), null_mut())
            })
        },
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::ClusterSize,
        call: "cuLaunchKernelEx",
        name: "cluster of two rows",
        broken: || code_of(Launch { grid: [2, 2, 1], attributes: vec![[4, 0, 2, 2, 1]], ..launch() }),
        kept: || code_of(Launch { grid: [2, 2, 1], attributes: vec![[4, 0, 2, 1, 1]], ..launch() }),
        ..CASE
    },
    Case {
        rule: Rule::ClusterDevice,
        call: "cuOccupancyMaxActiveClusters",
        name: "residency of clusters before compute capability 9.0",
        broken: || {
            let function = pointwise();
            set("capability=8.9");
            Launch { attributes: vec![clusters_of(1)], ..launch() }.max_active_clusters(function)
        },
        kept: || Launch { attributes: vec![clusters_of(1)], ..launch() }.max_active_clusters(pointwise()),
        ..CASE
    },
    Case {
        rule: Rule::ResultPointer,
        call: "cuLaunchKernelEx",
        name: "launch without a configuration",
        broken: || issue(null(), pointwise(), null_mut(), null_mut()),
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::LaunchParameters,
        call: "cuLaunchKernelEx",
        name: "launch without parameters",
        broken: || launch().with_config(|config| issue(config, pointwise(), null_mut(), null_mut())),
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::LaunchParameters,
        call: "cuLaunchKernelEx",
        name: "parameter at null",
        broken: || launch().with_config(|config| issue(config, pointwise(), [null_mut()].as_mut_ptr(), null_mut())),
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::SameSources,
        call: "cuLaunchKernelEx",
        name: "launch of a kernel of two parameters",
        broken: || launch().issue(function_of(&Kernel { parameters: &[(0, 40), (40, 8)], ..POINTWISE })),
        kept: || code_of(launch()),
        ..CASE
    },
    Case {
        rule: Rule::Ordered,
        call: "cuLaunchKernelEx",
        name: "two streams launch on the same memory",
        broken: || {
            let (function, address, one, two) = (pointwise(), memory(16), stream(), stream());
            ok(launch_on(address, 4, one).issue(function));
            ok(launch_on(address, 4, two).issue(function));
            ok(synchronize(one));
            synchronize(two)
        },
        kept: || {
            let (function, address, one, two) = (pointwise(), memory(16), stream(), stream());
            ok(launch_on(address, 4, one).issue(function));
            ok(synchronize(one));
            ok(launch_on(address, 4, two).issue(function));
            synchronize(two)
        },
        ..CASE
    },
];
