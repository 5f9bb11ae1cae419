//! Causal self-attention over a batch, with optional prefix keys and values.

use fused_lora::cpu::vector::{exp, vectorized};
use fused_lora::cpu::{Operand, Scale, gemm_into};
use rayon::prelude::*;

use crate::adapter::prefix::KeysValues;

/// Queries that one task handles, all heads of them.
const QUERIES: usize = 32;

/// The shapes of one call.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) tokens: usize,
    pub(crate) heads: usize,
    pub(crate) head_size: usize,
    pub(crate) scale: f32,
}

/// `out[b, i] = Σⱼ softmaxⱼ(scale·q[b, i]·k[b, j])·v[b, j]` over the prefix and all j ≤ i, head by head.
///
/// `qkv` is `[batch·tokens, 3·d_model]`, `out` `[batch·tokens, d_model]`.
pub(crate) fn causal(qkv: &[f32], prefix: Option<KeysValues<'_>>, shape: Shape, out: &mut [f32]) {
    let Shape { tokens, heads, head_size, .. } = shape;
    let d = heads * head_size;
    let prefix_len = prefix.map_or(0, |p| p.length);
    let blocks = tokens.div_ceil(QUERIES);
    // Later blocks see more keys, so they go first: what is left for the end is small.
    let tasks: Vec<(usize, &mut [f32])> = out
        .chunks_mut(tokens * d)
        .enumerate()
        .flat_map(|(b, sequence)| {
            sequence.chunks_mut(QUERIES * d).enumerate().map(move |(i, out)| (b * blocks + i, out))
        })
        .collect();
    tasks.into_par_iter().rev().for_each_init(
        || vec![0.0; QUERIES * (prefix_len + tokens)],
        |scores, (task, out)| {
            let (b, block) = (task / blocks, task % blocks);
            let sequence = &qkv[b * tokens * 3 * d..][..tokens * 3 * d];
            let queries = block * QUERIES..block * QUERIES + out.len() / d;
            for head in 0..heads {
                one_head(sequence, prefix, shape, head, queries.clone(), scores, out);
            }
        },
    );
}

fn one_head(
    sequence: &[f32],
    prefix: Option<KeysValues<'_>>,
    shape: Shape,
    head: usize,
    queries: std::ops::Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Shape { heads, head_size, scale, .. } = shape;
    let d = heads * head_size;
    let columns = head * head_size..(head + 1) * head_size;
    let rows = queries.len();
    let keys = queries.end;
    let prefix_len = prefix.map_or(0, |p| p.length);
    let width = prefix_len + keys;
    let scores = &mut scores[..rows * width];

    let part = |third: usize, count: usize, first: usize| {
        let data = &sequence[first * 3 * d + third * d + columns.start..];
        Operand::new(data, count, head_size, 3 * d, 1)
    };
    let q = part(0, rows, queries.start);
    if let Some(p) = prefix {
        let k = Operand::new(p.head(columns.clone()), prefix_len, head_size, p.stride, 1);
        gemm_into(scores, width, q, k.t(), Scale::Overwrite(scale));
    }
    gemm_into(&mut scores[prefix_len..], width, q, part(1, keys, 0).t(), Scale::Overwrite(scale));

    for (i, row) in scores.chunks_exact_mut(width).enumerate() {
        let seen = prefix_len + queries.start + i + 1;
        let (seen, hidden) = row.split_at_mut(seen);
        softmax(seen);
        hidden.fill(0.0);
    }

    let p = Operand::new(scores, rows, width, width, 1);
    let out = &mut out[columns.start..];
    gemm_into(out, d, p.block(0..rows, prefix_len..width), part(2, keys, 0), Scale::Overwrite(1.0));
    if let Some(kv) = prefix {
        let data = kv.head(d + columns.start..d + columns.end);
        let v = Operand::new(data, prefix_len, head_size, kv.stride, 1);
        gemm_into(out, d, p.block(0..rows, 0..prefix_len), v, Scale::Add(1.0));
    }
}

fn softmax(row: &mut [f32]) {
    const LANES: usize = 16;
    vectorized(
        #[inline(always)]
        || {
            let mut largest = [f32::NEG_INFINITY; LANES];
            for chunk in row.chunks(LANES) {
                for (m, &x) in largest.iter_mut().zip(chunk) {
                    *m = if x > *m { x } else { *m };
                }
            }
            let largest = largest.into_iter().fold(f32::NEG_INFINITY, f32::max);
            row.iter_mut().for_each(|x| *x = exp(*x - largest));
            let mut sums = [0.0f32; LANES];
            for chunk in row.chunks(LANES) {
                sums.iter_mut().zip(chunk).for_each(|(s, x)| *s += x);
            }
            let inverse = 1.0 / sums.into_iter().sum::<f32>();
            row.iter_mut().for_each(|x| *x *= inverse);
        },
    );
}
