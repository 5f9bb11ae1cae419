//! The description of a LoRA layer: weight, bias, low-rank segments. This module checks that they fit together; a
//! backend computes the layer.

use std::ops::Range;

use crate::cpu::plan::{Plan, Problem};
use crate::dtype::Element;
use crate::error::{Error, Result};
use crate::matrix::MatrixRef;

/// The largest rank of a segment.
pub const MAX_RANK: usize = 512;

/// The order in which a weight's two dimensions are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[d_out, d_in]`, as `torch.nn.Linear` stores it.
    OutIn,
    /// `[d_in, d_out]`, as GPT-2's `Conv1D` stores it.
    InOut,
}

/// The frozen weight W0 in one of two layouts. Backends read either layout in place, without a transposed copy.
#[derive(Debug, Clone, Copy)]
pub struct Weight<'a, W> {
    /// The stored matrix.
    pub matrix: MatrixRef<'a, W>,
    /// The storage order.
    pub layout: Layout,
}

impl<'a, W: Element> Weight<'a, W> {
    /// A weight stored `[d_out, d_in]`.
    pub fn out_in(matrix: MatrixRef<'a, W>) -> Self {
        Self { matrix, layout: Layout::OutIn }
    }

    /// A weight stored `[d_in, d_out]`.
    pub fn in_out(matrix: MatrixRef<'a, W>) -> Self {
        Self { matrix, layout: Layout::InOut }
    }

    /// Input features, the columns of x.
    pub fn d_in(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.matrix.cols(),
            Layout::InOut => self.matrix.rows(),
        }
    }

    /// Output features, the columns of y.
    pub fn d_out(&self) -> usize {
        match self.layout {
            Layout::OutIn => self.matrix.rows(),
            Layout::InOut => self.matrix.cols(),
        }
    }
}

/// One low-rank product added to some output columns of a layer.
///
/// A layer adapted as a whole has one segment over all columns. A fused qkv projection with LoRA on q and v has two.
/// The products of overlapping segments add up, so two adapters can be active at once.
#[derive(Debug, Clone)]
pub struct Segment<'a, W> {
    /// Output columns that the product is added to.
    pub columns: Range<usize>,
    /// A, `[rank, d_in]`, as PEFT stores it.
    pub a: MatrixRef<'a, W>,
    /// B, `[columns.len(), rank]`, as PEFT stores it.
    pub b: MatrixRef<'a, W>,
    /// The factor s of the product: α/r, or α/√r for rsLoRA. It is `f32` whatever the type of the weight.
    pub scale: f32,
}

impl<W: Element> Segment<'_, W> {
    /// The rank r, the inner dimension.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }
}

/// A linear layer with any number of low-rank segments; with none it is the base layer itself.
#[derive(Debug, Clone, Copy)]
pub struct LoraLinear<'a, W> {
    /// The frozen weight W0, `[d_out, d_in]` or `[d_in, d_out]`.
    pub weight: Weight<'a, W>,
    /// The bias, `[d_out]`, added once however many segments there are.
    pub bias: Option<&'a [W]>,
    /// The low-rank products of the adapters.
    pub segments: &'a [Segment<'a, W>],
}

impl<'a, W: Element> LoraLinear<'a, W> {
    /// A layer with no adapter.
    pub fn base(weight: Weight<'a, W>, bias: Option<&'a [W]>) -> Self {
        Self { weight, bias, segments: &[] }
    }

    /// Input features.
    pub fn d_in(&self) -> usize {
        self.weight.d_in()
    }

    /// Output features.
    pub fn d_out(&self) -> usize {
        self.weight.d_out()
    }

    /// The sum of all segments' ranks: the columns of T = x·Aᵀ.
    pub fn total_rank(&self) -> usize {
        self.segments.iter().map(Segment::rank).sum()
    }

    /// Floating-point operations for one token; a multiply-add counts as two.
    pub fn flops_per_token(&self) -> usize {
        let low_rank: usize = self.segments.iter().map(|s| s.rank() * (self.d_in() + s.columns.len())).sum();
        2 * (self.d_in() * self.d_out() + low_rank)
    }

    /// Checks that the shapes of all operands fit together, and that scales are finite.
    ///
    /// # Errors
    /// The error names the first operand that does not fit: [`Error::LengthMismatch`] for the bias,
    /// [`Error::RankOutOfRange`], [`Error::SegmentOutOfRange`], [`Error::ShapeMismatch`] or [`Error::ScaleNotFinite`]
    /// for a segment.
    pub fn validate(&self) -> Result<()> {
        let (d_in, d_out) = (self.d_in(), self.d_out());
        if let Some(bias) = self.bias
            && bias.len() != d_out
        {
            return Err(Error::LengthMismatch { operand: "bias", expected: d_out, actual: bias.len() });
        }
        validate_segments(self.segments, d_in, d_out)
    }

