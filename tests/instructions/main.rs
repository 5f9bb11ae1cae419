//! Every function of kernels/gpu, through the kernels of kernels/test, against values computed here.
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

/// splitmix64: enough randomness for tests, the same in every run.
pub struct Rng(pub u64);

impl Rng {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// In [-1, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.draw() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.draw() % n
    }
}

/// 0, 1, 2, ...
pub fn counted(len: usize) -> Vec<u32> {
    (0..len as u32).collect()
}
