//! How a kernel is launched: grid, block, shared memory, cluster.

/// How a kernel is launched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchConfig {
    /// Blocks (CTAs) in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a block, all in x.
    pub block: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: u32,
    /// Blocks of a cluster, all in x; 1 for none.
    pub cluster: u32,
    /// Whether the kernel may start before the preceding launch in the stream has ended (programmatic dependent
    /// launch). The kernel itself must then wait for that launch before it accesses its results. Ignored if the device
    /// does not support it, or if the kernel's code was compiled for an architecture that does not.
    pub dependent_launch: bool,
}

impl LaunchConfig {
    /// A plain launch: no dynamic shared memory, no clusters, in stream order.
    pub fn new(grid: [u32; 3], block: u32) -> Self {
        Self { grid, block, shared_bytes: 0, cluster: 1, dependent_launch: false }
    }
}
