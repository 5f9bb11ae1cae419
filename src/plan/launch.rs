//! What every plan says of its launch.

/// A kernel and the shape of its launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchShape {
    /// Name of the kernel.
    pub kernel: String,
    /// CTAs in x, y and z.
    pub grid: [u32; 3],
    /// Threads of a CTA.
    pub threads: u32,
    /// Dynamic shared memory of a CTA, in bytes.
    pub shared_bytes: u32,
    /// CTAs of a cluster; 1 for none.
    pub cluster: u32,
}
