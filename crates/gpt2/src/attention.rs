//! Causal self-attention over a batch, with optional prefix keys and values.

use std::ops::Range;

use fused_lora::cpu::vector::{exp, vectorized};
use fused_lora::cpu::{Operand, Scale, gemm_into};
use rayon::prelude::*;

use crate::adapter::prefix::KeysValues;
use crate::reduce::{max, sum};

/// Queries that one task processes, in all heads.
pub(crate) const QUERIES: usize = 32;

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
    // Later blocks of queries attend to more keys. They run first, so that the last tasks are short.
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
                attend_head(sequence, prefix, shape, head, queries.clone(), scores, out);
            }
        },
    );
}

/// Queries, keys or values: each is a third of a row of qkv.
#[derive(Clone, Copy)]
pub(crate) enum QkvPart {
    Q,
    K,
    V,
}

impl Shape {
    /// The queries, keys or values of one head and these tokens of a sequence, `[tokens.len(), head_size]`.
    pub(crate) fn head_matrix<'a>(
        &self,
        sequence: &'a [f32],
        part: QkvPart,
        head: usize,
        tokens: Range<usize>,
    ) -> Operand<'a, f32> {
        let d = self.heads * self.head_size;
        let data = &sequence[tokens.start * 3 * d + part as usize * d + head * self.head_size..];
        Operand::new(data, tokens.len(), self.head_size, 3 * d, 1)
    }
}

/// The attention weights of one head and these queries, `[queries.len(), prefix + queries.end]`; 0 for later keys.
pub(crate) fn probabilities<'s>(
    sequence: &[f32],
    prefix: Option<KeysValues<'_>>,
    shape: Shape,
    head: usize,
    queries: Range<usize>,
    scores: &'s mut [f32],
) -> &'s mut [f32] {
    let Shape { head_size, scale, .. } = shape;
    let prefix_len = prefix.map_or(0, |p| p.length);
    let width = prefix_len + queries.end;
    let scores = &mut scores[..queries.len() * width];
    let q = shape.head_matrix(sequence, QkvPart::Q, head, queries.clone());
    if let Some(p) = prefix {
        let data = p.head(head * head_size..(head + 1) * head_size);
        let k = Operand::new(data, prefix_len, head_size, p.stride, 1);
        gemm_into(scores, width, q, k.t(), Scale::Overwrite(scale));
    }
    let k = shape.head_matrix(sequence, QkvPart::K, head, 0..queries.end);
    gemm_into(&mut scores[prefix_len..], width, q, k.t(), Scale::Overwrite(scale));
    for (i, row) in scores.chunks_exact_mut(width).enumerate() {
        let visible = prefix_len + queries.start + i + 1;
        let (visible, masked) = row.split_at_mut(visible);
        softmax(visible);
        masked.fill(0.0);
    }
    scores
}

fn attend_head(
    sequence: &[f32],
    prefix: Option<KeysValues<'_>>,
    shape: Shape,
    head: usize,
    queries: Range<usize>,
    scores: &mut [f32],
    out: &mut [f32],
) {
    let Shape { heads, head_size, .. } = shape;
    let d = heads * head_size;
    let columns = head * head_size..(head + 1) * head_size;
    let (rows, keys) = (queries.len(), queries.end);
    let prefix_len = prefix.map_or(0, |p| p.length);
    let width = prefix_len + keys;
    let scores = probabilities(sequence, prefix, shape, head, queries, scores);
    let p = Operand::new(scores, rows, width, width, 1);
    let v = shape.head_matrix(sequence, QkvPart::V, head, 0..keys);
    let out = &mut out[columns.start..];
    gemm_into(out, d, p.block(0..rows, prefix_len..width), v, Scale::Overwrite(1.0));
    if let Some(kv) = prefix {
        let data = kv.head(d + columns.start..d + columns.end);
        let v = Operand::new(data, prefix_len, head_size, kv.stride, 1);
        gemm_into(out, d, p.block(0..rows, 0..prefix_len), v, Scale::Add(1.0));
    }
}

fn softmax(row: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let max = max(row);
            row.iter_mut().for_each(|x| *x = exp(*x - max));
            let inverse = 1.0 / sum(row, |x| x);
            row.iter_mut().for_each(|x| *x *= inverse);
        },
    );
}
