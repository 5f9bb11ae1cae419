//! Bugs in the forward kernels on wgmma whose clusters share a tile's depth.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::ForwardWgmmaSplit;
use super::harness::{Bug, UNORDERED, WAITS, bug};

const SPLIT: &str = "lora/forward_wgmma_split.h";
const SHARE: &str = "lora/forward_wgmma_share.h";

pub(crate) const BUGS: &[Bug] = &[
    bug(
        "sums are read before their CTA has left them",
        SHARE,
        ForwardWgmmaSplit,
        "    cluster_sync();\n    finish_share(task);",
        "    finish_share(task);",
        Build::Race,
        &[By(Fault::Race), By(Fault::Uninitialised), By(Fault::InFlight)],
    ),
    bug(
        "a CTA leaves while others read its sums",
        SHARE,
        ForwardWgmmaSplit,
        "    cluster_sync();  // nobody leaves while others read its sums\n",
        "",
        Build::Race,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "the ticket is passed on before all have started",
        SPLIT,
        ForwardWgmmaSplit,
        "    cluster_sync();  // all have started\n",
        "",
        Build::Race,
        &[By(Fault::OutOfBounds)],
    ),
    bug(
        "the ticket is taken before it is passed on",
        SPLIT,
        ForwardWgmmaSplit,
        "    cluster_sync();\n    return ForwardTask",
        "    return ForwardTask",
        Build::Race,
        UNORDERED,
    ),
    bug(
        "tickets are counted by CTAs",
        SPLIT,
        ForwardWgmmaSplit,
        "gridDim.x / size - 1)",
        "gridDim.x - 1)",
        Build::Plain,
        &[WrongResult, By(Fault::OutOfBounds), By(Fault::Livelock), By(Fault::Crash)],
    ),
    bug(
        "sums are left where the other warpgroup's products still read",
        SHARE,
        ForwardWgmmaSplit,
        "    sync_named(2, Tile::multiplying);\n    float* mine",
        "    float* mine",
        Build::Race,
        &[By(Fault::Race), By(Fault::InFlight)],
    ),
    bug(
        "every CTA takes every step of T",
        SPLIT,
        ForwardWgmmaSplit,
        "this->add_adapters(d, task, task.split, p.splits, step);",
        "this->add_adapters(d, task, 0, 1, step);",
        Build::Plain,
        WAITS,
    ),
    bug(
        "all CTAs copy the same of the depth",
        SPLIT,
        ForwardWgmmaSplit,
        "begin = task.split * p.split_depth;",
        "begin = 0;",
        Build::Plain,
        &[WrongResult, By(Fault::Deadlock), By(Fault::Barrier)],
    ),
    bug(
        "the last CTA's rows are nobody's",
        SHARE,
        ForwardWgmmaSplit,
        "const u32 row = task.split * (rows / SPLITS)",
        "const u32 row = task.split * (rows / (SPLITS + 1))",
        Build::Plain,
        &[WrongResult, By(Fault::Race)],
    ),
    bug(
        "sums of a CTA are left out",
        SHARE,
        ForwardWgmmaSplit,
        "for (u32 rank = 1; rank < SPLITS; rank++) total",
        "for (u32 rank = 2; rank < SPLITS; rank++) total",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "copying threads run two phases ahead",
        SPLIT,
        ForwardWgmmaSplit,
        "if (more > task.split) this->together();",
        "",
        Build::Race,
        &[By(Fault::Race), By(Fault::Deadlock)],
    ),
];
