//! Bugs in the forward kernels on wgmma where A rides along with the weight.

use fused_lora_emulator::{Build, Fault};

use super::harness::Caught::{By, WrongResult};
use super::harness::Scenario::{ForwardWgmmaRide, ForwardWgmmaSplit};
use super::harness::{Bug, bug};

const RIDE: &str = "lora/forward_wgmma_ride.h";
pub(crate) const BUGS: &[Bug] = &[
    bug(
        "T is not scaled",
        RIDE,
        ForwardWgmmaRide,
        "pack<E>(scale * t[8 * INDEX + 2 * i], scale",
        "pack<E>(t[8 * INDEX + 2 * i], scale",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "A of another step is stored",
        RIDE,
        ForwardWgmmaRide,
        "ask(coming[s], step + s + ahead);",
        "ask(coming[s], step + s + 1);",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "A is stored where products still read",
        RIDE,
        ForwardWgmmaRide,
        "this->await_empty(step + s);\n",
        "\n",
        Build::Plain,
        &[By(Fault::InFlight), By(Fault::Race), By(Fault::Barrier), WrongResult],
    ),
    bug(
        "wgmma reads what the gathering warps stored without the proxy's fence",
        RIDE,
        ForwardWgmmaRide,
        "fence_proxy_async_shared();\n    sync_named(1, gatherers);",
        "sync_named(1, gatherers);",
        Build::Plain,
        &[By(Fault::Proxy)],
    ),
    bug(
        "a stage is handed over before all of A is stored",
        RIDE,
        ForwardWgmmaRide,
        "sync_named(1, gatherers);",
        "",
        Build::Race,
        &[By(Fault::Race), By(Fault::Proxy), By(Fault::Uninitialised), By(Fault::Barrier)],
    ),
    bug(
        "the second columns of T are the first segment's",
        RIDE,
        ForwardWgmmaRide,
        "const u32 s = segment_of(p, 16 * INDEX);",
        "const u32 s = segment_of(p, 0);",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "a stage of B is full when one of two has said so",
        RIDE,
        ForwardWgmmaRide,
        "hand_over(steps, thread, Tile::fetchers);",
        "hand_over(steps, thread, 1);",
        Build::Plain,
        &[By(Fault::Deadlock)],
    ),
    bug(
        "columns of B are read outside of their segment",
        RIDE,
        ForwardWgmmaRide,
        "column >= segment.begin && column < segment.end) {\n        const E* source",
        "true) {\n        const E* source",
        Build::Plain,
        &[By(Fault::OutOfBounds), WrongResult],
    ),
    bug(
        "a part of a tile is left out where the segment begins in it",
        RIDE,
        ForwardWgmmaRide,
        "if (first >= end || first + width <= begin) continue;",
        "if (first >= end || first < begin) continue;",
        Build::Plain,
        &[WrongResult],
    ),
    bug(
        "x is asked for before the launch ahead has ended",
        RIDE,
        ForwardWgmmaRide,
        "ahead = this->weight_ahead(first_column, begin, steps);",
        "ahead = this->weight_ahead(first_column, begin, steps), this->fetch_x(0, begin, task.row_tile * rows);",
        Build::Plain,
        &[By(Fault::Race)],
    ),
    bug(
        "the weight's first stages are asked for twice",
        "lora/forward_wgmma_ring.h",
        ForwardWgmmaSplit,
        "if (i >= ahead) {",
        "if (i + 1 >= ahead) {",
        Build::Plain,
        &[By(Fault::Barrier), By(Fault::InFlight), By(Fault::Deadlock), WrongResult],
    ),
];
