//! Bugs in the gradient kernels and in the parts that only these use.

use fused_lora::dropout::Dropout;
use fused_lora::reference::Judged;
use fused_lora::{ComputePath, DType, Element};
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::{GradientsCores, GradientsMma};
use super::harness::{Bug, UNORDERED, bug, first_of, judge};
use crate::common::Buffer;
use crate::common::gradients::{Case, Gradients, Operands};
use crate::common::rig::Rig;

const GRADIENTS: &str = "lora/gradients.h";
const PANEL: &str = "tile/panel.h";
const MMA: &str = "tile/outer_mma.h";
const THREADS: &str = "tile/outer_threads.h";

/// Tokens in splits with two blocks of ranks and the bias; a mask, segments that end within a panel, ranks that no copy of
/// 16 bytes fits.
pub(crate) fn scenario<T: Element>(rig: &Rig) -> Caught {
    let path = if T::DTYPE == DType::F32 { ComputePath::CudaCores } else { ComputePath::Matrix };
    let dropout = Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5);
    let splits = Case { bias: true, multiprocessors: 24, path, ..Case::new(450, 40, 24, &[(0, 24, 40), (2, 20, 30)]) };
    let masked = Case { dropout: Some(dropout), multiprocessors: 24, path, ..Case::new(300, 40, 24, &[(3, 17, 3)]) };
    first_of([&|| made::<T>(rig, &splits), &|| made::<T>(rig, &masked)])
}

/// What ends a launch under some schedule.
fn made<T: Element>(rig: &Rig, case: &Case) -> Caught {
    let operands = Operands::<T>::random(7, case);
    let expected = operands.expected();
    let gradients = Gradients::new(rig, &operands);
    assert!(gradients.plan.splits > 1, "{}", gradients.plan);
    judge(rig, || {
        let outputs = gradients.run()?;
        let near = |(got, expected): (&Buffer<f32>, &Judged)| {
            let off = |i: usize| (f64::from(got.data[i]) - expected.value.data[i]).abs();
            (0..got.data.len()).all(|i| off(i) <= expected.bound(i, DType::F32, operands.steps()))
        };
        Ok((outputs.gradients.iter().zip(&expected).all(near), outputs.bits()))
    })
}

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "a stage of x is multiplied while it is dropped out",
        GRADIENTS,
        GradientsMma,
        "first_column, threadIdx.x, threads);\n            sync_block();",
        "first_column, threadIdx.x, threads);",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "every split has the mask of the first one's tokens",
        GRADIENTS,
        GradientsMma,
        "gpu::min(depth, end - token), token,",
        "gpu::min(depth, end - token), token - begin,",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "dA is not scaled for what was dropped",
        GRADIENTS,
        GradientsMma,
        "task.is_a ? p.dropout.scale : segment.scale",
        "task.is_a ? 1.0f : segment.scale",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "columns by which a rank is rounded up are stored",
        GRADIENTS,
        GradientsCores,
        "if (column >= segment.rank || row < begin",
        "if (row < begin",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "columns before a segment are stored",
        GRADIENTS,
        GradientsMma,
        "|| row < begin || row >= end",
        "|| row >= end",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "a chunk of T runs over the segment's last column",
        GRADIENTS,
        GradientsMma,
        "present = gpu::min(elements, segment.rank - j);",
        "present = elements;",
        Build::Plain,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "every split takes the tokens to their end",
        GRADIENTS,
        GradientsCores,
        "end = gpu::min(begin + p.split_tokens, p.tokens);",
        "end = p.tokens;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a CTA arrives before all of its sums are stored",
        GRADIENTS,
        GradientsMma,
        "    sync_block();\n    if (!sync_block_or(",
        "    if (!sync_block_or(",
        Build::Race,
        &[By(Fault::Race)],
    ),
    bug(
        "blocks of a panel share their sums",
        GRADIENTS,
        GradientsCores,
        "+ panel * blocks + block};",
        "+ panel * blocks};",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "column sums are added in the order of arrival",
        GRADIENTS,
        GradientsMma,
        "column_sum = load(column_sums);\n      for (u32 s = 1; s < p.splits; s++) column_sum += load(column_sums + s * panel_columns);",
        "for (u32 s = 0; s < p.splits; s++) if (s != task.split) column_sum += load(column_sums + s * panel_columns);",
        Build::Plain,
        &[DependsOnSchedule],
    ),
    bug(
        "arrivals stay for the next launch",
        "lora/forward.h",
        GradientsMma,
        "if (last) store_relaxed(arrivals, 0u);",
        "",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a stage is multiplied before it is there",
        "tile/ring.h",
        GradientsMma,
        "copy_async_wait<STAGES - 2>();",
        "copy_async_wait<STAGES - 1>();",
        Build::Plain,
        &[By(Fault::InFlight)],
    ),
    bug(
        "tokens beyond a split's last are no zeros",
        PANEL,
        GradientsCores,
        "row + in_tile < end ? present : 0;",
        "present;",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "rows of 8 bytes are taken for aligned",
        PANEL,
        GradientsMma,
        "if (alignment == 0) {",
        "if (alignment % 8 == 0 || alignment % 4 == 2) {",
        Build::Plain,
        &[By(Fault::Misaligned)],
    ),
    bug(
        "the left operand's halves are taken for each other",
        MMA,
        GradientsMma,
        "(k + 8 * upper + in_matrix, row / 8 + 2 * m + odd)",
        "(k + 8 * odd + in_matrix, row / 8 + 2 * m + upper)",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows and columns of a lane are taken for each other",
        THREADS,
        GradientsCores,
        "gpu::fma(a[i / 4], b[i % 4], sum)",
        "gpu::fma(a[i % 4], b[i / 4], sum)",
        Build::Plain,
        &[WrongResult],
    ),
];