    /// The plan of [`cpu::forward`](crate::cpu::forward) for `tokens` rows of activations stored as `X`, on the
    /// current rayon pool.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn plan_forward<X: Element>(&self, tokens: usize) -> Result<Plan> {
        self.validate()?;
        Ok(Plan::new(&Problem {
            tokens,
            depth: self.d_in(),
            columns: self.d_out(),
            total_rank: self.total_rank(),
            widest_shrink: if self.segments.is_empty() { 0 } else { self.d_in() },
            largest_rank: self.segments.iter().map(Segment::rank).max().unwrap_or(0),
            unit_columns: self.weight.layout == Layout::InOut,
            weight: W::DTYPE,
            activation: X::DTYPE,
            threads: rayon::current_num_threads(),
        }))
    }

    /// The plan of the dx product of [`cpu::backward`](crate::cpu::backward) for `tokens` rows of activations stored as
    /// `X`, on the current rayon pool.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn plan_backward<X: Element>(&self, tokens: usize) -> Result<Plan> {
        self.validate()?;
        Ok(Plan::new(&Problem {
            tokens,
            depth: self.d_out(),
            columns: self.d_in(),
            total_rank: self.total_rank(),
            widest_shrink: self.segments.iter().map(|s| s.columns.len()).max().unwrap_or(0),
            largest_rank: self.segments.iter().map(Segment::rank).max().unwrap_or(0),
            unit_columns: self.weight.layout == Layout::OutIn,
            weight: W::DTYPE,
            activation: X::DTYPE,
            threads: rayon::current_num_threads(),
        }))
    }
}

/// Checks that the segments fit a layer of these dimensions.
pub(crate) fn validate_segments<W: Element>(segments: &[Segment<'_, W>], d_in: usize, d_out: usize) -> Result<()> {
    for segment in segments {
        let Range { start, end } = segment.columns;
        if start >= end || end > d_out {
            return Err(Error::SegmentOutOfRange { start, end, d_out });
        }
        let rank = segment.rank();
        if rank == 0 || rank > MAX_RANK {
            return Err(Error::RankOutOfRange { rank, max: MAX_RANK });
        }
        segment.a.expect_shape("A", [rank, d_in])?;
        segment.b.expect_shape("B", [end - start, rank])?;
        if !segment.scale.is_finite() {
            return Err(Error::ScaleNotFinite { scale: segment.scale });
        }
    }
    Ok(())
}

/// The activation, applied to `x W0ᵀ + bias + s·(x Aᵀ) Bᵀ` before the residual is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Activation {
    /// No activation.
    #[default]
    Identity,
    /// max(x, 0). A NaN stays a NaN.
    Relu,
    /// 0.5x(1 + tanh(√(2/π)(x + 0.044715x³))), GPT-2's GELU.
    GeluNew,
}

/// The term added after the activation. `M` is the view of a matrix: [`MatrixRef`] on the CPU,
/// [`DeviceMatrix`](crate::device::DeviceMatrix) on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Residual<M> {
    /// No residual: the output is overwritten.
    #[default]
    None,
    /// The output's contents before the call.
    InPlace,
    /// Another matrix, `[tokens, d_out]`.
    From(M),
}

/// The operations on the sums of an output before they are rounded and stored: `act(…) + residual`. By default there are
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Epilogue<M> {
    /// Applied to the sums, which include the bias.
    pub activation: Activation,
    /// Added to the activation's result.
    pub residual: Residual<M>,
}

impl<M> Default for Epilogue<M> {
    fn default() -> Self {
        Self { activation: Activation::Identity, residual: Residual::None }
    }
}

/// Whether gradients replace the contents of their buffers or are added to them, for example over micro-batches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Accumulate {
    /// Gradients replace the contents (`=`).
    #[default]
    Overwrite,
    /// Gradients are added to the contents (`+=`).
    Add,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer<'a>(w: &'a [f32], segments: &'a [Segment<'a, f32>]) -> LoraLinear<'a, f32> {
        LoraLinear { weight: Weight::in_out(MatrixRef::new(w, 4, 6).unwrap()), bias: None, segments }
    }

    #[test]
    fn each_violated_precondition_has_its_error() {
        let w = [0.0f32; 24];
        let data = [0.0f32; 4096];
        let m = |rows, cols| MatrixRef::new(&data, rows, cols).unwrap();
        let good = Segment { columns: 1..4, a: m(2, 4), b: m(3, 2), scale: 1.0 };
        assert_eq!(layer(&w, std::slice::from_ref(&good)).validate(), Ok(()));

        let cases = [
            (Segment { columns: 4..7, ..good.clone() }, Error::SegmentOutOfRange { start: 4, end: 7, d_out: 6 }),
            (Segment { columns: 4..4, ..good.clone() }, Error::SegmentOutOfRange { start: 4, end: 4, d_out: 6 }),
            (Segment { a: m(0, 4), ..good.clone() }, Error::RankOutOfRange { rank: 0, max: 512 }),
            (Segment { a: m(513, 4), ..good.clone() }, Error::RankOutOfRange { rank: 513, max: 512 }),
            (
                Segment { a: m(2, 5), ..good.clone() },
                Error::ShapeMismatch { operand: "A", expected: [2, 4], actual: [2, 5] },
            ),
            (
                Segment { b: m(2, 2), ..good.clone() },
                Error::ShapeMismatch { operand: "B", expected: [3, 2], actual: [2, 2] },
            ),
            (Segment { scale: f32::INFINITY, ..good.clone() }, Error::ScaleNotFinite { scale: f32::INFINITY }),
        ];
        for (segment, expected) in cases {
            assert_eq!(layer(&w, &[segment]).validate(), Err(expected));
        }
        let biased = LoraLinear { bias: Some(&data[..5]), ..layer(&w, &[]) };
        assert_eq!(biased.validate(), Err(Error::LengthMismatch { operand: "bias", expected: 6, actual: 5 }));
    }
}
