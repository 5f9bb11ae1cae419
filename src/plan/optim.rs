//! The plan of a step of AdamW on all parameters in one launch. The kernels are in kernels/optim/adamw.h.

use std::mem::offset_of;
use std::ops::Range;

use crate::abi::{self, LoraAdamw, LoraAdamwChunk, LoraAdamwReport, LoraAdamwState};
use crate::dtype::DType;
use crate::optim::{AdamW, Factor, NORM_EPSILON, Skip, Step};
use crate::plan::launch::LaunchShape;

/// How one launch of `lora_adamw` runs.
///
/// Every tensor is divided into chunks. The size of a chunk depends only on the total number of elements, so the bits
/// of the gradients' norm do not depend on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpdatePlan {
    /// The kernel and the shape of its launch.
    pub launch: LaunchShape,
    /// Elements of a chunk; the last chunk of a tensor may have fewer.
    pub chunk_elements: usize,
    /// Chunks of all tensors. The table has one entry per chunk, the device's buffer of partial sums one `f64`.
    pub chunks: usize,
}

/// The most elements, of all tensors together, that have chunks of the smallest size. More elements have larger chunks,
/// so that there are about 8192 chunks at most until the largest size is reached: few enough for one CTA to add their
/// sums, enough to keep all CTAs busy to the end.
const SMALL_TOTAL: usize = 8192 * abi::LORA_ADAMW_STEP as usize;
/// The largest chunk, in elements: 64 KiB of gradients.
const LARGEST_CHUNK: usize = 8 * abi::LORA_ADAMW_STEP as usize;
/// Bytes of shared memory: two tickets, two sets of the warps' sums, two sets of constants, the clip factor. Each of
/// these starts at a multiple of 16 bytes.
const SHARED_BYTES: u32 = 16 + 2 * 8 * (abi::LORA_ADAMW_THREADS / 32) + 2 * 32 + 16;

/// `u64` words of a table entry, a [`LoraAdamwChunk`].
pub const CHUNK_WORDS: usize = size_of::<LoraAdamwChunk>() / size_of::<u64>();
/// `u64` words of the state that one launch leaves for the next, a [`LoraAdamwState`].
pub const STATE_WORDS: usize = size_of::<LoraAdamwState>() / size_of::<u64>();

/// The device addresses of a parameter's tensors: of the first element of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParameterAddresses {
    /// Whether the parameter is A or B, which decides the learning rate.
    pub factor: Factor,
    /// The gradient, `f32`.
    pub gradient: u64,
    /// The master copy of the parameter, `f32`.
    pub value: u64,
    /// The first moment m, `f32`.
    pub first_moment: u64,
    /// The second moment v, `f32`.
    pub second_moment: u64,
    /// The copy that the layer reads, in the layer's type; 0 if there is none.
    pub stored: u64,
}

impl UpdatePlan {
    /// Plans steps on tensors with these numbers of elements, whose copies for the layer have the type `stored`.
    pub fn new(lengths: &[usize], stored: DType, multiprocessors: usize) -> Self {
        let total = lengths.iter().fold(0usize, |total, &len| total.saturating_add(len));
        let smallest = abi::LORA_ADAMW_STEP as usize;
        let chunk_elements =
            (total.div_ceil(SMALL_TOTAL) * smallest).min(LARGEST_CHUNK).next_power_of_two().max(smallest);
        let chunks: usize = lengths.iter().map(|len| len.div_ceil(chunk_elements)).sum();
        let resident = multiprocessors * abi::LORA_ADAMW_CTAS as usize;
        Self {
            launch: LaunchShape {
                kernel: format!("lora_adamw_{stored}"),
                grid: [u32::try_from(chunks.min(resident)).unwrap_or(u32::MAX).max(1), 1, 1],
                threads: abi::LORA_ADAMW_THREADS,
                shared_bytes: SHARED_BYTES,
                cluster: 1,
            },
            chunk_elements,
            chunks,
        }
    }

    /// The table entries of a tensor of `len` elements, one per chunk, as words of device memory.
    pub fn lines(&self, at: &ParameterAddresses, len: usize, stored: DType) -> Vec<[u64; CHUNK_WORDS]> {
        let entry = |Range { start, end }: Range<usize>| {
            let (f32_offset, stored_offset) = ((4 * start) as u64, (stored.size() * start) as u64);
            let factor = match at.factor {
                Factor::A => 0u64,
                Factor::B => 1,
            };
            [
                at.gradient + f32_offset,
                at.value + f32_offset,
                at.first_moment + f32_offset,
                at.second_moment + f32_offset,
                if at.stored == 0 { 0 } else { at.stored + stored_offset },
                (end - start) as u64 | factor << 32,
            ]
        };
        let starts = (0..len).step_by(self.chunk_elements);
        starts.map(|start| entry(start..len.min(start + self.chunk_elements))).collect()
    }

