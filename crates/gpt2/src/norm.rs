//! LayerNorm over rows: ε inside the root, biased variance, two passes over a row that stays in cache.

use fused_lora::cpu::{self, vector::vectorized};
use fused_lora::{MatrixMut, MatrixRef};
use rayon::prelude::*;

use crate::model::Norm;
use crate::reduce::{sum, sum_pairs};

/// Elements that one task processes, rounded to whole rows.
const CHUNK: usize = 1 << 14;

/// `out = (x − mean) / √(variance + ε) · weight + bias` for every row of `x`, `[rows, d_model]`.
///
/// # Errors
/// As [`cpu::layer_norm`], but never for rows and parameters of one model.
pub(crate) fn layer_norm(x: &[f32], norm: &Norm, epsilon: f32, out: &mut [f32]) -> fused_lora::Result<()> {
    let d = norm.weight.len();
    let (x, mut out) = (MatrixRef::new(x, x.len() / d, d)?, MatrixMut::new(out, x.len() / d, d)?);
    cpu::layer_norm(x, &norm.view(epsilon), &mut out)
}

/// `dx += (g − mean(g) − x̂·mean(g·x̂)) / √(variance + ε)` with g = dy·weight and x̂ the normalised row. Overwrites
/// `dy`.
pub(crate) fn layer_norm_backward(x: &[f32], norm: &Norm, epsilon: f32, dy: &mut [f32], dx: &mut [f32]) {
    let d = norm.weight.len();
    let chunk = (CHUNK / d).max(1) * d;
    dx.par_chunks_mut(chunk).zip(dy.par_chunks_mut(chunk)).zip(x.par_chunks(chunk)).for_each(|((dx, dy), x)| {
        vectorized(
            #[inline(always)]
            || {
                for ((dx, g), x) in dx.chunks_exact_mut(d).zip(dy.chunks_exact_mut(d)).zip(x.chunks_exact(d)) {
                    let (mean, inverse) = statistics(x, epsilon);
                    g.iter_mut().zip(&norm.weight).for_each(|(g, w)| *g *= w);
                    let mean_g = sum(g, |g| g) / d as f32;
                    let mean_gx = sum_pairs(g, x, |g, x| g * ((x - mean) * inverse)) / d as f32;
                    for ((dx, g), x) in dx.iter_mut().zip(&*g).zip(x) {
                        *dx += (g - mean_g - (x - mean) * inverse * mean_gx) * inverse;
                    }
                }
            },
        );
    });
}

/// A row's mean, and one over the root of its variance plus ε.
#[inline(always)]
fn statistics(x: &[f32], epsilon: f32) -> (f32, f32) {
    let d = x.len() as f32;
    let mean = sum(x, |v| v) / d;
    let variance = sum(x, |v| (v - mean) * (v - mean)) / d;
    (mean, 1.0 / (variance + epsilon).sqrt())
}
