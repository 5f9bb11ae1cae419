//! The fused forward pass of a layer.

use super::epilogue::Output;
use super::operand::Operand;
use super::product::{self, Dropped, LowRank, Product};
use super::shared::SharedSlice;
use crate::dropout::Dropout;
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::lora::{Epilogue, LoraLinear, Residual};
use crate::matrix::{MatrixMut, MatrixRef};

/// The input of a layer: x, and optionally the dropout of the adapters' input.
///
/// With dropout, each thread allocates a buffer for the elements that it masks, in addition to the plan's workspace.
/// The buffer has the size of a tile at most.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a, X> {
    /// x, `[tokens, d_in]`.
    pub x: MatrixRef<'a, X>,
    /// The dropout; `None` is the same as p = 0. A forward pass and its backward pass need the same value.
    pub dropout: Option<Dropout>,
}

impl<X> Input<'_, X> {
    /// The dropout, if its probability is above 0.
    pub(super) fn dropout(&self) -> Option<Dropout> {
        self.dropout.filter(|dropout| dropout.p() > 0.0)
    }

    /// The dropout as the forward product applies it.
    pub(super) fn dropped(&self) -> Dropped {
        self.dropout().map_or(Dropped::Nothing, Dropped::Input)
    }
}

impl<'a, X> From<MatrixRef<'a, X>> for Input<'a, X> {
    fn from(x: MatrixRef<'a, X>) -> Self {
        Self { x, dropout: None }
    }
}

/// The low-rank terms of the forward pass: each computes T = x·Aᵀ from all columns of x and adds s·T·Bᵀ to the columns
/// of its segment.
pub(super) fn forward_terms<'a, W: Element>(layer: &LoraLinear<'a, W>) -> Vec<LowRank<'a, W>> {
    let term = |segment: &crate::lora::Segment<'a, W>| LowRank {
        inputs: 0..segment.a.cols(),
        shrink: Operand::from_matrix(segment.a).t(),
        outputs: segment.columns.clone(),
        expand: Operand::from_matrix(segment.b).t(),
        scale: segment.scale,
    };
    layer.segments.iter().map(term).collect()
}

/// `y = x W0ᵀ + bias + s·(x Aᵀ) Bᵀ` for `x` `[tokens, d_in]` into `y` `[tokens, d_out]`, in one pass over `y`.
///
/// `workspace` holds at least [`workspace_len`](crate::cpu::plan::Plan::workspace_len) elements of
/// [`plan_forward`](LoraLinear::plan_forward)'s plan; its contents do not matter.
///
/// With dropout ([`Input`] in place of `x`), the adapters read x̂: `y = x W0ᵀ + bias + s·(x̂ Aᵀ) Bᵀ`.
///
/// # Errors
/// As [`LoraLinear::validate`]; [`Error::ShapeMismatch`] for x or y; [`Error::WorkspaceTooSmall`].
pub fn forward<'x, W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    input: impl Into<Input<'x, X>>,
    y: &mut MatrixMut<'_, X>,
    workspace: &mut [f32],
) -> Result<()> {
    forward_with(layer, input, y, &Epilogue::default(), None, workspace)
}

/// [`forward`] with an epilogue, `y = act(x W0ᵀ + bias + s·(x Aᵀ) Bᵀ) + residual`. If `t` is given, it receives T =
/// x·Aᵀ.
///
/// `t` is `[tokens, total_rank]`, contiguous. It has the columns of each segment in their order, not multiplied by s,
/// as the backward pass reads them. With dropout, T = x̂·Aᵀ.
///
/// # Errors
/// As [`forward`]; [`Error::ShapeMismatch`] for the residual; [`Error::LengthMismatch`] for `t`.
pub fn forward_with<'x, W: Element, X: Element>(
    layer: &LoraLinear<'_, W>,
    input: impl Into<Input<'x, X>>,
    y: &mut MatrixMut<'_, X>,
    epilogue: &Epilogue<MatrixRef<'_, X>>,
    t: Option<&mut [f32]>,
    workspace: &mut [f32],
) -> Result<()> {
    let input = input.into();
    let (x, tokens) = (input.x, input.x.rows());
    let plan = layer.plan_forward::<X>(tokens)?;
    x.expect_shape("x", [tokens, layer.d_in()])?;
    y.expect_shape("y", [tokens, layer.d_out()])?;
    if let Residual::From(residual) = epilogue.residual {
        residual.expect_shape("residual", [tokens, layer.d_out()])?;
    }
    check_t(t.as_deref(), plan.t_len())?;
    let terms = forward_terms(layer);
    let weight = Operand::from_weight(&layer.weight);
    let product = Product { x, weight, terms: &terms, bias: layer.bias, dropped: input.dropped() };
    let row_stride = y.row_stride();
    let output = Output { data: SharedSlice::new(y.data_mut()), row_stride, epilogue: *epilogue };
    product::run(&product, &plan, Some(output), t, workspace)
}

pub(super) fn check_t(t: Option<&[f32]>, expected: usize) -> Result<()> {
    match t {
        Some(t) if t.len() != expected => Err(Error::LengthMismatch { operand: "T", expected, actual: t.len() }),
        _ => Ok(()),
    }
}
