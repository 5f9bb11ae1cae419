//! The CPU backend, on the `gemm` crates and rayon. Storage is `f32`, `f16` or `bf16`; arithmetic is `f32`.
//!
//! Calls run on the current rayon pool. A plan that is made on one pool may only be used on a pool of the same size.
//! Results do not depend on the schedule of the threads: the bits are the same from run to run.

mod activation;
mod adamw;
mod backward;
mod bottleneck;
mod epilogue;
mod gemm;
mod layer;
mod layer_norm;
mod low_rank;
mod merge;
mod operand;
mod panel;
pub(crate) mod plan;
mod product;
mod sequential;
mod shared;
pub mod vector;

pub use crate::lora::Accumulate;
pub use activation::{activate, activate_backward};
pub use adamw::adamw;
pub use backward::{SegmentGradient, backward, backward_workspace_len, low_rank_input};
pub use bottleneck::{BottleneckBuffers, bottleneck, bottleneck_onto};
pub use gemm::{Scale, gemm_into};
pub use layer::{Input, forward, forward_with};
pub use layer_norm::layer_norm;
pub use merge::{MergeReport, merge, merge_into, unmerge};
pub use operand::Operand;
pub use plan::Plan;
pub use sequential::{SequentialBuffers, forward_dense_delta, forward_sequential};
