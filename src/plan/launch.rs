//! The part that all plans have in common: the kernel, the grid and the size of a CTA.

/// A kernel and the shape of its launch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaunchShape {
    /// Full name of the kernel, as its `.cu` file instantiates it.
    pub kernel: String,
    /// CTAs of the launch in x, y and z.
    pub grid: [u32; 3],
    /// Threads per CTA.
    pub threads: u32,
    /// Dynamic shared memory per CTA, in bytes.
    pub shared_bytes: u32,
    /// CTAs per cluster; 1 for a launch without clusters.
    pub cluster: u32,
}
