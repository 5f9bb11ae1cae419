//! Compiles the kernels with a planted bug, runs them, and tells how the bug shows.

use fused_lora::device::emulator_kernels;
use fused_lora::dropout::Dropout;
use fused_lora::lora::Layout;
use fused_lora::reference::{self, Expected};
use fused_lora::{ComputePath, Element};
use fused_lora_emulator::{Build, Completion, Config, Fault, Machine, Schedule};
use half::f16;

use super::gradients;
use crate::common::code;
use crate::common::decode::{Decode, Options};
use crate::common::forward::Forward;
use crate::common::ladder::{Ladder, Step};
use crate::common::rig::{Failure, Rig};
use crate::common::{Buffer, Operand, RandomLayer, Rng, Shape, merge, shape, steps};

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

pub(crate) const SCHEDULES: [(Schedule, u32); 4] =
    [(Schedule::FirstIn, 8), (Schedule::LastIn, 1), (Schedule::Random(3), 3), (Schedule::Random(4), 8)];

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

fn decode_on_cuda_cores(rig: &Rig, layout: Layout) -> Caught {
    first_of([&|| decode::<f32>(rig, &shape(2, 64, 44, layout, &[(0, 44, 5), (0, 44, 9)]), 3), &|| {
        decode::<f32>(rig, &shape(1, 2048 + 256, 64, layout, &[(0, 64, 12)]), 3)
    }])
}

fn decode<T: Element>(rig: &Rig, shape: &Shape, multiprocessors: usize) -> Caught {
    decode_with::<T>(rig, shape, &Options { multiprocessors, ..Options::default() })
}

fn decode_with<T: Element>(rig: &Rig, shape: &Shape, options: &Options<'_, T>) -> Caught {
    let (random, x) = random_layer::<T>(shape);
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let decode = Decode::new(rig, &random, &x, options);
    compare_with_reference(rig, shape, &expected, || decode.run().map(|(y, _)| y))
}

fn random_layer<T: Element>(shape: &Shape) -> (RandomLayer<T>, Buffer<T>) {
    let mut rng = Rng(7);
    let random = RandomLayer::<T>::new(&mut rng, shape);
    let x = shape.random::<T>(&mut rng, Operand::X, shape.tokens, shape.d_in);
    (random, x)
}

fn forward<T: Element>(rig: &Rig, shape: &Shape, multiprocessors: usize, capability: (u32, u32)) -> Caught {
    let options = Options { multiprocessors, compute_capability: Some(capability), ..Options::default() };
    forward_with::<T>(rig, shape, &options)
}

fn forward_with_dropout<T: Element>(
    rig: &Rig,
    shape: &Shape,
    multiprocessors: usize,
    capability: (u32, u32),
) -> Caught {
    let dropout = Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5);
    let compute_capability = Some(capability);
    let options = Options { multiprocessors, compute_capability, dropout: Some(dropout), ..Options::default() };
    forward_with::<T>(rig, shape, &options)
}

/// Three CTAs, the last with warps without a column; five tickets; a ring that goes round.
fn ladder(rig: &Rig, step: Step) -> Caught {
    let shape = Shape { bias: false, ..shape(3, 1156, 20, Layout::OutIn, &[(0, 20, 33)]) };
    let (random, x) = random_layer::<f32>(&shape);
    let segments = random.segments();
    let expected = reference::forward(&random.layer(&segments), x.view());
    let ladder = Ladder::new(rig, step, &random, &x);
    compare_with_reference(rig, &shape, &expected, || ladder.run().map(|(y, _)| y))
}

/// Runs a layer whose factors are in a slot.
fn forward_with_slot(rig: &Rig, shape: &Shape, capability: (u32, u32)) -> Caught {
    let (random, x) = random_layer::<f16>(shape);
    let segments = random.segments();
    let expected = reference::forward_through(&random.layer(&segments), x.view(), None, f16::DTYPE);
    let compute_capability = Some(capability);
    let options = Options { slot: Some(20), multiprocessors: 1, compute_capability, ..Options::default() };
    let forward = Forward::new(rig, &random, &x, &options);
    compare_with_reference(rig, shape, &expected, || forward.run().map(|outputs| outputs.y))
}

/// Runs a layer whose shrink is fused.
fn forward_with_fused_shrink(rig: &Rig, shape: &Shape, multiprocessors: usize) -> Caught {
    let (random, x) = random_layer::<f16>(shape);
    let compute_capability = Some((9, 0));
    let options = Options { serving: true, multiprocessors, compute_capability, ..Options::default() };
    let forward = Forward::new(rig, &random, &x, &options);
    assert!(forward.plan.launch.kernel.ends_with('r'), "{}", forward.plan);
    let segments = random.segments();
    let split_depth = forward.plan.split_depth as usize;
    let expected = reference::forward_in_parts(&random.layer(&segments), x.view(), f16::DTYPE, split_depth);
    let caught = compare_with_reference(rig, shape, &expected, || forward.run().map(|outputs| outputs.y));
    if caught != Caught::Nothing {
        return caught;
    }
    check_columns_without_an_adapter(rig, shape, &random, &x, &forward, &options)
}

fn tf32(rig: &Rig, shape: &Shape) -> Caught {
    let options = Options { path: ComputePath::Tf32, multiprocessors: 1, ..Options::default() };
    forward_with::<f32>(rig, shape, &options)
}

