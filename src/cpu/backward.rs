//! The backward pass: dx and Q = dy·B in one product, then dA and dB. W0 is frozen and gets no gradient.

use std::ops::Range;

use rayon::prelude::*;

use super::epilogue::Output;
use super::gemm::{Scale, gemm_into};
use super::layer::{Input, check_t, forward_terms};
use super::operand::Operand;
use super::panel::{load_dropped, load_rows};
use super::product::{self, Dropped, LowRank, Product};
use super::shared::SharedSlice;
use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Accumulate, Epilogue, LoraLinear};
use crate::matrix::{MatrixMut, MatrixRef};

/// The buffers of one segment's gradients, always `f32`.
#[derive(Debug)]
pub struct SegmentGradient<'a> {
    /// dA, `[rank, d_in]`.
    pub da: MatrixMut<'a, f32>,
    /// dB, `[columns.len(), rank]`.
    pub db: MatrixMut<'a, f32>,
}

/// `f32` elements of workspace for [`backward`] on `tokens` rows of activations stored as `X`.
///
/// # Errors
/// As [`LoraLinear::validate`].
pub fn backward_workspace_len<W: Element, X: Element>(layer: &LoraLinear<'_, W>, tokens: usize) -> Result<usize> {
    let plan = layer.plan_backward::<X>(tokens)?;
    Ok(plan.t_len() + plan.workspace_len())
}

