//! Bugs planted in the test kernels that use several functions together. Each must make its test fail with the expected
//! message.

use super::rig::{can_plant, failure_with};
use super::{cluster, copy_async, mbarrier, tma, wgmma};

/// A replacement in a file of kernels/test.
struct Bug {
    file: &'static str,
    /// Code that occurs in the file once.
    original: &'static str,
    planted: &'static str,
    /// The test that must fail.
    test: fn(),
    /// A part of the test's failure message.
    caught: &'static str,
}

const WGMMA: &[Bug] = &[
    Bug {
        file: "wgmma_ring.cu",
        original: "i / stages % 2); wgmma_fence();",
        planted: "i / stages % 2);",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "proxy",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "(d, a.descriptor(step), b.descriptor(step)",
        planted: "(d, a.descriptor(step), b.descriptor(0)",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "1 tiles deep",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "empty + 8 * ((i - 1) % stages)",
        planted: "empty + 8 * (i % stages)",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "deadlock",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "mbarrier_wait(empty + 8 * stage, i / stages % 2 ^ 1);",
        planted: "",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "barrier",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "i / stages % 2 ^ 1",
        planted: "i / stages % 2",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "deadlock",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "mbarrier_wait(full + 8 * stage, i / stages % 2);",
        planted: "",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "in flight",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "    fence_mbarrier_init();\n",
        planted: "",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "proxy",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "wgmma_wait<1>(); if (i != 0",
        planted: "wgmma_wait<2>(); if (i != 0",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "in flight",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "fence_proxy_async_shared();\n  sync_named",
        planted: "sync_named",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "proxy",
    },
    Bug {
        file: "wgmma_ring.cu",
        original: "sync_named(1 + group, 128);",
        planted: "",
        test: wgmma::a_tile_goes_through_tma_wgmma_and_back,
        caught: "in flight",
    },
];

const COPIES: &[Bug] = &[
    Bug {
        file: "tma.cu",
        original: "fence_proxy_async_global();",
        planted: "",
        test: tma::what_another_cta_wrote_is_fetched,
        caught: "proxy",
    },
    Bug {
        file: "tma.cu",
        original: "load_acquire(counter + 1)",
        planted: "load_relaxed(counter + 1)",
        test: tma::what_another_cta_wrote_is_fetched,
        caught: "proxy",
    },
    Bug {
        file: "tma.cu",
        original: "if (lane == 31) bulk_wait_read<1>();",
        planted: "",
        test: tma::a_ring_between_the_copy_engine_and_warps,
        caught: "in flight",
    },
    Bug {
        file: "tma.cu",
        original: "      fence_proxy_async_shared();\n      sync_warp();",
        planted: "      sync_warp();\n      fence_proxy_async_shared();",
        test: tma::a_ring_between_the_copy_engine_and_warps,
        caught: "proxy",
    },
    Bug {
        file: "tma.cu",
        original: "if (threadIdx.x == 0) bulk_wait<0>();",
        planted: "",
        test: tma::boxes_go_to_tensors_and_are_clipped,
        caught: "race",
    },
    Bug {
        file: "copy_async.cu",
        original: "copy_async_wait<stages - 2>()",
        planted: "copy_async_wait<stages - 1>()",
        test: copy_async::a_ring_of_stages,
        caught: "in flight",
    },
    Bug {
        file: "copy_async.cu",
        original: "- 2>();\n    sync_block();",
        planted: "- 2>();",
        test: copy_async::a_ring_of_stages,
        caught: "in flight",
    },
];

const BARRIERS: &[Bug] = &[
    Bug {
        file: "mbarrier.cu",
        original: "mbarrier_wait(empty + 8 * stage, phase ^ 1);",
        planted: "",
        test: mbarrier::writers_and_readers_over_a_ring,
        caught: "barrier",
    },
    Bug {
        file: "mbarrier.cu",
        original: "mbarrier_wait(full + 8 * stage, phase);",
        planted: "",
        test: mbarrier::writers_and_readers_over_a_ring,
        caught: "assertion",
    },
    Bug {
        file: "multicast.cu",
        original: "map_shared(empty + 8 * stage, other)",
        planted: "map_shared(empty + 8 * stage, cluster_rank())",
        test: cluster::one_fetch_for_two_ctas,
        caught: "in flight",
    },
    Bug {
        file: "multicast.cu",
        original: "cluster_sync();\n  const u32 rank",
        planted: "sync_block();\n  const u32 rank",
        test: cluster::one_fetch_for_two_ctas,
        caught: "out of bounds",
    },
    Bug {
        file: "cluster.cu",
        original: "* thread;\n  cluster_sync();",
        planted: "* thread;",
        test: cluster::words_of_other_ctas,
        caught: "assertion",
    },
    Bug {
        file: "cluster.cu",
        original: "  cluster_arrive();\n  cluster_wait();",
        planted: "  sync_block();",
        test: cluster::words_of_other_ctas,
        caught: "assertion",
    },
    Bug {
        file: "cluster.cu",
        original: "if (round != 0) mbarrier_wait_cluster(barrier, (round - 1) % 2);",
        planted: "",
        test: cluster::arrivals_at_another_cta,
        caught: "barrier",
    },
    Bug {
        file: "cluster.cu",
        original: "if (round != 0) mbarrier_wait_cluster(",
        planted: "if (round != 0) mbarrier_wait(",
        test: cluster::arrivals_at_another_cta,
        caught: "race",
    },
];

fn all_found(bugs: &'static [Bug]) {
    if !can_plant() {
        return;
    }
    for &Bug { file, original, planted, test, caught } in bugs {
        let found = failure_with(file, original, planted, test).unwrap_or_default();
        assert!(found.starts_with(caught), "{file}: '{planted}' for '{original}' is found by: '{found}', not {caught}");
    }
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn bugs_in_a_product_are_found() {
    all_found(WGMMA);
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn bugs_in_copies_are_found() {
    all_found(COPIES);
}

#[test]
#[ignore = "part of the proof: cargo xtask prove"]
fn bugs_in_barriers_are_found() {
    all_found(BARRIERS);
}
