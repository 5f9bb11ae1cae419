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
    /// Whether the kernel may start before the launch ahead of it in the stream has ended, which it then has to wait for
    /// itself before it touches that one's results (programmatic dependent launch). Where the device has no such thing, or the
    /// kernel's code was compiled for one that has not, it starts afterwards.
    pub dependent_launch: bool,
}

impl LaunchConfig {
    /// A plain launch: no shared memory, no clusters, in order.
    pub fn new(grid: [u32; 3], block: u32) -> Self {
        Self { grid, block, shared_bytes: 0, cluster: 1, dependent_launch: false }
    }
}
