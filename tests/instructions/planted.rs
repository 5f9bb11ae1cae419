//! Bugs planted in the test kernels that use several functions together: each must make its test fail.

use crate::rig::{fails_with, sanitized};
use crate::{cluster, copy_async, mbarrier, tma, wgmma};

/// File, what stands there, what is planted, and the test that must fail.
type Bug = (&'static str, &'static str, &'static str, fn());

const WGMMA: &[Bug] = &[
    ("wgmma_ring.cu", "empty + 8 * ((i - 1) % stages)", "empty + 8 * (i % stages)", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "mbarrier_wait(empty + 8 * stage, i / stages % 2 ^ 1);", "", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "i / stages % 2 ^ 1", "i / stages % 2", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "mbarrier_wait(full + 8 * stage, i / stages % 2);", "", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "    fence_mbarrier_init();\n", "", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "wgmma_wait<1>();\n    // The", "wgmma_wait<2>();\n    // The", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "fence_proxy_async_shared();\n  sync_named", "sync_named", wgmma::the_whole_way_of_a_tile),
    ("wgmma_ring.cu", "sync_named(1 + group, 128);", "", wgmma::the_whole_way_of_a_tile),
];

const COPIES: &[Bug] = &[
    ("tma.cu", "fence_proxy_async_global();", "", tma::what_another_cta_wrote_is_fetched),
    ("tma.cu", "load_acquire(counter + 1)", "load_relaxed(counter + 1)", tma::what_another_cta_wrote_is_fetched),
    ("tma.cu", "if (lane == 31) bulk_wait_read<1>();", "", tma::a_ring_between_the_copy_engine_and_warps),
    (
        "tma.cu",
        "      fence_proxy_async_shared();\n      sync_warp();",
        "      sync_warp();\n      fence_proxy_async_shared();",
        tma::a_ring_between_the_copy_engine_and_warps,
    ),
    ("tma.cu", "if (threadIdx.x == 0) bulk_wait<0>();", "", tma::boxes_go_to_tensors_and_are_clipped),
    ("copy_async.cu", "copy_async_wait<stages - 2>()", "copy_async_wait<stages - 1>()", copy_async::a_ring_of_stages),
    ("copy_async.cu", "- 2>();\n    sync_block();", "- 2>();", copy_async::a_ring_of_stages),
];

const BARRIERS: &[Bug] = &[
    ("mbarrier.cu", "mbarrier_wait(empty + 8 * stage, phase ^ 1);", "", mbarrier::writers_and_readers_over_a_ring),
    ("mbarrier.cu", "mbarrier_wait(full + 8 * stage, phase);", "", mbarrier::writers_and_readers_over_a_ring),
    (
        "multicast.cu",
        "map_shared(empty + 8 * stage, other)",
        "map_shared(empty + 8 * stage, cluster_rank())",
        cluster::one_fetch_for_two_ctas,
    ),
    (
        "multicast.cu",
        "cluster_sync();\n  const u32 rank",
        "sync_block();\n  const u32 rank",
        cluster::one_fetch_for_two_ctas,
    ),
    ("cluster.cu", "* thread;\n  cluster_sync();", "* thread;", cluster::words_of_other_ctas),
    ("cluster.cu", "  cluster_arrive();\n  cluster_wait();", "  sync_block();", cluster::words_of_other_ctas),
    ("cluster.cu", "if (round != 0) mbarrier_wait(barrier, (round - 1) % 2);", "", cluster::arrivals_at_another_cta),
];

fn all_found(bugs: &[Bug]) {
    if sanitized() {
        return; // what finds them is in the other builds
    }
    for (file, original, planted, test) in bugs {
        assert!(fails_with(file, original, planted, *test), "{file}: '{planted}' for '{original}' passes");
    }
}

#[test]
fn bugs_in_a_product_are_found() {
    all_found(WGMMA);
}

#[test]
fn bugs_in_copies_are_found() {
    all_found(COPIES);
}

#[test]
fn bugs_in_barriers_are_found() {
    all_found(BARRIERS);
}
