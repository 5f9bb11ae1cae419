//! Tests of the LoRA kernels, forward, backward and merge, against float64.

mod decode;
mod dx;
mod epochs;
mod forward;
mod forward_tf32;
mod gradients;
mod merge;
