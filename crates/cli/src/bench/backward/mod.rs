//! A training pass of one layer on a device: the forward pass, which saves T, then dx, dA and dB.

mod comparison;
mod products;

use anyhow::Result;
use fused_lora::device::{
    Backward, BackwardInput, BackwardOptions, BackwardOutput, Device, DeviceBuffer, DeviceMatrix, DeviceOutput,
    FactorGradient, Forward, ForwardOptions, Stream, Workspace,
};
use fused_lora::lora::Accumulate;
use fused_lora::{ComputePath, Element, WorkspaceLayout};
use fused_lora_gpt2::Random;

use super::case::Case;
use super::device::{LayerCopy, output_view};

/// All that a pass reads and writes beside the weights; all copies of the weights share it.
pub(super) struct Buffers<T> {
    x: DeviceBuffer<T>,
    y: DeviceBuffer<T>,
    dy: DeviceBuffer<T>,
    dx: DeviceBuffer<T>,
    t: DeviceBuffer<T>,
    /// Used by sequential only; fused has Q in its workspace.
    q: DeviceBuffer<T>,
    da: DeviceBuffer<f32>,
    db: DeviceBuffer<f32>,
}

impl<T: Element> Buffers<T> {
    pub(super) fn new(stream: &Stream, tokens: usize, (d_in, d_out): (usize, usize), rank: usize) -> Result<Self> {
        let random =
            |seed, len| anyhow::Ok(DeviceBuffer::from_slice(stream, &Random::new(seed).normal::<T>(len, 1.0)?)?);
        Ok(Self {
            x: random(1, tokens * d_in)?,
            y: DeviceBuffer::zeros(stream, tokens * d_out)?,
            dy: random(2, tokens * d_out)?,
            dx: DeviceBuffer::zeros(stream, tokens * d_in)?,
            t: DeviceBuffer::zeros(stream, tokens * rank)?,
            q: DeviceBuffer::zeros(stream, tokens * rank)?,
            da: DeviceBuffer::zeros(stream, rank * d_in)?,
            db: DeviceBuffer::zeros(stream, d_out * rank)?,
        })
    }
}

/// The plans of our kernels for a training pass.
pub(super) struct Plans<T> {
    pub(super) forward: Forward<T>,
    pub(super) backward: Backward<T>,
    adapted: bool,
}

impl<T: Element> Plans<T> {
    /// Plans for the layer with LoRA or, unless `adapted`, for the frozen layer, whose pass computes y and dx only.
    pub(super) fn new(
        device: &Device,
        case: &Case,
        copy: &LayerCopy<T>,
        adapted: bool,
        path: ComputePath,
    ) -> fused_lora::Result<Self> {
        let unaligned_dy = !(case.d_out * size_of::<T>()).is_multiple_of(16);
        let forward = ForwardOptions { path, training: true, ..ForwardOptions::default() };
        let backward = BackwardOptions { path, unaligned_dy, ..BackwardOptions::default() };
        copy.with_layer(case, adapted, |layer| {
            Ok(Self {
                forward: Forward::with_options(device, layer, case.tokens, forward)?,
                backward: Backward::with_options(device, layer, case.tokens, backward)?,
                adapted,
            })
        })
    }

    pub(super) fn workspace(&self) -> WorkspaceLayout {
        self.forward.workspace().union(&self.backward.workspace())
    }

    /// The bytes that the forward launch must move at least, those of the saved T included.
    pub(super) fn forward_floor_bytes(&self, case: &Case) -> usize {
        let saved_t = if self.adapted { case.saved_t_bytes::<T>() } else { 0 };
        self.forward.plan().floor_bytes() + saved_t
    }

    /// The sum of the bytes that each launch of the pass must move at least.
    pub(super) fn floor_bytes(&self, case: &Case) -> usize {
        self.forward_floor_bytes(case) + self.backward.plan().floor_bytes()
    }

    /// Issues a pass: three launches with LoRA, two without. `forward` and `backward` are the copies of the weights
    /// that the two passes take.
    pub(super) fn launch(
        &self,
        stream: &Stream,
        case: &Case,
        [forward, backward]: [&LayerCopy<T>; 2],
        buffers: &Buffers<T>,
        workspace: &mut Workspace,
    ) -> fused_lora::Result<()> {
        let &Case { tokens, d_in, d_out, rank, .. } = case;
        let rank = if self.adapted { rank } else { 0 };
        let x = DeviceMatrix::new(buffers.x.slice(0..tokens * d_in), tokens, d_in)?;
        forward.with_layer(case, self.adapted, |layer| {
            let t = if self.adapted { Some(output_view(&buffers.t, tokens, rank)?) } else { None };
            let output = DeviceOutput { t, ..output_view(&buffers.y, tokens, d_out)?.into() };
            self.forward.launch(stream, layer, x, output, workspace)
        })?;
        backward.with_layer(case, self.adapted, |layer| {
            let dy = DeviceMatrix::new(buffers.dy.slice(0..tokens * d_out), tokens, d_out)?;
            let t = DeviceMatrix::new(buffers.t.slice(0..tokens * rank), tokens, rank)?;
            let mut factors = [FactorGradient {
                da: output_view(&buffers.da, rank, d_in)?,
                db: output_view(&buffers.db, d_out, rank)?,
            }];
            let mut output = BackwardOutput {
                dx: Some(output_view(&buffers.dx, tokens, d_in)?),
                dx_accumulate: Accumulate::Overwrite,
                factors: if self.adapted { &mut factors } else { &mut [] },
                bias: None,
                accumulate: Accumulate::Overwrite,
            };
            let input = BackwardInput { x, dy, t, dropout: None };
            self.backward.launch(stream, layer, &input, &mut output, workspace)
        })
    }
}

impl<T: Element> std::fmt::Display for Plans<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}; {}", self.forward.plan(), self.backward.plan())
    }
}
