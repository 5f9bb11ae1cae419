//! Compiles the kernels with a planted bug, runs them, and tells how the bug shows.

use fused_lora::device::emulator_kernels;
use fused_lora::lora::Layout;
use fused_lora_emulator::{Build, Completion, Config, Fault, Machine, Schedule};
use half::f16;

use super::gradients;
use super::layers::{
    decode, decode_on_cuda_cores, decode_with, dx, dx_with_one_unaligned, forward, forward_after_other_plans,
    forward_with_dropout, forward_with_fused_shrink, forward_with_one_unaligned, forward_with_slot, ladder,
    merge_layers, tf32,
};
use crate::common::code;
use crate::common::decode::Options;
use crate::common::ladder::Step;
use crate::common::rig::{Failure, Rig};
use crate::common::{Gaps, Shape, shape};

/// How a bug shows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Caught {
    By(Fault),
    /// An element is outside its error bound.
    WrongResult,
    /// Results are within their bounds, but their bits depend on the schedule.
    DependsOnSchedule,
    Nothing,
}

/// What an access to shared memory without synchronisation shows as: a race, or a read of memory that is not written
/// yet.
pub(crate) const UNSYNCHRONISED: &[Caught] = &[Caught::By(Fault::Race), Caught::By(Fault::Uninitialised)];
/// What a wait that never ends shows as.
pub(crate) const ENDLESS_WAIT: &[Caught] = &[Caught::By(Fault::Livelock), Caught::By(Fault::Deadlock)];

/// A replacement in one file of the kernels.
pub(crate) struct Bug {
    pub(crate) name: &'static str,
    /// The file's path in kernels/.
    pub(crate) file: &'static str,
    pub(crate) scenario: Scenario,
    /// Code that occurs in the file once. White space and comments between its tokens do not matter.
    pub(crate) original: &'static str,
    /// The code to replace it with.
    pub(crate) planted: &'static str,
    pub(crate) build: Build,
    /// The outcomes of which one is expected.
    pub(crate) caught: &'static [Caught],
}

/// A kernel file and a set of layers that together use every part of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scenario {
    DecodeRows,
    DecodeColumns,
    RowsMatrix,
    ColumnsMatrix,
    MergeRows,
    MergeColumns,
    ForwardMma,
    ForwardMma128,
    ForwardWgmma,
    ForwardWgmmaSplit,
    ForwardCores,
    GradientsMma,
    GradientsCores,
    Adamw,
    ForwardTf32,
    DxMma,
    DxCores,
    DxWgmma,
    AttentionMma,
    AttentionCores,
    AttentionDecode,
    LayerNorm,
    Embedding,
    AdapterMma,
    AdapterCores,
    DecodeSlot,
    ForwardSlot,
    ForwardWgmmaSlot,
    ForwardWgmmaFused,
    LadderOneLaunch,
    LadderSharedOut,
    LadderAsyncCopies,
}

/// The first launch has the last epoch (`BEFORE_THE_LAST_EPOCH`), so the second one may not run in a fixed order.
pub(crate) const SCHEDULES: [(Schedule, u32); 4] =
    [(Schedule::FirstIn, 8), (Schedule::Random(3), 8), (Schedule::LastIn, 1), (Schedule::Random(4), 3)];

impl Scenario {
    pub(crate) const ALL: [Self; 32] = [
        Self::DecodeRows,
        Self::DecodeColumns,
        Self::RowsMatrix,
        Self::ColumnsMatrix,
        Self::MergeRows,
        Self::MergeColumns,
        Self::ForwardMma,
        Self::ForwardMma128,
        Self::ForwardWgmma,
        Self::ForwardWgmmaSplit,
        Self::ForwardCores,
        Self::GradientsMma,
        Self::GradientsCores,
        Self::Adamw,
        Self::ForwardTf32,
        Self::DxMma,
        Self::DxCores,
        Self::DxWgmma,
        Self::AttentionMma,
        Self::AttentionCores,
        Self::AttentionDecode,
        Self::LayerNorm,
        Self::Embedding,
        Self::AdapterMma,
        Self::AdapterCores,
        Self::DecodeSlot,
        Self::ForwardSlot,
        Self::ForwardWgmmaSlot,
        Self::ForwardWgmmaFused,
        Self::LadderOneLaunch,
        Self::LadderSharedOut,
        Self::LadderAsyncCopies,
    ];

