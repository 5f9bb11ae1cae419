//! Bugs in the forward kernels on wgmma where A rides along with the weight.

use fused_lora_emulator::{Build, Fault};

use super::harness::Bug;
use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ForwardWgmmaRide, ForwardWgmmaSplit};

const RIDE: &str = "lora/forward_wgmma_ride.h";
pub(crate) const BUGS: &[Bug] = &[
    Bug {
        name: "T is not scaled",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "pack<E>(scale * t[8 * INDEX + 2 * i], scale",
        planted: "pack<E>(t[8 * INDEX + 2 * i], scale",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "A of another step is stored",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "ask(coming[s], step + s + ahead);",
        planted: "ask(coming[s], step + s + 1);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "A is stored where products still read",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "this->await_empty(step + s);\n",
        planted: "\n",
        build: Build::Plain,
        caught: &[By(Fault::InFlight), By(Fault::Race), By(Fault::Barrier), WrongResult],
    },
    Bug {
        name: "wgmma reads what the gathering warps stored without the proxy's fence",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "fence_proxy_async_shared();\n    sync_named(1, gatherers);",
        planted: "sync_named(1, gatherers);",
        build: Build::Plain,
        caught: &[By(Fault::Proxy)],
    },
    Bug {
        name: "a stage is handed over before all of A is stored",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "sync_named(1, gatherers);",
        planted: "",
        build: Build::Race,
        caught: &[By(Fault::Race), By(Fault::Proxy), By(Fault::Uninitialised), By(Fault::Barrier)],
    },
    Bug {
        name: "the second columns of T are the first segment's",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "const u32 s = segment_of(p, 16 * INDEX);",
        planted: "const u32 s = segment_of(p, 0);",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "a stage of B is full when one of two has said so",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "hand_over(steps, thread, Tile::fetchers);",
        planted: "hand_over(steps, thread, 1);",
        build: Build::Plain,
        caught: &[By(Fault::Deadlock)],
    },
    Bug {
        name: "columns of B are read outside of their segment",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "column >= segment.begin && column < segment.end) {\n        const E* source",
        planted: "true) {\n        const E* source",
        build: Build::Plain,
        caught: &[By(Fault::OutOfBounds), WrongResult],
    },
    Bug {
        name: "a part of a tile is left out where the segment begins in it",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "if (first >= end || first + width <= begin) continue;",
        planted: "if (first >= end || first < begin) continue;",
        build: Build::Plain,
        caught: &[WrongResult],
    },
    Bug {
        name: "x is asked for before the launch ahead has ended",
        file: RIDE,
        scenario: ForwardWgmmaRide,
        original: "ahead = this->weight_ahead(first_column, begin, steps);",
        planted: "ahead = this->weight_ahead(first_column, begin, steps), this->fetch_x(0, begin, task.row_tile * rows);",
        build: Build::Plain,
        caught: &[By(Fault::Race)],
    },
    Bug {
        name: "the weight's first stages are asked for twice",
        file: "lora/forward_wgmma_ring.h",
        scenario: ForwardWgmmaSplit,
        original: "if (i >= ahead) {",
        planted: "if (i + 1 >= ahead) {",
        build: Build::Plain,
        caught: &[By(Fault::Barrier), By(Fault::InFlight), By(Fault::Deadlock), WrongResult],
    },
];
