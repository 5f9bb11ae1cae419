//! Bugs in the products in TF32.

use fused_lora_emulator::{Build, Fault};

use super::harness::Bug;
use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::ForwardTf32;

const WARP: &str = "tile/warp_mma_tf32.h";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "the left operand is not rounded",
        file: WARP,
        scenario: ForwardTf32,
        original: "    round(a);\n",
        planted: "",
        build: Build::Plain,
        caught: &[By(Fault::Operand)],
    },
    Bug {
        name: "an in-out weight is not rounded",
        file: WARP,
        scenario: ForwardTf32,
        original: "      round(four.word);\n",
        planted: "",
        build: Build::Plain,
        caught: &[By(Fault::Operand)],
    },
    Bug {
        name: "values are truncated instead of rounded",
        file: WARP,
        scenario: ForwardTf32,
        original: "words[i] = to_tf32(from_bits(words[i]));",
        planted: "words[i] &= ~0x1fffu;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the left operand's second half of eight is its first",
        file: WARP,
        scenario: ForwardTf32,
        original: "row + lane % 16, lane / 16)) ^ 32 * k",
        planted: "row + lane % 16, 0)) ^ 32 * k",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "every step of a stage uses the right operand of the first",
        file: WARP,
        scenario: ForwardTf32,
        original: "(row, lane / 8 % 2)) ^ 32 * k",
        planted: "(row, lane / 8 % 2))",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "rows of an in-out weight are distributed differently from the left operand's values",
        file: WARP,
        scenario: ForwardTf32,
        original: "8 * k + lane % 4 + 4 * i, chunk",
        planted: "8 * k + lane % 4 * 2 + i, chunk",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "sums are taken for those of neighbouring columns",
        file: WARP,
        scenario: ForwardTf32,
        original: "return column_of(n, lane_id() % 4 * 2 + i % 2);",
        planted: "return 8 * n + lane_id() % 4 * 2 + i % 2;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "B is taken for a weight with neighbouring columns",
        file: WARP,
        scenario: ForwardTf32,
        original: "column + column_of(n + lane / 16, lane % 8);",
        planted: "column + 8 * n + lane / 16 * 8 + lane % 8;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "half of a segment's last step is skipped",
        file: WARP,
        scenario: ForwardTf32,
        original: "if (k >= 2 * steps) break;",
        planted: "if (k >= steps) break;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a group of instructions is taken for outside by its first column",
        file: WARP,
        scenario: ForwardTf32,
        original: "if (first >= end || first + 8 * group <= begin) continue;",
        planted: "if (first >= end || first < begin) continue;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "columns outside the segment get the low-rank sum",
        file: WARP,
        scenario: ForwardTf32,
        original: "if (at >= begin && at < end) sum[i] = total[i];",
        planted: "sum[i] = total[i] + (at < begin || at >= end ? 1e-3f : 0.0f);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
