//! Work on a device: kernels and how they are launched, streams and events, graphs.

pub(crate) mod config;
pub(crate) mod graph;
pub(crate) mod kernel;
pub(crate) mod order;
pub(crate) mod planned_kernel;
pub(crate) mod stream;
pub(crate) mod tensor_map;

pub use config::LaunchConfig;
pub use graph::Graph;
pub use kernel::{Kernel, KernelParams};
pub use stream::{Event, Stream};
pub use tensor_map::Tensor;
