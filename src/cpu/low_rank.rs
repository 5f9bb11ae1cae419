//! Products with a low-rank factor. The gemm crate's kernels are not made for a dimension as short as a rank.

use std::ops::Range;

use super::gemm::{Scale, gemm_into};
use super::operand::Operand;
use super::panel::load_rows;
use super::vector::vectorized;
use crate::dtype::Element;

/// The most elements of a result for which the gemm crate uses its kernel for long reductions.
const SMALL_RESULT: usize = 256;
/// The largest rank for which [`rank_update`] and [`rank_dots`] are used. For a larger rank, the gemm crate's general
/// kernel wastes little on padding and packing.
pub(super) const SMALL_RANK: usize = 16;

/// `dst[rows, n] += scale · t[rows, rank] · expand[rank, n]` for a small rank. Every pass over a row of `dst` adds four
/// rows of `expand`, which stay in cache. The gemm crate would need more time than that to pack `expand`.
pub(super) fn rank_update(
    dst: &mut [f32],
    dst_stride: usize,
    t: Operand<'_, f32>,
    expand: Operand<'_, f32>,
    scale: f32,
) {
    let (rank, n) = (expand.rows(), expand.cols());
    let expand = &expand.data()[..rank * n];
    vectorized(
        #[inline(always)]
        || {
            for i in 0..t.rows() {
                let row = &mut dst[i * dst_stride..][..n];
                let t = &t.data()[i * t.row_stride()..][..rank];
                for (t, expand) in t.chunks(4).zip(expand.chunks(4 * n)) {
                    match (t, expand) {
                        ([t0, t1, t2, t3], expand) => {
                            let [t0, t1, t2, t3] = [t0, t1, t2, t3].map(|t| scale * t);
                            let (e0, rest) = expand.split_at(n);
                            let (e1, rest) = rest.split_at(n);
                            let (e2, e3) = rest.split_at(n);
                            for ((((d, e0), e1), e2), e3) in row.iter_mut().zip(e0).zip(e1).zip(e2).zip(e3) {
                                *d += t0 * e0 + t1 * e1 + (t2 * e2 + t3 * e3);
                            }
                        }
                        (t, expand) => {
                            for (t, expand) in t.iter().zip(expand.chunks_exact(n)) {
                                let t = scale * t;
                                row.iter_mut().zip(expand).for_each(|(d, e)| *d += t * e);
                            }
                        }
                    }
                }
            }
        },
    );
}

/// The most rows of an output for which [`rank_dots`] is faster than [`rank_update`], for which `expand` must first be
/// transposed.
pub(super) const FEW_ROWS: usize = 2;

/// [`rank_update`] for an `expand` with contiguous columns, as B is stored: every output element is a dot product of
/// length `rank`, and nothing is transposed.
pub(super) fn rank_dots(dst: &mut [f32], dst_stride: usize, t: Operand<'_, f32>, expand: Operand<'_, f32>, scale: f32) {
    let (rank, n, stride) = (expand.rows(), expand.cols(), expand.col_stride());
    vectorized(
        #[inline(always)]
        || {
            for i in 0..t.rows() {
                let t = &t.data()[i * t.row_stride()..][..rank];
                for (j, d) in dst[i * dst_stride..][..n].iter_mut().enumerate() {
                    *d += scale * dot(t, &expand.data()[j * stride..][..rank]);
                }
            }
        },
    );
}

/// Σ t·e: added in eight lanes, which are then added in pairs. The elements after the last group of eight are added
/// last.
#[inline(always)]
fn dot(t: &[f32], e: &[f32]) -> f32 {
    let ((t, t_rest), (e, e_rest)) = (t.as_chunks::<8>(), e.as_chunks::<8>());
    let mut lanes = [0.0f32; 8];
    for (t, e) in t.iter().zip(e) {
        for ((lane, t), e) in lanes.iter_mut().zip(t).zip(e) {
            *lane += t * e;
        }
    }
    for half in [4, 2, 1] {
        (0..half).for_each(|lane| lanes[lane] += lanes[lane + half]);
    }
    t_rest.iter().zip(e_rest).fold(lanes[0], |sum, (t, e)| sum + t * e)
}

/// The same operand without a copy if it is stored as `f32`; otherwise `None`.
pub(super) fn in_place<'a, T: Element>(operand: Operand<'a, T>) -> Option<Operand<'a, f32>> {
    let data = T::as_f32(operand.data())?;
    Some(Operand::new(data, operand.rows(), operand.cols(), operand.row_stride(), operand.col_stride()))
}

/// `t[rows, rank] (=|+=) factor · x[rows, K] · weight[K, rank]`. If `weight` is not stored as `f32` and contiguous
/// along K, it is loaded into `scratch`, `panel_depth` values of K at a time.
pub(super) fn shrink<W: Element>(
    x: Operand<'_, f32>,
    weight: Operand<'_, W>,
    t: &mut [f32],
    t_stride: usize,
    scale: Scale<f32>,
    scratch: &mut [f32],
    panel_depth: usize,
) {
    let (depth, rank) = (weight.rows(), weight.cols());
    let mut product = |k_range: Range<usize>, weight: Operand<'_, f32>, scale| {
        // The gemm crate has a kernel for long reductions with few results, which needs both operands contiguous along
        // K. With a few tokens per call the crate uses it, which avoids padding a rank of 4 to a whole register tile.
        let step = if rank <= SMALL_RANK { SMALL_RESULT / rank } else { x.rows() };
        for start in (0..x.rows()).step_by(step.max(1)) {
            let rows = start..(start + step).min(x.rows());
            gemm_into(&mut t[start * t_stride..], t_stride, x.block(rows, k_range.clone()), weight, scale);
        }
    };
    match in_place(weight) {
        Some(weight) if weight.row_stride() == 1 => product(0..depth, weight, scale),
        _ => {
            let (Scale::Overwrite(factor) | Scale::Add(factor)) = scale;
            for start in (0..depth).step_by(panel_depth) {
                let k_range = start..(start + panel_depth).min(depth);
                let panel = load_rows(weight.block(k_range.clone(), 0..rank).t(), scratch).t();
                product(k_range, panel, if start == 0 { scale } else { Scale::Add(factor) });
            }
        }
    }
}
