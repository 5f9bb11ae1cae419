//! The backward pass of causal self-attention. The attention weights P are recomputed from qkv, because saving them
//! would take heads·tokens² elements per sequence.

use fused_lora::cpu::vector::vectorized;
use fused_lora::cpu::{Operand, Scale, gemm_into};
use rayon::prelude::*;

use crate::attention::{QUERIES, QkvPart, Shape, probabilities};
use crate::reduce::sum_pairs;

/// Buffers of the pass.
#[derive(Debug, Default)]
pub(super) struct Buffers {
    /// dq, dk and dv of every head, each `[tokens, head_size]`.
    heads: Vec<f32>,
}

/// dqkv from qkv, both `[batch·tokens, 3·d_model]`, and `dout`, `[batch·tokens, d_model]`:
///
/// dV = Pᵀ·dO, dP = dO·Vᵀ, dS = scale·P∘(dP − Σ P∘dP), dQ = dS·K, dK = dSᵀ·Q, for each sequence and head.
pub(super) fn backward(qkv: &[f32], dout: &[f32], shape: Shape, buffers: &mut Buffers, dqkv: &mut [f32]) {
    let Shape { tokens, heads, head_size, .. } = shape;
    let d = heads * head_size;
    let head_len = tokens * head_size;
    buffers.heads.resize(qkv.len(), 0.0);
    buffers.heads.par_chunks_exact_mut(3 * head_len).enumerate().for_each_init(
        || [vec![0.0; QUERIES * tokens], vec![0.0; QUERIES * tokens]],
        |scratch, (task, out)| {
            let (b, head) = (task / heads, task % heads);
            let sequence = &qkv[b * tokens * 3 * d..][..tokens * 3 * d];
            let dout = &dout[b * tokens * d + head * head_size..(b + 1) * tokens * d];
            let dout = Operand::new(dout, tokens, head_size, d, 1);
            head_backward(sequence, dout, shape, head, scratch, out);
        },
    );
    let by_head = &buffers.heads;
    dqkv.par_chunks_exact_mut(3 * d).enumerate().for_each(|(row, out)| {
        let (b, token) = (row / tokens, row % tokens);
        for (part, out) in out.chunks_exact_mut(d).enumerate() {
            for (head, out) in out.chunks_exact_mut(head_size).enumerate() {
                let start = ((b * heads + head) * 3 + part) * head_len + token * head_size;
                out.copy_from_slice(&by_head[start..start + head_size]);
            }
        }
    });
}

/// The gradients of one head. Blocks of queries run in order, so that sums over queries have a fixed order.
fn head_backward(
    sequence: &[f32],
    dout: Operand<'_, f32>,
    shape: Shape,
    head: usize,
    [p, ds]: &mut [Vec<f32>; 2],
    out: &mut [f32],
) {
    let Shape { tokens, head_size, scale, .. } = shape;
    let (dq, rest) = out.split_at_mut(tokens * head_size);
    rest.fill(0.0);
    let (dk, dv) = rest.split_at_mut(tokens * head_size);
    for start in (0..tokens).step_by(QUERIES) {
        let queries = start..(start + QUERIES).min(tokens);
        let (rows, keys) = (queries.len(), queries.end);
        let matrix = |part, tokens| shape.head_matrix(sequence, part, head, tokens);
        let dout = dout.block(queries.clone(), 0..head_size);
        let p = probabilities(sequence, None, shape, head, queries.clone(), p);
        gemm_into(dv, head_size, Operand::new(p, rows, keys, keys, 1).t(), dout, Scale::Add(1.0));

        let ds = &mut ds[..rows * keys];
        gemm_into(ds, keys, dout, matrix(QkvPart::V, 0..keys).t(), Scale::Overwrite(1.0));
        for (i, (p, ds)) in p.chunks_exact(keys).zip(ds.chunks_exact_mut(keys)).enumerate() {
            let (visible, masked) = ds.split_at_mut(start + i + 1);
            softmax_backward(&p[..visible.len()], scale, visible);
            masked.fill(0.0);
        }
        let ds = Operand::new(ds, rows, keys, keys, 1);
        gemm_into(&mut dq[start * head_size..], head_size, ds, matrix(QkvPart::K, 0..keys), Scale::Overwrite(1.0));
        gemm_into(dk, head_size, ds.t(), matrix(QkvPart::Q, queries), Scale::Add(1.0));
    }
}

/// `d = scale·p∘(d − Σ p∘d)`.
fn softmax_backward(p: &[f32], scale: f32, d: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            let mean = sum_pairs(p, d, |p, d| p * d);
            d.iter_mut().zip(p).for_each(|(d, p)| *d = scale * (p * (*d - mean)));
        },
    );
}
