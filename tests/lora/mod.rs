//! The kernels of a layer and of its gradients against float64.

mod decode;
mod dx;
mod forward;
mod forward_tf32;
mod gradients;
mod merge;
