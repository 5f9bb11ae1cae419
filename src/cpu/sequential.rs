//! Baselines for the fused layer: the same mathematics in separate steps, each of which reads and writes its operands.
//!
//! Every product here runs on the same code as the fused layer, so a difference in time is due to the fusion alone.
//! These functions are for inference and have no dropout.

use rayon::prelude::*;

use super::epilogue::Output;
use super::gemm::{Scale, gemm_into};
use super::layer::{forward_terms, forward_with};
use super::operand::Operand;
use super::product::{self, Dropped, Product};
use super::shared::{SMALL, grow};
use super::{activation, vector};
use crate::dtype::Element;
use crate::error::Result;
use crate::lora::{Activation, Epilogue, LoraLinear, Residual, Segment, Weight};
use crate::matrix::{MatrixMut, MatrixRef};

/// The buffers of the separate steps' intermediate results. Calls reuse them and make them larger as needed.
#[derive(Debug, Default)]
pub struct SequentialBuffers<W, X> {
    /// T = x·Aᵀ as it is computed.
    t: Vec<f32>,
    /// T as the next layer reads it, rounded to `X`.
    t_stored: Vec<X>,
    /// T·Bᵀ or x·ΔWᵀ: a second `[tokens, d_out]` temporary, which the fused layer does not need.
    update: Vec<X>,
    /// s·B·A, written out in full.
    delta: Vec<W>,
    workspace: Vec<f32>,
}

impl<W: Element, X: Element> SequentialBuffers<W, X> {
    /// Empty buffers.
    pub fn new() -> Self {
        Self { t: vec![], t_stored: vec![], update: vec![], delta: vec![], workspace: vec![] }
    }

    /// Runs one layer without an epilogue, with a workspace as large as its plan needs.
    fn layer(
        workspace: &mut Vec<f32>,
        layer: &LoraLinear<'_, W>,
        x: MatrixRef<'_, X>,
        y: &mut MatrixMut<'_, X>,
    ) -> Result<()> {
        grow(workspace, layer.plan_forward::<X>(x.rows())?.workspace_len());
        forward_with(layer, x, y, &Epilogue::default(), None, workspace)
    }
}

/// A layer and its adapters as PEFT runs them: base, x·Aᵀ, ·Bᵀ, scale, add, then the activation and the residual.
///
/// # Errors
/// As [`forward`](super::forward).
pub fn forward_sequential<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    y: &mut MatrixMut<'_, X>,
    epilogue: &Epilogue<MatrixRef<'_, X>>,
    buffers: &mut SequentialBuffers<W, X>,
) -> Result<()> {
    with_base_layer(layer, x, y, epilogue, buffers, |y, buffers| {
        for segment in layer.segments {
            low_rank_layers(layer, segment, x, buffers)?;
            let update = &mut buffers.update[..x.rows() * segment.columns.len()];
            scale_elements(update, segment.scale);
            add_columns(y, segment.columns.clone(), update);
        }
        Ok(())
    })
}

/// Runs the base layer, then `add_adapters` on its y, then the epilogue.
fn with_base_layer<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    y: &mut MatrixMut<'_, X>,
    epilogue: &Epilogue<MatrixRef<'_, X>>,
    buffers: &mut SequentialBuffers<W, X>,
    add_adapters: impl FnOnce(&mut MatrixMut<'_, X>, &mut SequentialBuffers<W, X>) -> Result<()>,
) -> Result<()> {
    layer.validate()?;
    let saved = save_residual(y, epilogue);
    SequentialBuffers::layer(&mut buffers.workspace, &LoraLinear { segments: &[], ..*layer }, x, y)?;
    add_adapters(y, buffers)?;
    apply_epilogue(y, epilogue, saved.as_deref())
}

/// The two low-rank layers of a segment: `update = (x·Aᵀ)·Bᵀ`.
fn low_rank_layers<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    segment: &Segment<'_, W>,
    x: MatrixRef<'_, X>,
    buffers: &mut SequentialBuffers<W, X>,
) -> Result<()> {
    let (tokens, rank, width) = (x.rows(), segment.rank(), segment.columns.len());
    let one_segment = LoraLinear { segments: std::slice::from_ref(segment), bias: None, ..*layer };
    let plan = one_segment.plan_forward::<X>(tokens)?;
    grow(&mut buffers.workspace, plan.workspace_len());
    grow(&mut buffers.t, tokens * rank);
    grow(&mut buffers.t_stored, tokens * rank);
    grow(&mut buffers.update, tokens * width);
    let t = &mut buffers.t[..tokens * rank];
    let terms = forward_terms(&one_segment);
    let (weight, dropped) = (Operand::from_weight(&layer.weight), Dropped::Nothing);
    let shrink = Product { x, weight, terms: &terms, bias: None, dropped };
    product::run(&shrink, &plan, None::<Output<'_, X>>, Some(t), &mut buffers.workspace)?;
    X::narrow(t, &mut buffers.t_stored[..tokens * rank]);
    let t = MatrixRef::new(&buffers.t_stored, tokens, rank)?;
    let mut update = MatrixMut::new(&mut buffers.update, tokens, width)?;
    let expand = LoraLinear::base(Weight::out_in(segment.b), None);
    SequentialBuffers::layer(&mut buffers.workspace, &expand, t, &mut update)
}

/// A layer and its adapters as loralib's `MergedLinear` runs them: every call computes ΔW = s·B·A in full, multiplies x
/// by it, and adds the product to y.
///
/// # Errors
/// As [`forward`](super::forward).
pub fn forward_dense_delta<W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    x: MatrixRef<'_, X>,
    y: &mut MatrixMut<'_, X>,
    epilogue: &Epilogue<MatrixRef<'_, X>>,
    buffers: &mut SequentialBuffers<W, X>,
) -> Result<()> {
    with_base_layer(layer, x, y, epilogue, buffers, |y, buffers| {
        if layer.segments.is_empty() {
            return Ok(());
        }
        let (tokens, d_in, d_out) = (x.rows(), layer.d_in(), layer.d_out());
        grow(&mut buffers.delta, d_in * d_out);
        grow(&mut buffers.update, tokens * d_out);
        dense_delta(layer, &mut buffers.delta[..d_in * d_out]);
        let delta = Weight::in_out(MatrixRef::new(&buffers.delta, d_in, d_out)?);
        let mut update = MatrixMut::new(&mut buffers.update, tokens, d_out)?;
        SequentialBuffers::layer(&mut buffers.workspace, &LoraLinear::base(delta, None), x, &mut update)?;
        add_columns(y, 0..d_out, &buffers.update[..tokens * d_out]);
        Ok(())
    })
}

