//! A layer and its copies in device memory.

use anyhow::Result;
use fused_lora::Element;
use fused_lora::device::{DeviceBuffer, DeviceLora, DeviceMatrix, DeviceSegment, Stream};
use fused_lora::lora::{Activation, Layout};
use fused_lora_gpt2::Random;

/// α/r of every adapter.
pub(super) const SCALE: f32 = 2.0;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub(super) struct Case {
    pub(super) tokens: usize,
    pub(super) d_in: usize,
    pub(super) d_out: usize,
    pub(super) rank: usize,
    pub(super) layout: Layout,
}

impl Case {
    /// Bytes that must move: every operand once.
    pub(super) fn bytes<T>(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.rank * (self.d_in + self.d_out) } else { 0 };
        (self.d_in * self.d_out + self.tokens * (self.d_in + self.d_out) + low_rank) * size_of::<T>()
    }

    /// Products and sums, an adapter's only where it is computed.
    pub(super) fn flops(&self, adapted: bool) -> usize {
        let low_rank = if adapted { self.rank * (self.d_in + self.d_out) } else { 0 };
        2 * self.tokens * (self.d_in * self.d_out + low_rank)
    }

    /// Bytes of T, where it is kept for the backward pass.
    pub(super) fn kept_bytes<T>(&self) -> usize {
        self.tokens * self.rank * size_of::<T>()
    }

    /// Products and sums of a training pass: y, dx and, of an adapter, dA and dB.
    pub(super) fn pass_flops(&self, adapted: bool) -> usize {
        let factors = if adapted { 2 * self.tokens * self.rank * (self.d_in + self.d_out) } else { 0 };
        2 * self.flops(adapted) + factors
    }

    /// Rows and columns of the weight as stored.
    pub(super) fn stored(&self) -> [usize; 2] {
        match self.layout {
            Layout::InOut => [self.d_in, self.d_out],
            Layout::OutIn => [self.d_out, self.d_in],
        }
    }
}

/// One copy of a layer's weights.
pub(super) struct Copy<T> {
    pub(super) weight: DeviceBuffer<T>,
    pub(super) a: DeviceBuffer<T>,
    pub(super) b: DeviceBuffer<T>,
}

impl<T: Element> Copy<T> {
    /// So many copies of one random layer.
    pub(super) fn several(case: &Case, copies: usize, stream: &Stream, random: &mut Random) -> Result<Vec<Self>> {
        let weight = random.normal::<T>(case.d_in * case.d_out, 0.02)?;
        let a = random.normal::<T>(case.rank * case.d_in, 0.02)?;
        let b = random.normal::<T>(case.d_out * case.rank, 0.02)?;
        let upload = |data: &[T]| DeviceBuffer::from_slice(stream, data);
        (0..copies).map(|_| Ok(Self { weight: upload(&weight)?, a: upload(&a)?, b: upload(&b)? })).collect()
    }

    /// The layer with its adapter, or the base alone, for as long as `work` takes.
    pub(super) fn with_layer<R>(
        &self,
        case: &Case,
        adapted: bool,
        work: impl FnOnce(&DeviceLora<'_, T>) -> fused_lora::Result<R>,
    ) -> fused_lora::Result<R> {
        let [rows, cols] = case.stored();
        let segments = [DeviceSegment {
            columns: 0..case.d_out,
            a: DeviceMatrix::new(self.a.as_slice(), case.rank, case.d_in)?,
            b: DeviceMatrix::new(self.b.as_slice(), case.d_out, case.rank)?,
            scale: SCALE,
        }];
        work(&DeviceLora {
            weight: DeviceMatrix::new(self.weight.as_slice(), rows, cols)?,
            layout: case.layout,
            bias: None,
            segments: if adapted { &segments } else { &[] },
            activation: Activation::Identity,
        })
    }
}
