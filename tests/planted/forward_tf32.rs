//! Bugs in the products in TF32.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::ForwardTf32;
use super::harness::{Bug, bug};

const WARP: &str = "tile/warp_mma_tf32.h";

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "the left operand is not rounded",
        WARP,
        ForwardTf32,
        "    round(a);\n",
        "",
        Build::Plain,
        &[By(Fault::Operand)],
    ),
    bug(
        "a weight that runs across the depth is not rounded",
        WARP,
        ForwardTf32,
        "      round(four.word);\n",
        "",
        Build::Plain,
        &[By(Fault::Operand)],
    ),
    bug(
        "values are cut instead of rounded",
        WARP,
        ForwardTf32,
        "words[i] = to_tf32(from_bits(words[i]));",
        "words[i] &= ~0x1fffu;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the left operand's second half of eight is its first",
        WARP,
        ForwardTf32,
        "row + lane % 16, lane / 16)) ^ 32 * k",
        "row + lane % 16, 0)) ^ 32 * k",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "every step of a stage takes the right operand of the first",
        WARP,
        ForwardTf32,
        "(row, lane / 8 % 2)) ^ 32 * k",
        "(row, lane / 8 % 2))",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "rows of a weight that runs across the depth are dealt out otherwise than the left operand's values",
        WARP,
        ForwardTf32,
        "8 * k + lane % 4 + 4 * i, chunk",
        "8 * k + lane % 4 * 2 + i, chunk",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "sums are taken for those of neighbouring columns",
        WARP,
        ForwardTf32,
        "return column_of(n, lane_id() % 4 * 2 + i % 2);",
        "return 8 * n + lane_id() % 4 * 2 + i % 2;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "B is taken for a weight with neighbouring columns",
        WARP,
        ForwardTf32,
        "column + column_of(n + lane / 16, lane % 8);",
        "column + 8 * n + lane / 16 * 8 + lane % 8;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "half of a segment's last step is left out",
        WARP,
        ForwardTf32,
        "if (k >= 2 * steps) break;",
        "if (k >= steps) break;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a group of instructions is taken for outside by its first column",
        WARP,
        ForwardTf32,
        "if (first >= end || first + 8 * group <= begin) continue;",
        "if (first >= end || first < begin) continue;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "columns outside the segment take the sum",
        WARP,
        ForwardTf32,
        "if (at >= begin && at < end) sum[i] = total[i];",
        "sum[i] = total[i] + (at < begin || at >= end ? 1e-3f : 0.0f);",
        Build::Plain,
        &[WrongResult],
    ),
];