/// Runs a layer, and checks that its columns without an adapter are those of the base product.
fn forward_with<T: Element>(rig: &Rig, shape: &Shape, options: &Options<'_, T>) -> Caught {
    let (random, x) = random_layer::<T>(shape);
    let segments = random.segments();
    let (layer, dropout) = (random.layer(&segments), options.dropout.as_ref());
    let expected = match options.path {
        ComputePath::Tf32 => reference::forward_in_tf32(&layer, x.view(), dropout),
        _ => reference::forward_through(&layer, x.view(), dropout, T::DTYPE),
    };
    let forward = Forward::new(rig, &random, &x, &Options { t_out: true, ..*options });
    let caught = compare_with_reference(rig, shape, &expected, || forward.run().map(|outputs| outputs.y));
    if caught != Caught::Nothing {
        return caught;
    }
    check_columns_without_an_adapter(rig, shape, &random, &x, &forward, options)
}

/// Checks that columns without an adapter are those of the base product.
fn check_columns_without_an_adapter<T: Element>(
    rig: &Rig,
    shape: &Shape,
    random: &RandomLayer<T>,
    x: &Buffer<T>,
    forward: &Forward<'_, T>,
    options: &Options<'_, T>,
) -> Caught {
    let base = Forward::new(rig, random, x, &Options { base_only: true, ..*options });
    let (Ok(fused), Ok(base)) = (forward.run(), base.run()) else { return Caught::WrongResult };
    let outside = |column: &usize| !shape.segments.iter().any(|&(begin, end, _)| (begin..end).contains(column));
    let same = (0..shape.tokens).all(|row| {
        let (fused, base) = (fused.y.view(), base.y.view());
        (0..shape.d_out).filter(outside).all(|column| fused.row(row)[column] == base.row(row)[column])
    });
    if same { Caught::Nothing } else { Caught::WrongResult }
}

/// Runs the launch of a layer's dx.
fn dx<T: Element>(rig: &Rig, shape: &Shape, multiprocessors: usize, capability: (u32, u32), drops: bool) -> Caught {
    let (random, _) = random_layer::<T>(shape);
    let dy = shape.random::<T>(&mut Rng(9), Operand::X, shape.tokens, shape.d_out);
    let dropout = drops.then(|| Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5));
    let segments = random.segments();
    let layer = random.layer(&segments);
    let expected = reference::input_gradient_through(&layer, dy.view(), dropout.as_ref(), T::DTYPE);
    let compute_capability = Some(capability);
    let options = Options { multiprocessors, compute_capability, dropout, ..Options::default() };
    let launch = Forward::input_gradient(rig, &random, &dy, &options, true);
    compare_with_reference(rig, shape, &expected, || launch.run().map(|outputs| outputs.y))
}

/// Compares a launch's result with the reference under every schedule.
fn compare_with_reference<T: Element>(
    rig: &Rig,
    shape: &Shape,
    expected: &Expected,
    run: impl Fn() -> Result<Buffer<T>, Failure>,
) -> Caught {
    outcome_of(rig, || {
        let y = run()?;
        let elements = y.elements();
        let near = |(i, got): (usize, &T)| {
            (f64::from(got.to_f32()) - expected.value.data[i]).abs() <= expected.bound(i, T::DTYPE, steps(shape))
        };
        Ok((elements.iter().enumerate().all(near) && y.gaps_untouched(), elements))
    })
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

fn merge_layers(rig: &Rig, layout: Layout) -> Caught {
    first_of([&|| merge_layer(rig, &shape(1, 72, 200, layout, &[(3, 70, 40), (133, 200, 5)])), &|| {
        merge_layer(rig, &shape(1, 35, 67, layout, &[(0, 67, 3)]))
    }])
}

fn merge_layer(rig: &Rig, shape: &Shape) -> Caught {
    let mut random = RandomLayer::<f32>::new(&mut Rng(8), shape);
    // Adding 0 to -0.0 changes its sign.
    random.weight.data.iter_mut().step_by(5).filter(|w| !w.is_nan()).for_each(|w| *w = -0.0);
    let segments = random.segments();
    let expected = reference::merged_weight(&random.layer(&segments));
    outcome_of(rig, || {
        let merged = merge::run(rig, &random, &random.weight, 1.0, true, true)?.weight;
        let columns = merged.cols;
        let (got, before) = (merged.elements(), random.weight.elements());
        let near = |(&got, exact): (&f32, &f64)| (f64::from(got) - exact).abs() <= 1e-4;
        // Elements outside all segments keep their bits, and zeros their sign.
        let keeps = |i: usize| {
            let output = if shape.layout == Layout::OutIn { i / columns } else { i % columns };
            let inside = shape.segments.iter().any(|&(begin, end, _)| (begin..end).contains(&output));
            inside || got[i].to_bits() == before[i].to_bits()
        };
        let right = got.iter().zip(&expected.data).all(near) && (0..got.len()).all(keeps);
        // The order of additions may depend on the schedule, so no bits are compared.
        Ok((right, ()))
    })
}

/// Compiles the scenario's kernels with the bug and runs them.
pub(crate) fn run_with_bug(bug: &Bug) -> Caught {
    let kernels = emulator_kernels();
    let text = code::replace(kernels.text(bug.file).unwrap(), bug.original, bug.planted);
    let kernels =
        kernels.with_file(bug.file, text.unwrap_or_else(|error| panic!("{}, {}: {error}", bug.name, bug.file)));
    let machine = Machine::new(Config { build: bug.build, ..Config::default() }, &kernels).unwrap();
    if let Err(error) = machine.kernels_of(bug.scenario.source()) {
        panic!("{}: {error}", bug.name);
    }
    bug.scenario.run(&Rig::emulator(machine))
}
