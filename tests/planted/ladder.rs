//! Bugs in the kernels of kernels/ladder: in what their steps add, one after the other.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{LadderAsyncCopies, LadderOneLaunch, LadderSharedOut};
use super::harness::{Bug, ENDLESS_WAIT, UNSYNCHRONISED};

const SHARE: &str = "ladder/share.h";
const STEP_2: &str = "ladder/step2_one_launch.cu";
const STEP_4: &str = "ladder/step4_async_copies.cu";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "a warp multiplies with x before the others have copied theirs",
        file: "ladder/dot.h",
        scenario: LadderOneLaunch,
        original: "sync_block();",
        planted: "",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "a warp multiplies with T before the others have stored theirs",
        file: STEP_2,
        scenario: LadderOneLaunch,
        original: "sync_block();\n\n  const u32 column = column_of_warp();",
        planted: "const u32 column = column_of_warp();",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "the flag is set before T is stored",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "const u32 j = ticket * warps + warp_id();",
        planted: "if (threadIdx.x == 0) store_release(p.flags + ticket, epoch);\n\
                  const u32 j = ticket * warps + warp_id();",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the flag is set once thread 0's warp has stored its row",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "sync_block();\n    if (threadIdx.x == 0) store_release(p.flags + ticket, epoch);",
        planted: "if (threadIdx.x == 0) store_release(p.flags + ticket, epoch);\n    sync_block();",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the flag is set without release",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "store_release(p.flags + ticket, epoch);",
        planted: "store_relaxed(p.flags + ticket, epoch);",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the flag is read without acquire",
        file: SHARE,
        scenario: LadderAsyncCopies,
        original: "load_acquire(p.flags + i)",
        planted: "load_relaxed(p.flags + i)",
        build: Build::Race,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "any launch's flag is taken",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "while (load_acquire(p.flags + i) != epoch) back_off();",
        planted: "while (load_acquire(p.flags + i) == 0) back_off();",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a CTA draws one ticket only",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "store_release(p.flags + ticket, epoch);",
        planted: "store_release(p.flags + ticket, epoch);\n    return epoch;",
        build: Build::Plain,
        caught: ENDLESS_WAIT,
    },
    Bug {
        name: "the next launch finds the counter as this one left it",
        file: SHARE,
        scenario: LadderSharedOut,
        original: "tile::settle_ticket(p.ticket, *word, draws);",
        planted: "",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a stage is read one step before its copies are waited for",
        file: "tile/ring.h",
        scenario: LadderAsyncCopies,
        original: "copy_async_wait<STAGES - 2>();",
        planted: "copy_async_wait<STAGES - 1>();",
        build: Build::Plain,
        caught: &[By(Fault::InFlight)],
    },
    Bug {
        name: "a ring of one stage less than its copies need",
        file: STEP_4,
        scenario: LadderAsyncCopies,
        original: "ring = shared.take<Chunk>(stages * threads);",
        planted: "ring = shared.take<Chunk>((stages - 1) * threads);",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "a warp without a column copies beyond the last row of W0",
        file: STEP_4,
        scenario: LadderAsyncCopies,
        original: "end = column < p.columns ? p.depth : 0;",
        planted: "end = p.depth;",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "the expand does not wait for T",
        file: STEP_4,
        scenario: LadderAsyncCopies,
        original: "receive(p, t, epoch);",
        planted: "",
        build: Build::Race,
        caught: &[By(Fault::Uninitialised)],
    },
];