    /// The parameters of a launch without addresses. The caller sets these, which are null here: the table, the state,
    /// the partial sums, the scale of the learning rates.
    ///
    /// Panics for 2^30 chunks or more: a launch takes two tickets per chunk from a counter of 32 bits.
    pub fn params(&self, config: &AdamW) -> LoraAdamw {
        assert!(self.chunks < 1 << 30, "{} chunks", self.chunks);
        LoraAdamw {
            chunks: std::ptr::null(),
            state: std::ptr::null_mut(),
            partial: std::ptr::null_mut(),
            lr_scale: std::ptr::null(),
            rates: [config.rate(Factor::A), config.rate(Factor::B)],
            weight_decay: config.weight_decay,
            betas: [config.betas.0, config.betas.1],
            max_norm: config.max_norm.unwrap_or(f64::INFINITY),
            norm_epsilon: NORM_EPSILON,
            eps: config.eps as f32,
            chunk_count: self.chunks as u32,
        }
    }
}

impl std::fmt::Display for UpdatePlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { launch: LaunchShape { kernel, grid, threads, shared_bytes, .. }, chunk_elements, chunks } = self;
        write!(
            f,
            "{kernel}: {chunks} chunks of {chunk_elements} elements, grid {grid:?} of {threads} threads, \
             {shared_bytes} B shared"
        )
    }
}

/// The state before the first launch, if `steps` steps have been taken before: those of a checkpoint, for example.
pub fn initial_state(steps: u64) -> [u64; STATE_WORDS] {
    let mut words = [0; STATE_WORDS];
    words[report_words(0).start + offset_of!(LoraAdamwReport, steps) / 8] = steps;
    words
}

/// The number of steps taken so far, and the outcome of the last launch; `None` before the first launch.
pub fn read_state(words: &[u64; STATE_WORDS]) -> (u64, Option<Step>) {
    // At its end a launch leaves its epoch in the upper half of the ticket counter.
    let epoch = words[offset_of!(LoraAdamwState, ticket) / 8] >> 32;
    let report = &words[report_words(epoch)];
    let word = |offset: usize| report[offset / 8];
    let skipped = match word(offset_of!(LoraAdamwReport, skipped)) as u32 {
        abi::LORA_ADAMW_TAKEN => None,
        abi::LORA_ADAMW_NON_FINITE => Some(Skip::NonFinite),
        abi::LORA_ADAMW_TOO_LARGE => Some(Skip::TooLarge),
        _ => Some(Skip::LearningRate),
    };
    let step = Step {
        norm: f64::from_bits(word(offset_of!(LoraAdamwReport, norm))),
        clipped_by: f64::from_bits(word(offset_of!(LoraAdamwReport, clipped_by))),
        skipped,
    };
    (word(offset_of!(LoraAdamwReport, steps)), (epoch > 0).then_some(step))
}

/// The words of the state in which a launch of this epoch writes its report.
fn report_words(epoch: u64) -> Range<usize> {
    let words = size_of::<LoraAdamwReport>() / 8;
    let start = offset_of!(LoraAdamwState, reports) / 8 + (epoch % 2) as usize * words;
    start..start + words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_depend_on_the_elements_alone() {
        for (total, chunk) in [
            (1, 2048),
            (SMALL_TOTAL, 2048),
            (SMALL_TOTAL + 1, 4096),
            (2 * SMALL_TOTAL + 1, 8192),
            (5 * SMALL_TOTAL, 16384),
            (1 << 40, 16384),
        ] {
            for multiprocessors in [1, 132] {
                let plan = UpdatePlan::new(&[total], DType::F32, multiprocessors);
                assert_eq!((plan.chunk_elements, plan.chunks), (chunk, total.div_ceil(chunk)), "{plan}");
                assert!(plan.launch.grid[0] >= 1 && plan.launch.grid[0] as usize <= plan.chunks, "{plan}");
            }
        }
    }

    #[test]
    fn table_entries_cover_every_tensor_once() {
        let at = ParameterAddresses {
            factor: Factor::B,
            gradient: 0x1000,
            value: 0x2_0000,
            first_moment: 0x4_0000,
            second_moment: 0x6_0000,
            stored: 0x8_0000,
        };
        let lengths = [2048, 0, 1, 2049, 6000];
        let plan = UpdatePlan::new(&lengths, DType::F16, 8);
        let mut count = 0;
        for len in lengths {
            let lines = plan.lines(&at, len, DType::F16);
            let mut first = 0;
            for entry in &lines {
                let elements = entry[5] & 0xffff_ffff;
                assert_eq!(entry[5] >> 32, 1);
                let expected = [0x1000, 0x2_0000, 0x4_0000, 0x6_0000].map(|base| base + 4 * first);
                assert_eq!(entry[..5], [&expected[..], &[0x8_0000 + 2 * first]].concat());
                first += elements;
            }
            assert_eq!(first, len as u64);
            count += lines.len();
        }
        assert_eq!(count, plan.chunks);
        let without_copy = plan.lines(&ParameterAddresses { stored: 0, ..at }, 5000, DType::F16);
        assert!(without_copy.iter().all(|entry| entry[4] == 0));
    }

    #[test]
    fn an_initial_state_has_its_number_of_steps() {
        assert_eq!(read_state(&initial_state(17)), (17, None));
    }
}
