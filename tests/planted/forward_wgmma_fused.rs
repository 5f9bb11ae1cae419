//! Bugs in the forward kernels on wgmma with a fused shrink.

use fused_lora_emulator::{Build, Fault};

use super::harness::Bug;
use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ForwardWgmmaFused, ForwardWgmmaSplit};

const FUSED: &str = "lora/forward_wgmma_fused.h";
pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "T is not scaled",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "pack<E>(scale * t[8 * INDEX + 2 * i], scale",
        planted: "pack<E>(t[8 * INDEX + 2 * i], scale",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "A of another step is stored",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "load_a(coming[s], step + s + ahead);",
        planted: "load_a(coming[s], step + s + 1);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "A is stored where products still read",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "if (step + s >= steps) break; pipe.await_empty(at);",
        planted: "if (step + s >= steps) break;",
        build: Build::Plain,
        caught: &[By(Fault::InFlight), By(Fault::Race), By(Fault::Barrier), WrongResult],
    },
    Bug {
        name: "wgmma reads what the gathering warps stored without the proxy's fence",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "fence_proxy_async_shared(); sync_named(NamedBarrier::producers, gatherers);",
        planted: "sync_named(NamedBarrier::producers, gatherers);",
        build: Build::Plain,
        caught: &[By(Fault::Proxy)],
    },
    Bug {
        name: "a stage is handed over before all of A is stored",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "sync_named(NamedBarrier::producers, gatherers);",
        planted: "",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::Proxy), By(Fault::Uninitialised), By(Fault::Barrier)],
    },
    Bug {
        name: "the second columns of T are the first segment's",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "const u32 s = segment_of(p, 16 * INDEX);",
        planted: "const u32 s = segment_of(p, 0);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a stage of B counts as full after one of two arrivals",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "commit_stores(at.stage(), thread, C::full_arrivals);",
        planted: "commit_stores(at.stage(), thread, 1);",
        build: Build::Plain,
        caught: &[By(Fault::Deadlock)],
    },
    Bug {
        name: "columns of B are read outside of their segment",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "column >= segment.begin && column < segment.end) { const E* source",
        planted: "true) { const E* source",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a part of a tile in which a segment begins is skipped",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "if (first >= end || first + width <= begin) continue;",
        planted: "if (first >= end || first < begin) continue;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "x is copied before the previous launch has ended",
        file: FUSED,
        scenario: ForwardWgmmaFused,
        original: "ahead = pipe.fetch_weight_ahead(first_column, begin, steps);",
        planted: "ahead = pipe.fetch_weight_ahead(first_column, begin, steps), pipe.fetch_x(0, begin, task.row_tile * C::rows);",
        build: Build::Plain,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the weight's first stages are copied twice",
        file: "lora/wgmma/pipeline.h",
        scenario: ForwardWgmmaSplit,
        original: "if (i >= ahead) {",
        planted: "if (i + 1 >= ahead) {",
        build: Build::Plain,
        caught: &[By(Fault::Barrier), By(Fault::InFlight), By(Fault::Deadlock), WrongResult],
    },
];