/// Computes T = x·Aᵀ of every segment (with dropout x̂·Aᵀ), `[tokens, total_rank]`, for a backward pass whose forward
/// pass did not keep T.
///
/// # Errors
/// As [`forward`](super::forward); [`Error::LengthMismatch`] if `t` has another length.
pub fn low_rank_input<'x, W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    input: impl Into<Input<'x, X>>,
    t: &mut [f32],
    workspace: &mut [f32],
) -> Result<()> {
    let input = input.into();
    let x = input.x;
    let plan = layer.plan_forward::<X>(x.rows())?;
    x.expect_shape("x", [x.rows(), layer.d_in()])?;
    check_t(Some(t), plan.t_len())?;
    let terms = forward_terms(layer);
    let weight = Operand::from_weight(&layer.weight);
    let product = Product { x, weight, terms: &terms, bias: None, dropped: input.dropped() };
    product::run(&product, &plan, None::<Output<'_, X>>, Some(t), workspace)
}

/// `dx = dy·W0 + s·(dy·B)·A`, `dA = s·(dy·B)ᵀ·x`, `dB = s·dyᵀ·T` for every segment.
///
/// `x` is `[tokens, d_in]`, `dy` `[tokens, d_out]`, `t` the T that the forward pass wrote, `dx` `[tokens, d_in]` or
/// `None` if no layer below needs it. `gradients` holds one entry per segment. `workspace` holds at least
/// [`backward_workspace_len`] elements. Sums run in a fixed order, so results are the same bits from run to run.
///
/// With dropout ([`Input`] in place of `x`, with the forward pass's dropout), M is the forward pass's mask divided by
/// 1 − p: `dx = dy·W0 + M ⊙ (s·(dy·B)·A)` and `dA = s·(dy·B)ᵀ·x̂` with x̂ = M ⊙ x.
///
/// # Errors
/// As [`LoraLinear::validate`]; [`Error::ShapeMismatch`] or [`Error::LengthMismatch`] for an operand;
/// [`Error::SegmentCountMismatch`]; [`Error::WorkspaceTooSmall`].
#[allow(clippy::too_many_arguments)]
pub fn backward<'x, W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    input: impl Into<Input<'x, X>>,
    dy: MatrixRef<'_, X>,
    t: &[f32],
    dx: Option<&mut MatrixMut<'_, X>>,
    gradients: &mut [SegmentGradient<'_>],
    accumulate: Accumulate,
    workspace: &mut [f32],
) -> Result<()> {
    let input = input.into();
    let (x, dropout) = (input.x, input.dropout());
    let (tokens, d_in, d_out) = (x.rows(), layer.d_in(), layer.d_out());
    let plan = layer.plan_backward::<X>(tokens)?;
    x.expect_shape("x", [tokens, d_in])?;
    dy.expect_shape("dy", [tokens, d_out])?;
    check_t(Some(t), plan.t_len())?;
    if let Some(dx) = &dx {
        dx.expect_shape("dx", [tokens, d_in])?;
    }
    if gradients.len() != layer.segments.len() {
        return Err(Error::SegmentCountMismatch { expected: layer.segments.len(), actual: gradients.len() });
    }
    for (segment, gradient) in layer.segments.iter().zip(gradients.iter()) {
        gradient.da.expect_shape("dA", [segment.rank(), d_in])?;
        gradient.db.expect_shape("dB", [segment.columns.len(), segment.rank()])?;
    }
    let required = plan.t_len() + plan.workspace_len();
    if workspace.len() < required {
        return Err(Error::WorkspaceTooSmall { required, available: workspace.len() });
    }

    let (q, workspace) = workspace.split_at_mut(plan.t_len());
    let terms: Vec<_> = layer
        .segments
        .iter()
        .map(|segment| LowRank {
            inputs: segment.columns.clone(),
            shrink: Operand::from_matrix(segment.b),
            outputs: 0..d_in,
            expand: Operand::from_matrix(segment.a),
            scale: segment.scale,
        })
        .collect();
    let weight = Operand::from_weight(&layer.weight).t();
    let dropped = dropout.map_or(Dropped::Nothing, Dropped::Update);
    let product = Product { x: dy, weight, terms: &terms, bias: None, dropped };
    let output = dx.map(|dx| {
        let row_stride = dx.row_stride();
        Output { data: SharedSlice::new(dx.data_mut()), row_stride, epilogue: Epilogue::default() }
    });
    product::run(&product, &plan, output, Some(q), workspace)?;

    let total_rank = layer.total_rank();
    let segment_columns = |data, column, rank| {
        Operand::new(data, tokens, total_rank, total_rank, 1).block(0..tokens, column..column + rank)
    };
    let mut column = 0;
    for (segment, gradient) in layer.segments.iter().zip(gradients) {
        let rank = segment.rank();
        let (q, t) = (segment_columns(q, column, rank), segment_columns(t, column, rank));
        let scale = match accumulate {
            Accumulate::Overwrite => Scale::Overwrite(segment.scale),
            Accumulate::Add => Scale::Add(segment.scale),
        };
        let single_threaded = plan.single_threaded;
        gradient_of_a(&mut gradient.da, q, Operand::from_matrix(x), dropout.as_ref(), scale, single_threaded);
        let dy = Operand::from_matrix(dy.columns(segment.columns.clone()));
        gradient_of_b(&mut gradient.db, dy, t, scale, single_threaded);
        column += rank;
    }
    Ok(())
}

/// Columns of x or dy that one task multiplies, over all tokens.
const TASK_FEATURES: usize = 64;
/// Tokens of a panel, whose activations are widened at a time.
const PANEL_TOKENS: usize = 256;

/// Runs every task once: in order on the calling thread if `single_threaded`, otherwise on the pool.
fn for_each_task(tasks: usize, single_threaded: bool, run: impl Fn(usize) + Send + Sync) {
    if single_threaded { (0..tasks).for_each(run) } else { (0..tasks).into_par_iter().for_each(run) }
}

/// dA `[rank, d_in]` from Q `[tokens, rank]` and x `[tokens, d_in]`. Each task computes a block of columns of dA.
fn gradient_of_a<X: Element>(
    da: &mut MatrixMut<'_, f32>,
    q: Operand<'_, f32>,
    x: Operand<'_, X>,
    dropout: Option<&Dropout>,
    scale: Scale<f32>,
    single_threaded: bool,
) {
    let (rank, d_in, stride) = (da.rows(), da.cols(), da.row_stride());
    let scale = match (scale, dropout.map(Dropout::keep_scale)) {
        (scale, None) => scale,
        (Scale::Overwrite(s), Some(factor)) => Scale::Overwrite(s * factor),
        (Scale::Add(s), Some(factor)) => Scale::Add(s * factor),
    };
    let shared = SharedSlice::new(da.data_mut());
    for_each_task(d_in.div_ceil(TASK_FEATURES), single_threaded, |block| {
        let cols = block * TASK_FEATURES..((block + 1) * TASK_FEATURES).min(d_in);
        let mut sum = vec![0.0; rank * cols.len()];
        let load = |tokens: Range<usize>, panel: &mut [f32]| {
            let first = [tokens.start, cols.start];
            let x = x.block(tokens, cols.clone());
            match dropout {
                Some(dropout) => load_dropped(x, dropout, first, panel),
                None => load_rows(x, panel),
            };
        };
        reduce_over_tokens([x.rows(), cols.len()], load, |tokens, x, step| {
            gemm_into(&mut sum, cols.len(), q.block(tokens, 0..rank).t(), x, step);
        });
        for (i, sum) in sum.chunks_exact(cols.len()).enumerate() {
            // SAFETY: blocks of columns are disjoint and each belongs to one task.
            let out = unsafe { shared.get_mut(i * stride + cols.start..i * stride + cols.end) };
            store(out, sum, scale);
        }
    });
}

/// dB `[width, rank]` from dy `[tokens, width]` and T `[tokens, rank]`. Each task computes a block of rows of dB.
fn gradient_of_b<X: Element>(
    db: &mut MatrixMut<'_, f32>,
    dy: Operand<'_, X>,
    t: Operand<'_, f32>,
    scale: Scale<f32>,
    single_threaded: bool,
) {
    let (width, rank, stride) = (db.rows(), db.cols(), db.row_stride());
    let shared = SharedSlice::new(db.data_mut());
    for_each_task(width.div_ceil(TASK_FEATURES), single_threaded, |block| {
        let rows = block * TASK_FEATURES..((block + 1) * TASK_FEATURES).min(width);
        let mut sum = vec![0.0; rows.len() * rank];
        let load = |tokens: Range<usize>, panel: &mut [f32]| {
            load_rows(dy.block(tokens, rows.clone()), panel);
        };
        reduce_over_tokens([dy.rows(), rows.len()], load, |tokens, dy, step| {
            gemm_into(&mut sum, rank, dy.t(), t.block(tokens, 0..rank), step);
        });
        for (row, sum) in rows.zip(sum.chunks_exact(rank)) {
            // SAFETY: blocks of rows are disjoint and each belongs to one task.
            let out = unsafe { shared.get_mut(row * stride..row * stride + rank) };
            store(out, sum, scale);
        }
    });
}

/// Calls `step` for one range of tokens after another, with the activations of these tokens in `f32`, a panel
/// `[tokens of the range, width]`, which `load` fills.
fn reduce_over_tokens(
    [tokens, width]: [usize; 2],
    load: impl Fn(Range<usize>, &mut [f32]),
    mut step: impl FnMut(Range<usize>, Operand<'_, f32>, Scale<f32>),
) {
    let mut panel = vec![0.0; PANEL_TOKENS.min(tokens) * width];
    for start in (0..tokens).step_by(PANEL_TOKENS) {
        let range = start..(start + PANEL_TOKENS).min(tokens);
        load(range.clone(), &mut panel);
        step(range.clone(), Operand::new(&panel, range.len(), width, width, 1), Scale::Add(1.0));
    }
}

/// Writes the scaled sums to the gradient, or adds them to it.
fn store(out: &mut [f32], sum: &[f32], scale: Scale<f32>) {
    for (out, sum) in out.iter_mut().zip(sum) {
        match scale {
            Scale::Overwrite(s) => *out = s * sum,
            Scale::Add(s) => *out += s * sum,
        }
    }
}
