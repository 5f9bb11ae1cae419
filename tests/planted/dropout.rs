//! Bugs in dropout, and in how the forward kernels apply it.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ForwardCores, ForwardMma, ForwardWgmma};
use super::harness::{Bug, UNORDERED, bug};

const DROPOUT: &str = "tile/dropout.h";
const PHILOX: &str = "tile/philox.h";
const FORWARD: &str = "lora/forward.h";

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "a stage is multiplied while it is dropped out",
        "lora/forward_tile.h",
        ForwardMma,
        "threadIdx.x, threads)) sync_block();",
        "threadIdx.x, threads)) sync_warp();",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "wgmma does not see what was dropped",
        "lora/forward_wgmma_shrink.h",
        ForwardWgmma,
        "        fence_proxy_async_shared();\n        sync_named(3 + group(), 128);",
        "        sync_named(3 + group(), 128);",
        Build::Plain,
        &[By(Fault::Proxy)],
    ),
    bug(
        "a warp of wgmma does not wait for the others' masks",
        "lora/forward_wgmma_shrink.h",
        ForwardWgmma,
        "        sync_named(3 + group(), 128);\n",
        "",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "both warpgroups take the mask of the first one's rows",
        "lora/forward_wgmma_shrink.h",
        ForwardWgmma,
        "group_row = task.row_tile * rows + 64 * group();",
        "group_row = task.row_tile * rows;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "every tile has the mask of the first",
        DROPOUT,
        ForwardMma,
        "dropout_words(dropout, first_row + row,",
        "dropout_words(dropout, row,",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "every half block has the mask of the lower half",
        DROPOUT,
        ForwardCores,
        "DEPTH == 16 && first_column % 32 != 0",
        "false",
        Build::Plain,
        &[WrongResult],
    ),
    bug("one round less", PHILOX, ForwardMma, "round < 10", "round < 9", Build::Plain, &[WrongResult]),
    bug(
        "what is kept is not scaled",
        FORWARD,
        ForwardMma,
        "    value[i] *= t_factor<FACTORS>(p);\n",
        "",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "the same where two columns are stored",
        FORWARD,
        ForwardWgmma,
        "  low *= t_factor<FACTORS>(p);\n",
        "",
        Build::Plain,
        &[WrongResult],
    ),
];