    fn source(self) -> &'static str {
        match self {
            Self::DecodeRows | Self::DecodeSlot => "lora/decode_rows.cu",
            Self::DecodeColumns => "lora/decode_columns.cu",
            Self::RowsMatrix | Self::ColumnsMatrix => "lora/decode_mma_f16.cu",
            Self::MergeRows | Self::MergeColumns => "lora/merge.cu",
            Self::ForwardMma | Self::ForwardSlot => "lora/forward_mma_f16.cu",
            Self::ForwardMma128 => "lora/forward_mma_f16_t128.cu",
            Self::ForwardWgmma | Self::ForwardWgmmaSlot => "lora/forward_wgmma_f16.cu",
            Self::ForwardWgmmaSplit => "lora/forward_wgmma_split_f16.cu",
            Self::ForwardWgmmaFused => "lora/forward_wgmma_fused_f16.cu",
            Self::ForwardCores => "lora/forward_cores.cu",
            Self::GradientsMma => "lora/gradients_mma_f16.cu",
            Self::GradientsCores => "lora/gradients_cores.cu",
            Self::Adamw => "optim/adamw.cu",
            Self::ForwardTf32 => "lora/forward_mma_tf32.cu",
            Self::DxMma => "lora/dx_mma_f16.cu",
            Self::DxCores => "lora/dx_cores.cu",
            Self::DxWgmma => "lora/dx_wgmma_f16.cu",
            Self::AttentionMma => "transformer/attention_prefill_mma_f16.cu",
            Self::AttentionCores => "transformer/attention_prefill_cores.cu",
            Self::AttentionDecode => "transformer/attention_decode.cu",
            Self::LayerNorm => "transformer/layer_norm.cu",
            Self::Embedding => "transformer/embedding.cu",
            Self::AdapterMma => "adapter/adapter_mma_f16.cu",
            Self::AdapterCores => "adapter/adapter_cores.cu",
            Self::LadderOneLaunch => Step::OneLaunch.source(),
            Self::LadderSharedOut => Step::SharedOut.source(),
            Self::LadderAsyncCopies => Step::AsyncCopies.source(),
        }
    }

    /// Runs the scenario's layers until one fails.
    pub(crate) fn run(self, rig: &Rig) -> Caught {
        match self {
            Self::DecodeRows => decode_on_cuda_cores(rig, Layout::OutIn),
            Self::DecodeColumns => decode_on_cuda_cores(rig, Layout::InOut),
            Self::RowsMatrix => first_of([
                // One CTA per tile, with some columns outside the weight; K split over several CTAs, with warps in
                // turns.
                &|| decode::<f16>(rig, &shape(5, 1096, 24, Layout::OutIn, &[(0, 24, 5)]), 1),
                &|| decode::<f16>(rig, &shape(16, 4104, 24, Layout::OutIn, &[(8, 20, 512)]), 8),
            ]),
            Self::ColumnsMatrix => {
                first_of([&|| decode::<f16>(rig, &shape(7, 520, 72, Layout::InOut, &[(0, 24, 5)]), 1), &|| {
                    decode::<f16>(rig, &shape(16, 1032, 72, Layout::InOut, &[(8, 20, 512)]), 6)
                }])
            }
            Self::MergeRows => merge_layers(rig, Layout::OutIn),
            Self::MergeColumns => merge_layers(rig, Layout::InOut),
            Self::Adamw => super::adamw::run(rig),
            Self::AttentionMma => super::attention::prefill::<f16>(rig),
            Self::AttentionCores => super::attention::prefill::<f32>(rig),
            Self::AttentionDecode => super::attention::decode(rig),
            Self::LayerNorm => super::transformer::layer_norms(rig),
            Self::Embedding => super::transformer::embeddings(rig),
            Self::AdapterMma => super::adapter::scenario::<f16>(rig),
            Self::AdapterCores => super::adapter::scenario::<f32>(rig),
            Self::ForwardMma => first_of([
                // Two tiles in both dimensions, with segments that end within a tile and within an instruction; split
                // K; odd rows.
                &|| {
                    forward::<f16>(
                        rig,
                        &shape(70, 264, 104, Layout::OutIn, &[(60, 104, 3), (0, 44, 40), (0, 30, 70), (10, 20, 70)]),
                        1,
                        (7, 5),
                    )
                },
                &|| forward::<f16>(rig, &shape(20, 2056, 40, Layout::InOut, &[(8, 40, 20)]), 24, (7, 5)),
                &|| forward::<f16>(rig, &shape(18, 65, 41, Layout::OutIn, &[(0, 41, 3)]), 1, (7, 5)),
                &|| forward_with_dropout::<f16>(rig, &shape(70, 136, 40, Layout::OutIn, &[(0, 40, 5)]), 1, (7, 5)),
                // Groups of row tiles of which the last is lower, with two column tiles.
                &|| forward::<f16>(rig, &shape(580, 8, 72, Layout::OutIn, &[(0, 72, 3)]), 1, (7, 5)),
                &|| forward_with_one_unaligned::<f16>(rig, &shape(20, 40, 40, Layout::InOut, &[(0, 40, 8)]), (7, 5)),
                // Rows of y and of the residual that end within a chunk, with nothing behind the last.
                &|| {
                    forward::<f16>(
                        rig,
                        &Shape { gaps: Gaps::beyond(7), ..shape(18, 65, 41, Layout::OutIn, &[]) },
                        1,
                        (7, 5),
                    )
                },
                &|| forward_after_other_plans(rig, &shape(70, 72, 104, Layout::OutIn, &[(0, 104, 70)]), (7, 5)),
            ]),
            Self::ForwardMma128 => first_of([
                &|| forward::<f16>(rig, &shape(126, 136, 120, Layout::InOut, &[(0, 100, 40)]), 1, (8, 0)),
                &|| forward::<f16>(rig, &shape(250, 72, 248, Layout::OutIn, &[(9, 248, 5)]), 1, (8, 0)),
            ]),
            Self::ForwardCores => first_of([
                &|| forward::<f32>(rig, &shape(70, 68, 104, Layout::InOut, &[(60, 104, 3), (3, 45, 40)]), 1, (8, 0)),
                &|| forward::<f32>(rig, &shape(126, 36, 124, Layout::OutIn, &[(5, 101, 20)]), 1, (8, 0)),
                &|| forward::<f32>(rig, &shape(20, 2052, 40, Layout::InOut, &[(8, 40, 20)]), 24, (8, 0)),
                &|| forward::<f32>(rig, &shape(70, 400, 24, Layout::OutIn, &[(0, 24, 70)]), 16, (8, 0)),
                &|| forward_with_dropout::<f32>(rig, &shape(70, 68, 40, Layout::InOut, &[(0, 40, 5)]), 1, (8, 0)),
            ]),
            Self::ForwardWgmmaSplit => first_of([
                // More splits of T than steps of K; more steps of T than CTAs; both warpgroups; no split.
                &|| forward::<f16>(rig, &shape(17, 456, 40, Layout::OutIn, &[(0, 40, 20)]), 3, (9, 0)),
                &|| forward::<f16>(rig, &shape(62, 512, 40, Layout::InOut, &[(3, 30, 130), (20, 40, 90)]), 10, (9, 0)),
                &|| forward::<f16>(rig, &shape(100, 1000, 72, Layout::OutIn, &[(9, 70, 70)]), 3, (9, 0)),
                &|| forward::<f16>(rig, &shape(33, 520, 72, Layout::OutIn, &[(0, 72, 20)]), 1, (9, 0)),
            ]),
            Self::GradientsMma => gradients::scenario::<f16>(rig),
            Self::GradientsCores => gradients::scenario::<f32>(rig),
            Self::ForwardTf32 => first_of([
                // K = 1; both layouts, in large and small tiles; segments that begin and end within an instruction.
                &|| tf32(rig, &shape(18, 1, 41, Layout::OutIn, &[])),
                &|| tf32(rig, &shape(70, 72, 104, Layout::InOut, &[(60, 104, 3), (3, 45, 40)])),
                &|| tf32(rig, &shape(126, 40, 124, Layout::OutIn, &[(5, 101, 20)])),
            ]),
            Self::ForwardWgmma => first_of([
                // One CTA with many tasks, and several CTAs; a ring that wraps around; ranks of one, two, four and five
                // steps.
                &|| {
                    forward::<f16>(
                        rig,
                        &shape(20, 64, 200, Layout::OutIn, &[(3, 77, 33), (60, 131, 90), (190, 199, 2)]),
                        1,
                        (9, 0),
                    )
                },
                &|| {
                    forward::<f16>(
                        rig,
                        &shape(250, 584, 248, Layout::OutIn, &[(9, 130, 20), (150, 248, 70)]),
                        1,
                        (9, 0),
                    )
                },
                &|| forward::<f16>(rig, &shape(250, 72, 248, Layout::InOut, &[(0, 248, 5), (0, 100, 40)]), 2, (9, 0)),
                &|| forward::<f16>(rig, &shape(128, 520, 120, Layout::InOut, &[(0, 120, 5)]), 1, (9, 0)),
                // K of T is split.
                &|| forward::<f16>(rig, &shape(250, 840, 248, Layout::OutIn, &[(0, 248, 5)]), 4, (9, 0)),
                &|| forward_with_dropout::<f16>(rig, &shape(250, 584, 248, Layout::OutIn, &[(0, 248, 5)]), 1, (9, 0)),
                &|| forward_with_one_unaligned::<f16>(rig, &shape(20, 64, 200, Layout::OutIn, &[(3, 77, 8)]), (9, 0)),
            ]),
            // Adapters whose ranks are lower than what the launch is planned for, by several steps and by less than
            // one.
            Self::DecodeSlot => {
                let shape = shape(2, 64, 44, Layout::OutIn, &[(0, 44, 5), (0, 44, 9)]);
                decode_with::<f32>(rig, &shape, &Options { slot: Some(6), multiprocessors: 3, ..Options::default() })
            }
            Self::ForwardSlot => {
                forward_with_slot(rig, &shape(70, 72, 104, Layout::OutIn, &[(60, 104, 3), (0, 44, 40)]), (7, 5))
            }
            Self::ForwardWgmmaSlot => {
                forward_with_slot(rig, &shape(128, 72, 120, Layout::OutIn, &[(0, 44, 40), (60, 104, 3)]), (9, 0))
            }
            // Clusters of CTAs, with a ring that wraps around and one that does not; a rank of two instructions; both
            // warpgroups; tiles without an adapter.
            Self::ForwardWgmmaFused => first_of([
                &|| {
                    forward_with_fused_shrink(
                        rig,
                        &shape(20, 1000, 200, Layout::OutIn, &[(3, 77, 4), (60, 140, 16)]),
                        5,
                    )
                },
                &|| forward_with_fused_shrink(rig, &shape(62, 512, 40, Layout::InOut, &[(3, 30, 20)]), 10),
                &|| forward_with_fused_shrink(rig, &shape(100, 1000, 72, Layout::OutIn, &[(9, 70, 7)]), 3),
            ]),
            // A segment that begins within a step of K, and another far behind it and across two tiles of Q, so that
            // the kernel skips steps; two tiles of dx in both dimensions; unaligned rows of factors; dropout.
            Self::DxMma => first_of([
                &|| dx::<f16>(rig, &shape(70, 72, 328, Layout::OutIn, SEGMENTS), 1, (7, 5), false),
                &|| dx::<f16>(rig, &shape(18, 41, 65, Layout::InOut, &[(3, 65, 8)]), 1, (7, 5), false),
                &|| dx::<f16>(rig, &shape(70, 104, 136, Layout::OutIn, &[(0, 136, 5)]), 1, (7, 5), true),
                &|| dx_with_one_unaligned::<f16>(rig, &shape(20, 40, 64, Layout::OutIn, &[(3, 40, 8)]), (7, 5)),
            ]),
            Self::DxCores => first_of([
                &|| dx::<f32>(rig, &shape(70, 72, 328, Layout::InOut, SEGMENTS), 1, (8, 0), false),
                &|| dx::<f32>(rig, &shape(20, 104, 40, Layout::InOut, &[(0, 40, 20)]), 1, (8, 0), true),
                &|| dx::<f32>(rig, &shape(20, 40, 40, Layout::OutIn, &[(0, 40, 5)]), 1, (8, 0), true),
            ]),
            Self::DxWgmma => first_of([
                &|| dx::<f16>(rig, &shape(130, 120, 776, Layout::OutIn, SEGMENTS), 1, (9, 0), false),
                &|| dx::<f16>(rig, &shape(128, 120, 648, Layout::InOut, &[(0, 648, 8)]), 1, (9, 0), false),
                &|| dx::<f16>(rig, &shape(250, 248, 136, Layout::OutIn, &[(0, 136, 5)]), 1, (9, 0), true),
            ]),
            Self::LadderOneLaunch => ladder(rig, Step::OneLaunch),
            Self::LadderSharedOut => ladder(rig, Step::SharedOut),
            Self::LadderAsyncCopies => ladder(rig, Step::AsyncCopies),
        }
    }
}

