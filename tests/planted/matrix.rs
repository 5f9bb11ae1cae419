//! Bugs in the decode kernels on matrix instructions.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ColumnsMatrix, RowsMatrix};
use super::harness::{Bug, UNSYNCHRONISED};

const SHARED: &str = "lora/decode_mma.h";
const ROWS: &str = "lora/decode_rows_mma.h";
const COLUMNS: &str = "lora/decode_columns_mma.h";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "the fragment of x is transposed",
        file: SHARED,
        scenario: RowsMatrix,
        original: "low.word[2 * half], high.word[2 * half], low.word[2 * half + 1],",
        planted: "low.word[2 * half], low.word[2 * half + 1], high.word[2 * half],",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "both halves use the first values of x",
        file: SHARED,
        scenario: RowsMatrix,
        original: "u32 a[4] = {low.word[2 * half],",
        planted: "u32 a[4] = {low.word[0],",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "absent tokens are read",
        file: SHARED,
        scenario: RowsMatrix,
        original: "if (g < p.tokens && k < end)",
        planted: "if (k < end)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "x is read beyond K",
        file: SHARED,
        scenario: ColumnsMatrix,
        original: "if (g < p.tokens && k < end)",
        planted: "if (g < p.tokens)",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "warps do not wait for their turn",
        file: SHARED,
        scenario: RowsMatrix,
        original: "if (first != 0) sync_block();",
        planted: "",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "later turns overwrite the earlier",
        file: SHARED,
        scenario: ColumnsMatrix,
        original: "store(warp_id() % parts, first == 0);",
        planted: "store(warp_id() % parts, true);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the tile's rows are read in another order than its sums are stored",
        file: ROWS,
        scenario: RowsMatrix,
        original: "8 * n + 2 * q + i % 2)",
        planted: "8 * n + q + 4 * (i % 2))",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows beyond the weight are read",
        file: ROWS,
        scenario: RowsMatrix,
        original: "row_end = row < tile.columns ? end : 0;",
        planted: "row_end = end;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "every CTA goes to the end of K",
        file: ROWS,
        scenario: RowsMatrix,
        original: "end = gpu::min(begin + p.split_depth, p.depth);",
        planted: "end = p.depth;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "no warp takes a part of K",
        file: ROWS,
        scenario: RowsMatrix,
        original: "k += warps * run)",
        planted: "k += warps * run + mma_depth)",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "pairs of k are taken in the wrong order",
        file: COLUMNS,
        scenario: ColumnsMatrix,
        original: "lower_halves = 0x5410,",
        planted: "lower_halves = 0x1054,",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "even and odd columns are exchanged",
        file: COLUMNS,
        scenario: ColumnsMatrix,
        original: "j % 2 == 0 ? lower_halves",
        planted: "j % 2 == 1 ? lower_halves",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows beyond K are read",
        file: COLUMNS,
        scenario: ColumnsMatrix,
        original: "row_end = at < end ? p.columns : 0;",
        planted: "row_end = p.columns;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "sums of two tokens are stored in one place",
        file: COLUMNS,
        scenario: ColumnsMatrix,
        original: "g + 8 * (i / 2), columns",
        planted: "g / 2 + 8 * (i / 2), columns",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
];
