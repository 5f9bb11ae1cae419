//! Tests every function of kernels/gpu: kernels in kernels/test call them, and the tests compute the expected values.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, unreachable_pub, missing_docs)]

mod atomic;
mod block;
mod cluster;
mod convert;
mod copy_async;
mod coverage;
mod grid;
mod math;
mod matrix;
mod mbarrier;
mod memory;
mod planted;
mod rig;
mod tma;
mod warp;
mod wgmma;

pub use crate::common::Rng;

/// 0, 1, 2, ...
pub fn counted(len: usize) -> Vec<u32> {
    (0..len as u32).collect()
}
