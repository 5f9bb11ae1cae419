//! Bugs in the merge kernels.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{MergeColumns, MergeRows};
use super::harness::{Bug, UNSYNCHRONISED};

const MERGE: &str = "lora/merge.h";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "a panel is overwritten while it is read",
        file: MERGE,
        scenario: MergeRows,
        original: "sync_block(); if (BY_ROWS)",
        planted: "if (BY_ROWS)",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "a panel is read before it is written",
        file: MERGE,
        scenario: MergeColumns,
        original: "    sync_block();\n    const float* my_left",
        planted: "    const float* my_left",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "B is read outside its segment",
        file: MERGE,
        scenario: MergeColumns,
        original: "const bool inside = output >= segment.begin && output < segment.end;",
        planted: "const bool inside = true;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "the scale is applied to both factors",
        file: MERGE,
        scenario: MergeRows,
        original: "first_column, tile_columns, p.columns, 1.0f);",
        planted: "first_column, tile_columns, p.columns, factors.scale);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows below the weight are written",
        file: MERGE,
        scenario: MergeColumns,
        original: "if (columns != 0 && row(i) < p.rows)",
        planted: "if (columns != 0)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "columns without a segment are rounded again",
        file: MERGE,
        scenario: MergeColumns,
        original: "u32 covered = in_place ? 0 : ~0u;",
        planted: "u32 covered = 1;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the last values of the rank are dropped",
        file: MERGE,
        scenario: MergeRows,
        original: "l < segment.factors.rank; l += panel)",
        planted: "l + panel <= segment.factors.rank; l += panel)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "chunks are stored where rows are not aligned",
        file: MERGE,
        scenario: MergeColumns,
        original: "column() + elements <= p.columns &&\n                       tile::rows_are_aligned<E>(p.source, p.source_stride) &&\n                       tile::rows_are_aligned<E>(p.weight, p.weight_stride);",
        planted: "column() + elements <= p.columns;",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "only the source's alignment is checked",
        file: MERGE,
        scenario: MergeRows,
        original: "tile::rows_are_aligned<E>(p.source, p.source_stride) &&\n                       tile::rows_are_aligned<E>(p.weight, p.weight_stride);",
        planted: "tile::rows_are_aligned<E>(p.source, p.source_stride);",
        build: Build::Plain,
        caught: &[By(Fault::Misaligned)],
    },
    Bug {
        name: "the rounding of the sum is not reported",
        file: MERGE,
        scenario: MergeRows,
        original: "return gpu::abs((sum - stored) + ((a - of_a) + (b - of_b)));",
        planted: "return gpu::abs(sum - stored);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
