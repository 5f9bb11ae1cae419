//! Vectorised reductions. A sum has 16 partial sums, whatever the processor, so its rounding depends only on its
//! length.

pub(crate) use fused_lora::cpu::vector::sum;

const LANES: usize = 16;

/// Σ f(v, w) over two slices of one length.
#[inline(always)]
pub(crate) fn sum_pairs(values: &[f32], others: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    let (other_blocks, other_rest) = others.as_chunks::<LANES>();
    for (block, other) in blocks.iter().zip(other_blocks) {
        for ((lane, &v), &w) in lanes.iter_mut().zip(block).zip(other) {
            *lane += f(v, w);
        }
    }
    for ((lane, &v), &w) in lanes.iter_mut().zip(rest).zip(other_rest) {
        *lane += f(v, w);
    }
    lanes.into_iter().sum()
}

/// The largest value; NaNs are ignored.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for block in values.chunks(LANES) {
        for (lane, &v) in lanes.iter_mut().zip(block) {
            *lane = if v > *lane { v } else { *lane };
        }
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
}
