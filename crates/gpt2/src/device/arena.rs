//! All activations of a pass in one allocation, in which parts that live at the same time do not overlap.

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceSliceMut, Stream};

use crate::error::Result;

/// Elements of the parts of an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Sizes {
    /// The residual stream, `[rows, d_model]`.
    pub(super) x: usize,
    /// A second residual stream, for a layer that cannot add to its own input, or the output of a sublayer that an
    /// adapter follows.
    pub(super) other: usize,
    /// The output of a LayerNorm, `[rows, d_model]`.
    pub(super) normed: usize,
    /// qkv `[rows, 3·d_model]` followed by the attention's output, and afterwards the MLP's hidden values.
    pub(super) wide: usize,
    /// T of a LoRA that runs separately from its layer.
    pub(super) t: usize,
    /// The product T·Bᵀ of such a LoRA.
    pub(super) beside: usize,
    /// ΔW, and a weight of zeros that it is added to.
    pub(super) delta: usize,
    pub(super) zeros: usize,
    /// Logits, `[rows, logits_stride]`.
    pub(super) logits: usize,
}

/// Alignment of the parts, in elements: a multiple of 16 bytes for every type.
const ALIGNMENT: usize = 64;

/// The allocation of all parts.
#[derive(Debug)]
pub(super) struct Arena<W> {
    buffer: DeviceBuffer<W>,
    sizes: Sizes,
}

/// Views of an arena's parts.
pub(super) struct Parts<'a, W> {
    pub(super) x: DeviceSliceMut<'a, W>,
    pub(super) other: DeviceSliceMut<'a, W>,
    pub(super) normed: DeviceSliceMut<'a, W>,
    pub(super) wide: DeviceSliceMut<'a, W>,
    pub(super) t: DeviceSliceMut<'a, W>,
    pub(super) beside: DeviceSliceMut<'a, W>,
    pub(super) delta: DeviceSliceMut<'a, W>,
    pub(super) zeros: DeviceSliceMut<'a, W>,
    pub(super) logits: DeviceSliceMut<'a, W>,
}

impl<W: Element> Arena<W> {
    pub(super) fn new(stream: &Stream, sizes: Sizes) -> Result<Self> {
        Ok(Self { buffer: DeviceBuffer::zeros(stream, sizes.elements())?, sizes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.len() * size_of::<W>()
    }

    pub(super) fn parts(&mut self) -> Parts<'_, W> {
        let sizes = self.sizes;
        let whole = self.buffer.as_mut_slice();
        let (x, rest) = split(whole, sizes.x);
        let (other, rest) = split(rest, sizes.other);
        let (normed, rest) = split(rest, sizes.normed);
        let (wide, rest) = split(rest, sizes.wide);
        let (t, rest) = split(rest, sizes.t);
        let (beside, rest) = split(rest, sizes.beside);
        let (delta, rest) = split(rest, sizes.delta);
        let (zeros, logits) = split(rest, sizes.zeros);
        Parts { x, other, normed, wide, t, beside, delta, zeros, logits }
    }
}

impl Sizes {
    /// For each part, the larger of the two sizes.
    pub(super) fn largest(&self, other: &Self) -> Self {
        Self {
            x: self.x.max(other.x),
            other: self.other.max(other.other),
            normed: self.normed.max(other.normed),
            wide: self.wide.max(other.wide),
            t: self.t.max(other.t),
            beside: self.beside.max(other.beside),
            delta: self.delta.max(other.delta),
            zeros: self.zeros.max(other.zeros),
            logits: self.logits.max(other.logits),
        }
    }

    fn elements(&self) -> usize {
        let Self { x, other, normed, wide, t, beside, delta, zeros, logits } = *self;
        [x, other, normed, wide, t, beside, delta, zeros, logits]
            .map(|size| size.next_multiple_of(ALIGNMENT))
            .iter()
            .sum()
    }
}

fn split<W: Element>(slice: DeviceSliceMut<'_, W>, size: usize) -> (DeviceSliceMut<'_, W>, DeviceSliceMut<'_, W>) {
    slice.split_at(size.next_multiple_of(ALIGNMENT))
}

/// The first `rows · cols` elements of a part.
pub(super) fn matrix<'a, W: Element>(
    part: &'a DeviceSliceMut<'_, W>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrix<'a, W>> {
    DeviceMatrix::new(part.as_ref(), rows, cols)
}

/// [`matrix`], mutable.
pub(super) fn matrix_mut<'a, W: Element>(
    part: &'a mut DeviceSliceMut<'_, W>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrixMut<'a, W>> {
    DeviceMatrixMut::new(part.slice_mut(0..rows * cols), rows, cols)
}
