//! Bugs in the merge kernels.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{MergeColumns, MergeRows};
use super::harness::{Bug, UNORDERED, bug};

const MERGE: &str = "lora/merge.h";

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "a panel is overwritten while it is read",
        MERGE,
        MergeRows,
        "sync_block();  // the panel before may still be read",
        "",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "a panel is read before it is there",
        MERGE,
        MergeColumns,
        "    sync_block();\n    const float* my_left",
        "    const float* my_left",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "B is read outside its segment",
        MERGE,
        MergeColumns,
        "const bool inside = output >= segment.begin && output < segment.end;",
        "const bool inside = true;",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "the scale is applied to both factors",
        MERGE,
        MergeRows,
        "first_column, tile_columns, p.columns, 1.0f);",
        "first_column, tile_columns, p.columns, factors.scale);",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows below the weight are written",
        MERGE,
        MergeColumns,
        "if (columns != 0 && row(i) < p.rows)",
        "if (columns != 0)",
        Build::Plain,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "columns of no segment are rounded again",
        MERGE,
        MergeColumns,
        "u32 covered = in_place ? 0 : ~0u;",
        "u32 covered = 1;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the last values of the rank are dropped",
        MERGE,
        MergeRows,
        "l < segment.factors.rank; l += panel)",
        "l + panel <= segment.factors.rank; l += panel)",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "chunks are stored where rows are not aligned",
        MERGE,
        MergeColumns,
        "column() + elements <= p.columns &&\n                       tile::rows_are_aligned<E>(p.source, p.source_stride) &&\n                       tile::rows_are_aligned<E>(p.weight, p.weight_stride);",
        "column() + elements <= p.columns;",
        Build::Plain,
        &[By(Fault::Misaligned)],
    ),
];
