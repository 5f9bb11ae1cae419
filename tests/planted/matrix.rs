//! Bugs in the decode kernels on matrix instructions.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ColumnsMatrix, RowsMatrix};
use super::harness::{Bug, UNORDERED, bug};

const SHARED: &str = "lora/decode_mma.h";
const ROWS: &str = "lora/decode_rows_mma.h";
const COLUMNS: &str = "lora/decode_columns_mma.h";

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "the fragment of x is transposed",
        SHARED,
        RowsMatrix,
        "low.word[2 * half], high.word[2 * half], low.word[2 * half + 1],",
        "low.word[2 * half], low.word[2 * half + 1], high.word[2 * half],",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "both halves take the first values of x",
        SHARED,
        RowsMatrix,
        "u32 a[4] = {low.word[2 * half],",
        "u32 a[4] = {low.word[0],",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "absent tokens are read",
        SHARED,
        RowsMatrix,
        "if (g < p.tokens && k < end)",
        "if (k < end)",
        Build::Plain,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "x is read beyond the depth",
        SHARED,
        ColumnsMatrix,
        "if (g < p.tokens && k < end)",
        "if (g < p.tokens)",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "warps do not wait for their turn",
        SHARED,
        RowsMatrix,
        "if (first != 0) sync_block();",
        "",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "later turns overwrite the earlier",
        SHARED,
        ColumnsMatrix,
        "leave(warp_id() % parts, first == 0);",
        "leave(warp_id() % parts, true);",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the tile's rows are read in another order than its sums are left",
        ROWS,
        RowsMatrix,
        "8 * n + 2 * q + i % 2)",
        "8 * n + q + 4 * (i % 2))",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows beyond the weight are read",
        ROWS,
        RowsMatrix,
        "row_end = row < tile.columns ? end : 0;",
        "row_end = end;",
        Build::Plain,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "every CTA takes the depth to its end",
        ROWS,
        RowsMatrix,
        "end = gpu::min(begin + p.split_depth, p.depth);",
        "end = p.depth;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "warps leave a part of the depth to nobody",
        ROWS,
        RowsMatrix,
        "k += warps * run)",
        "k += warps * run + mma_depth)",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "pairs of k are taken in the wrong order",
        COLUMNS,
        ColumnsMatrix,
        "lower_halves = 0x5410,",
        "lower_halves = 0x1054,",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "even and odd columns are exchanged",
        COLUMNS,
        ColumnsMatrix,
        "j % 2 == 0 ? lower_halves",
        "j % 2 == 1 ? lower_halves",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows beyond the depth are read",
        COLUMNS,
        ColumnsMatrix,
        "row_end = at < end ? p.columns : 0;",
        "row_end = p.columns;",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "sums of two tokens share a place",
        COLUMNS,
        ColumnsMatrix,
        "g + 8 * (i / 2), columns",
        "g / 2 + 8 * (i / 2), columns",
        Build::Race,
        UNORDERED,
    ),
];