/// ΔW `[d_in, d_out]`, zero outside all segments.
fn dense_delta<W: Element>(layer: &LoraLinear<'_, W>, delta: &mut [W]) {
    const ROWS: usize = 64;
    let d_out = layer.d_out();
    let wide = |m: MatrixRef<'_, W>| -> Vec<f32> { (0..m.rows()).flat_map(|i| m.row(i)).map(|v| v.to_f32()).collect() };
    let factors: Vec<_> = layer.segments.iter().map(|s| (wide(s.a), wide(s.b))).collect();
    delta.par_chunks_mut(ROWS * d_out).enumerate().for_each(|(i, out)| {
        let rows = i * ROWS..i * ROWS + out.len() / d_out;
        let mut chunk = vec![0.0f32; out.len()];
        for (segment, (a, b)) in layer.segments.iter().zip(&factors) {
            let (rank, width) = (segment.rank(), segment.columns.len());
            let a = Operand::new(a, rank, layer.d_in(), layer.d_in(), 1).block(0..rank, rows.clone()).t();
            let b = Operand::new(b, width, rank, rank, 1).t();
            gemm_into(&mut chunk[segment.columns.start..], d_out, a, b, Scale::Add(segment.scale));
        }
        W::narrow(&chunk, out);
    });
}

/// Saves a residual that is in y, because separate steps overwrite y before the residual is added.
fn save_residual<X: Element>(y: &MatrixMut<'_, X>, epilogue: &Epilogue<MatrixRef<'_, X>>) -> Option<Vec<X>> {
    let y = y.as_ref();
    matches!(epilogue.residual, Residual::InPlace).then(|| (0..y.rows()).flat_map(|i| y.row(i)).copied().collect())
}

/// Applies the activation to y and adds the residual, in separate passes. `saved` is a residual that was in y.
fn apply_epilogue<X: Element>(
    y: &mut MatrixMut<'_, X>,
    epilogue: &Epilogue<MatrixRef<'_, X>>,
    saved: Option<&[X]>,
) -> Result<()> {
    let cols = y.cols();
    if epilogue.activation != Activation::Identity {
        each_row(y, |_, row| update_row(row, |wide| activation::apply(epilogue.activation, wide)));
    }
    let residual = match (epilogue.residual, saved) {
        (Residual::From(residual), _) => Some(residual),
        (Residual::InPlace, Some(saved)) => Some(MatrixRef::new(saved, y.rows(), cols)?),
        _ => None,
    };
    if let Some(residual) = residual {
        residual.expect_shape("residual", [y.rows(), cols])?;
        each_row(y, |i, row| add_row(row, residual.row(i)));
    }
    Ok(())
}

fn scale_elements<X: Element>(values: &mut [X], factor: f32) {
    let scale = |chunk: &mut [X]| update_row(chunk, |wide| vector::scale(wide, factor));
    if values.len() <= SMALL { scale(values) } else { values.par_chunks_mut(SMALL).for_each(scale) }
}

fn add_columns<X: Element>(y: &mut MatrixMut<'_, X>, columns: std::ops::Range<usize>, update: &[X]) {
    let width = columns.len();
    each_row(y, |i, row| add_row(&mut row[columns.clone()], &update[i * width..][..width]));
}

fn each_row<X: Element>(y: &mut MatrixMut<'_, X>, f: impl Fn(usize, &mut [X]) + Sync) {
    let (rows, cols, stride) = (y.rows(), y.cols(), y.row_stride());
    if rows * cols <= SMALL {
        (0..rows).for_each(|i| f(i, y.row_mut(i)));
    } else {
        y.data_mut().par_chunks_mut(stride).enumerate().for_each(|(i, row)| f(i, &mut row[..cols]));
    }
}

fn add_row<X: Element>(row: &mut [X], other: &[X]) {
    let mut wide = vec![0.0; if X::as_f32(other).is_some() { 0 } else { other.len() }];
    let other = X::as_f32(other).unwrap_or_else(|| {
        X::widen(other, &mut wide);
        &wide
    });
    update_row(row, |row| vector::add(row, other));
}

/// Applies `f` to a row in `f32`: in place if it is stored as `f32`, otherwise on a widened copy.
fn update_row<X: Element>(row: &mut [X], f: impl FnOnce(&mut [f32])) {
    if let Ok(row) = bytemuck::try_cast_slice_mut::<X, f32>(row)
        && X::DTYPE == crate::DType::F32
    {
        return f(row);
    }
    let mut wide = vec![0.0; row.len()];
    X::widen(row, &mut wide);
    f(&mut wide);
    X::narrow(&wide, row);
}
