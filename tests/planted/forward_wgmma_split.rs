//! Bugs in the forward kernels on wgmma whose clusters share a tile's depth.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::ForwardWgmmaSplit;
use super::harness::{Bug, ENDLESS_WAIT, UNSYNCHRONISED};

const SPLIT: &str = "lora/forward_wgmma_split.h";
const REDUCE: &str = "lora/wgmma/cluster_reduce.h";

pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "sums are read before their CTA has stored them",
        file: REDUCE,
        scenario: ForwardWgmmaSplit,
        original: "cluster_sync(); if (pipe.p.splits == 8)",
        planted: "if (pipe.p.splits == 8)",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::Uninitialised), By(Fault::InFlight)],
    },
    Bug {
        name: "a CTA exits while others read its sums",
        file: REDUCE,
        scenario: ForwardWgmmaSplit,
        original: "reduce_rows<1>(pipe, task); } cluster_sync();",
        planted: "reduce_rows<1>(pipe, task); }",
        build: Build::Race,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "the ticket is passed on before all have started",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "cluster_sync(); if (rank == 0 && threadIdx.x < size)",
        planted: "if (rank == 0 && threadIdx.x < size)",
        build: Build::Race,
        caught: &[By(Fault::OutOfBounds)],
    },
    Bug {
        name: "the ticket is read before it is passed on",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "cluster_sync(); return ForwardTask",
        planted: "return ForwardTask",
        build: Build::Race,
        caught: UNSYNCHRONISED,
    },
    Bug {
        name: "tickets are counted for each CTA instead of each cluster",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "gridDim.x / size);",
        planted: "gridDim.x);",
        build: Build::Plain,
        caught: &[WrongResult, By(Fault::OutOfBounds), By(Fault::Livelock), By(Fault::Crash)],
    },
    Bug {
        name: "sums are stored over operands that the other warpgroup's products still read",
        file: REDUCE,
        scenario: ForwardWgmmaSplit,
        original: "sync_named(NamedBarrier::consumers, C::consumer_threads); const u32 row",
        planted: "const u32 row",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::InFlight)],
    },
    Bug {
        name: "every CTA computes every step of T",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "add_adapters(pipe, d, task, task.split, p.splits, at);",
        planted: "add_adapters(pipe, d, task, 0, 1, at);",
        build: Build::Plain,
        caught: ENDLESS_WAIT,
    },
    Bug {
        name: "all CTAs copy the same part of K",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "begin = task.split * p.split_depth;",
        planted: "begin = 0;",
        build: Build::Plain,
        caught: &[WrongResult, By(Fault::Deadlock), By(Fault::Barrier)],
    },
    Bug {
        name: "no CTA stores the tile's last rows",
        file: REDUCE,
        scenario: ForwardWgmmaSplit,
        original: "rows = C::rows / SPLITS;",
        planted: "rows = C::rows / (SPLITS + 1);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "the sums of one CTA are not added",
        file: REDUCE,
        scenario: ForwardWgmmaSplit,
        original: "for (u32 rank = 1; rank < SPLITS; rank++) total",
        planted: "for (u32 rank = 2; rank < SPLITS; rank++) total",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "copying threads run two phases ahead",
        file: SPLIT,
        scenario: ForwardWgmmaSplit,
        original: "if (count > task.split) pipe.sync_producers();",
        planted: "",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::Deadlock)],
    },
];
