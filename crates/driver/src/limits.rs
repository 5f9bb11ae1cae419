//! What a device of each compute capability has, after the tables of the CUDA C++ Programming Guide.

use cudarc::driver::sys::CUdevice_attribute as Attribute;

use crate::options::Options;

/// The devices' name. It stands in every table and file of results, so that no time of the emulator is taken for a GPU's.
pub(crate) const NAME: &str = "stand-in driver (emulated: its times are no measurements)";

/// Registers of an SM.
pub(crate) const REGISTERS: u32 = 64 << 10;
/// Registers are given to a warp in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory that a block takes beside its own, from compute capability 8.0 on.
const RESERVED_SHARED_BYTES: u32 = 1 << 10;
const L2_BYTES: i32 = 16 << 10;

/// The resources of an SM, and those that a block may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    pub(crate) shared_bytes: u32,
    pub(crate) shared_bytes_per_block: u32,
    pub(crate) threads: u32,
    pub(crate) blocks: u32,
    pub(crate) has_clusters: bool,
}

pub(crate) fn of(capability: (u32, u32)) -> Limits {
    let (shared, threads, blocks) = match capability {
        (..8, _) => (64, 1024, 16),
        (8, 0) => (164, 2048, 32),
        (8, 9) => (100, 1536, 24),
        (8, _) => (100, 1536, 16),
        (12.., _) => (100, 1536, 24),
        _ => (228, 2048, 32),
    };
    let reserved = if capability.0 < 8 { 0 } else { RESERVED_SHARED_BYTES };
    Limits {
        shared_bytes: shared << 10,
        shared_bytes_per_block: (shared << 10) - reserved,
        threads,
        blocks,
        has_clusters: capability.0 >= 9,
    }
}

/// Blocks that are resident on one SM at a time.
pub(crate) fn resident_blocks(capability: (u32, u32), block: u32, registers: u32, shared_bytes: u32) -> u32 {
    let limits = of(capability);
    let warps = block.div_ceil(32);
    let registers = (registers * 32).next_multiple_of(REGISTER_UNIT) * warps;
    let reserved = if capability.0 < 8 { 0 } else { RESERVED_SHARED_BYTES };
    let by_shared = limits.shared_bytes / (shared_bytes + reserved).max(1);
    (limits.threads / (warps * 32).max(1)).min(limits.blocks).min(by_shared).min(REGISTERS / registers.max(1))
}

/// An attribute of a device, if this driver knows it.
pub(crate) fn attribute(attribute: u32, options: &Options) -> Option<i32> {
    let limits = of(options.capability);
    let known: [(Attribute, i32); 10] = [
        (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, options.capability.0 as i32),
        (Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, options.capability.1 as i32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, options.multiprocessors as i32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, limits.threads as i32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR, limits.shared_bytes as i32),
        (Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN, limits.shared_bytes_per_block as i32),
        // Small, so that benchmarks, which take several times as much memory, stay small.
        (Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE, L2_BYTES),
        // Unknown, as a driver says it.
        (Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE, 0),
        (Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, 0),
        (Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, 0),
    ];
    known.iter().find(|(name, _)| *name as u32 == attribute).map(|(_, value)| *value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tables "Technical Specifications per Compute Capability" of the CUDA C++ Programming Guide.
    #[test]
    fn shared_memory_of_a_block() {
        for (capability, kib) in [((7, 5), 64), ((8, 0), 163), ((8, 6), 99), ((8, 9), 99), ((9, 0), 227), ((12, 0), 99)]
        {
            assert_eq!(of(capability).shared_bytes_per_block, kib << 10, "{capability:?}");
        }
    }

    #[test]
    fn residency_is_bound_by_threads_registers_shared_memory_or_blocks() {
        let h100 = (9, 0);
        assert_eq!(resident_blocks(h100, 256, 32, 0), 8);
        assert_eq!(resident_blocks(h100, 256, 128, 0), 2);
        assert_eq!(resident_blocks(h100, 256, 32, 100 << 10), 2);
        assert_eq!(resident_blocks(h100, 32, 16, 0), 32);
        assert_eq!(resident_blocks(h100, 384, 168, 227 << 10), 1);
    }
}
