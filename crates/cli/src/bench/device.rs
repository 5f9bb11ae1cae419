//! Copies of a layer and of the bottleneck adapters in device memory.

use anyhow::Result;
use bytemuck::Pod;
use fused_lora::Element;
use fused_lora::device::{
    DeviceAdapter, DeviceBuffer, DeviceLora, DeviceMatrix, DeviceMatrixMut, DeviceNorm, DeviceSegment, DeviceSliceMut,
    Stream,
};
use fused_lora::lora::Activation;
use fused_lora_gpt2::Random;

use super::adapter::{Adapter, EPSILON};
use super::case::{Case, SCALE};
use super::copies::{Footprint, bytes_of};

/// One copy of a layer's weights.
pub(super) struct LayerCopy<T> {
    pub(super) weight: DeviceBuffer<T>,
    pub(super) a: DeviceBuffer<T>,
    pub(super) b: DeviceBuffer<T>,
}

impl<T: Element> LayerCopy<T> {
    /// Uploads `copies` copies of one random layer.
    pub(super) fn upload(case: &Case, copies: usize, stream: &Stream, random: &mut Random) -> Result<Vec<Self>> {
        let weight = random.normal::<T>(case.d_in * case.d_out, 0.02)?;
        let a = random.normal::<T>(case.rank * case.d_in, 0.02)?;
        let b = random.normal::<T>(case.d_out * case.rank, 0.02)?;
        let upload = |data: &[T]| DeviceBuffer::from_slice(stream, data);
        (0..copies).map(|_| Ok(Self { weight: upload(&weight)?, a: upload(&a)?, b: upload(&b)? })).collect()
    }

    /// Calls `work` with the layer, with LoRA if `adapted`.
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
        })
    }
}

/// One copy of a bottleneck adapter's weights.
pub(super) struct AdapterCopy<T> {
    pub(super) adapter: Adapter,
    down: DeviceBuffer<T>,
    down_bias: DeviceBuffer<T>,
    up: DeviceBuffer<T>,
    up_bias: DeviceBuffer<T>,
    norm: [DeviceBuffer<f32>; 2],
}

impl<T: Element> AdapterCopy<T> {
    /// Uploads `copies` copies of each bottleneck adapter of a case: `[adapter][copy]`.
    pub(super) fn upload(case: &Case, copies: usize, stream: &Stream, random: &mut Random) -> Result<Vec<Vec<Self>>> {
        let one = |adapter: Adapter| {
            let lens = adapter.operands(size_of::<T>()).map(|(len, _)| len);
            let mut values = |len| random.normal::<T>(len, 0.02);
            let [down, down_bias, up, up_bias] =
                [values(lens[0])?, values(lens[1])?, values(lens[2])?, values(lens[3])?];
            let norm = [random.normal::<f32>(lens[4], 0.02)?, random.normal::<f32>(lens[5], 0.02)?];
            let upload = |data: &[T]| DeviceBuffer::from_slice(stream, data);
            let vector = |data: &[f32]| DeviceBuffer::from_slice(stream, data);
            let copy = |_| {
                Ok(Self {
                    adapter,
                    down: upload(&down)?,
                    down_bias: upload(&down_bias)?,
                    up: upload(&up)?,
                    up_bias: upload(&up_bias)?,
                    norm: [vector(&norm[0])?, vector(&norm[1])?],
                })
            };
            (0..copies).map(copy).collect::<Result<Vec<_>>>()
        };
        case.adapters().into_iter().map(one).collect()
    }

    pub(super) fn view(&self) -> fused_lora::Result<DeviceAdapter<'_, T>> {
        let Adapter { d, width, .. } = self.adapter;
        Ok(DeviceAdapter {
            down: DeviceMatrix::new(self.down.as_slice(), width, d)?,
            down_bias: Some(self.down_bias.as_slice()),
            up: DeviceMatrix::new(self.up.as_slice(), d, width)?,
            up_bias: Some(self.up_bias.as_slice()),
            activation: Activation::Relu,
        })
    }

    /// Adapter^L's LayerNorm.
    pub(super) fn norm(&self) -> Option<DeviceNorm<'_>> {
        let [weight, bias] = self.norm.each_ref().map(DeviceBuffer::as_slice);
        self.adapter.has_norm.then_some(DeviceNorm { weight, bias, epsilon: EPSILON })
    }
}

/// The driver rounds allocations up to multiples of this many bytes.
const ALLOCATION_GRANULARITY: usize = 512;

/// The device memory of a copy of a layer, with or without its bottleneck adapters; `shared` bytes are there once.
pub(super) fn footprint<T>(case: &Case, with_adapters: bool, shared: usize) -> Footprint {
    let size = size_of::<T>();
    let allocated = |operands: &[(usize, usize)]| -> usize {
        operands
            .iter()
            .map(|&operand| {
                bytes_of(&[operand]).saturating_add(ALLOCATION_GRANULARITY - 1) / ALLOCATION_GRANULARITY
                    * ALLOCATION_GRANULARITY
            })
            .sum()
    };
    let [weight, a, b] = case.operands();
    let adapters = case.adapters().iter().map(|adapter| allocated(&adapter.operands(size))).sum::<usize>();
    let per_copy = allocated(&[(weight, size), (a, size), (b, size)]) + if with_adapters { adapters } else { 0 };
    Footprint { weight: weight.saturating_mul(size), per_copy, shared }
}

/// A matrix at the start of a buffer, as the output of a launch.
pub(super) fn output_view<U: Pod>(
    buffer: &DeviceBuffer<U>,
    rows: usize,
    cols: usize,
) -> fused_lora::Result<DeviceMatrixMut<'_, U>> {
    let slice = buffer.slice(0..rows * cols);
    // SAFETY: the buffer lives and is this long, and launches on one stream are ordered.
    let slice = unsafe { DeviceSliceMut::from_raw(slice.device(), slice.address(), slice.len()) };
    DeviceMatrixMut::new(slice, rows, cols)
}
