//! Bugs in dropout, and in how the forward kernels apply it.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ForwardCores, ForwardMma, ForwardWgmma};
use super::harness::{Bug, UNSYNCHRONISED};

const DROPOUT: &str = "tile/dropout.h";
const PHILOX: &str = "tile/philox.h";
const FORWARD: &str = "lora/forward.h";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "a stage is multiplied while it is dropped out",
        file: "lora/forward_tile.h",
        scenario: ForwardMma,
        original: "threadIdx.x, C::threads)) sync_block();",
        planted: "threadIdx.x, C::threads)) sync_warp();",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "the proxy fence after dropout is missing",
        file: "lora/wgmma/t_tile.h",
        scenario: ForwardWgmma,
        original: "fence_proxy_async_shared(); sync_named(NamedBarrier::stage_of_group",
        planted: "sync_named(NamedBarrier::stage_of_group",
        build: Build::Plain,
        caught: &[By(Fault::Proxy)],
    },
    Bug {
        name: "a warp of wgmma does not wait for the others' masks",
        file: "lora/wgmma/t_tile.h",
        scenario: ForwardWgmma,
        original: "sync_named(NamedBarrier::stage_of_group + warpgroup(), 128);",
        planted: "",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "both warpgroups take the mask of the first one's rows",
        file: "lora/wgmma/t_tile.h",
        scenario: ForwardWgmma,
        original: "group_row = task.row_tile * C::rows + 64 * warpgroup();",
        planted: "group_row = task.row_tile * C::rows;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "every tile gets the mask of the first",
        file: DROPOUT,
        scenario: ForwardMma,
        original: "dropout_words(dropout, first_row + row,",
        planted: "dropout_words(dropout, row,",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "both halves of a block get the mask of the lower half",
        file: DROPOUT,
        scenario: ForwardCores,
        original: "DEPTH == 16 && first_column % 32 != 0",
        planted: "false",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the generator runs one round less",
        file: PHILOX,
        scenario: ForwardMma,
        original: "round < 10",
        planted: "round < 9",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "kept values are not scaled",
        file: FORWARD,
        scenario: ForwardMma,
        original: "    value[i] *= t_factor<FACTORS>(p);\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "kept values are not scaled where two columns are stored",
        file: FORWARD,
        scenario: ForwardWgmma,
        original: "  low *= t_factor<FACTORS>(p);\n",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
];
