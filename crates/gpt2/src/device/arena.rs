//! All activations of a pass, in one allocation.

use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceMatrix, DeviceMatrixMut, DeviceSliceMut, Stream};

use crate::error::Result;

/// The sizes of an arena's parts, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct PartSizes {
    /// The residual stream, `[rows, d_model]`.
    pub(super) x: usize,
    /// A second buffer like `x`: the output of a sublayer that a Houlsby adapter follows, or of a Pfeiffer adapter,
    /// which cannot write over its input.
    pub(super) second_x: usize,
    /// The output of a LayerNorm, `[rows, d_model]`.
    pub(super) normed: usize,
    /// First qkv `[rows, 3·d_model]` and the attention's output behind it, then the hidden features of the MLP.
    pub(super) qkv_or_hidden: usize,
    /// T of a sequential LoRA.
    pub(super) t: usize,
    /// T·Bᵀ of a sequential LoRA.
    pub(super) low_rank_product: usize,
    /// ΔW of a dense LoRA, and the zeros that it is merged into.
    pub(super) delta: usize,
    pub(super) zeros: usize,
    /// Logits, `[rows, logits_stride]`.
    pub(super) logits: usize,
}

/// Each part starts at a multiple of this many elements, which is a multiple of 16 bytes for every type.
const ALIGNMENT: usize = 64;

/// The allocation of all parts.
#[derive(Debug)]
pub(super) struct Arena<W> {
    buffer: DeviceBuffer<W>,
    sizes: PartSizes,
}

/// Views of an arena's parts.
pub(super) struct Parts<'a, W> {
    pub(super) x: DeviceSliceMut<'a, W>,
    pub(super) second_x: DeviceSliceMut<'a, W>,
    pub(super) normed: DeviceSliceMut<'a, W>,
    pub(super) qkv_or_hidden: DeviceSliceMut<'a, W>,
    pub(super) t: DeviceSliceMut<'a, W>,
    pub(super) low_rank_product: DeviceSliceMut<'a, W>,
    pub(super) delta: DeviceSliceMut<'a, W>,
    pub(super) zeros: DeviceSliceMut<'a, W>,
    pub(super) logits: DeviceSliceMut<'a, W>,
}

impl<W: Element> Arena<W> {
    pub(super) fn new(stream: &Stream, sizes: PartSizes) -> Result<Self> {
        Ok(Self { buffer: DeviceBuffer::zeros(stream, sizes.elements())?, sizes })
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.len() * size_of::<W>()
    }

    pub(super) fn parts(&mut self) -> Parts<'_, W> {
        let sizes = self.sizes;
        let whole = self.buffer.as_mut_slice();
        let (x, rest) = split(whole, sizes.x);
        let (second_x, rest) = split(rest, sizes.second_x);
        let (normed, rest) = split(rest, sizes.normed);
        let (qkv_or_hidden, rest) = split(rest, sizes.qkv_or_hidden);
        let (t, rest) = split(rest, sizes.t);
        let (low_rank_product, rest) = split(rest, sizes.low_rank_product);
        let (delta, rest) = split(rest, sizes.delta);
        let (zeros, logits) = split(rest, sizes.zeros);
        Parts { x, second_x, normed, qkv_or_hidden, t, low_rank_product, delta, zeros, logits }
    }
}

impl PartSizes {
    /// For each part, the larger of the two sizes.
    pub(super) fn largest(&self, second_x: &Self) -> Self {
        Self {
            x: self.x.max(second_x.x),
            second_x: self.second_x.max(second_x.second_x),
            normed: self.normed.max(second_x.normed),
            qkv_or_hidden: self.qkv_or_hidden.max(second_x.qkv_or_hidden),
            t: self.t.max(second_x.t),
            low_rank_product: self.low_rank_product.max(second_x.low_rank_product),
            delta: self.delta.max(second_x.delta),
            zeros: self.zeros.max(second_x.zeros),
            logits: self.logits.max(second_x.logits),
        }
    }

    fn elements(&self) -> usize {
        let Self { x, second_x, normed, qkv_or_hidden, t, low_rank_product, delta, zeros, logits } = *self;
        [x, second_x, normed, qkv_or_hidden, t, low_rank_product, delta, zeros, logits]
            .map(|size| size.next_multiple_of(ALIGNMENT))
            .iter()
            .sum()
    }
}

fn split<W: Element>(slice: DeviceSliceMut<'_, W>, size: usize) -> (DeviceSliceMut<'_, W>, DeviceSliceMut<'_, W>) {
    slice.split_at(size.next_multiple_of(ALIGNMENT))
}

/// A `[rows, cols]` matrix at the start of a part.
pub(super) fn matrix<'a, W: Element>(
    part: &'a DeviceSliceMut<'_, W>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrix<'a, W>> {
    DeviceMatrix::new(part.as_ref(), rows, cols)
}

/// A mutable `[rows, cols]` matrix at the start of a part.
pub(super) fn matrix_mut<'a, W: Element>(
    part: &'a mut DeviceSliceMut<'_, W>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrixMut<'a, W>> {
    DeviceMatrixMut::new(part.slice_mut(0..rows * cols), rows, cols)
}
