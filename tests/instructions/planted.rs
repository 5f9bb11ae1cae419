//! Bugs planted in the test kernels that use several functions together: each must make its test fail, by the check that is meant
//! for it.

use super::rig::{can_plant, failure_with};
use super::{cluster, copy_async, mbarrier, tma, wgmma};

/// File, what stands there, what is planted, the test that must fail, and the check that must find it.
type Bug = (&'static str, &'static str, &'static str, fn(), &'static str);

const WGMMA: &[Bug] = &[
    ("wgmma_ring.cu", "    wgmma_fence();\n", "", wgmma::the_whole_way_of_a_tile, "proxy"),
    (
        "wgmma_ring.cu",
        "(d, a.descriptor(step), b.descriptor(step)",
        "(d, a.descriptor(step), b.descriptor(0)",
        wgmma::the_whole_way_of_a_tile,
        "1 tiles deep",
    ),
    (
        "wgmma_ring.cu",
        "empty + 8 * ((i - 1) % stages)",
        "empty + 8 * (i % stages)",
        wgmma::the_whole_way_of_a_tile,
        "deadlock",
    ),
    (
        "wgmma_ring.cu",
        "mbarrier_wait(empty + 8 * stage, i / stages % 2 ^ 1);",
        "",
        wgmma::the_whole_way_of_a_tile,
        "barrier",
    ),
    ("wgmma_ring.cu", "i / stages % 2 ^ 1", "i / stages % 2", wgmma::the_whole_way_of_a_tile, "deadlock"),
    (
        "wgmma_ring.cu",
        "mbarrier_wait(full + 8 * stage, i / stages % 2);",
        "",
        wgmma::the_whole_way_of_a_tile,
        "in flight",
    ),
    ("wgmma_ring.cu", "    fence_mbarrier_init();\n", "", wgmma::the_whole_way_of_a_tile, "proxy"),
    (
        "wgmma_ring.cu",
        "wgmma_wait<1>();\n    // The",
        "wgmma_wait<2>();\n    // The",
        wgmma::the_whole_way_of_a_tile,
        "in flight",
    ),
    (
        "wgmma_ring.cu",
        "fence_proxy_async_shared();\n  sync_named",
        "sync_named",
        wgmma::the_whole_way_of_a_tile,
        "proxy",
    ),
    ("wgmma_ring.cu", "sync_named(1 + group, 128);", "", wgmma::the_whole_way_of_a_tile, "in flight"),
];

const COPIES: &[Bug] = &[
    ("tma.cu", "fence_proxy_async_global();", "", tma::what_another_cta_wrote_is_fetched, "proxy"),
    (
        "tma.cu",
        "load_acquire(counter + 1)",
        "load_relaxed(counter + 1)",
        tma::what_another_cta_wrote_is_fetched,
        "proxy",
    ),
    ("tma.cu", "if (lane == 31) bulk_wait_read<1>();", "", tma::a_ring_between_the_copy_engine_and_warps, "in flight"),
    (
        "tma.cu",
        "      fence_proxy_async_shared();\n      sync_warp();",
        "      sync_warp();\n      fence_proxy_async_shared();",
        tma::a_ring_between_the_copy_engine_and_warps,
        "proxy",
    ),
    ("tma.cu", "if (threadIdx.x == 0) bulk_wait<0>();", "", tma::boxes_go_to_tensors_and_are_clipped, "race"),
    (
        "copy_async.cu",
        "copy_async_wait<stages - 2>()",
        "copy_async_wait<stages - 1>()",
        copy_async::a_ring_of_stages,
        "in flight",
    ),
    ("copy_async.cu", "- 2>();\n    sync_block();", "- 2>();", copy_async::a_ring_of_stages, "in flight"),
];

const BARRIERS: &[Bug] = &[
    (
        "mbarrier.cu",
        "mbarrier_wait(empty + 8 * stage, phase ^ 1);",
        "",
        mbarrier::writers_and_readers_over_a_ring,
        "barrier",
    ),
    (
        "mbarrier.cu",
        "mbarrier_wait(full + 8 * stage, phase);",
        "",
        mbarrier::writers_and_readers_over_a_ring,
        "assertion",
    ),
    (
        "multicast.cu",
        "map_shared(empty + 8 * stage, other)",
        "map_shared(empty + 8 * stage, cluster_rank())",
        cluster::one_fetch_for_two_ctas,
        "in flight",
    ),
    (
        "multicast.cu",
        "cluster_sync();\n  const u32 rank",
        "sync_block();\n  const u32 rank",
        cluster::one_fetch_for_two_ctas,
        "out of bounds",
    ),
    ("cluster.cu", "* thread;\n  cluster_sync();", "* thread;", cluster::words_of_other_ctas, "assertion"),
    (
        "cluster.cu",
        "  cluster_arrive();\n  cluster_wait();",
        "  sync_block();",
        cluster::words_of_other_ctas,
        "assertion",
    ),
    (
        "cluster.cu",
        "if (round != 0) mbarrier_wait_cluster(barrier, (round - 1) % 2);",
        "",
        cluster::arrivals_at_another_cta,
        "barrier",
    ),
    (
        "cluster.cu",
        "if (round != 0) mbarrier_wait_cluster(",
        "if (round != 0) mbarrier_wait(",
        cluster::arrivals_at_another_cta,
        "race",
    ),
];

fn all_found(bugs: &[Bug]) {
    if !can_plant() {
        return;
    }
    for (file, original, planted, test, check) in bugs {
        let found = failure_with(file, original, planted, *test).unwrap_or_default();
        assert!(found.starts_with(check), "{file}: '{planted}' for '{original}' is found by: '{found}', not {check}");
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