/// Segments of the scenarios of dx. Q has 48 + 80 columns, in two tiles.
const SEGMENTS: &[(usize, usize, usize)] = &[(3, 77, 33), (300, 320, 70)];

pub(crate) fn first_of<const N: usize>(runs: [&dyn Fn() -> Caught; N]) -> Caught {
    runs.iter().map(|run| run()).find(|&caught| caught != Caught::Nothing).unwrap_or(Caught::Nothing)
}

/// Calls `run` under every schedule until one fails. `run` launches the kernel and returns whether the result is right,
/// and the result's bits.
pub(crate) fn outcome_of<B: PartialEq>(rig: &Rig, run: impl Fn() -> Result<(bool, B), Failure>) -> Caught {
    let mut first = None;
    let mut depends = false;
    for (schedule, resident) in SCHEDULES {
        rig.set_schedule(schedule, Completion::Late, resident);
        let bits = match run() {
            Err(Failure::Fault(fault, _)) => return Caught::By(fault),
            Err(other) => panic!("{other}"),
            Ok((false, _)) => return Caught::WrongResult,
            Ok((true, bits)) => bits,
        };
        depends |= first.as_ref().is_some_and(|first| *first != bits);
        first.get_or_insert(bits);
    }
    if depends { Caught::DependsOnSchedule } else { Caught::Nothing }
}

