//! The launches of the kernels in kernels/ladder: buffers uploaded, parameters filled.
#![allow(clippy::cast_possible_truncation)]

use fused_lora::abi::{LORA_LADDER_STAGES, LORA_LADDER_THREADS, LoraLadder};
use fused_lora_emulator::Counters;

use super::rig::{BEFORE_THE_LAST_EPOCH, Call, Failure, Rig, Uploads};
use super::{Buffer, Operand, RandomLayer, Shape};

/// A step of the ladder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Step {
    Separate,
    OneLaunch,
    SharedOut,
    AsyncCopies,
}

pub const STEPS: [Step; 4] = [Step::Separate, Step::OneLaunch, Step::SharedOut, Step::AsyncCopies];

impl Step {
    /// Its file below kernels/.
    pub fn source(self) -> &'static str {
        match self {
            Self::Separate => "ladder/step1_separate.cu",
            Self::OneLaunch => "ladder/step2_one_launch.cu",
            Self::SharedOut => "ladder/step3_shared_out.cu",
            Self::AsyncCopies => "ladder/step4_async_copies.cu",
        }
    }

    /// Kernels in the order of their launches; the results of each, of which a warp computes one; bytes of shared memory.
    fn launches(self, shape: &Shape) -> Vec<(&'static str, usize, usize)> {
        let (tokens, rank) = (shape.tokens, rank(shape));
        let floats = |n: usize| (4 * n).next_multiple_of(16);
        let x_and_t = floats(tokens * shape.d_in.next_multiple_of(4)) + floats(tokens * rank);
        let ring = (LORA_LADDER_STAGES * LORA_LADDER_THREADS) as usize * 16;
        match self {
            Self::Separate => vec![
                ("ladder_shrink", tokens * rank, 0),
                ("ladder_base", tokens * shape.d_out, 0),
                ("ladder_expand", tokens * shape.d_out, 0),
            ],
            Self::OneLaunch => vec![("ladder_one_launch", shape.d_out, x_and_t)],
            Self::SharedOut => vec![("ladder_shared_out", shape.d_out, x_and_t + 16)],
            Self::AsyncCopies => vec![("ladder_async_copies", shape.d_out, x_and_t + 16 + ring)],
        }
    }
}

/// The rank of a layer's one adapter.
pub fn rank(shape: &Shape) -> usize {
    shape.segments[0].2
}

/// The warps of a CTA.
pub const WARPS: usize = LORA_LADDER_THREADS as usize / 32;

/// A layer on a device, to be launched any number of times.
pub struct Ladder<'m> {
    rig: &'m Rig,
    step: Step,
    shape: Shape,
    params: LoraLadder,
    /// Frees what `params` points to.
    _uploads: Uploads<'m>,
}

impl<'m> Ladder<'m> {
    /// Of a layer with one segment, which covers all columns, and without a bias.
    pub fn new(rig: &'m Rig, step: Step, random: &RandomLayer<f32>, x: &Buffer<f32>) -> Self {
        let shape = random.shape.clone();
        let (a, b, scale) = &random.factors[0];
        assert!(shape.segments[..] == [(0, shape.d_out, rank(&shape))] && !shape.bias);
        let mut uploads = Uploads::new(rig);
        let mut upload = |data: &[f32]| uploads.add(data);
        let y_like = shape.poisoned::<f32>(Operand::Y, shape.tokens, shape.d_out);
        let [x_at, weight_at, a_at, b_at, y_at] = [x, &random.weight, a, b, &y_like].map(|buffer| upload(&buffer.data));
        let t = upload(&vec![f32::NAN; shape.tokens * rank(&shape)]);
        let params = LoraLadder {
            x: x_at as *const _,
            weight: weight_at as *const _,
            a: a_at as *const _,
            b: b_at as *const _,
            y: y_at as *mut _,
            t: t as *mut _,
            ticket: uploads.add(&[BEFORE_THE_LAST_EPOCH]) as *mut _,
            flags: uploads.add(&vec![0u32; rank(&shape).div_ceil(WARPS)]) as *mut _,
            tokens: shape.tokens as u32,
            depth: shape.d_in as u32,
            columns: shape.d_out as u32,
            rank: rank(&shape) as u32,
            x_stride: x.stride as u32,
            weight_stride: random.weight.stride as u32,
            a_stride: a.stride as u32,
            b_stride: b.stride as u32,
            y_stride: y_like.stride as u32,
            scale: *scale,
        };
        Self { rig, step, shape, params, _uploads: uploads }
    }

    /// Poisons y and T, launches every kernel of the step, and returns y and the counters of each launch.
    ///
    /// T is poisoned although the last launch's epoch stays in the flags: whoever takes it for its own launch's is found out.
    pub fn run(&self) -> Result<(Buffer<f32>, Vec<Counters>), Failure> {
        let mut y = self.shape.poisoned::<f32>(Operand::Y, self.shape.tokens, self.shape.d_out);
        self.rig.write(self.params.y as u64, &y.data);
        self.rig.write(self.params.t as u64, &vec![f32::NAN; self.shape.tokens * rank(&self.shape)]);
        let launches = self.step.launches(&self.shape).into_iter().map(|(kernel, results, shared)| {
            let grid = [results.div_ceil(WARPS) as u32, 1, 1];
            self.rig.launch(&Call::new(kernel, grid, LORA_LADDER_THREADS, shared as u32), &self.params)
        });
        let counters = launches.collect::<Result<Vec<_>, _>>()?;
        self.rig.read(self.params.y as u64, &mut y.data);
        Ok((y, counters))
    }
}
