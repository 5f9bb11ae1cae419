//! Bugs in the gradient kernels and in the parts that only these use, and the cases that show them.

use fused_lora::dropout::Dropout;
use fused_lora::reference::Expected;
use fused_lora::{ComputePath, DType, Element};
use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{self, By, DependsOnSchedule, WrongResult};
use super::harness::Scenario::{GradientsCores, GradientsMma};
use super::harness::{Bug, UNSYNCHRONISED, first_of, outcome_of};
use crate::common::Buffer;
use crate::common::gradients::{Case, Gradients, Operands};
use crate::common::rig::Rig;

const GRADIENTS: &str = "lora/gradients.h";
const PANEL: &str = "tile/panel.h";
const MMA: &str = "tile/outer_mma.h";
const THREADS: &str = "tile/outer_threads.h";

/// Split tokens with two blocks of ranks and the bias's gradient; dropout, with a segment that ends within a panel and
/// a rank that is no multiple of 16 bytes; several
/// panels, whose gradients are added to what is there.
pub(crate) fn scenario<T: Element>(rig: &Rig) -> Caught {
    let path = if T::DTYPE == DType::F32 { ComputePath::CudaCores } else { ComputePath::Matrix };
    let dropout = Dropout::new(0.4, 0x1234_5678_9ABC_DEF0).unwrap().for_layer(3).at(5);
    let splits = Case { bias: true, multiprocessors: 24, path, ..Case::new(450, 40, 24, &[(0, 24, 40), (2, 20, 30)]) };
    let masked = Case { dropout: Some(dropout), multiprocessors: 24, path, ..Case::new(300, 40, 24, &[(3, 17, 3)]) };
    let panels =
        Case { bias: true, accumulate: true, multiprocessors: 24, path, ..Case::new(300, 270, 280, &[(3, 270, 5)]) };
    first_of([&|| run::<T>(rig, &splits), &|| run::<T>(rig, &masked), &|| run::<T>(rig, &panels)])
}

/// Runs a case under every schedule.
fn run<T: Element>(rig: &Rig, case: &Case) -> Caught {
    let operands = Operands::<T>::random(7, case);
    let expected = operands.expected();
    let gradients = Gradients::new(rig, &operands);
    assert!(gradients.plan.splits > 1, "{}", gradients.plan);
    outcome_of(rig, || {
        let outputs = gradients.run()?;
        let near = |(got, expected): (&Buffer<f32>, &Expected)| {
            let elements = got.elements();
            let off = |i: usize| (f64::from(elements[i]) - expected.value.data[i]).abs();
            (0..elements.len()).all(|i| off(i) <= expected.bound(i, DType::F32, operands.steps()))
                && (case.accumulate || got.gaps_untouched())
        };
        Ok((outputs.gradients.iter().zip(&expected).all(near), outputs.bits()))
    })
}

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "a stage of x is multiplied while it is dropped out",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "first_column, threadIdx.x, threads);\n            sync_block();",
        planted: "first_column, threadIdx.x, threads);",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "every split has the mask of the first one's tokens",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "gpu::min(depth, end - token), token,",
        planted: "gpu::min(depth, end - token), token - begin,",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "dA is not scaled for what was dropped",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "task.is_a ? p.dropout.scale : segment.scale",
        planted: "task.is_a ? 1.0f : segment.scale",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "columns by which a rank is rounded up are stored",
        file: GRADIENTS,
        scenario: GradientsCores,
        original: "if (column >= segment.rank || row < begin",
        planted: "if (row < begin",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "columns before a segment are stored",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "|| row < begin || row >= end",
        planted: "|| row >= end",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a chunk of T runs over the segment's last column",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "present = gpu::min(elements, segment.rank - j);",
        planted: "present = elements;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "every split takes the tokens to their end",
        file: GRADIENTS,
        scenario: GradientsCores,
        original: "end = gpu::min(begin + p.split_tokens, p.tokens);",
        planted: "end = p.tokens;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a CTA arrives before all of its sums are stored",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "    sync_block();\n    if (!sync_block_or(",
        planted: "    if (!sync_block_or(",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the blocks of a panel use the same partial sums",
        file: GRADIENTS,
        scenario: GradientsCores,
        original: "+ panel * blocks + block};",
        planted: "+ panel * blocks};",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "column sums are added in the order of arrival",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "column_sum = load(column_sums);\n      for (u32 s = 1; s < p.splits; s++) column_sum += load(column_sums + s * panel_columns);",
        planted: "for (u32 s = 0; s < p.splits; s++) if (s != task.split) column_sum += load(column_sums + s * panel_columns);",
        build: Build::Plain,
        caught: &[DependsOnSchedule],
    },
    Bug {
        name: "the arrival counter is not reset",
        file: "lora/forward.h",
        scenario: GradientsMma,
        original: "if (last) store_relaxed(arrivals, 0u);",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a stage is multiplied before its copies are complete",
        file: "tile/ring.h",
        scenario: GradientsMma,
        original: "copy_async_wait<STAGES - 2>();",
        planted: "copy_async_wait<STAGES - 1>();",
        build: Build::Plain,
        caught: &[By(Fault::InFlight)],
    },
    Bug {
        name: "tokens beyond a split's last are not zeros",
        file: PANEL,
        scenario: GradientsCores,
        original: "row + in_tile < end ? present : 0;",
        planted: "present;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "rows that are multiples of 8 bytes are taken for aligned to 16",
        file: PANEL,
        scenario: GradientsMma,
        original: "if (alignment == 0) {",
        planted: "if (alignment % 8 == 0 || alignment % 4 == 2) {",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "the left operand's halves are exchanged",
        file: MMA,
        scenario: GradientsMma,
        original: "(k + 8 * upper + in_matrix, row / 8 + 2 * m + odd)",
        planted: "(k + 8 * odd + in_matrix, row / 8 + 2 * m + upper)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows and columns of a lane are exchanged",
        file: THREADS,
        scenario: GradientsCores,
        original: "gpu::fma(a[i / 4], b[i % 4], sum)",
        planted: "gpu::fma(a[i % 4], b[i / 4], sum)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "dA's rows are as far apart as those of x",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "rank_stride = task.is_a ? segment.da_stride : 1;",
        planted: "rank_stride = task.is_a ? p.x_stride : 1;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the bias's gradient is not added to what is there",
        file: GRADIENTS,
        scenario: GradientsMma,
        original: "threadIdx.x < width) put(p.dbias + first_column + threadIdx.x, column_sum);",
        planted: "threadIdx.x < width) store(p.dbias + first_column + threadIdx.x, column_sum);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