/// Compiles the scenario's kernels with the bug and runs them.
pub(crate) fn run_with_bug(bug: &Bug) -> Caught {
    let kernels = emulator_kernels();
    let text = code::replace(kernels.text(bug.file).unwrap(), bug.original, bug.planted);
    let text = text.unwrap_or_else(|error| panic!("{}, {}: {error}", bug.name, bug.file));
    run_variant(bug.scenario, bug.build, bug.file, text, bug.name)
}

/// Compiles the scenario's kernels as they are, in the same way as with a bug, and runs them.
pub(crate) fn run_unchanged(scenario: Scenario, build: Build) -> Caught {
    let text = emulator_kernels().text(scenario.source()).unwrap().to_owned();
    run_variant(scenario, build, scenario.source(), text, "without a bug")
}

/// Compiles the scenario's kernels with another text of one file and runs them. Panics if they do not compile or a launch is
/// refused.
pub(crate) fn run_variant(scenario: Scenario, build: Build, file: &str, text: String, name: &str) -> Caught {
    let machine =
        Machine::new(Config { build, ..Config::default() }, &emulator_kernels().with_file(file, text)).unwrap();
    if let Err(error) = machine.kernels_of(scenario.source()) {
        panic!("{name}: {error}");
    }
    scenario.run(&Rig::emulator(machine))
}
